"""A synthetic smear as a data set: the embedded default of the product, with known faults planted.

Nothing in it is a photograph. Cells are drawn by `synthetic_cells`, seen through the microscope of
`synthetic_scene`; this module deals them out to patients, plants leaks, and writes the files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from leukoscope.data.synthetic_cells import ANATOMIES
from leukoscope.data.synthetic_scene import (
    Scene,
    Slide,
    field_of_view,
    random_slide,
    single_cell,
    sister_slide,
)
from leukoscope.errors import InputError
from leukoscope.files import atomic, explain_os_errors, output_folder, write_json, write_text
from leukoscope.progress import track

Array = np.ndarray
CLASSES = tuple(sorted(ANATOMIES))
# Shares of the classes; rarer ones are commoner than in blood, so that each can be learned.
_SHARES = {
    "basophil": 0.10,
    "eosinophil": 0.14,
    "lymphocyte": 0.20,
    "monocyte": 0.15,
    "myeloblast": 0.15,
    "neutrophil": 0.26,
}
_SLIDES = 2  # a patient
_FIELDS = 4
_FIELD_SHAPE = (480, 640)
_FIELD_PIXELS_PER_UM = 5.2
_FEWEST_WITH_LEAKS = 20
# Streams of random numbers: default_rng([seed, stream, index]) depends on nothing else.
_CELL_STREAM, _PATIENT_STREAM, _FIELD_STREAM, _PLAN_STREAM, _COPY_STREAM = range(5)

_README = """Synthetic blood smear made by Leukoscope

Every image in this folder is synthetic: drawn by a program from the textbook morphology of white
blood cells. None is a photograph, none comes from a patient; "patients" are sets of drawing
parameters (stain, light, red cells). Not for diagnosis, nor for judging a classifier's worth on
real cells.

Made by: leukoscope.data.synthetic.make(out, images={images}, size={size}, patients={patients}, \
seed={seed}, leaks={leaks})
The same call writes the same files.

How: red cells, platelets and white cells are laid down as maps of four absorbing substances (azure
on chromatin and basophilic granules, methylene blue, eosin, haemoglobin); light of the background's
colour passes them by the law of Beer and Lambert; defocus, uneven illumination, glare and sensor
noise follow. Each patient has an own stain and two slides.

images/<class>/   one white cell each, JPEG, {size} x {size} pixels
masks/<class>/    its nucleus, PNG of 0 and 255
cells.csv         image, label, patient, slide, mask (paths relative to the file)
fields/           whole fields of view; fields.csv has a box in pixels for each white cell
masks/fields/     the nuclei of the fields
planted.json      the truth: which images are duplicates, mislabelled or damaged on purpose
"""


@dataclass(frozen=True)
class _Cell:
    """One image to be drawn, or to be copied from `source` in the way `how`."""

    number: int
    label: str
    patient: int
    slide: int
    source: _Cell | None = None
    how: str = ""

    @property
    def name(self) -> str:
        return f"{self.label}/{_patient_name(self.patient)}_{self.number:05d}"

    @property
    def image(self) -> str:
        return f"images/{self.name}.jpg"

    @property
    def mask(self) -> str:
        return f"masks/{self.name}.png"


def _patient_name(patient: int) -> str:
    return f"P{patient + 1:02d}"


def _slide_name(patient: int, slide: int) -> str:
    return f"{_patient_name(patient)}-{'AB'[slide]}"


def make(
    out: Path,
    *,
    images: int = 500,
    size: int = 224,
    patients: int = 8,
    seed: int = 0,
    leaks: bool = True,
) -> Path:
    """Write a synthetic smear to the folder `out`; returns the path of its `cells.csv`.

    `images` rows in all, planted ones among them; `size` pixels a side. Each patient has cells of
    every class where `images` allows it (about 6 * `patients`). With `leaks`, about 1 % each of
    exact and of near duplicates, half of them under another patient, one label conflict and one
    truncated file; `planted.json` lists them, all paths as in `cells.csv`. The bytes depend on the
    arguments alone. An earlier synthetic smear in `out` is replaced. Raises InputError for
    arguments out of range, and where `out` holds images that this function didn't write.
    """
    _check("images", images, _FEWEST_WITH_LEAKS if leaks else 1, 1_000_000)
    _check("size", size, 32, 2048)
    _check("patients", patients, 1, 1000)
    _check("seed", seed, 0, 2**63 - 1)
    out = output_folder(Path(out))
    _clear(out)
    drawn, copies = _plan(images, patients, seed, leaks)
    damaged = drawn[:1] if leaks else []
    slides = [_slides(patient, seed) for patient in range(patients)]
    # First of all, so that a smear cut short is known as ours; cells.csv comes last.
    write_json(out / "planted.json", _truth(drawn, copies, damaged, seed))
    write_text(
        out / "README.txt",
        _README.format(images=images, size=size, patients=patients, seed=seed, leaks=leaks),
    )

    def draw(cell: _Cell) -> None:
        rng = np.random.default_rng([seed, _CELL_STREAM, cell.number])
        scene = single_cell(cell.label, slides[cell.patient][cell.slide], size, rng)
        _write(out, cell.image, cell.mask, scene)

    with explain_os_errors(out):
        for folder in ("images", "masks"):
            for label in CLASSES:
                (out / folder / label).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            for _ in track(pool.map(draw, drawn), "Drawing cells", total=len(drawn)):
                pass
        for cell in copies:
            _copy(out, cell, seed)
        for cell in damaged:
            whole = (out / cell.image).read_bytes()
            (out / cell.image).write_bytes(whole[: len(whole) // 3])
        _write_fields(out, slides, seed)
    return _write_table(out, [*drawn, *copies])


def _check(name: str, got: int, least: int, most: int) -> None:
    if not least <= got <= most:
        raise InputError(
            f"{name} is {got}; allowed: {least} to {most}",
            fix=f"Give {name} a value from {least} to {most}.",
            field=name,
        )


def _clear(out: Path) -> None:
    """Remove an earlier synthetic smear; InputError where the folder holds something else."""
    ours = [out / name for name in ("images", "masks", "fields")]
    if not (out / "planted.json").is_file():
        if any(path.exists() for path in [*ours, out / "cells.csv"]):
            raise InputError(
                f"{out} already holds images that are no synthetic smear",
                fix="Choose another output folder.",
                field="out",
            )
        return
    with explain_os_errors(out):
        (out / "cells.csv").unlink(missing_ok=True)
        for path in ours:
            if path.exists():
                shutil.rmtree(path)


def _slides(patient: int, seed: int) -> list[Slide]:
    rng = np.random.default_rng([seed, _PATIENT_STREAM, patient])
    first = random_slide(rng)
    return [first, *(sister_slide(first, rng) for _ in range(_SLIDES - 1))]


def _plan(images: int, patients: int, seed: int, leaks: bool) -> tuple[list[_Cell], list[_Cell]]:
    """The cells to draw, in random order, and the copies to plant."""
    rng = np.random.default_rng([seed, _PLAN_STREAM])
    each = max(2, round(0.01 * images)) if leaks else 0
    count = images - (2 * each + 1 if leaks else 0)
    shares = np.array([_SHARES[label] for label in CLASSES])
    by_patient = rng.dirichlet(30 * shares, patients)
    drawn = []
    for number in range(count):
        # The first round gives every patient a cell of every class.
        turn, patient = divmod(number, patients)
        if turn >= len(CLASSES):
            patient = int(rng.integers(patients))
            turn = int(rng.choice(len(CLASSES), p=by_patient[patient]))
        drawn.append(_Cell(number, CLASSES[turn], patient, int(rng.integers(_SLIDES))))
    drawn = [drawn[i] for i in rng.permutation(count)]
    return drawn, _copies(drawn[1:], each, patients, rng) if leaks else []


def _copies(
    originals: list[_Cell], each: int, patients: int, rng: np.random.Generator
) -> list[_Cell]:
    """`each` exact and `each` near copies of the first originals, then one label conflict.

    Every other copy is put under another patient. The last near copy shares the first one's
    original where there are three or more, so that one group has three images.
    """
    ways = ["exact"] * each + [list(_ALTERATIONS)[i % len(_ALTERATIONS)] for i in range(each)]
    sources = originals[: 2 * each]
    if each > 2:
        sources[-1] = sources[each]
    ways.append("relabelled")
    sources = [*sources, originals[2 * each]]
    copies = []
    for i, (source, how) in enumerate(zip(sources, ways, strict=True)):
        patient, slide, label = source.patient, source.slide, source.label
        if how == "relabelled":
            label = str(rng.choice([other for other in CLASSES if other != label]))
        elif i % 2 and patients > 1:
            patient = (patient + int(rng.integers(1, patients))) % patients
        number = len(originals) + 1 + i
        copies.append(_Cell(number, label, patient, slide, source, how))
    return copies


def _truth(
    drawn: list[_Cell], copies: list[_Cell], damaged: list[_Cell], seed: int
) -> dict[str, Any]:
    """What `planted.json` says; a label conflict is an exact duplicate too."""
    groups: dict[str, list[_Cell]] = {}
    for copy in copies:
        assert copy.source is not None
        groups.setdefault(copy.source.image, [copy.source]).append(copy)
    exact: list[list[str]] = []
    near: list[list[str]] = []
    conflicts: list[list[str]] = []
    across: list[list[str]] = []
    for group in groups.values():
        names = sorted(cell.image for cell in group)
        (exact if group[1].how in _SAME_BYTES else near).append(names)
        if len({cell.label for cell in group}) > 1:
            conflicts.append(names)
        if len({cell.patient for cell in group}) > 1:
            across.append(names)
    table = pd.DataFrame(
        [(_patient_name(c.patient), c.label) for c in [*drawn, *copies]],
        columns=["patient", "label"],
    )
    return {
        "synthetic": True,
        "seed": seed,
        "exact_duplicates": sorted(exact),
        "near_duplicates": sorted(near),
        "label_conflicts": sorted(conflicts),
        "duplicates_across_patients": sorted(across),
        "altered": {c.image: c.how for c in copies if c.how not in _SAME_BYTES},
        "corrupt": [cell.image for cell in damaged],
        "patients": {
            patient: rows["label"].value_counts().sort_index().to_dict()
            for patient, rows in table.groupby("patient")
        },
    }


def _write(out: Path, image: str, mask: str, scene: Scene) -> None:
    (out / image).write_bytes(_jpeg(scene.image))
    (out / mask).write_bytes(_png(scene.mask))


def _jpeg(image: Array, quality: int = 95) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


def _png(mask: Array) -> bytes:
    return bytes(cv2.imencode(".png", mask)[1].tobytes())


def _rotated(image: Array, _: np.random.Generator) -> Array:
    return np.rot90(image)


def _mirrored(image: Array, _: np.random.Generator) -> Array:
    return image[:, ::-1]


def _brightened(image: Array, rng: np.random.Generator) -> Array:
    if image.ndim == 2:  # a mask
        return image
    return np.clip(image * rng.uniform(1.06, 1.1), 0, 255).astype(np.uint8)


def _cropped(image: Array, rng: np.random.Generator) -> Array:
    size = image.shape[0]
    side = max(1, round(0.92 * size))
    top, left = rng.integers(0, size - side + 1, 2)
    part = image[top : top + side, left : left + side]
    method = cv2.INTER_CUBIC if image.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(part, (size, size), interpolation=method)


def _unaltered(image: Array, _: np.random.Generator) -> Array:
    return image


_ALTERATIONS = {
    "rotated": _rotated,
    "mirrored": _mirrored,
    "brightened": _brightened,
    "cropped": _cropped,
    "re-encoded": _unaltered,
}
_SAME_BYTES = {"exact", "relabelled"}


def _copy(out: Path, cell: _Cell, seed: int) -> None:
    """Write a copy's image and mask from its source's files, altered alike."""
    assert cell.source is not None
    if cell.how in _SAME_BYTES:
        shutil.copyfile(out / cell.source.image, out / cell.image)
        shutil.copyfile(out / cell.source.mask, out / cell.mask)
        return
    image = cv2.imread(str(out / cell.source.image), cv2.IMREAD_COLOR_RGB)
    mask = cv2.imread(str(out / cell.source.mask), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    assert mask is not None
    # Image and mask are altered by the same draws.
    altered, altered_mask = (
        np.ascontiguousarray(
            _ALTERATIONS[cell.how](part, np.random.default_rng([seed, _COPY_STREAM, cell.number]))
        )
        for part in (image, mask)
    )
    quality = 75 if cell.how == "re-encoded" else 95
    (out / cell.image).write_bytes(_jpeg(altered, quality))
    (out / cell.mask).write_bytes(_png(altered_mask))


def _write_fields(out: Path, slides: list[list[Slide]], seed: int) -> None:
    """Write fields of view of the first patients, their nuclei and the cells' boxes."""
    for folder in ("fields", "masks/fields"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(_FIELDS):
        rng = np.random.default_rng([seed, _FIELD_STREAM, i])
        patient = i % len(slides)
        labels = [str(label) for label in rng.choice(CLASSES, int(rng.integers(5, 8)))]
        scene = field_of_view(labels, slides[patient][0], _FIELD_SHAPE, _FIELD_PIXELS_PER_UM, rng)
        name = f"field_{i + 1}"
        _write(out, f"fields/{name}.jpg", f"masks/fields/{name}.png", scene)
        known = (f"{name}.jpg", _patient_name(patient), _slide_name(patient, 0))
        rows += [(*known, *box) for box in scene.boxes]
    columns = ["field", "patient", "slide", "label", "x", "y", "width", "height"]
    _write_csv(out / "fields" / "fields.csv", columns, rows)


def _write_table(out: Path, cells: list[_Cell]) -> Path:
    rows = sorted(
        (c.image, c.label, _patient_name(c.patient), _slide_name(c.patient, c.slide), c.mask)
        for c in cells
    )
    path = out / "cells.csv"
    _write_csv(path, ["image", "label", "patient", "slide", "mask"], rows)
    return path


def _write_csv(path: Path, columns: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
    with atomic(path) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False, lineterminator="\n")
