"""The command line among files that mean harm: one sentence, exit code 2, or a row with the reason.

The single files and archives are tests/hostile.py's; tests/review/test_hostile.py sends them to
the service.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import hostile
from commands import TINY, Made, call, done, picture, refused, state, untouched
from leukoscope import api
from leukoscope.bundle.contract import seal
from leukoscope.data.index import load
from leukoscope.data.layouts import BLOODMNIST
from leukoscope.files import sha256_of

READABLE = 6  # files of the corpus's folder that nothing is wrong with


@dataclass(frozen=True)
class Said:
    """What each door said of each file: "" where it was read, else why not."""

    doors: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def said(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Said]:
    """The whole corpus through the doors that take folders."""
    folder = tmp_path_factory.mktemp("corpus")
    src = folder / "in" / "class"
    src.mkdir(parents=True)
    for name, data in hostile.images().items():
        (src / name).write_bytes(data)
    for number in range(READABLE):
        picture(src / f"good-{number}.png", seed=number, size=(64, 64))
    doors: dict[str, dict[str, str]] = {}
    out = folder / "out"
    with untouched(folder / "in", made.bundle):
        done("index", folder / "in", "-o", out / "cells.parquet")
        cells = load(out / "cells.parquet")
        listed = {Path(e["image"]).name: e["why"] for e in cells.unreadable}
        doors["index"] = {Path(i).name: "" for i in cells.frame["image"]} | listed
        done("predict", made.bundle, folder / "in", "-o", out / "said.csv")
        table = pd.read_csv(out / "said.csv", keep_default_na=False)
        names = [Path(i).name for i in table["image"]]
        doors["predict"] = dict(zip(names, table["error"], strict=True))
        for door, function in (("segment", api.segment), ("crop", api.crop)):
            bad = {
                Path(e["image"]).name: e["why"] for e in function([src], out / door)["unreadable"]
            }
            doors[door] = {name: bad.get(name, "") for name in hostile.images()}
    yield Said(doors)


@pytest.mark.parametrize("door", ["index", "predict", "segment", "crop"])
@pytest.mark.parametrize("name", hostile.images())
def test_images(said: Said, name: str, door: str) -> None:
    why = said.doors[door][name]
    assert "\n" not in why and len(why) < 300 and "Traceback" not in why
    if name.startswith("no-image") or "bomb" in name:
        assert why
    if name.startswith("polyglot"):
        assert not why


BAD = [n for n in hostile.images() if n.startswith("no-image") or "bomb" in n]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_alone(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_bytes(hostile.images()[name])
    refused("segment", path, "-o", tmp_path / "masks")
    refused("preview", path, "--recipe", "lightweight-cnn", "-o", tmp_path / "steps")
    assert capfd.readouterr() == ("", "")


# --- bundles --------------------------------------------------------------------------------------


def _contract(change: Callable[[dict[str, Any]], object], *, sealed: bool = False) -> Any:
    def tamper(bundle: Path) -> None:
        path = bundle / "contract.json"
        stated = json.loads(path.read_text())
        change(stated)
        path.write_text(json.dumps(seal(stated) if sealed else stated))

    return tamper


def _graph(change: Callable[[bytes], bytes], *, stated: bool = False) -> Any:
    def tamper(bundle: Path) -> None:
        path = bundle / "model.onnx"
        path.write_bytes(change(path.read_bytes()))
        if stated:
            _contract(lambda c: c["model"].update(sha256=sha256_of(path)), sealed=True)(bundle)

    return tamper


def _external(whole: bytes) -> bytes:
    """The graph, whose first weights lie in a file outside of the bundle."""
    import onnx

    model = onnx.load_from_string(whole)
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../../etc/passwd")
    return model.SerializeToString()


BUNDLES = {
    "classes in another order": _contract(lambda c: c["classes"].reverse()),
    "a class renamed": _contract(lambda c: c["classes"].__setitem__(0, "healthy")),
    "temperature": _contract(lambda c: c.update(temperature=9.0)),
    "thresholds": _contract(lambda c: c.update(prediction_sets=None)),
    "novelty": _contract(lambda c: c.update(novelty=None)),
    "origin": _contract(lambda c: c["origin"].update(synthetic=False)),
    "name": _contract(lambda c: c.update(name="../../evil")),
    "version": _contract(lambda c: c.update(version="99")),
    "mean": _contract(lambda c: c["input"].update(mean=[0.1, 0.1, 0.1])),
    "another checksum": _contract(lambda c: c.update(sha256="0" * 64)),
    "no checksum": _contract(lambda c: c.pop("sha256")),
    "a checksum that is none": _contract(lambda c: c.update(sha256=[1])),
    "file elsewhere": _contract(
        lambda c: c["model"]["networks"][0].update(file="../../x.safetensors"), sealed=True
    ),
    "absolute file": _contract(
        lambda c: c["model"]["networks"][0].update(file="/etc/passwd"), sealed=True
    ),
    "size of gigabytes": _contract(
        lambda c: c["input"].update(size=[8192, 8192]), sealed=True
    ),
    "chain of thousands": _contract(
        lambda c: c.update(preprocessing=[{"step": "nope"}] * 5_000), sealed=True
    ),
    "unknown step": _contract(
        lambda c: c.update(preprocessing=[{"step": "os.system", "size": 1}]), sealed=True
    ),
    "a list": lambda bundle: (bundle / "contract.json").write_text("[]"),
    "deep": lambda bundle: (bundle / "contract.json").write_text("[" * 99_999),
    "xml": lambda bundle: (bundle / "contract.json").write_bytes(hostile.LAUGHS),
    "pickle for a contract": lambda bundle: (bundle / "contract.json").write_bytes(hostile.PICKLE),
    "a bit of the graph": _graph(lambda whole: whole[:500] + b"\1" + whole[501:]),
    "graph cut": _graph(lambda whole: whole[:-1]),
    "more behind the graph": _graph(lambda whole: whole + b"\0"),
    "pickle for a graph": _graph(lambda _: hostile.PICKLE),
    "pickle for a graph, stated": _graph(lambda _: hostile.PICKLE, stated=True),
    "archive for a graph, stated": _graph(lambda _: hostile.archives()["pickle.zip"], stated=True),
    "weights outside, stated": _graph(_external, stated=True),
    "no graph": lambda bundle: (bundle / "model.onnx").unlink(),
    "a link for a graph": lambda bundle: (
        (bundle / "model.onnx").unlink(), (bundle / "model.onnx").symlink_to("/etc/passwd")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUNDLES)
def test_tampered_bundles(made: Made, tmp_path: Path, name: str) -> None:
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    BUNDLES[name](bundle)
    image = picture(tmp_path / "x.png")
    before = state(tmp_path)
    refused("predict", bundle, image, "-o", tmp_path / "out.csv")
    assert state(tmp_path) == before


@pytest.mark.parametrize("edit", ["temperature", "classes in another order", "file elsewhere"])
def test_tampered_runs(made: Made, tmp_path: Path, edit: str) -> None:
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    BUNDLES[edit](run / "model")
    refused("export", run, "-o", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# --- data sets ------------------------------------------------------------------------------------


def npz(**arrays: Any) -> bytes:
    """An npz of arrays, or of bytes as they are."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            data = io.BytesIO()
            if isinstance(value, bytes):
                data.write(value)
            else:
                np.save(data, value)
            archive.writestr(f"{name}.npy", data.getvalue())
    return out.getvalue()


def header(shape: str, kind: str = "|u1") -> bytes:
    """A .npy file's header that promises this shape, with next to nothing behind it."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + b"\0" * 99


SIDES, LABELS = np.zeros((2, 28, 28, 3), np.uint8), np.zeros((2, 1), np.uint8)
ARRAYS = {
    "pickled": npz(train_images=np.array([hostile.Evil()]), train_labels=LABELS),
    "pickled labels": npz(train_images=SIDES, train_labels=np.array([hostile.Evil()] * 2)),
    "raw pickle": npz(train_images=hostile.PICKLE, train_labels=hostile.PICKLE),
    "terabytes": npz(train_images=header("(999999999, 28, 28, 3)"), train_labels=LABELS),
    "overflow": npz(train_images=header(f"({2**62}, {2**62}, 28, 3)"), train_labels=LABELS),
    "negative": npz(train_images=header("(-1, 28, 28, 3)"), train_labels=LABELS),
    "code": npz(train_images=header("__import__('os')"), train_labels=LABELS),
    "no type": npz(train_images=header("(2, 28, 28, 3)", "|O"), train_labels=LABELS),
    "many labels": npz(train_images=SIDES, train_labels=header("(99999999999,)")),
    "labels beyond": npz(train_images=SIDES, train_labels=LABELS + 99),
    "labels below": npz(train_images=SIDES, train_labels=LABELS.astype(int) - 1),
    "labels not numbers": npz(train_images=SIDES, train_labels=np.full((2, 1), np.nan)),
    "labels of text": npz(train_images=SIDES, train_labels=np.array([["a"], ["b"]])),
    "no side": npz(train_images=SIDES[:, :0, :0], train_labels=LABELS),
    "no images": npz(train_images=SIDES[:0], train_labels=LABELS[:0]),
    "one dimension": npz(train_images=SIDES.ravel(), train_labels=LABELS),
    "floats": npz(train_images=SIDES.astype(float), train_labels=LABELS),
    "other names": npz(evil=SIDES),
    "no arrays": hostile.zipped({"../../evil.npy": b"x"}),
    "cut": npz(train_images=SIDES, train_labels=LABELS)[:200],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bloodmnist.npz"
    path.write_bytes(ARRAYS[name])
    assert len(refused("index", path, "-o", tmp_path / "cells.parquet")) < 600
    assert not (tmp_path / "cells.parquet").exists()
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".png"]
    assert len(BLOODMNIST) == 8


LISTS = {
    "outside": "../../../../../../etc/passwd,a",
    "absolute": "/etc/passwd,a",
    "device": "/dev/zero,a",
    "process": "/proc/self/mem,a",
    "directory": "..,a",
    "url": "https://localhost/a.png,a",
    "scheme": "file:///etc/passwd,a",
    "home": "~/.ssh/id_rsa,a",
    "variable": "$HOME/a.png,a",
    "command": "$(touch escaped).png,a",
    "pipe": "| touch escaped,a",
    "escape": "\x1b]0;title\x07.png,a",
    "long": f"{'x' * 9_999}.png,a",
    "glob": "*,a",
    "quoted": '"a\nb.png",a',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(name: str, tmp_path: Path) -> None:
    """Nothing but images is ever read; what is no image is named, and nothing is written."""
    path = tmp_path / "cells.csv"
    path.write_text(f"image,label\n{LISTS[name]}\n")
    before = state(tmp_path)
    assert "root:" not in refused("index", path, "-o", tmp_path / "cells.parquet")
    assert state(tmp_path) == before


def test_labels_with_escapes_stay_text(tmp_path: Path) -> None:
    """Labels and patients that look like paths, formulas or escapes name no file."""
    odd = ["../../evil", "=1+1", "\x1b[31mred", "<script>", "a/b", "$(id)"]
    rows = []
    for number in range(24):
        picture(tmp_path / "in" / f"{number}.png", seed=number)
        rows.append({"image": f"in/{number}.png", "label": odd[number % 6],
                     "patient": f"../{number // 2}"})  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "cells.csv", index=False)
    with untouched(tmp_path / "in"):
        out = tmp_path / "out" / "deep"
        done("index", tmp_path / "cells.csv", "-o", out / "cells.parquet")
        done("split", out / "cells.parquet", "-o", out / "s.parquet", "--ratios", "50/25/25")
        call("audit", out / "cells.parquet", "--json", out / "audit.json")
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out", "cells.csv"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"deep"}


# --- recipes and weights --------------------------------------------------------------------------

RECIPES = {
    "no toml": "\0\1\2",
    "xml": hostile.LAUGHS.decode(),
    "deep": "a = " + "[" * 99_999,
    "digits": "seed = " + "9" * 9_999,
    "arm elsewhere": '[arms."../../evil"]\n',
    "path of weights": 'backbone = "../../evil.pth"\n',
    "local folder": 'backbone = "local-dir:/tmp"\n',
    "hub": 'backbone = "hf-hub:evil/model"\n',
    "code": 'preprocessing = [{step = "__import__"}]\n',
    "unknown": 'evil = "x"\n',
    "pickle": hostile.PICKLE.decode("latin-1"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(made: Made, tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.toml"
    path.write_text(RECIPES[name], encoding="utf-8")
    before = state(tmp_path)
    refused("train", path, made.cells, "-o", tmp_path / "run", "--split", made.split)
    refused("reproduce", path, made.cells, "-o", tmp_path / "all")
    assert state(tmp_path) == before


@pytest.mark.parametrize("suffix", ["pth", "pt", "pkl", "bin", "ckpt", "joblib", "h5", "npy"])
def test_pickled_weights(made: Made, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(hostile.PICKLE)
    train = ("train", "lightweight-cnn", made.cells, "--split", made.split, *TINY,
             "--arm", "mobilenetv2")  # fmt: skip
    assert "never loaded" in refused(*train, "-o", tmp_path / "run", "--weights", path)
    assert not (tmp_path / "run").exists() and not Path("pickle-was-here").exists()


STATES = {
    "pickle": hostile.PICKLE,
    "zip of a pickle": hostile.archives()["pickle.zip"],
    "header of exabytes": struct.pack("<Q", 2**62) + b"{}",
    "header of noise": struct.pack("<Q", 8) + b"\xff" * 8,
    "empty": b"",
}


@pytest.mark.parametrize("name", STATES)
def test_models_of_runs(made: Made, tmp_path: Path, name: str) -> None:
    """Weights that were exchanged together with their checksum are data, or are refused."""
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(STATES[name])
    refused("export", run, "-o", tmp_path / "bundle")
    digest = sha256_of(weights)
    _contract(lambda c: c["model"]["networks"][0].update(sha256=digest), sealed=True)(run / "model")
    refused("export", run, "-o", tmp_path / "bundle")
    assert not Path("pickle-was-here").exists()


@pytest.mark.parametrize("data", [hostile.PICKLE, hostile.archives()["pickle.zip"], b"", b"x" * 99])
def test_classical_models(data: bytes, tmp_path: Path) -> None:
    from leukoscope.errors import InputError
    from leukoscope.models import classical

    path = tmp_path / "classical.skops"
    path.write_bytes(data)
    with pytest.raises(InputError, match="no classical model"):
        classical.load(path)
    assert not Path("pickle-was-here").exists()


@pytest.mark.parametrize("data", [hostile.PICKLE, hostile.LAUGHS, b"label,predicted\n=1+1,\0\n",
                                  b"label,predicted\n" + b"a," * 9_999])  # fmt: skip
def test_predictions(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "said.csv"
    path.write_bytes(data)
    refused("evaluate", path, "-o", tmp_path / "metrics.json")
    assert not (tmp_path / "metrics.json").exists()
