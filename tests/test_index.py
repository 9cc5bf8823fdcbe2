"""The index: complete, resumable, honest about what it could not read, and nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import leukoscope.data.index as module
from leukoscope.data.datasets import UNKNOWN_LICENCE
from leukoscope.data.index import CellIndex, examine, index, load, save
from leukoscope.data.signature import SIDE, colour_moments, phash, thumbnail
from leukoscope.errors import InputError
from leukoscope.imaging.read import read_image

COLUMNS = ["image", "label", "patient", "slide", "source", "mask", "width", "height", "sha256"]
COLUMNS += ["phash", "thumbnail", "colour", "size", "mtime_ns"]


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Two classes of five random pictures each, in src/."""
    generator = np.random.default_rng(0)
    for label in ("blast", "mono"):
        (tmp_path / "src" / label).mkdir(parents=True)
        for i in range(5):
            picture = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "src" / label / f"{i}.png")
    return tmp_path / "src"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is read while the test runs."""
    seen: list[Path] = []

    def counted(path: Path) -> dict[str, Any]:
        seen.append(path)
        return examine(path)

    monkeypatch.setattr(module, "examine", counted)
    return seen


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


def test_columns_and_values(cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "cells.parquet"
    made = index(cells, out)
    assert list(made.frame.columns) == COLUMNS
    assert list(made.frame["image"]) == sorted(
        f"{c}/{i}.png" for c in ("blast", "mono") for i in range(5)
    )
    assert made.root == cells and made.root.is_absolute() and made.layout == "folder"
    assert (made.name, made.licence, made.unreadable) == ("src", UNKNOWN_LICENCE, [])
    row = made.frame.iloc[3]
    image = read_image(made.path(row["image"]))
    assert row["label"] == "blast" and (row["width"], row["height"]) == (30, 20)
    assert row["sha256"] == hashlib.sha256(made.path(row["image"]).read_bytes()).hexdigest()
    assert row["phash"] == phash(image) and len(row["phash"]) == 16
    assert row["thumbnail"] == thumbnail(image).tobytes() and len(row["thumbnail"]) == SIDE**2
    assert np.allclose(row["colour"], colour_moments(image)) and len(row["colour"]) == 9
    for column in ("patient", "slide", "source", "mask"):
        assert all(value is None for value in made.frame[column])
    assert leftovers(tmp_path) == []


def test_load_gives_what_index_gave(cells: Path, tmp_path: Path) -> None:
    made = index(cells, tmp_path / "cells.parquet")
    again = load(tmp_path / "cells.parquet")
    pd.testing.assert_frame_equal(made.frame, again.frame)
    assert (made.root, made.name, made.layout) == (again.root, again.name, again.layout)
    assert pq.read_schema(tmp_path / "cells.parquet").field("patient").type == pa.string()


def test_same_bytes_with_any_number_of_workers(cells: Path, tmp_path: Path) -> None:
    frames = [index(cells, tmp_path / f"{n}.parquet", workers=n).frame for n in (1, 2, 5)]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0])
    with pytest.raises(InputError, match="workers is 0"):
        index(cells, tmp_path / "a.parquet", workers=0)


def test_originals_are_untouched(cells: Path, tmp_path: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in cells.rglob("*.png")}
    index(cells, tmp_path / "cells.parquet")
    index(cells, cells / "cells.parquet")  # beside the images: allowed, and no image itself
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in cells.rglob("*.png")} == before


def test_unreadable_files_are_listed(cells: Path, tmp_path: Path) -> None:
    (cells / "mono" / "empty.jpg").write_bytes(b"")
    (cells / "mono" / "text.JPG").write_text("no image")
    (cells / "mono" / "notes.txt").write_text("no image either")
    cut = (cells / "mono" / "0.png").read_bytes()[:500]
    (cells / "mono" / "cut.png").write_bytes(cut)
    (cells / "mono" / "gone.png").symlink_to(tmp_path / "nowhere")
    made = index(cells, tmp_path / "cells.parquet")
    assert len(made.frame) == 10
    assert {entry["image"]: entry["why"] for entry in made.unreadable} == {
        "mono/cut.png": "the PNG file ends before the image does",
        "mono/empty.jpg": "the file is empty",
        "mono/gone.png": "the link points to nothing",
        "mono/text.JPG": "its content is text; allowed: JPEG, PNG, TIFF, BMP, GIF, WEBP, PPM, "
        "JPEG2000",
    }
    assert load(tmp_path / "cells.parquet").unreadable == made.unreadable


def test_odd_names(cells: Path, tmp_path: Path) -> None:
    shutil.copy(cells / "mono" / "0.png", cells / "mono" / "血 ü\n.png")
    shutil.copy(cells / "mono" / "0.png", cells / "mono" / ("n" * 251 + ".png"))
    shutil.copy(cells / "mono" / "0.png", os.fsencode(cells / "mono") + b"/bad\xff.png")
    made = index(cells, tmp_path / "cells.parquet")
    assert {"mono/血 ü\n.png", "mono/" + "n" * 251 + ".png"} <= set(made.frame["image"])
    [entry] = made.unreadable
    assert "not valid UTF-8" in entry["why"] and entry["image"].startswith("mono/bad")


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    for name in ("a/1.jpg", "a/2.jpg"):
        (tmp_path / "src" / name).write_text("text")
    with pytest.raises(InputError, match=r"None of the 2 images .* a/1.jpg \(its content is text"):
        index(tmp_path / "src", tmp_path / "cells.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["src"]


def test_a_second_run_reads_only_what_changed(
    cells: Path, tmp_path: Path, reads: list[Path]
) -> None:
    out = tmp_path / "cells.parquet"
    first = index(cells, out)
    assert len(reads) == 10
    index(cells, out)
    assert len(reads) == 10
    picture = Image.new("RGB", (9, 9), "purple")
    picture.save(cells / "blast" / "0.png")
    picture.save(cells / "mono" / "new.png")
    os.utime(cells / "mono" / "1.png", ns=(1, 1))
    (cells / "mono" / "2.png").unlink()
    second = index(cells, out)
    changed = {"blast/0.png", "mono/1.png", "mono/new.png"}
    assert {str(p.relative_to(cells)) for p in reads[10:]} == changed
    assert set(second.frame["image"]) == set(first.frame["image"]) - {"mono/2.png"} | {
        "mono/new.png"
    }
    assert second.frame.set_index("image").loc["blast/0.png", "width"] == 9


def test_labels_are_taken_anew(cells: Path, tmp_path: Path, reads: list[Path]) -> None:
    table = cells / "cells.csv"
    table.write_text("image,label\nblast/0.png,first\nmono/0.png,b\n")
    index(table, tmp_path / "cells.parquet")
    table.write_text("image,label,patient\nblast/0.png,second,P\nmono/0.png,b,\n")
    made = index(table, tmp_path / "cells.parquet")
    assert list(made.frame["label"]) == ["second", "b"] and len(reads) == 2
    assert list(made.frame["patient"]) == ["P", None]


def test_an_interrupted_run_is_continued(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "cells.parquet", index(cells, tmp_path / "whole.parquet")

    def interrupted(path: Path) -> dict[str, Any]:
        if path.name == "2.png" and path.parent.name == "mono":
            raise KeyboardInterrupt
        return examine(path)

    monkeypatch.setattr(module, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index(cells, out, workers=1)
    assert not out.exists() and leftovers(tmp_path) == [".cells.parquet.partial"]
    with (tmp_path / ".cells.parquet.partial").open("a") as journal:
        journal.write('{"image": "mono/4.png", "wid')  # what a crash leaves
    seen: list[str] = []

    def counted(path: Path) -> dict[str, Any]:
        seen.append(f"{path.parent.name}/{path.name}")
        return examine(path)

    monkeypatch.setattr(module, "examine", counted)
    made = index(cells, out)
    assert sorted(seen) == ["mono/2.png", "mono/3.png", "mono/4.png"]
    pd.testing.assert_frame_equal(made.frame, whole.frame)
    assert leftovers(tmp_path) == []


def test_a_journal_of_something_else_is_not_believed(
    cells: Path, tmp_path: Path, reads: list[Path]
) -> None:
    (tmp_path / ".cells.parquet.partial").write_bytes(b"\xff\0 no json\n{}\n[]\n")
    assert len(index(cells, tmp_path / "cells.parquet").frame) == len(reads) == 10


def test_something_else_at_the_output_is_replaced(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.parquet").write_text("not an index")
    assert len(index(cells, tmp_path / "cells.parquet").frame) == 10


def test_a_full_disk_leaves_the_old_index(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cells.parquet"
    index(cells, out)
    before = out.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match="the disk is full"):
        index(cells, out)
    assert out.read_bytes() == before and leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("/proc/cells.parquet", "Can't write"),
        ("src/blast/0.png/cells.parquet", "Can't write"),
        ("src", "a folder stands there"),
        ("n" * 300 + ".parquet", "the name is too long"),
    ],
)
def test_impossible_outputs(out: str, why: str, cells: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        index(cells, tmp_path / out)
    assert not leftovers(tmp_path)


def test_csv_roots_and_masks(cells: Path, tmp_path: Path) -> None:
    table = tmp_path / "lists" / "cells.csv"
    table.parent.mkdir()
    absolute = cells / "mono" / "0.png"
    table.write_text(
        "image,label,mask,slide\n"
        f"../src/blast/0.png,b,../src/blast/1.png,S\n{absolute},m,,\n../src/none.png,m,,\n"
    )
    made = index(table, tmp_path / "cells.parquet")
    assert list(made.frame["image"]) == ["../src/blast/0.png", "../src/mono/0.png"]
    assert list(made.frame["mask"]) == ["../src/blast/1.png", None]
    assert made.path(made.frame["image"][1]).samefile(absolute)
    assert made.unreadable == [{"image": "../src/none.png", "why": "there is no such file"}]


def test_bloodmnist_images_lie_beside_the_index(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8)
    numbers = np.arange(8, dtype=np.uint8)[:, None]
    np.savez(tmp_path / "bloodmnist.npz", train_images=pictures, train_labels=numbers)
    made = index(tmp_path / "bloodmnist.npz", tmp_path / "out" / "blood.parquet")
    assert made.root == tmp_path / "out" / "blood-images" and made.name == "bloodmnist"
    assert set(made.frame["source"]) == {"train"} and made.frame["label"].nunique() == 8
    assert np.array_equal(read_image(made.path(made.frame["image"][5])), pictures[5])


def test_moved_together_with_its_images(cells: Path, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    cells.rename(tmp_path / "old" / "src")
    index(tmp_path / "old" / "src", tmp_path / "old" / "cells.parquet")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = load(tmp_path / "new" / "cells.parquet")
    assert moved.root == tmp_path / "new" / "src"
    assert moved.path(moved.frame["image"][0]).is_file()


def test_loading_needs_no_images(cells: Path, tmp_path: Path) -> None:
    index(cells, tmp_path / "cells.parquet")
    shutil.rmtree(cells)
    assert len(load(tmp_path / "cells.parquet").frame) == 10


def test_save_keeps_other_columns(cells: Path, tmp_path: Path) -> None:
    made = index(cells, tmp_path / "cells.parquet")
    made.frame["age"] = range(10)
    save(made, tmp_path / "with-age.parquet")
    assert list(load(tmp_path / "with-age.parquet").frame["age"]) == list(range(10))


def test_a_foreign_index_is_completed(cells: Path, tmp_path: Path) -> None:
    (cells / "blast" / "bad.png").write_bytes(b"")
    foreign = pd.DataFrame(
        {
            "image": ["src/blast/0.png", "src/mono/1.png", "src/blast/bad.png"],
            "label": ["blast", "mono", "blast"],
            "patient": [7.0, np.nan, 8.0],
            "width": [1.0, np.nan, 3.0],
        }
    )
    foreign.to_parquet(tmp_path / "foreign.parquet")
    made = load(tmp_path / "foreign.parquet")
    own = index(cells, tmp_path / "own.parquet").frame.set_index("image")
    assert list(made.frame["patient"]) == ["7", None] and list(made.frame["width"]) == [30, 30]
    assert made.frame["sha256"][1] == own.loc["mono/1.png", "sha256"]
    assert made.frame["thumbnail"][0] == own.loc["blast/0.png", "thumbnail"]
    assert made.unreadable == [{"image": "src/blast/bad.png", "why": "the file is empty"}]
    assert (made.name, made.licence, made.root) == ("foreign", UNKNOWN_LICENCE, tmp_path)
    assert isinstance(made, CellIndex)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "nothing there"),
        ("folder", "a folder"),
        ("text", "it is no parquet file"),
        ("", "it is no parquet file"),
        ({"a": [1]}, "no column 'image'"),
        ({"image": ["a.png"]}, "no column 'label'"),
        ({"image": [], "label": []}, "no column 'image' with values"),
        ({"image": ["a.png", None], "label": ["x", "y"]}, "no image in row 2"),
        ({"image": ["a.png", "b.png"], "label": ["x", " "]}, "no label in row 2"),
        ({"image": ["a.png", "a.png"], "label": ["x", "y"]}, "more than once: a.png"),
        ({"image": ["a.png"], "label": ["x"]}, "None of the 1 images"),
    ],
)
def test_what_is_no_index(content: Any, why: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        pd.DataFrame(content).to_parquet(path)
    with pytest.raises(InputError, match=why) as caught:
        load(path)
    assert caught.value.fix


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        index(tmp_path / "src", tmp_path / "cells.parquet")
    with pytest.raises(InputError, match="There is no file or folder"):
        index(tmp_path / "nowhere", tmp_path / "cells.parquet")
    assert not leftovers(tmp_path)


def test_real_fields(bccd: Path, tmp_path: Path) -> None:
    src = tmp_path / "BCCD"
    for folder, suffix in (("images", "jpg"), ("annotations", "xml"), ("nucleus", "png")):
        (src / folder).mkdir(parents=True)
        for i in (0, 1, 2):
            name = f"BloodImage_0000{i}.{suffix}"
            (src / folder / name).symlink_to(bccd / folder / name)
    made = index(src, tmp_path / "cells.parquet")
    assert (made.name, made.licence, made.layout) == ("bccd", "MIT", "bccd")
    assert list(made.frame["mask"]) == [f"nucleus/BloodImage_0000{i}.png" for i in range(3)]
    assert set(made.frame["width"]) == {640}


def test_real_single_cells(pbc: Path, tmp_path: Path) -> None:
    src = tmp_path / "some"
    for file in sorted(pbc.rglob("*.jpg"))[::60]:
        (src / file.parent.name).mkdir(parents=True, exist_ok=True)
        (src / file.parent.name / file.name).symlink_to(file)
    made = index(src, tmp_path / "cells.parquet")
    assert (made.name, made.licence) == ("pbc", "CC BY 4.0") and "10.1016" in made.citation
    assert len(made.frame) == 40 and made.frame["label"].nunique() == 8
