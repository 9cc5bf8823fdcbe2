"""`explain`: why a run or a bundle answers as it does, on images given or its own scored ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope.bundle.inference import Answers
from leukoscope.compat import require
from leukoscope.data.derived import output_folder_apart, write_png
from leukoscope.data.tree import find_images
from leukoscope.errors import InputError, UnreadableError
from leukoscope.explain import energy
from leukoscope.explain.gradcam import outlined, overlay
from leukoscope.files import write_json, write_text
from leukoscope.imaging import cells
from leukoscope.imaging.enhancement import mask_after
from leukoscope.imaging.pipeline import apply
from leukoscope.imaging.read import read_image
from leukoscope.imaging.sheet import Tile, sheet
from leukoscope.progress import track
from leukoscope.recipes import heat_maps, origins, similar
from leukoscope.recipes.heat_maps import Maps, Opened
from leukoscope.recipes.origins import Origins
from leukoscope.recipes.similar import Say, Training

TILE, COLUMNS = 200, 3  # small inputs are enlarged to this or somewhat more, px
EXAMPLES = 8  # right and wrong answers each, where no images are given
CHECKED = 12  # images of the sanity check
REGIONS = ("cell", "nucleus")


@dataclass(frozen=True)
class _Job:
    """All that explaining one image needs."""

    opened: Opened
    origins: Origins | None
    maps: Maps | None
    masks: Path | None
    training: Training | None
    neighbours: int
    out: Path
    say: Say


def explain(
    source: Path,
    images: Sequence[str | Path],
    out: Path,
    *,
    masks: Path | None = None,
    sanity: bool = False,
    tsne: bool = False,
    neighbours: int = 0,
    say: Say = lambda _: None,
) -> list[dict[str, Any]]:
    """Write a picture an image, explain.json and energy.json: the image as it is, as the networks
    got it, then under the Grad-CAM of its predicted class, of each network where there are several.

    source: a run or a bundle. images: files, folders, globs; none: of a run the surest errors and
    some right answers of its scored part. masks: a folder of nucleus masks of the images' stems;
    without it those of the run's index, else the nucleus is segmented. sanity: also sanity.json,
    whether maps change with random weights. tsne: also tsne.csv, of the given images, or else of
    the whole scored part. neighbours: so many nearest training images of each image. say: gets
    remarks.

    Returns explain.json (docs/files.md). Raises InputError where no file could be read, or what was
    asked for needs the run, torch or its training images.
    """
    if masks is not None and not masks.is_dir():
        raise InputError(
            f"There is no folder of masks {masks}",
            fix="Make one with: leukoscope segment DIR -o MASKS",
            field="masks",
        )
    opened = heat_maps.open_source(source)
    if tsne:
        require("openTSNE", "train")
    known = origins.of_run(source)
    paths = find_images(images) if images else _examples(source, known)
    output_folder_apart(out, paths)
    maps = _maps(opened, say, needed=not (tsne or neighbours) or sanity)
    training = None
    if neighbours:
        training = similar.training_features(source, opened.reader, known, say)
    job = _Job(opened, known, maps, masks, training, neighbours, out, say)
    if sanity:  # first, since it fails where the run isn't at hand
        checked = _sanity(opened, paths)
        write_json(out / "sanity.json", checked)
        say(checked["says"])
    found, said = _all(job, paths)
    write_json(out / "explain.json", found)
    if not said:
        raise InputError(
            f"None of {len(paths)} files could be read: {found[0]['why']}",
            fix="Give JPEG, PNG, TIFF or BMP images.",
            field="images",
        )
    write_json(out / "energy.json", _energies(found, opened.names))
    if tsne:
        _tsne(job, said if images else None)
    return found


def _maps(opened: Opened, say: Say, *, needed: bool) -> Maps | None:
    """The heat maps; None, with a remark, where there are none and other things were asked for."""
    try:
        return heat_maps.maps_of(opened)
    except InputError as problem:
        if needed:
            raise
        say(f"{problem.message}. {problem.fix}")
        return None


def _examples(source: Path, known: Origins | None) -> list[Path]:
    """The surest errors of a run's scored part, then right answers from the surest to the least."""
    if known is None or known.scored.empty:
        raise InputError(
            f"No images were given, and those that {source} was scored on are not known here",
            fix="Give images, folders of images, or a glob such as 'smear/*.jpg'.",
            field="images",
        )
    ranked = known.scored.sort_values("confidence", ascending=False, kind="stable")
    right = ranked[ranked["label"] == ranked["predicted"]]
    wrong = ranked[ranked["label"] != ranked["predicted"]].head(EXAMPLES)
    spread = np.linspace(0, len(right) - 1, min(EXAMPLES, len(right))).round().astype(int)
    names = [*wrong["image"], *right["image"].iloc[spread]]
    return known.paths(names)  # those that lie there no more are listed as unreadable


def _all(job: _Job, paths: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[Path, Answers]]:
    """An entry of explain.json for each file, and what the model says of each readable one."""
    found: list[dict[str, Any]] = []
    said: dict[Path, Answers] = {}
    for number, path in enumerate(track(paths, "Explanations")):
        try:
            image = read_image(path)
        except UnreadableError as problem:
            found.append({"image": str(path), "why": problem.message})
            continue
        entry, said[path] = _one(job, path, image, f"{number:04d}-{path.stem[:60]}")
        found.append(entry)
    return found, said


def _one(
    job: _Job, path: Path, image: np.ndarray, stem: str
) -> tuple[dict[str, Any], Answers]:  # fmt: skip
    """The entry of one image, its pictures written."""
    prepared = job.opened.reader.prepare(image)
    heats: list[np.ndarray] = []
    if job.maps is None:
        answer = job.opened.reader.answer(prepared[None])
    else:
        answer, heats = job.maps(prepared)
    best = int(answer.probs[0].argmax())
    row = job.origins.row(path) if job.origins else None
    entry: dict[str, Any] = {
        "image": str(path),
        "label": row["label"] if row else None,
        "patient": row["patient"] if row else None,
        "predicted": job.opened.contract.classes[best],
        "confidence": float(answer.probs[0, best]),
    }
    if heats:
        regions, about = _regions(job, path, image, row)
        entry |= {"file": f"{stem}.png", **about, **_shares(heats, regions, job.opened.names)}
        picture = _picture(job, image, heats, regions, entry["maps"])
        write_png(job.out / entry["file"], picture[..., ::-1])
    if job.training is not None:
        entry |= _neighbours(job, job.training, path, image, answer, stem, entry)
    return entry, answer


# --- energy ---------------------------------------------------------------------------------------


def _regions(
    job: _Job, path: Path, image: np.ndarray, row: dict[str, Any] | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Masks of the cell and of its nucleus as the network saw them, bool (h, w), and what
    explain.json says of them; no masks, with the reason, where no nucleus is known."""
    mask, came_from, why = _nucleus(job, path, image, row)
    if mask is None or not mask.any():
        return {}, {"nucleus": None, "why_no_energy": why or "no nucleus was found"}
    chain = job.opened.contract.preprocessing
    regions = {"cell": mask_after(energy.cell_of(mask), chain), "nucleus": mask_after(mask, chain)}
    shares = {f"{name}_area": float(region.mean()) for name, region in regions.items()}
    return regions, {"nucleus": came_from, **shares}


def _nucleus(
    job: _Job, path: Path, image: np.ndarray, row: dict[str, Any] | None
) -> tuple[np.ndarray | None, str, str]:
    """The nucleus, bool (H, W) of the image as it is, whether by `mask` or `segmentation`, or why
    it is unknown."""
    if job.masks is not None:
        place = job.masks / f"{path.stem}.png"
    elif job.origins and row and row.get("mask"):
        place = job.origins.index.path(row["mask"])
    else:
        return cells.main_nucleus(image), "segmentation", ""
    try:
        mask = read_image(place)[:, :, 0] > 127
    except UnreadableError as problem:
        return None, "", f"{place}: {problem.message}"
    if mask.shape != image.shape[:2]:
        sizes = [f"{size[1]}x{size[0]}" for size in (mask.shape, image.shape)]
        return None, "", f"{place} is {sizes[0]}, its image {sizes[1]}"
    return cells.main_of(mask), "mask", ""


def _shares(
    heats: Sequence[np.ndarray], regions: dict[str, np.ndarray], names: Sequence[str]
) -> dict[str, Any]:
    """`maps`: energy_in_cell and energy_in_nucleus of each network; and their means."""
    maps: list[dict[str, Any]] = [
        {"network": name, "grid": list(heat.shape)}
        | {f"energy_in_{r}": energy.share(heat, regions[r]) if regions else None for r in REGIONS}
        for name, heat in zip(names, heats, strict=True)
    ]
    means = {
        key: energy.mean_interval([each[key] for each in maps])["value"]
        for key in (f"energy_in_{region}" for region in REGIONS)
    }
    why = {"why_no_energy": "nothing speaks for the class"}
    return means | {"maps": maps} | (why if regions and means["energy_in_cell"] is None else {})


def _energies(found: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """energy.json: of each network, for all answers, right and wrong ones, and each region the mean
    energy in it, its mean area, and the energy beyond the area, with intervals by patient."""
    seen = [entry for entry in found if "maps" in entry]
    parts = {"all": seen}
    for name, right in (("right", True), ("wrong", False)):
        parts[name] = [e for e in seen if e["label"] and (e["label"] == e["predicted"]) == right]
    rows = []
    for place, network in enumerate(names):
        for answers, part in parts.items():
            for region in REGIONS:
                rows.append({"network": network, "answers": answers, "region": region}
                            | _energy_row(part, place, region))  # fmt: skip
    return [row for row in rows if row["energy"]["n"]]


def _energy_row(part: Sequence[dict[str, Any]], place: int, region: str) -> dict[str, Any]:
    known = [e for e in part if e["maps"][place][f"energy_in_{region}"] is not None]
    inside = [e["maps"][place][f"energy_in_{region}"] for e in known]
    area = [e[f"{region}_area"] for e in known]
    patients = [e["patient"] for e in known]
    beyond = [a - b for a, b in zip(inside, area, strict=True)]
    return {
        "unit": "patient" if set(patients) - {None} else "image",
        "energy": energy.mean_interval(inside, patients),
        "area": energy.mean_interval(area, patients)["value"],
        "beyond_area": energy.mean_interval(beyond, patients),
    }


def _picture(
    job: _Job, image: np.ndarray, heats: Sequence[np.ndarray], regions: dict[str, np.ndarray],
    maps: Sequence[dict[str, Any]],
) -> np.ndarray:  # fmt: skip
    """The image, what the networks saw, and each heat map on it, in tiles of one size."""
    seen = apply(image, job.opened.contract.preprocessing)
    scale = -(-TILE // max(seen.shape[:2]))
    tiles: list[Tile] = [("as it is", image), ("as the network saw it", seen)]
    for heat, entry in zip(heats, maps, strict=True):
        inside = [entry[f"energy_in_{region}"] for region in REGIONS]
        shares = [f"{r} {v:.0%}" for r, v in zip(REGIONS, inside, strict=True) if v is not None]
        says = f"heat: {', '.join(shares)}" if shares else ""
        if not heat.any():
            says = "nothing speaks for the class"
        drawn = outlined(overlay(seen, heat), list(regions.values()), scale)
        tiles.append((f"{entry['network']}\n{says}", drawn))
    return sheet(tiles, columns=COLUMNS, side=scale * max(seen.shape[:2]))


# --- the rest -------------------------------------------------------------------------------------


def _neighbours(
    job: _Job, training: Training, path: Path, image: np.ndarray, answer: Answers, stem: str,
    entry: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """`neighbours` and `neighbours_file` of an image, its contact sheet written."""
    found = similar.neighbours(answer, path, training, job.neighbours)
    file = f"{stem}-neighbours.png"
    title = f"{path.name}\npredicted {entry['predicted']}"
    gone = similar.neighbour_sheet(image, title, found, job.out / file)
    if gone:
        job.say(f"{len(gone)} neighbours of {path.name} can't be read and have no picture: "
                f"{gone[0]} …")  # fmt: skip
    return {"neighbours": found, "neighbours_file": file}


def _sanity(opened: Opened, paths: Sequence[Path]) -> dict[str, Any]:
    said, images = [], []
    for path in paths:
        try:
            images.append(opened.reader.prepare(read_image(path)))
        except UnreadableError:
            continue
        said.append(int(opened.reader.answer(images[-1][None]).probs[0].argmax()))
        if len(said) == CHECKED:
            break
    if not said:
        raise InputError(
            f"None of {len(paths)} files could be read",
            fix="Give JPEG, PNG, TIFF or BMP images.",
            field="images",
        )
    return heat_maps.sanity(opened, np.stack(images), said)


def _tsne(job: _Job, said: dict[Path, Answers] | None) -> None:
    """tsne.csv of what was `said` of given images, or else of a run's scored part."""
    reader, known = job.opened.reader, job.origins
    if said is None:
        assert known is not None, "else there were no examples"
        paths = known.paths(known.scored["image"].tolist())
        read = track(reader.read(paths), "Features for t-SNE", total=len(paths))
        said = {path: answer for path, answer in read if isinstance(answer, Answers)}
        if gone := len(paths) - len(said):
            job.say(f"{gone} of {len(paths)} scored images can't be read and are passed over.")
    rows = {path: known.row(path) if known else None for path in said}
    frame = similar.tsne_table(
        said,
        {path: row["label"] if row else None for path, row in rows.items()},
        reader.contract.classes,
        {path: row["image"] if row else str(path) for path, row in rows.items()},
        reader.contract.origin.seed,
    )
    write_text(job.out / "tsne.csv", frame.to_csv(index=False, lineterminator="\n"))
