"""Every layout: its documented tree is recognised and parsed; a wrong one says what it lacks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukoscope.data.datasets import UNKNOWN_LICENCE, datasets
from leukoscope.data.layouts import (
    AML,
    BLOODMNIST,
    KAGGLE,
    LEUKEMIA,
    LMU,
    PBC,
    Row,
    detect,
    is_data_set,
    layouts,
    parse,
    summary,
)
from leukoscope.data.tree import scan
from leukoscope.errors import InputError, UnknownNameError


def plant(root: Path, *names: str) -> Path:
    """Files that carry these names; a layout looks at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


# One generator a layout: its documented tree in `root`, and the SRC to give.
def folder(root: Path) -> Path:
    return plant(root, "blast/a.jpg", "blast/deeper/b.PNG", "lymphocyte/c.tif")


def csv(root: Path) -> Path:
    (root / "cells.csv").write_text("image,label,patient\nx/a.jpg,blast,P1\nx/b.jpg,NA,\n")
    return root / "cells.csv"


def pbc(root: Path) -> Path:
    codes = ["BA", "EO", "ERB", "PMY", "LY", "MO", "SNE", "PLATELET"]
    pairs = zip(PBC.values(), codes, strict=True)
    return plant(root, *[f"PBC_dataset_normal_DIB/{c}/{code}_123.jpg" for c, code in pairs])


def bccd(root: Path) -> Path:
    return plant(
        root,
        "BCCD/JPEGImages/BloodImage_00000.jpg",
        "BCCD/JPEGImages/BloodImage_00001.jpg",
        "BCCD/Annotations/BloodImage_00000.xml",
        "BCCD/nucleus/BloodImage_00001.png",
    )


def aml_mll(root: Path) -> Path:
    (root / "metadata.csv").write_text("patient_id,bag_label\nP0,CBFB_MYH11\nP4,control\n")
    names = [f"data/{c}/P{i}/image_{k}.tif" for i, c in enumerate(AML.values()) for k in range(2)]
    return plant(root, *names)


def c_nmc(root: Path) -> Path:
    return plant(
        root, "fold_0/all/UID_11_2_1_all.bmp", "fold_1/hem/UID_H10_1_3_hem.bmp", "fold_2/x.txt"
    )


def taleqani(root: Path) -> Path:
    classes = ["Benign", "[Malignant] early Pre-B", "[Malignant] Pre-B", "[Malignant] Pro-B"]
    return plant(
        root, *[f"Blood cell Cancer [ALL]/{c}/Snap_{i}.jpg" for i, c in enumerate(classes)]
    )


def lmu(root: Path) -> Path:
    return plant(root, *[f"AML-Cytomorphology/{c}/{c}_0001.tiff" for c in LMU.values()])


def leukemia(root: Path) -> Path:
    return plant(root, *[f"{s}/{c}/1.jpg" for s in ("train", "test") for c in LEUKEMIA.values()])


def blood_cancer_kaggle(root: Path) -> Path:
    return plant(root, *[f"{c}/{c}_1.jpg" for c in KAGGLE.values()])


def bloodmnist(root: Path) -> Path:
    pictures = np.arange(8 * 12, dtype=np.uint8).reshape(8, 2, 2, 3)
    parts = {f"{part}_images": pictures for part in ("train", "val", "test")}
    parts |= {
        f"{p}_labels": np.arange(8)[:, None].astype(np.uint8) for p in ("train", "val", "test")
    }
    np.savez(root / "bloodmnist.npz", **parts)
    return root / "bloodmnist.npz"


EXAMPLES: dict[str, Callable[[Path], Path]] = {
    "folder": folder,
    "csv": csv,
    "pbc": pbc,
    "bccd": bccd,
    "aml-mll": aml_mll,
    "c-nmc": c_nmc,
    "taleqani": taleqani,
    "lmu": lmu,
    "leukemia-0.2": leukemia,
    "blood-cancer-kaggle": blood_cancer_kaggle,
    "bloodmnist": bloodmnist,
}


def rows_of(name: str, src: Path) -> list[Row]:
    return parse(name, src, src.parent / "cells-images")


@pytest.mark.parametrize("name", list(layouts))
def test_every_layout(name: str, tmp_path: Path) -> None:
    """The contract: recognised by auto, parsed, described, and facts only where they are sure."""
    src = EXAMPLES[name](tmp_path)
    tree = scan(src)
    assert detect(tree) == name
    rows = rows_of(name, src)
    assert rows and all(row.label and row.image.is_absolute() for row in rows)
    assert len({row.image for row in rows}) == len(rows)
    assert rows_of(name, src) == rows
    assert len(summary(name)) > 10 and "\n" not in summary(name)
    known = [d for d in datasets.values() if d.layout == name]
    if name in {"folder", "csv"}:
        assert not is_data_set(name, tree)
    else:
        assert is_data_set(name, tree) and len(known) == 1
        assert {row.label for row in rows} <= set(known[0].classes)
        assert known[0].patients == all(row.patient for row in rows)


@pytest.mark.parametrize("name", list(layouts))
def test_a_wrong_tree_says_expected_and_found(name: str, tmp_path: Path) -> None:
    if name in {"csv", "bloodmnist"}:
        src = plant(tmp_path / "odd", "zebra/pictures/1.jpg")
    elif name == "folder":
        src = plant(tmp_path / "odd", "zebra.jpg", "a/b.jpg", "c/d.jpg")
    else:
        src = plant(tmp_path / "odd", "zebra/1.jpg", "horse/2.jpg")
    with pytest.raises(InputError) as caught:
        rows_of(name, src)
    message = caught.value.message
    assert f"not laid out as {name!r}: expected {summary(name)}; found" in message
    assert "zebra" in message and "--layout" in caught.value.fix


@pytest.mark.parametrize("name", list(layouts))
def test_an_empty_folder(name: str, tmp_path: Path) -> None:
    plant(tmp_path, "notes.txt", ".hidden/a.jpg")
    with pytest.raises(InputError, match=r"holds no images|not laid out as"):
        rows_of(name, tmp_path)


def test_registration_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_entries", dict(layouts._entries))

    @layouts.register("flat")
    def flat(src: Path) -> list[Row]:
        """`<label>-<n>.jpg`, all in one folder."""
        return [Row(file, file.name.split("-")[0]) for file in sorted(src.iterdir())]

    src = plant(tmp_path, "blast-1.jpg", "monocyte-1.jpg")
    assert [row.label for row in rows_of("flat", src)] == ["blast", "monocyte"]
    assert summary("flat") == "`<label>-<n>.jpg`, all in one folder"
    assert detect(scan(src)) == "folder"


def test_unknown_layout_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'folder'"):
        rows_of("foldr", tmp_path)


# --- single layouts ----------------------------------------------------------------------------


def labels(rows: list[Row], src: Path) -> dict[str, tuple[str, str | None]]:
    return {str(row.image.relative_to(src)): (row.label, row.source) for row in rows}


def test_folder_splits_wrapper_and_nesting(tmp_path: Path) -> None:
    src = plant(tmp_path, "set/Train/blast/p1/a.jpg", "set/valid/mono/b.jpg", "set/test/mono/c.jpg")
    assert labels(rows_of("folder", src), src) == {
        "set/Train/blast/p1/a.jpg": ("blast", "Train"),
        "set/valid/mono/b.jpg": ("mono", "valid"),
        "set/test/mono/c.jpg": ("mono", "test"),
    }


def test_folder_with_one_class_or_one_split(tmp_path: Path) -> None:
    one = plant(tmp_path / "one", "blast/a.jpg", "blast/b.jpg")
    assert {row.label for row in rows_of("folder", one)} == {"blast"}
    train = plant(tmp_path / "two", "train/blast/a.jpg", "train/mono/b.jpg")
    assert {(r.label, r.source) for r in rows_of("folder", train)} == {
        ("blast", "train"),
        ("mono", "train"),
    }


def test_folder_half_split_is_refused(tmp_path: Path) -> None:
    src = plant(tmp_path, "train/blast/a.jpg", "test/blast/b.jpg", "extra/mono/c.jpg")
    with pytest.raises(InputError, match=r"1 in extra/mono/"):
        rows_of("folder", src)


def test_hidden_and_system_files_are_ignored(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.jpg", "a/._1.jpg", "a/Thumbs.db", "a/notes.txt", "__MACOSX/a/1.jpg")
    plant(tmp_path, "b/2.jpeg", ".git/3.jpg", "b/.DS_Store", "b/desktop.ini")
    assert list(labels(rows_of("folder", tmp_path), tmp_path)) == ["a/1.jpg", "b/2.jpeg"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "self.jpg").symlink_to(tmp_path / "b" / "self.jpg")
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "c").symlink_to(tmp_path / "c")
    found = list(labels(rows_of("folder", tmp_path), tmp_path))
    assert found == ["a/1.jpg", "b/2.jpg", "b/gone.jpg", "b/self.jpg"]


def test_a_linked_folder_outside_is_followed(tmp_path: Path) -> None:
    plant(tmp_path / "store", "1.jpg")
    plant(tmp_path / "set", "a/0.jpg")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "store")
    found = labels(rows_of("folder", tmp_path / "set"), tmp_path / "set")
    assert found == {"a/0.jpg": ("a", None), "b/1.jpg": ("b", None)}


def test_missing_source(tmp_path: Path) -> None:
    for name in ("nowhere", "x" * 300):
        with pytest.raises(InputError, match="There is no file or folder"):
            scan(tmp_path / name)


def test_a_single_image_is_no_source(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg")
    with pytest.raises(InputError, match="is a file; an index is made of"):
        detect(scan(tmp_path / "a.jpg"))


def test_own_folders_get_no_foreign_licence(tmp_path: Path) -> None:
    """Folders named like PBC's, files not: somebody's own images, nobody else's citation."""
    src = plant(tmp_path / "own", *[f"{c}/cell_{c}.png" for c in PBC.values()])
    assert detect(scan(src)) == "folder" and not is_data_set("pbc", scan(src))
    fields = plant(tmp_path / "fields", "images/1.jpg", "annotations/1.xml")
    assert detect(scan(fields)) == "bccd" and not is_data_set("bccd", scan(fields))


def test_two_layouts_that_fit_are_an_error(tmp_path: Path) -> None:
    pbc(tmp_path)
    c_nmc(tmp_path)
    plant(tmp_path, *[f"{c}/{c}_1.jpg" for c in LEUKEMIA.values()])
    bccd(tmp_path)
    with pytest.raises(InputError, match="could be any of the layouts bccd, leukemia"):
        detect(scan(tmp_path))


def test_bccd_masks_and_labels(bccd: Path) -> None:
    rows = rows_of("bccd", bccd)
    assert len(rows) == 364 and {row.label for row in rows} == {"field"}
    assert sum(row.mask is not None for row in rows) > 300
    assert all(row.mask is None or row.mask.stem == row.image.stem for row in rows)


def test_real_pbc_is_recognised(pbc: Path) -> None:
    assert detect(scan(pbc)) == "pbc" and is_data_set("pbc", scan(pbc))


def test_aml_patients_and_metadata(tmp_path: Path) -> None:
    rows = rows_of("aml-mll", aml_mll(tmp_path))
    assert {(row.label, row.patient) for row in rows} == {
        (label, f"P{i}") for i, label in enumerate(AML.values())
    }
    (tmp_path / "metadata.csv").write_text("patient_id,bag_label\nP0,NPM1\nP4,control\n")
    with pytest.raises(InputError, match=r"gives P0 another class"):
        rows_of("aml-mll", tmp_path)


def test_aml_without_patient_folders_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, *[f"{c}/image_1.tif" for c in AML.values()])
    with pytest.raises(InputError, match="<patient>"):
        rows_of("aml-mll", tmp_path)


def test_c_nmc_subjects(tmp_path: Path) -> None:
    rows = rows_of("c-nmc", c_nmc(tmp_path))
    assert [(r.label, r.patient, r.source) for r in rows] == [
        ("ALL", "11", "fold_0"),
        ("healthy", "H10", "fold_1"),
    ]


def test_taleqani_variants(tmp_path: Path) -> None:
    names = [("Benign", "WBC-Benign"), ("Early", "WBC-E"), ("Pre", "WBC-P"), ("Pro", "WBC-R")]
    for variant in ("Original", "Segmented"):
        plant(tmp_path, *[f"{variant}/{c}/{stem}-001.jpg" for c, stem in names])
    rows = rows_of("taleqani", tmp_path)
    assert [row.label for row in rows] == ["Benign", "Early Pre-B", "Pre-B", "Pro-B"]
    assert all("Original" in row.image.parts for row in rows)
    assert len(rows_of("taleqani", tmp_path / "Segmented")) == 4


def test_bloodmnist_pictures(tmp_path: Path) -> None:
    src = bloodmnist(tmp_path)
    rows = rows_of("bloodmnist", src)
    assert len(rows) == 24 and {row.source for row in rows} == {"train", "val", "test"}
    assert [row.label for row in rows[:8]] == list(BLOODMNIST)
    with Image.open(rows[3].image) as picture:
        assert np.array_equal(np.asarray(picture), np.arange(36, 48).reshape(2, 2, 3))
    before = rows[0].image.stat().st_mtime_ns
    rows_of("bloodmnist", src)
    assert rows[0].image.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", ["text", "other", "pickle", "labels"])
def test_bloodmnist_refuses_other_archives(content: str, tmp_path: Path) -> None:
    src = tmp_path / "bloodmnist.npz"
    if content == "text":
        src.write_text("no archive")
    elif content == "other":
        np.savez(src, a=np.zeros(3))
    else:
        kind = object if content == "pickle" else np.uint8
        numbers = np.full((2, 1), 9, np.uint8)
        np.savez(src, train_images=np.zeros((2, 2, 2, 3), kind), train_labels=numbers)
    with pytest.raises(InputError, match=r"no BloodMNIST file|not laid out as"):
        rows_of("bloodmnist", src)
    assert not (tmp_path / "cells-images").exists() or not list(
        (tmp_path / "cells-images").iterdir()
    )


def write_csv(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_csv_columns(tmp_path: Path) -> None:
    plant(tmp_path, "m/a.png")
    absolute = tmp_path.parent / "elsewhere.jpg"
    src = write_csv(
        tmp_path / "cells.csv",
        "Image;Label;Patient;slide;mask;age\n"
        f"x/a.jpg; blast ;P1;S1;m/a.png;44\n{absolute};NA;;;;\n;;;;;\n",
        "utf-8-sig",
    )
    first, second = rows_of("csv", src)
    assert first == Row(tmp_path / "x/a.jpg", "blast", "P1", "S1", None, tmp_path / "m/a.png")
    assert second == Row(absolute, "NA")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "needs exactly one column 'image'; its columns are none"),
        ("image,lable\na.jpg,x\n", "column 'label'; its columns are image, lable"),
        ("image,label,label\na.jpg,x,y\n", "exactly one column 'label'"),
        ("image,label\n", "has a header but no rows"),
        ("image,label\na.jpg,x\nb.jpg,\nc.jpg, \n", "has no label in line 3, 4"),
        ("image,label\n,x\n", "has no image in line 2"),
        ("image,label\na.jpg,x\nb.jpg,y\n./a.jpg,z\n", "another line has too in line 2, 4"),
        ("image,label,mask\na.jpg,x,no.png\n", "a mask that does not exist in line 2"),
        ("image,label\na.jpg,x,y,z\n", "more values than columns in line 2"),
        ("image,label\na\0.jpg,x\n", "a null byte in line 2"),
    ],
)
def test_csv_faults_name_their_lines(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(why)) as caught:
        rows_of("csv", write_csv(tmp_path / "cells.csv", text))
    assert caught.value.fix


def test_csv_misnamed_column_gets_a_hint(tmp_path: Path) -> None:
    src = write_csv(tmp_path / "cells.csv", "image,lable\na.jpg,x\n")
    with pytest.raises(InputError, match="Rename 'lable' to 'label'"):
        rows_of("csv", src)


def test_csv_in_another_encoding(tmp_path: Path) -> None:
    src = write_csv(tmp_path / "cells.csv", "image,label\nä.jpg,x\n", "latin-1")
    with pytest.raises(InputError, match="is not UTF-8"):
        rows_of("csv", src)


def test_data_sets_are_complete() -> None:
    for name, known in datasets.items():
        assert known.name == name and known.title and known.licence and known.how
        assert known.layout in layouts
        assert (
            "doi 10." in known.citation or "no doi" in known.citation or "Kaggle" in known.citation
        )
    assert set(EXAMPLES) - {"folder", "csv"} <= set(datasets)
    assert datasets["synthetic"].licence == "CC0"
    assert datasets["taleqani"].licence == UNKNOWN_LICENCE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_unlistable_folder(tmp_path: Path) -> None:
    plant(tmp_path, "a/1.jpg")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(InputError, match="Can't list the folder"):
            scan(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)
