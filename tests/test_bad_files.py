"""Odd files, odd names, odd disks and ctrl-C: a usable result or one sentence, nothing half."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from commands import (
    TINY,
    Answer,
    Made,
    call,
    done,
    no_parts,
    picture,
    refused,
    state,
    untouched,
)
from leukoscope.data.index import load
from leukoscope.data.table import read_parquet
from leukoscope.errors import InputError

STOPPED = "Stopped by ctrl-C; nothing half-written was left behind.\n"


READABLE = (
    "rgb.jpg", "cmyk.jpg", "palette.png", "rgba.png", "grey.png", "bits.png", "greyalpha.png",
    "deep.png", "deep.tif", "moving.gif", "moving.webp", "turned.jpg", "one.png", "wide.png",
    "tall.png", "żółć 細胞.png", 'we"ird,\n\x1b[31m:bug:[bold].png', "n" * 251 + ".png",
)  # fmt: skip
REASONS = {
    "huge.png": "20000 x 20000 = 400,000,000 pixels, more than the 100,000,000 allowed",
    "float.tif": "32-bit",
    "cut.jpg": "ends before the image does",
    "zero.png": "the file is empty",
    "text.jpg": "its content is text",
    "header.png": "damaged or cut off",
    "dangling.png": "the link points to nothing",
    "self.png": "symbolic links",
    "pipe.png": "no regular file",
}


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of every kind of file there is, among them links in a circle."""
    folder = tmp_path / "odd"
    folder.mkdir()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65535, (40, 50)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = {"cmyk.jpg": "CMYK", "palette.png": "P", "rgba.png": "RGBA", "grey.png": "L",
             "bits.png": "1", "greyalpha.png": "LA"}  # fmt: skip
    for name, mode in modes.items():
        image.convert(mode).save(folder / name)
    for name in ("deep.png", "deep.tif"):
        deep.save(folder / name)
    for name in ("moving.gif", "moving.webp"):
        image.save(folder / name, save_all=True, append_images=[image.rotate(90)])
    image.save(folder / "turned.jpg", exif=exif)
    for name, size in {"one.png": (1, 1), "wide.png": (60000, 1), "tall.png": (1, 60000),
                       "huge.png": (20000, 20000)}.items():  # fmt: skip
        Image.new("1", size).save(folder / name, compress_level=1)
    for name in ("rgb.jpg", *READABLE[-3:]):
        image.save(folder / name)
    Image.fromarray(rng.random((9, 9)).astype(np.float32)).save(folder / "float.tif")
    (folder / "cut.jpg").write_bytes((folder / "rgb.jpg").read_bytes()[:900])
    (folder / "header.png").write_bytes((folder / "grey.png").read_bytes()[:12])
    (folder / "zero.png").touch()
    (folder / "text.jpg").write_text("hello")
    (folder / "notes.txt").write_text("no image")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "self.png").symlink_to("self.png")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    picture(folder / "folder.png" / "inside.png")
    shutil.copy(folder / "one.png", os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    return folder


@pytest.mark.parametrize("suffix", ["csv", "parquet", "ndjson"])
def test_predict_gives_every_odd_file_a_row(
    made: Made, odd: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"said.{suffix}"
    with untouched(odd, made.bundle):
        done("predict", made.bundle, odd, "-o", out)
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet}.get(suffix)
    said = read(out) if read else pd.read_json(out, lines=True)
    said["name"] = said["image"].str.removeprefix(f"{odd}/")
    names = {*READABLE, *REASONS, "folder.png/inside.png", "caf\\udce9.png"}
    assert sorted(said["name"]) == sorted(names)
    errors = dict(zip(said["name"], said["error"], strict=True))
    for name, reason in REASONS.items():
        assert reason in errors[name]
    good = said[~said["name"].isin(REASONS)]
    assert good["predicted"].notna().all()
    assert good["confidence"].between(0, 1).all()
    assert set(said.loc[said["name"].isin(REASONS), "flag"]) == {"unreadable"}
    no_parts(tmp_path)


def test_predict_reads_foreign_images(made: Made, foreign: Path, tmp_path: Path) -> None:
    images = sorted(p for p in foreign.rglob("*") if p.suffix in {".png", ".jpg", ".JPG"})[::40]
    out = tmp_path / "said.csv"
    done("predict", made.bundle, *images, "-o", out)
    assert len(pd.read_csv(out)) == len(images) > 0


def test_every_odd_file_is_indexed_or_listed(odd: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes"
    for number in range(6):
        picture(classes / "plain" / f"{number}.png", seed=number)
    odd.rename(classes / "odd")
    (classes / "odd" / "loop").unlink()
    (classes / "odd" / "loop").symlink_to(classes)
    cells = tmp_path / "cells.parquet"
    with untouched(classes):
        said = done("index", classes, "-o", cells)
        assert "Unreadable: odd/caf\\udce9.png: its name is not valid UTF-8: rename it" in said
        done("audit", cells, "--json", tmp_path / "audit.json")
    found = load(cells)
    assert {f"odd/{name}" for name in READABLE} < set(found.frame["image"])
    listed = {entry["image"]: entry["why"] for entry in found.unreadable}
    for name, reason in REASONS.items():
        assert reason in listed[f"odd/{name}"]
    assert len(found.frame) == len(READABLE) + 1 + 6
    no_parts(tmp_path)


def test_explain_passes_over_what_is_unreadable(made: Made, odd: Path, tmp_path: Path) -> None:
    with untouched(odd):
        done("explain", made.bundle, odd, "-o", tmp_path / "maps")
    assert len(list((tmp_path / "maps").glob("*.png"))) == len(READABLE) + 2
    refused("explain", made.bundle, odd / "text.jpg", "-o", tmp_path / "none")


def test_nothing_readable_is_said(made: Made, odd: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad" / "a"
    bad.mkdir(parents=True)
    shutil.copy(odd / "text.jpg", bad)
    shutil.copy(odd / "zero.png", bad)
    assert "its content is text" in refused("index", bad.parent, "-o", tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()
    assert "reasons are in" in refused("predict", made.bundle, bad, "-o", tmp_path / "p.csv")
    assert len(pd.read_csv(tmp_path / "p.csv")) == 2


def test_folders_whose_name_is_no_utf8(made: Made, tmp_path: Path) -> None:
    base = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(made.smear, base / "smear")
    shutil.copytree(made.bundle, base / "bundle")
    listed = (base / "smear" / "cells.csv").read_text().splitlines()
    (base / "smear" / "cells.csv").write_text("\n".join(listed[:-1]))  # not the bundle's own data
    done("index", base / "smear" / "cells.csv", "-o", base / "cells.parquet")
    done("audit", base / "cells.parquet", "--json", base / "audit.json")
    done("split", base / "cells.parquet", "-o", base / "s.parquet", "--ratios", "50/25/25")
    done("predict", base / "bundle", base / "smear" / "images", "-o", base / "p.parquet")
    done("evaluate", base / "bundle", "--on", base / "cells.parquet", "-o", base / "m.json")
    shutil.copytree(made.run, base / "run")
    done("evaluate", base / "run")
    done("export", base / "run", "-o", base / "exported")


def test_arrow_reads_by_itself(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of Python's in the hands of Arrow's threads can abort a command that is at its end."""
    sources = []
    read = pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda s, **how: sources.append(s) or read(s, **how))
    read_parquet(made.cells, "an index", fix="", field="")
    assert [type(source) for source in sources] == [pa.OSFile]


# --- where results go ---------------------------------------------------------------------------


def test_outputs_that_can_be_no_file(made: Made, tmp_path: Path) -> None:
    """A folder, below a file, or with a name that is too long: nothing is written."""
    parent = picture(tmp_path / "in" / "a" / "picture.png")
    csv = tmp_path / "said.csv"
    csv.write_text("label,predicted\na,b\nb,b\n")
    commands = {
        "parquet": [("index", tmp_path / "in"), ("split", made.cells, "--ratios", "50/25/25")],
        "csv": [("predict", made.bundle, parent)],
        "json": [("evaluate", csv)],
    }
    with untouched(tmp_path, made.folder):
        for suffix, each in commands.items():
            folder = tmp_path / f"folder.{suffix}"
            folder.mkdir()
            for command in each:
                assert "a folder stands there" in refused(*command, "-o", folder)
                refused(*command, "-o", parent / f"x.{suffix}")
                refused(*command, "-o", tmp_path / f"{'x' * 300}.{suffix}")
        for command in (("export", made.run), ("explain", made.bundle, parent)):
            refused(*command, "-o", parent)
            refused(*command, "-o", parent / "below")
            refused(*command, "-o", tmp_path / ("x" * 300))


def test_originals_are_never_overwritten(made: Made, tmp_path: Path) -> None:
    image = picture(tmp_path / "in" / "a" / "picture.png")
    csv = tmp_path / "said.csv"
    csv.write_text("image,label,predicted\nx,a,b\ny,b,b\n")
    listed = tmp_path / "cells.csv"
    listed.write_text("image,label\nin/a/picture.png,a\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("my project")
    shutil.copy(made.cells, tmp_path / "cells.parquet")
    cells = tmp_path / "cells.parquet"
    (tmp_path / "link.parquet").symlink_to(cells)
    with untouched(tmp_path, made.folder):
        refused("index", tmp_path / "in", "-o", image)
        refused("index", listed, "-o", listed)
        refused("audit", cells, "--json", cells)
        refused("split", cells, "-o", cells)
        refused("split", tmp_path / "link.parquet", "-o", cells)
        refused("predict", made.bundle, image, csv, "-o", csv)
        refused("evaluate", csv, "-o", csv)
        refused("compare", csv, made.run, "-o", csv)
        refused("export", made.run, "-o", made.run / "model")
        refused("export", made.run, "-o", tmp_path / "own")


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    picture(tmp_path / "in" / "a" / "picture.png")
    assert "no regular file" in refused("index", tmp_path / "in", "-o", pipe)
    assert pipe.is_fifo()


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.call(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], stderr=subprocess.DEVNULL
    ):
        pytest.skip("NO SMALL DISK CAN BE MOUNTED HERE: full and read-only disks were not tested")
    try:
        yield folder
    finally:
        subprocess.check_call(["umount", "-l", folder])


def test_a_full_disk(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = ("train", "lightweight-cnn", made.cells, "--split", made.split, *TINY)
    with disk(tmp_path / "disk", "8k") as small, untouched(made.folder):
        for command in (
            ("index", made.smear / "cells.csv", "-o", small / "cells.parquet"),
            ("predict", made.bundle, made.smear / "images", "-o", small / "said.csv"),
            ("predict", made.bundle, made.smear / "images", "-o", small / "said.parquet"),
            ("export", made.run, "-o", small / "bundle"),
            ("explain", made.bundle, made.smear / "images", "-o", small / "maps"),
            (*train, "-o", small / "run"),
        ):
            assert "the disk is full" in refused(*command)
            no_parts(small)
            whole = {p.name for p in small.rglob("*") if p.suffix in {".parquet", ".csv", ".onnx"}}
            assert not whole - {"split.parquet"}
            for left in small.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        monkeypatch.setenv("LEUKOSCOPE_CACHE", str(small))
        assert "the disk is full" in refused(*train, "-o", tmp_path / "run")


@pytest.mark.parametrize("size", ["36k", "260k", "2400k"])
def test_a_run_goes_on_after_a_full_disk(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """benchmarks/kills_training.py fills disks of every recipe at many more points."""
    with disk(tmp_path / "disk", size) as small:
        monkeypatch.setenv("LEUKOSCOPE_CACHE", str(small / "cache"))
        train = ("train", "lightweight-cnn", made.cells, "--split", made.split, *TINY,
                 "-o", small / "run")  # fmt: skip
        said = refused(*train)
        assert "the disk is full" in said
        assert said.endswith("Then go on with --resume.\n")
        no_parts(small)
        subprocess.check_call(["mount", "-o", "remount,size=100m", small])
        done(*train, "--resume")
        for name in ("model/model.safetensors", "predictions.parquet", "metrics.json"):
            assert (small / "run" / name).read_bytes() == (made.run / name).read_bytes(), name


def test_features_on_a_full_disk(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen backbone keeps features as one file: mapped, a full disk would kill the process."""
    import torch

    from leukoscope.models.weights import InputFormat, Weights
    from leukoscope.train import samples, views

    cells = load(made.cells)
    rows = cells.frame.iloc[:4]
    table = pd.DataFrame({"image": rows["image"], "view": 0})
    files = {
        i: views.ImageFile(cells.path(i), h)
        for i, h in zip(rows["image"], rows["sha256"], strict=True)
    }
    chain = [{"step": "resize", "size": 8}]
    monkeypatch.setattr(samples, "_Extractor", lambda *_: lambda v: np.ones((len(v), 700), "f4"))
    with disk(tmp_path / "disk", "20k") as small:
        monkeypatch.setenv("LEUKOSCOPE_CACHE", str(small))
        with pytest.raises(InputError, match="the disk is full"):
            samples.feature_samples(
                table, files, views.ViewSettings(chain, [], 1, 0), torch.nn.Identity(),
                Weights("none", InputFormat(), {}), {}, "cpu",
            )  # fmt: skip


def test_a_read_only_folder(made: Made, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "1m") as small, untouched(made.folder):
        subprocess.check_call(["mount", "-o", "remount,ro", small])
        train = ("train", "lightweight-cnn", made.cells, "--split", made.split, *TINY)
        for command in (
            ("index", made.smear / "cells.csv", "-o", small / "cells.parquet"),
            ("split", made.cells, "-o", small / "split.parquet", "--ratios", "50/25/25"),
            ("audit", made.cells, "--json", small / "audit.json"),
            ("predict", made.bundle, made.smear / "images", "-o", small / "said.csv"),
            ("export", made.run, "-o", small / "bundle"),
            (*train, "-o", small / "run"),
        ):
            assert "the file system is read-only" in refused(*command)


# --- the process --------------------------------------------------------------------------------

# As from a terminal: a test run in the background hands on ctrl-C as a signal to be ignored.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "import leukoscope.cli.main as m; print('ready', flush=True); m.run()"
)


def stop(after: float | Path, *arguments: object) -> tuple[int, str]:
    """Run a command; ctrl-C so many seconds past its start, or once a file is there; its end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    process.stdout.readline()
    if isinstance(after, Path):
        while not after.exists() and process.poll() is None:
            time.sleep(0.02)
    else:
        time.sleep(after)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize("after", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("command", ["index", "predict"])
def test_ctrl_c(made: Made, tmp_path: Path, command: str, after: float) -> None:
    out = tmp_path / ("cells.parquet" if command == "index" else "said.parquet")
    # Every image many times, so that the work outlasts the longest wait on any machine.
    source = tmp_path / "many"
    for number in range(300):
        shutil.copytree(made.smear / "images", source / f"{number:03d}", copy_function=os.link)
    given = (source,) if command == "index" else (made.bundle, source)
    with untouched(source):
        assert stop(after, command, *given, "-o", out) == (2, STOPPED)
    no_parts(tmp_path)
    assert not out.exists()


def test_an_interrupted_index_goes_on(made: Made, tmp_path: Path) -> None:
    for number in range(20):
        shutil.copytree(made.smear / "images", tmp_path / "s" / f"{number:02d}")
    journal, out = tmp_path / ".c.parquet.partial", tmp_path / "c.parquet"
    assert stop(journal, "index", tmp_path / "s", "-o", out) == (2, STOPPED)
    assert journal.is_file()
    done("index", tmp_path / "s", "-o", out)
    assert len(load(out).frame) == 20 * 59
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["c.parquet"]


@pytest.mark.parametrize("after", [1.0, "history.csv"])
def test_ctrl_c_while_training(made: Made, tmp_path: Path, after: float | str) -> None:
    long = ("--set", "training.epochs=5000", "--set", "training.patience=5000")
    run = tmp_path / "run"
    when = run / after if isinstance(after, str) else after
    code, err = stop(when, "train", "lightweight-cnn", made.cells, "--split", made.split,
                     "-o", run, *TINY, *long)  # fmt: skip
    assert (code, err) == (2, STOPPED)
    no_parts(tmp_path)
    assert not (run / "metrics.json").exists()
    assert not (run / "model").exists()


def test_ctrl_c_in_a_callback_is_not_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python drops exceptions in callbacks of weak references, which imports use."""

    class Watched:
        pass

    def interrupted(*_: object, **__: object) -> None:
        watched = Watched()
        reference = weakref.ref(watched, lambda _: signal.raise_signal(signal.SIGINT))
        del watched
        assert reference() is None
        time.sleep(10)

    monkeypatch.setattr("leukoscope.api.index", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert call("index", tmp_path, "-o", tmp_path / "c") == Answer(2, "", STOPPED)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _START, "recipes", "lightweight-cnn"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def test_predict_imports_no_torch(made: Made, tmp_path: Path) -> None:
    code = (
        "import sys, leukoscope.cli.main as m\n"
        "try: m.run()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, "predict", made.bundle, made.smear, "-o", tmp_path / "p.csv"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stderr == "False\n"


def test_an_error_of_the_system_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The last net under what no command expects: a failing disk, say."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "cells.parquet")

    monkeypatch.setattr("leukoscope.api.index", fail)
    said = refused("index", tmp_path, "-o", tmp_path / "c")
    assert said.startswith("Can't use cells.parquet: Input/output error.")


def test_odd_arguments() -> None:
    for arguments in (["nope"], ["predict"], ["index", "--nope"], ["split", "x", "--seed", "a"]):
        assert "--help" in refused(*arguments)
    assert call("--version").code == 0
    assert state(Path("/nonexistent")) == {}
