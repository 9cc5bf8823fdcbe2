"""Sections on why a run answers as it does: heat maps, their energy, the sanity check, features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leukoscope import files
from leukoscope.report import feature_map, pictures
from leukoscope.report.inputs import Run
from leukoscope.report.numbers import (
    clean,
    count,
    difference,
    estimate,
    listing,
    measured,
    number,
    percent,
)
from leukoscope.report.page import (
    Block,
    Cell,
    Missing,
    Paragraph,
    Pictures,
    Plot,
    Section,
    Table,
)

NAME, TITLE = "explanations", "Explanations (Grad-CAM)"
SHOWN, SHOWN_NEIGHBOURS, WIDE = 8, 4, 560  # pictures of a kind; px of their longer side


def explanations(run: Run) -> Section:
    """Right and wrong answers with their heat maps, and what else `explain` found."""
    folder = run.folder / "explain"
    again = f"leukoscope explain {run.folder.name} -o {run.folder.name}/explain"
    entries = _entries(run)
    maps = _heat_maps(folder, [entry for entry in entries if entry["file"]])
    text = "No heat maps were made; to see where the model looks, run"
    blocks: list[Block] = [*maps, *_energy(folder)] if maps else [Missing(text, again)]
    blocks += _sanity(folder, again) if maps else []
    features = feature_map.read(folder)
    if features is not None:
        blocks.append(Plot([feature_map.draw(features)], feature_map.conclusion(features)))
    elif maps:
        text = "No map of the features was made; to see which classes the model tells apart, run"
        blocks.append(Missing(text, f"{again} --tsne"))
    return Section(NAME, TITLE, [*blocks, *_neighbours(folder, entries)])


def _entries(run: Run) -> list[dict[str, Any]]:
    """explain.json, each with text for image, file, neighbours_file, label and predicted."""
    labels: dict[str, str] = {}
    if run.cells is not None:
        labels = dict(zip(run.cells["image"], run.cells["label"], strict=True))
    found = []
    for item in run.explanations:
        if not isinstance(item, Mapping) or "predicted" not in item:
            continue
        image = _inside(str(item.get("image", "")), run.root)
        # The pictures lie in the run's own folder whatever explain.json says.
        given = {
            key: str(item.get(key) or "").replace("\\", "/").rpartition("/")[2]
            for key in ("file", "neighbours_file")
        }
        label = str(item.get("label") or labels.get(image, ""))
        found.append({**item, **given, "image": image, "label": label,
                      "predicted": str(item["predicted"])})  # fmt: skip
    return found


def _inside(image: str, root: Path | None) -> str:
    """The image's name relative to the index's root, as in the index."""
    if root is not None and Path(image).is_relative_to(root):
        return Path(image).relative_to(root).as_posix()
    return image


# --- heat maps ------------------------------------------------------------------------------------


def _heat_maps(folder: Path, entries: Sequence[Mapping[str, Any]]) -> list[Block]:
    kinds = {
        "wrong answers": [e for e in entries if e["label"] and e["label"] != e["predicted"]],
        "right answers": [e for e in entries if e["label"] and e["label"] == e["predicted"]],
        "answers on images without a label": [e for e in entries if not e["label"]],
    }
    blocks: list[Block] = []
    for kind, part in kinds.items():
        items = [(e["file"], _alt(e), _lines(e)) for e in part[:SHOWN]]
        shown = pictures.gallery(folder, items, WIDE)
        if shown:
            blocks.append(Pictures(shown, _maps_say(kind, len(shown), part), size="wide"))
    return blocks


def _alt(entry: Mapping[str, Any]) -> str:
    label = entry["label"] or "unknown"
    return f"Grad-CAM of {entry['image']}: labelled {label}, predicted {entry['predicted']}"


def _lines(entry: Mapping[str, Any]) -> list[str]:
    sure = number(entry.get("confidence"))
    true = f"true: {entry['label']}, " if entry["label"] else ""
    said = f"{true}predicted: {entry['predicted']}"
    return [entry["image"].rpartition("/")[2], said + (f" ({percent(sure)})" if sure else "")]


def _maps_say(kind: str, shown: int, part: Sequence[Mapping[str, Any]]) -> str:
    text = f"{count(shown, 'heat map')} of {kind}"
    text += f" ({len(part):,} were made). " if shown < len(part) else ". "
    text += "Warm regions raised the predicted class most; white lines are the nucleus and the box "
    text += "of its cell. Warmth outside means that the answer rests on something else"
    pairs = [(number(e.get("energy_in_cell")), number(e.get("cell_area"))) for e in part]
    known = [(inside, area) for inside, area in pairs if inside is not None and area is not None]
    if known:
        on = sum(inside > area for inside, area in known)
        text += f": in {on} of {len(known)} the cell holds more of the heat than its share of "
        text += "the picture"
    return f"{text}."


def _energy(folder: Path) -> list[Block]:
    """The share of the heat in cell and nucleus beside their area, and what follows."""
    rows = [r for r in _list(folder / "energy.json") if isinstance(r, Mapping)]
    rows = [r for r in rows if estimate(r.get("energy"))[0] is not None]
    if not rows:
        text = "How much of the heat lies in the cell is unknown: no nucleus was found in these "
        return [Paragraph(f"{text}images, and no masks were given.")]
    cells: list[list[Cell | str]] = []
    for row in rows:
        value, limits = estimate(row["energy"])
        more, its = estimate(row.get("beyond_area"))
        area = number(row.get("area"))
        cells.append(
            [
                clean(row.get("network", "")), f"{row.get('answers', '')}, {row.get('region', '')}",
                str(row["energy"].get("n", "")), measured("share", value or 0, limits),
                _known(None if area is None else percent(area)),
                _known(None if more is None else difference("share", more, its)),
            ]
        )  # fmt: skip
    head = ["Network", "Answers, region", "Images", "Heat inside", "Its area", "Beyond its area"]
    units = " and ".join(sorted({str(row.get("unit", "image")) for row in rows}))
    caption = f"{_energy_says(rows)} Means with 95% intervals by {units}."
    return [Table(caption, head, cells, frozenset({1}))]


def _known(text: str | None) -> Cell | str:
    return Cell("undefined", "no image allows it") if text is None else text


def _energy_says(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence a network: does the heat lie on the cell more than by chance?"""
    says = []
    for row in rows:
        if (row.get("answers"), row.get("region")) != ("all", "cell"):
            continue
        value, area = estimate(row["energy"])[0], number(row.get("area"))
        _, limits = estimate(row.get("beyond_area"))
        low, high = (number(limit) for limit in limits or (None, None))
        name = clean(row.get("network", "The network"))
        if value is None or area is None or low is None or high is None:
            unit = clean(row.get("unit", "image"))
            says.append(f"Too few {unit}s to say whether {name} looks at the cell.")
            continue
        shares = f"{percent(value)} of the heat in {percent(area)} of the picture"
        if low > 0:
            says.append(f"{name} looks at the cell more than chance would: {shares}.")
        elif high < 0:
            says.append(f"{name} looks past the cell: {shares}; look for a shortcut.")
        else:
            says.append(f"{name} looks at the cell no more than chance would: {shares}.")
    return " ".join(says)


# --- sanity check, neighbours ---------------------------------------------------------------------


def _sanity(folder: Path, again: str) -> list[Block]:
    """Whether the heat maps depend on what was learned."""
    path = folder / "sanity.json"
    found = files.read_json(path) if path.is_file() else None
    networks = found.get("networks") if isinstance(found, Mapping) else None
    rows: list[list[Cell | str]] = []
    for entry in networks if isinstance(networks, list) else ():
        if isinstance(entry, Mapping):
            rows.append([clean(entry.get("network", "")), _rank(entry, "head"),
                         _rank(entry, "whole")])  # fmt: skip
    if not isinstance(found, Mapping) or not rows:
        text = "Whether the heat maps depend on what was learned was not checked; to check it, run"
        return [Missing(text, f"{again} --sanity")]
    limit = number(found.get("limit"))
    caption = (
        f"{clean(found.get('says', ''))} Rank correlation (Spearman) of the maps with those of "
        f"random weights, on {count(int(number(found.get('images')) or 0), 'image')}, with 95% "
        f"intervals; 1 is no change{'' if limit is None else f', passed is below {limit:g}'} "
        "(Adebayo et al. 2018)."
    )
    head = ["Network", "Last layers random", "All weights random"]
    return [Table(caption, head, rows)]


def _rank(entry: Mapping[str, Any], part: str) -> Cell | str:
    value, limits = estimate(entry.get(part))
    if value is None:
        return Cell("undefined", clean(entry.get("why") or "no map has ranks"))
    return measured("mcc", value, limits)  # written as a plain decimal, as all correlations


def _neighbours(folder: Path, entries: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The nearest training cells of wrong answers first."""
    given = [e for e in entries if e["neighbours_file"] and isinstance(e.get("neighbours"), list)]
    given.sort(key=lambda e: e["label"] == e["predicted"])
    shown = pictures.gallery(
        folder,
        [(e["neighbours_file"], f"Nearest training cells of {e['image']}", _lines(e))
         for e in given[:SHOWN_NEIGHBOURS]],
        WIDE,
    )  # fmt: skip
    if not shown:
        return []
    near = [(e, [n.get("label") for n in e["neighbours"] if isinstance(n, Mapping)]) for e in given]
    agree = [labels.count(e["predicted"]) / len(labels) for e, labels in near if labels]
    text = "The training cells that look most alike to the model, nearest first. "
    if agree:
        text += f"On average {percent(sum(agree) / len(agree))} of them carry the predicted class: "
    text += listing(
        [
            "where they do, the model has seen such cells",
            "where they do not, its answer has little to stand on",
        ]
    )
    return [Pictures(shown, f"{text}.", size="wide")]


def _list(path: Path) -> list[Any]:
    value = files.read_json(path) if path.is_file() else []
    return value if isinstance(value, list) else []
