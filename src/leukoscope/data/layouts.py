"""How the folders of known data sets are read: from a tree of files to one row an image.

A layout is one decorated function `(src: Path) -> list[Row]`; the first line of its docstring
states the tree it expects and serves help and error messages. `@recognised` gives `--layout auto`
its test; a layout without one is used only by name. A layout that needs somewhere to put images it
unpacks takes the keyword `images`, a folder.
"""

from __future__ import annotations

import csv as csv_module
import inspect
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from leukoscope.data.table import read_table, refuse_lines
from leukoscope.data.tree import Tree, key, scan
from leukoscope.errors import InputError, some
from leukoscope.files import explain_os_errors, output_folder
from leukoscope.imaging.read import IMAGE_SUFFIXES
from leukoscope.registry import Registry, keyword_parameters


@dataclass(frozen=True)
class Row:
    """One image as a layout finds it: file, class and what is known about its origin."""

    image: Path
    label: str
    patient: str | None = None
    slide: str | None = None
    source: str | None = None
    mask: Path | None = None


Layout = Callable[..., list[Row]]
layouts: Registry[Layout] = Registry("layout")
_recognisers: dict[Layout, tuple[Callable[[Tree], bool], Callable[[Tree], bool]]] = {}

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
FIELD = "field"
"""The label of fields of view, which show many cells and so have no class."""


def recognised(
    when: Callable[[Tree], bool], *, surely: Callable[[Tree], bool] | None = None
) -> Callable[[Layout], Layout]:
    """Decorator: `auto` takes this layout where `when(tree)` holds and no other claims the tree.

    Where `surely(tree)` holds (by default where `when` does) the tree is the data set the layout is
    named after, and its licence and citation are attached.
    """

    def add(function: Layout) -> Layout:
        _recognisers[function] = (when, surely or when)
        return function

    return add


def is_data_set(name: str, tree: Tree) -> bool:
    """Whether the tree is for certain the data set that the layout `name` is named after."""
    tests = _recognisers.get(layouts[name])
    return tests is not None and all(test(tree) for test in tests)


def summary(name: str) -> str:
    """The tree that a layout expects, in one line: for help and errors."""
    return (inspect.getdoc(layouts[name]) or "").split("\n")[0].rstrip(".")


def detect(tree: Tree) -> str:
    """The name of the tree's layout; plain class folders where it is no known data set.

    Raises InputError where several known layouts fit, or where it is a file of another kind.
    """
    tests = {name: _recognisers.get(layouts[name]) for name in layouts}
    names = [name for name, test in tests.items() if test and test[0](tree)]
    if len(names) > 1:
        raise InputError(
            f"{tree.src} could be any of the layouts {', '.join(names)}",
            fix=f"Say which, for example --layout {names[0]}.",
            field="layout",
        )
    if names:
        return names[0]
    if tree.src.is_dir():
        return "folder"
    raise InputError(
        f"{tree.src} is a file; an index is made of a folder of images, a .csv or a .npz",
        fix=f"Give the folder: {tree.src.parent}",
        field="src",
    )


def parse(name: str, src: Path, images: Path) -> list[Row]:
    """The rows of `src` under the layout `name`; `images` is where unpacked images go."""
    layout = layouts[name]
    return layout(src, images=images) if "images" in keyword_parameters(layout) else layout(src)


def _images(src: Path, layout: str) -> tuple[PurePath, ...]:
    """All images under `src`, relative and sorted; InputError where there is none."""
    if not src.is_dir():
        raise _wrong(layout, src)
    files = scan(src).files
    if not files:
        raise InputError(
            f"The folder {src} holds no images (suffixes {', '.join(sorted(IMAGE_SUFFIXES))})",
            fix="Give the folder that holds the class folders.",
            field="src",
        )
    return files


def _wrong(layout: str, src: Path, odd: Mapping[str, int] | None = None) -> InputError:
    """Expected this, found that: the error of every tree that is not laid out as said."""
    if src.is_dir():
        entries = sorted(e.name for e in src.iterdir() if not e.name.startswith("."))
        found = some([name + "/" * (src / name).is_dir() for name in entries]) or "nothing"
    else:
        found = f"the file {src.name}" if src.exists() else "nothing there"
    if odd:
        found += f"; images that fit nowhere: {some([f'{n} in {at}/' for at, n in odd.items()])}"
    return InputError(
        f"{src} is not laid out as {layout!r}: expected {summary(layout)}; found {found}",
        fix="Use --layout auto, or name the layout that fits: " + ", ".join(layouts) + ".",
        field="layout",
    )


def _source(file: PurePath) -> str | None:
    """The name of a folder on the way that says train, valid or test."""
    return next((part for part in file.parts[:-1] if part.lower() in SPLITS), None)


def _labelled(layout: str, src: Path, classes: Mapping[str, str]) -> list[Row]:
    """A row for every image under a folder named after a class; others are an error."""
    rows, odd = [], Counter[str]()
    for file in _images(src, layout):
        label = _label(file, classes)
        if label is None:
            odd[str(file.parent)] += 1
        else:
            rows.append(Row(src / file, label, source=_source(file)))
    if odd:
        raise _wrong(layout, src, odd)
    return rows


def _label(file: PurePath, classes: Mapping[str, str]) -> str | None:
    """The class whose folder stands nearest to the image."""
    return next((classes[key(p)] for p in reversed(file.parts[:-1]) if key(p) in classes), None)


def _keyed(*names: str) -> dict[str, str]:
    return {key(name): name for name in names}


# --- general layouts ---------------------------------------------------------------------------


@layouts.register("folder")
def folder(src: Path) -> list[Row]:
    """`<class>/**/<image>` or `<train|valid|test>/<class>/**/<image>`.

    Folders below a class folder belong to that class. A single outer folder is passed through, and
    first-level folders named train, valid or test (or the like) become the column `source`.
    Patients are unknown: use a csv to give them.
    """
    files = _images(src, "folder")
    parts = [file.parts for file in files]
    at = 0
    # One outer folder with nothing but folders in it is packaging, not a class.
    while len({p[at] for p in parts}) == 1 and min(map(len, parts)) > at + 2:
        at += 1
    splits = [p[at].lower() in SPLITS for p in parts]
    if any(splits) and not all(splits):
        odd = Counter(str(f.parent) for f, split in zip(files, splits, strict=True) if not split)
        raise _wrong("folder", src, odd)
    at += all(splits)
    loose = Counter(str(f.parent) for f in files if len(f.parts) < at + 2)
    if loose:
        raise _wrong("folder", src, loose)
    rows = []
    for file, names in zip(files, parts, strict=True):
        source = next((name for name in names[:at] if name.lower() in SPLITS), None)
        rows.append(Row(src / file, names[at], source=source))
    return rows


@layouts.register("csv")
@recognised(
    lambda tree: tree.src.is_file() and tree.src.suffix.lower() == ".csv",
    surely=lambda tree: (tree.src.parent / "planted.json").is_file(),  # the synthetic smear's mark
)
def csv(src: Path) -> list[Row]:
    """a .csv file with the columns image, label and any of patient, slide, source, mask.

    Paths are absolute or relative to the file. Commas, semicolons or tabs separate; UTF-8. Empty
    cells in the optional columns mean unknown. A label may be any text, `NA` included.
    """
    if not src.is_file():
        raise _wrong("csv", src)
    lines, table = read_table(src)
    base = src.resolve().parent
    rows = []
    for record in table:
        known = {c: record.get(c) or None for c in ("patient", "slide", "source")}
        mask = base / record["mask"] if record.get("mask") else None
        rows.append(Row(base / record["image"], record["label"], mask=mask, **known))
    for what, wrong in _csv_faults(rows, table):
        refuse_lines(src, what, [n for n, bad in zip(lines, wrong, strict=True) if bad])
    return rows


def _csv_faults(rows: list[Row], table: list[dict[str, str]]) -> Iterator[tuple[str, list[bool]]]:
    """What may be wrong, and for every row whether it is."""
    yield "no image", [not record["image"] for record in table]
    yield "no label", [not record["label"] for record in table]
    files = [os.path.normpath(row.image) for row in rows]
    counts = Counter(files)
    yield "an image that another line has too", [counts[file] > 1 for file in files]
    # os.path, because Path.is_file raises on a name that is too long.
    absent = [bool(row.mask) and not os.path.isfile(row.mask or "") for row in rows]  # noqa: PTH113
    yield "a mask that does not exist", absent


# --- known data sets ---------------------------------------------------------------------------

PBC = _keyed("basophil", "eosinophil", "erythroblast", "ig", "lymphocyte", "monocyte")
PBC |= _keyed("neutrophil", "platelet")
_PBC_FILE = r"(BA|EO|ERB|IG|PMY|MY|MMY|LY|MO|BNE|SNE|NEUTROPHIL|PLATELET)_\d+\.jpe?g"


@layouts.register("pbc")
@recognised(lambda tree: len(tree.folders & set(PBC)) >= 5 and tree.share(_PBC_FILE) > 0.8)
def pbc(src: Path) -> list[Row]:
    """`<basophil|eosinophil|erythroblast|ig|lymphocyte|monocyte|neutrophil|platelet>/BA_123.jpg`.

    PBC of Acevedo et al. 2020; file names start with a code of the cell (BA_, EO_, ERB_, …). `ig`
    are immature granulocytes. Patients are not given.
    """
    return _labelled("pbc", src, PBC)


@layouts.register("bccd")
@recognised(
    lambda tree: bool({"images", "jpegimages"} & tree.folders) and "annotations" in tree.folders,
    surely=lambda tree: tree.share(r"BloodImage_\d+\.(jpe?g|png)") > 0.8,
)
def bccd(src: Path) -> list[Row]:
    """`<images|JPEGImages>/<field>.jpg`, `<annotations|Annotations>/<field>.xml`, `nucleus/`.

    Fields of view with boxes, as BCCD has them. The label is `field`; the mask is the file of the
    same stem in `nucleus/`, where that folder exists. An outer folder (BCCD/) is passed through.
    """
    files = _images(src, "bccd")
    pictures = [f for f in files if key(f.parent.name) in {"images", "jpegimages"}]
    nuclei = [f for f in files if key(f.parent.name) == "nucleus"]
    masks = {(f.parent.parent, f.stem): src / f for f in nuclei}
    homes = {f.parent.parent for f in pictures}
    annotated = any((src / home / name).is_dir() for home in homes for name in _ANNOTATIONS)
    if not pictures or not annotated:
        raise _wrong("bccd", src)
    return [
        Row(src / f, FIELD, source=_source(f), mask=masks.get((f.parent.parent, f.stem)))
        for f in pictures
    ]


_ANNOTATIONS = ("annotations", "Annotations")

AML = _keyed("CBFB_MYH11", "NPM1", "PML_RARA", "RUNX1_RUNX1T1", "control")


@layouts.register("aml-mll")
@recognised(
    lambda tree: (
        len(tree.folders & set(AML)) >= 4
        and tree.share(r"image_\d+\.tiff?") > 0.8
        and all(len(file.parts) >= 3 for file in tree.files)
    )
)
def aml_mll(src: Path) -> list[Row]:
    """`<CBFB_MYH11|NPM1|PML_RARA|RUNX1_RUNX1T1|control>/<patient>/image_<n>.tif`, metadata.csv.

    AML-Cytomorphology_MLL_Helmholtz. The folder of an image names its patient. Where metadata.csv
    (columns patient_id, bag_label) names another of the classes for a patient than the folder, the
    index is refused.
    """
    rows = []
    for row in _labelled("aml-mll", src, AML):
        patient = row.image.parent.name
        if key(patient) in AML:
            raise _wrong("aml-mll", src, {str(row.image.relative_to(src)): 1})
        rows.append(Row(row.image, row.label, patient=patient, source=row.source))
    _check_metadata(src, {row.patient or "": row.label for row in rows})
    return rows


def _check_metadata(src: Path, labels: Mapping[str, str]) -> None:
    files = [f for f in (src / "metadata.csv", src.parent / "metadata.csv") if f.is_file()]
    if not files:
        return
    with files[0].open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        given = {r.get("patient_id"): r.get("bag_label") for r in csv_module.DictReader(handle)}
    known = {patient: AML.get(key(label or "")) for patient, label in given.items()}
    wrong = [p for p, label in labels.items() if known.get(p) not in {None, label}]
    if wrong:
        raise InputError(
            f"{files[0]} gives {some(wrong)} another class (bag_label) than their folders",
            fix="Fetch the data set again, or correct the file.",
            field="src",
        )


_CNMC_FILE = r"UID_(?P<subject>H?[0-9A-Za-z]+)_\d+_\d+_(?P<kind>all|hem)\.bmp"


@layouts.register("c-nmc")
@recognised(lambda tree: tree.share(_CNMC_FILE) > 0.8)
def c_nmc(src: Path) -> list[Row]:
    """`fold_<0..2>/<all|hem>/UID_<subject>_<n>_<cell>_<all|hem>.bmp`: C-NMC's training folder.

    The subject's code becomes the patient (healthy subjects have an H before the number), the end
    of the name the label, `ALL` or `healthy`, and the fold the source.
    """
    rows, odd = [], Counter[str]()
    for file in _images(src, "c-nmc"):
        found = re.fullmatch(_CNMC_FILE, file.name, re.IGNORECASE)
        if found is None:
            odd[str(file)] += 1
            continue
        fold = next((p for p in file.parts if re.fullmatch(r"fold_\d+", p)), None)
        label = "ALL" if found["kind"].lower() == "all" else "healthy"
        rows.append(Row(src / file, label, patient=found["subject"].upper(), source=fold))
    if odd:
        raise _wrong("c-nmc", src, odd)
    return rows


TALEQANI = {
    **dict.fromkeys(["benign"], "Benign"),
    **dict.fromkeys(["early", "earlypreb", "malignantearlypreb"], "Early Pre-B"),
    **dict.fromkeys(["pre", "preb", "malignantpreb"], "Pre-B"),
    **dict.fromkeys(["pro", "prob", "malignantprob"], "Pro-B"),
}


@layouts.register("taleqani")
@recognised(lambda tree: len({TALEQANI[f] for f in tree.folders if f in TALEQANI}) == 4)
def taleqani(src: Path) -> list[Row]:
    """`[Original/]<Benign|Early|Pre|Pro>/<image>.jpg`, or `[Malignant] early Pre-B/` and so on.

    Blood Cells Cancer (ALL), Taleqani hospital. Where both Original/ and Segmented/ lie in SRC only
    Original is indexed, because the two show the same cells; give SRC/Segmented to index those.
    """
    rows = _labelled("taleqani", src, TALEQANI)
    variant = [{key(p) for p in row.image.relative_to(src).parts} for row in rows]
    if any("original" in parts for parts in variant):
        rows = [r for r, parts in zip(rows, variant, strict=True) if "segmented" not in parts]
    return rows


LMU = _keyed("BAS", "EBO", "EOS", "KSC", "LYA", "LYT", "MMZ", "MOB", "MON", "MYB", "MYO", "NGB")
LMU |= _keyed("NGS", "PMB", "PMO")
_LMU_FILE = rf"({'|'.join(LMU)})_\d+\.tiff?"


@layouts.register("lmu")
@recognised(lambda tree: len(tree.folders & set(LMU)) >= 5 and tree.share(_LMU_FILE) > 0.8)
def lmu(src: Path) -> list[Row]:
    """`<BAS|EBO|EOS|KSC|LYA|LYT|MMZ|MOB|MON|MYB|MYO|NGB|NGS|PMB|PMO>/BAS_0001.tiff`.

    AML-Cytomorphology_LMU: the abbreviations are the labels. Patients are not given.
    """
    return _labelled("lmu", src, LMU)


LEUKEMIA = _keyed("ALL", "AML", "CLL", "CML", "H")


@layouts.register("leukemia-0.2")
@recognised(lambda tree: tree.folders >= set(LEUKEMIA))
def leukemia(src: Path) -> list[Row]:
    """`[train|test/]<ALL|AML|CLL|CML|H>/<image>`: Leukemia Dataset 0.2; H is healthy."""
    return _labelled("leukemia-0.2", src, LEUKEMIA)


KAGGLE = _keyed("basophil", "erythroblast", "monocyte", "myeloblast", "seg_neutrophil")


@layouts.register("blood-cancer-kaggle")
@recognised(
    lambda tree: tree.folders >= set(KAGGLE) and not tree.folders & (set(PBC) - set(KAGGLE))
)
def blood_cancer_kaggle(src: Path) -> list[Row]:
    """`<basophil|erythroblast|monocyte|myeloblast|seg_neutrophil>/<image>.jpg`.

    Blood Cell Images for Cancer Detection. Patients are not given.
    """
    return _labelled("blood-cancer-kaggle", src, KAGGLE)


# In MedMNIST's order of the numbers. The same names as PBC's folders, whose images these are.
BLOODMNIST = tuple(PBC.values())


@layouts.register("bloodmnist")
@recognised(
    lambda tree: tree.src.is_file() and tree.src.suffix.lower() == ".npz",
    surely=lambda tree: "bloodmnist" in tree.src.stem.lower(),
)
def bloodmnist(src: Path, *, images: Path) -> list[Row]:
    """a .npz file of MedMNIST with <train|val|test>_images (n, side, side, 3) and _labels (n, 1).

    Every picture is written as PNG to the folder `images`, beside the index. The part of the
    official split becomes the source. Classes are named as in PBC, where the images are from: the
    two must never be used as training set and external test of one another.
    """
    rows: list[Row] = []
    for part, pictures, numbers in _mnist_parts(src):
        output_folder(images)
        for i, (picture, number) in enumerate(zip(pictures, numbers, strict=True)):
            file = images / f"{part}-{i:06d}.png"
            _write_png(file, picture)
            rows.append(Row(file, BLOODMNIST[int(number)], source=part))
    return rows


def _mnist_parts(src: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The three parts in order, checked; InputError where the file is no such archive."""
    if not src.is_file():
        raise _wrong("bloodmnist", src)
    found = False
    try:
        if not zipfile.is_zipfile(src):
            raise ValueError("it is no zip archive")
        with np.load(src, allow_pickle=False) as archive:
            for part in ("train", "val", "test"):
                if f"{part}_images" not in archive or f"{part}_labels" not in archive:
                    continue
                found = True
                pictures, numbers = archive[f"{part}_images"], archive[f"{part}_labels"].ravel()
                shaped = pictures.ndim in {3, 4} and pictures.shape[3:] in {(), (3,)}
                shaped = shaped and 0 not in pictures.shape[1:3]
                if not (shaped and pictures.dtype == np.uint8 and len(pictures) == len(numbers)):
                    raise ValueError("images are not uint8 (n, side, side, 3) with n labels")
                if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(BLOODMNIST):
                    raise ValueError(f"labels are not 0 to {len(BLOODMNIST) - 1}")
                yield part, pictures, numbers
    except InputError:
        raise
    except Exception as problem:  # noqa: BLE001 - a damaged archive raises nearly anything
        raise InputError(
            f"{src} is no BloodMNIST file: {problem}",
            fix="Download bloodmnist.npz again (see leukoscope datasets).",
            field="src",
        ) from None
    if not found:
        raise _wrong("bloodmnist", src)


def _write_png(file: Path, picture: np.ndarray) -> None:
    """Write unless the same bytes stand there already, so that a repeated index reads nothing."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    with explain_os_errors(file):
        if not file.is_file() or file.read_bytes() != buffer.getvalue():
            file.write_bytes(buffer.getvalue())
