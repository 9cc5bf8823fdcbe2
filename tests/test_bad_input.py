"""Data sets, indexes, splits, recipes and settings that can't work: one sentence, exit code 2."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from commands import GARBAGE, TINY, Made, call, done, picture, refused
from leukoscope.data import synthetic
from leukoscope.data.index import load

# --- index --------------------------------------------------------------------------------------


def test_folders_that_hold_no_data_set(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "cells.parquet"
    assert "holds no images" in refused("index", empty, "-o", out)
    assert "no file or folder" in refused("index", tmp_path / "nothing", "-o", out)
    assert "no file or folder" in refused("index", "x" * 300, "-o", out)
    picture(empty / "a" / "1.png")
    assert "Did you mean 'folder'" in refused("index", empty, "-o", out, "--layout", "foldr")
    assert not out.exists()


@pytest.mark.parametrize("suffix", ["csv", "npz", "txt", "png"])
@pytest.mark.parametrize("kind", ["empty", "noise"])
def test_files_that_are_no_data_set(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(GARBAGE[kind])
    assert "pickle" not in refused("index", path, "-o", tmp_path / "cells.parquet")


def test_one_class_is_indexed_and_audited_but_not_trained_on(tmp_path: Path) -> None:
    for number in range(8):
        picture(tmp_path / "in" / "only" / f"{number}.png", seed=number)
    cells = tmp_path / "cells.parquet"
    done("index", tmp_path / "in", "-o", cells)
    done("audit", cells, "--json", tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text())["verdict"] == "clean"
    assert "one class" in refused("split", cells, "-o", tmp_path / "s.parquet")
    assert "one class" in refused("train", "lightweight-cnn", cells, "-o", tmp_path / "r", *TINY)


@pytest.mark.parametrize("kind", [None, *GARBAGE])
def test_what_is_no_index_or_split(made: Made, tmp_path: Path, kind: str | None) -> None:
    path, out = tmp_path / "x.parquet", tmp_path / "out"
    if kind:
        path.write_bytes(GARBAGE[kind])
    refused("audit", path)
    refused("audit", made.cells, "--split", path)
    refused("split", path, "-o", out)
    refused("evaluate", made.bundle, "--on", path)
    refused("train", "lightweight-cnn", path, "-o", out, *TINY)
    refused("train", "lightweight-cnn", made.cells, "--split", path, "-o", out, *TINY)
    assert not out.exists()


def edited(made: Made, path: Path, column: str, values: Any) -> Path:
    """The index with one column replaced."""
    table = pq.read_table(made.cells)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path)
    return path


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("width", "x"), ("height", -1), ("phash", "zz"), ("sha256", None), ("thumbnail", b"x"),
        ("colour", [1.0]), ("colour", [float("nan")] * 9), ("colour", "blue"),
    ],
)  # fmt: skip
def test_facts_edited_by_hand_are_read_anew(
    made: Made, tmp_path: Path, column: str, value: Any
) -> None:
    path = edited(made, tmp_path / "cells.parquet", column, [value] * 59)
    done("audit", path)
    found, whole = load(path).frame, load(made.cells).frame
    for name in ("width", "height", "phash", "sha256", "thumbnail", "colour"):
        assert list(found[name]) == list(whole[name])


def test_columns_edited_by_hand(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    assert "no column 'label'" in refused("audit", edited(made, path, "label", [None] * 59))
    gaps = ["a"] * 58 + [None]
    assert "no label in row 59" in refused("audit", edited(made, path, "label", gaps))
    assert "more than once" in refused("audit", edited(made, path, "image", ["x"] * 59))
    invalid = pa.array([b"\xff"] * 59, pa.binary()).view(pa.string())
    assert "UTF8" in refused("audit", edited(made, path, "label", invalid))
    table = pq.read_table(made.cells)
    pq.write_table(table.drop(["image"]), path)
    assert "no column 'image'" in refused("audit", path)
    pq.write_table(table.append_column("label", table["label"]), path)
    refused("audit", path)
    done("audit", edited(made, path, "patient", list(range(59))))


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "x", "root": 3, "unreadable": [1]}'])
def test_metadata_edited_by_hand_is_left_out(made: Made, tmp_path: Path, text: str) -> None:
    table = pq.read_table(made.cells).replace_schema_metadata({b"leukoscope": text.encode()})
    pq.write_table(table, tmp_path / "edited.parquet")
    done("audit", tmp_path / "edited.parquet")


def test_a_foreign_index_of_image_and_label_alone(made: Made, tmp_path: Path) -> None:
    smear = Path(shutil.copytree(made.smear, tmp_path / "smear"))
    path = smear / "foreign.parquet"
    frame = load(made.cells).frame[["image", "label"]]
    pd.concat([frame, pd.DataFrame({"image": ["gone.png"], "label": ["monocyte"]})]).to_parquet(
        path
    )
    assert "gone.png" in done("audit", path)
    done("split", path, "-o", tmp_path / "split.parquet", "--ratios", "50/25/25")
    shutil.rmtree(smear / "images")
    assert "None of the 60 images" in refused("audit", path)


def test_images_that_vanished_since(made: Made, tmp_path: Path, monkeypatch: Any) -> None:
    smear, cells = Path(shutil.copytree(made.smear, tmp_path / "smear")), tmp_path / "cells.parquet"
    done("index", smear / "cells.csv", "-o", cells)
    shutil.rmtree(smear / "images" / "monocyte")
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / "cache"))
    done("audit", cells)
    run = ("train", "lightweight-cnn", cells, "--split", made.split, *TINY, "-o")
    assert "there is no such file" in refused(*run, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
    synthetic.make(tmp_path / "other", images=24, size=64, patients=3, seed=5, leaks=False)
    done("index", tmp_path / "other" / "cells.csv", "-o", tmp_path / "other.parquet")
    shutil.rmtree(tmp_path / "other" / "images" / "monocyte")
    assert "can't be read" in refused("evaluate", made.bundle, "--on", tmp_path / "other.parquet")
    shutil.rmtree(smear)
    assert "there is no such file" in refused(*run, tmp_path / "run2")


# --- split --------------------------------------------------------------------------------------


def split_as(made: Made, path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    change(pd.read_parquet(made.split)).to_parquet(path, index=False)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.assign(role=s["role"].replace("test", "tset")), "Did you mean 'test'"),
        (lambda s: s.assign(role=None), "'role'"),
        (lambda s: s.assign(role=[["train"]] * len(s)), "'role'"),
        (lambda s: s.assign(image=range(len(s))), "'image'"),
        (lambda s: s.assign(image=["other.png", *s["image"][1:]]), "other.png"),
        (lambda s: s.assign(fold="a"), "fold"),
        (lambda s: s.drop(columns="fold"), "lacks the columns fold"),
        (lambda s: pd.concat([s, s]), "twice"),
        (lambda s: s[:0], "no image"),
    ],
)
def test_splits_that_are_none(
    made: Made, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    path = split_as(made, tmp_path / "split.parquet", change)
    assert said in refused("audit", made.cells, "--split", path)
    for protocol in ("clean", "published"):
        assert said in refused("train", "lightweight-cnn", made.cells, "--split", path,
                               "-o", tmp_path / "run", "--protocol", protocol, *TINY)  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_split_of_several_folds(made: Made, tmp_path: Path) -> None:
    done("split", made.cells, "-o", tmp_path / "k.parquet", "--folds", 3)
    run = ("train", "lightweight-cnn", made.cells, "--split", tmp_path / "k.parquet", *TINY)
    assert "3 folds" in refused(*run, "-o", tmp_path / "run")


def test_split_requests_that_cant_be_met(made: Made, tmp_path: Path) -> None:
    for option in (
        ("--folds", 1), ("--folds", -3), ("--folds", 10**9), ("--ratios", "1/2/3"),
        ("--ratios", "nan/1/1"), ("--ratios", "0/50/50"), ("--ratios", "x"), ("--seed", -1),
    ):  # fmt: skip
        refused("split", made.cells, "-o", tmp_path / "split.parquet", *option)
    assert not list(tmp_path.iterdir())


def test_a_patient_on_both_sides_is_a_leak(made: Made, tmp_path: Path) -> None:
    frame = load(made.cells).frame
    moved = frame.loc[frame["patient"] == frame["patient"].mode()[0], "image"].iloc[0]

    def move(split: pd.DataFrame) -> pd.DataFrame:
        at = split["image"] == moved
        role = "test" if (split.loc[at, "role"] != "test").all() else "train"
        return split.assign(role=split["role"].mask(at, role))

    path = split_as(made, tmp_path / "split.parquet", move)
    run = ("train", "lightweight-cnn", made.cells, "--split", path, *TINY, "-o", tmp_path / "run")
    said = refused(*run, code=3)
    assert f"{moved} in " in said
    assert not (tmp_path / "run").exists()
    assert call("audit", made.cells, "--split", path).code == 3


def test_a_turned_copy_on_both_sides_is_a_leak(made: Made, tmp_path: Path) -> None:
    frame = load(made.cells).frame
    one = frame["image"].iloc[0]
    Image.open(made.smear / one).rotate(90).save(tmp_path / "turned.png")
    listed = [*(made.smear / frame["image"]), tmp_path / "turned.png"]
    table = pd.DataFrame({"image": listed, "label": [*frame["label"], frame["label"].iloc[0]]})
    table.to_csv(tmp_path / "cells.csv", index=False)
    done("index", tmp_path / "cells.csv", "-o", tmp_path / "cells.parquet")
    names = load(tmp_path / "cells.parquet").frame["image"]
    role = np.where(names == "turned.png", "test", "train")
    pd.DataFrame({"image": names, "fold": 0, "role": role}).to_parquet(tmp_path / "split.parquet")
    run = ("train", "lightweight-cnn", tmp_path / "cells.parquet", "--split",
           tmp_path / "split.parquet", *TINY, "-o", tmp_path / "run")  # fmt: skip
    said = refused(*run, code=3)
    assert "turned.png" in said
    assert Path(one).name in said


# --- recipes and settings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        "nope=1", "training.epoch=3", "epochs", "=1", "training=3", "preprocessing=3",
        "training.epochs=0", "training.epochs=-1", "training.epochs=1.5", "training.epochs=x",
        "training.epochs=1000000000", "training.steps_per_epoch=-1", "training.betas=[1,1]",
        "training.learning_rate=0", "training.learning_rate=nan", "training.learning_rate=inf",
        "training.batch_size=1", "training.batch_size=100000000000", "views.count=0",
        "views.count=1000000000", "seed=-1", 'preprocessing=[{step="resiz"}]',
        'preprocessing=[{step="resize",size=0}]', 'preprocessing=[{step="resize",size=100000}]',
        'augmentation=[{operation="nope"}]', "augmentation=[{x=1}]", "model.backbone=nope",
        "model.weights=nope", "model.head=[{}]", 'model.head=[{layer="x"}]',
        'model.head=[{layer="dense"}]', 'model.head=[{layer="dense",units=-1}]',
        'model.head=[{layer="dense",units=1000000000000}]', 'model.head=[{layer="dropout",p=2}]',
        'model.head=[{layer="relu",x=1}]', "split.clean=1/2", "training.optimizer=sgd",
    ],
)  # fmt: skip
def test_settings_that_cant_work(made: Made, tmp_path: Path, setting: str) -> None:
    said = refused("train", "lightweight-cnn", made.cells, "--split", made.split, *TINY,
                   "-o", tmp_path / "run", "--set", setting)  # fmt: skip
    assert len(said) < 1500
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_that_diverges(made: Made, tmp_path: Path) -> None:
    said = refused("train", "lightweight-cnn", made.cells, "--split", made.split, *TINY,
                   "-o", tmp_path / "run", "--set", "training.learning_rate=1e30")  # fmt: skip
    assert "learning" in said or "loss" in said
    assert not (tmp_path / "run" / "model").exists()


def test_names_that_are_unknown(made: Made, tmp_path: Path) -> None:
    def train(*options: object, recipe: object = "lightweight-cnn") -> str:
        return refused("train", recipe, made.cells, "-o", tmp_path / "run", *options)

    assert "Did you mean 'lightweight-cnn'" in train(recipe="lightweight")
    assert "Did you mean 'cnn'" in train("--arm", "cnnn")
    assert "allowed: clean, published" in train(*TINY, "--protocol", "honest")
    for device in ("tpu", "", "meta", "cuda:99"):
        assert "Device" in train(*TINY, "--split", made.split, "--device", device)
    for recipe in ("nothing.toml", tmp_path / "folder.toml", "x" * 300 + ".toml"):
        train(recipe=recipe)
    reproduce = ("reproduce", "lightweight-cnn", made.cells, "-o", tmp_path / "runs")
    refused(*reproduce, "--arms", "cnn,nope")
    refused(*reproduce, "--arms", "")
    refused(*reproduce, "--arms", "cnn", "--protocols", "clean,nope")


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "a = 1", "arms = 3", "arms.cnn = 3", "published = 3", "published.cnn = 3",
        "arm = [1]", "training = 3\n[arms.cnn.training]\nepochs = 1", "x = " + "[" * 5000,
    ],
)  # fmt: skip
def test_recipe_files_that_are_none(made: Made, tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    refused("recipes", path)
    refused("train", path, made.cells, "-o", tmp_path / "run", *TINY)
    path.write_bytes(b"\xff\xfe")
    refused("recipes", path)


def test_weights_that_dont_fit(made: Made, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    file, beside = tmp_path / "w.safetensors", tmp_path / "w.json"
    save_file({"a": np.zeros(3, np.float32)}, file)
    run = ("train", "lightweight-cnn", made.cells, "--split", made.split, "-o", tmp_path / "run",
           "--set", 'preprocessing=[{step="resize",size=32}]', "--weights")  # fmt: skip

    def contract(**changes: Any) -> None:
        whole = {"architecture": "mobilenetv2_100", "input": {}, "licence": "x",
                 "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}  # fmt: skip
        beside.write_text(json.dumps(whole | changes))

    assert "never loaded" in refused(*run, tmp_path / "w.pth")
    assert "No weights" in refused(*run, tmp_path / "nothing.safetensors")
    assert "no contract" in refused(*run, file)
    refused(*run, tmp_path)
    refused(*run, "atuo")
    refused(*run, "x" * 300)
    for changes, said in (
        ({}, "doesn't fit"), ({"sha256": "0" * 64}, "SHA-256"), ({"x": 1}, "no weights contract"),
        ({"architecture": "resnet18"}, "are for resnet18"), ({"input": {"mean": "x"}}, "mean"),
        ({"arguments": {"nope": 1}}, "arguments"),
    ):  # fmt: skip
        contract(**changes)
        assert said in refused(*run, file)
    beside.write_text("{")
    refused(*run, file)
    file.write_bytes(b"garbage")
    contract()
    assert "no safetensors file" in refused(*run, file)
