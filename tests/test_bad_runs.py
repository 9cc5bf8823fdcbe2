"""Damaged runs, tampered bundles and predictions that can't work: one sentence, exit code 2."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from commands import GARBAGE, TINY, Made, call, done, no_parts, picture, refused, state, untouched
from leukoscope.bundle.contract import seal
from leukoscope.files import held


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


# --- runs and bundles ---------------------------------------------------------------------------


def test_a_run_folder_is_used_once(made: Made, tmp_path: Path) -> None:
    run = copied(made.run, tmp_path)
    train = ("train", "lightweight-cnn", made.cells, "--split", made.split, *TINY, "-o", run)
    with untouched(run):
        assert "holds a run already" in refused(*train)
        other = (*train, "--resume", "--set", "training.learning_rate=0.1")
        assert "another recipe" in refused(*other)
        with held(run) as alone:
            assert alone
            assert "Another process is training" in refused(*train, "--resume")
    before = state(run)
    for left in ("model/.part-x.safetensors", "figures/.part-y", "checkpoints/epoch-1.safetensors"):
        (run / left).write_bytes(b"what a killed run left behind")
    done(*train, "--resume")
    assert state(run).keys() == before.keys()
    (run / "recipe.toml").write_bytes(b"\xff")
    refused(*train, "--resume")


@pytest.mark.parametrize("damage", ["garbage", "flip"])
def test_damaged_checkpoints(
    made: Made, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train = ("train", "lightweight-cnn", made.cells, "--split", made.split, *TINY, "-o", run)
    # A finished run has none left to go on from.
    monkeypatch.setattr("leukoscope.train.checkpoints.clear", lambda _: None)
    done(*train)
    model = Path(shutil.copy(run / "model/model.safetensors", tmp_path))
    for name in ("epoch-00000001.safetensors", "phase-1.safetensors"):
        path = run / "checkpoints" / name
        whole = path.read_bytes()
        (run / "environment.json").unlink(missing_ok=True)  # as if it had been cut short
        path.write_bytes(b"garbage" if damage == "garbage" else whole[:-5] + b"\1" + whole[-4:])
        answer = call(*train, "--resume")
        assert answer.code == 0
        assert f"Checkpoint {name} is damaged: " in answer.err
        begun = "training begins anew" if "epoch" in name else "going on from its copy"
        assert answer.err.endswith(f"; {begun}.\n")
        assert answer.err.count("\n") == 1
        assert (run / "model/model.safetensors").read_bytes() == model.read_bytes()
    path.write_bytes(b"")
    path.with_name(f"copy-of-{name}").write_bytes(b"")
    (run / "environment.json").unlink()
    assert "--resume then trains it anew" in refused(*train, "--resume")


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/contract.json", "metrics.json"])
@pytest.mark.parametrize("kind", ["noise", "short", "gone", "braces"])
def test_export_of_a_damaged_run(made: Made, tmp_path: Path, name: str, kind: str) -> None:
    run = copied(made.run, tmp_path)
    whole = (run / name).read_bytes()
    text = {"noise": GARBAGE["noise"], "short": whole[:100], "braces": b"{}"}.get(kind)
    (run / name).write_bytes(text) if text else (run / name).unlink()
    refused("export", run, "-o", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet"])
@pytest.mark.parametrize("text", [*GARBAGE.values(), b"[]", b"{}", b'{"role": [1]}', None])
def test_evaluate_and_compare_a_damaged_run(
    made: Made, tmp_path: Path, name: str, text: bytes | None
) -> None:
    run = copied(made.run, tmp_path)
    (run / name).write_bytes(text) if text is not None else (run / name).unlink()
    refused("evaluate", run, "-o", tmp_path / "metrics.json")
    refused("compare", made.run, run, "-o", tmp_path / "comparison.json")
    assert not (tmp_path / "metrics.json").exists()


def contract_edits() -> dict[str, Callable[[dict[str, Any]], Any]]:
    nan = float("nan")
    return {
        "one class": lambda c: c.update(classes=["a"]),
        "a class twice": lambda c: c.update(classes=["a"] * 6),
        "fewer classes": lambda c: c.update(classes=["a", "b"], prediction_sets=None),
        "more classes": lambda c: c.update(classes=list("abcdefgh"), prediction_sets=None),
        "temperature": lambda c: c.update(temperature=-1),
        "infinite temperature": lambda c: c.update(temperature=float("inf")),
        "no novelty": lambda c: c.update(novelty={}),
        "half novelty": lambda c: c.update(novelty={"threshold": "x"}),
        "text novelty": lambda c: c.update(novelty=dict.fromkeys(c["novelty"], "x")),
        "no chain": lambda c: c.update(preprocessing=[]),
        "unknown step": lambda c: c.update(preprocessing=[{"step": "nope"}]),
        "size": lambda c: c["input"].update(size=[64, 64]),
        "std": lambda c: c["input"].update(std=[0, 1, 1]),
        "mean": lambda c: c["input"].update(mean=[nan] * 3),
        "thresholds": lambda c: c["prediction_sets"].update(thresholds=[nan] * 6),
        "hash": lambda c: c["model"].update(sha256="0" * 64),
        "unknown key": lambda c: c.update(x=1),
        "format": lambda c: c.update(format=2),
        "missing key": lambda c: c.pop("classes"),
    }


@pytest.mark.parametrize("edit", contract_edits())
def test_tampered_contracts(made: Made, tmp_path: Path, edit: str) -> None:
    bundle = copied(made.bundle, tmp_path)
    contract = json.loads((bundle / "contract.json").read_text())
    contract_edits()[edit](contract)
    (bundle / "contract.json").write_text(json.dumps(seal(contract)))
    image, out = picture(tmp_path / "x.png"), tmp_path / "said.csv"
    refused("predict", bundle, image, "-o", out)
    assert not out.exists()


def test_a_graph_of_another_size_than_its_contract(made: Made, tmp_path: Path) -> None:
    bundle = copied(made.bundle, tmp_path)
    contract = json.loads((bundle / "contract.json").read_text())
    contract["input"]["size"] = [64, 64]
    contract["preprocessing"] = [{"step": "resize", "size": 64}]
    (bundle / "contract.json").write_text(json.dumps(seal(contract)))
    said = refused("predict", bundle, picture(tmp_path / "x.png"), "-o", tmp_path / "said.csv")
    assert "doesn't fit its graph" in said


def test_tampered_graphs_and_folders_that_are_no_bundle(made: Made, tmp_path: Path) -> None:
    bundle, image = copied(made.bundle, tmp_path), picture(tmp_path / "x.png")
    graph = bundle / "model.onnx"
    whole = graph.read_bytes()
    command = ("predict", bundle, image, "-o", tmp_path / "said.csv")
    for text in (b"", b"x", whole[:-1], whole + b"\0", whole[:999] + b"\1" + whole[1000:]):
        graph.write_bytes(text)
        assert "SHA-256" in refused(*command)
    contract = json.loads((bundle / "contract.json").read_text())
    graph.write_bytes(b"garbage")
    contract["model"]["sha256"] = hashlib.sha256(b"garbage").hexdigest()
    (bundle / "contract.json").write_text(json.dumps(seal(contract)))
    assert "can't be loaded" in refused(*command)
    graph.unlink()
    assert "no bundle" in refused(*command)
    (bundle / "contract.json").write_bytes(GARBAGE["noise"])
    refused(*command)
    for other in (tmp_path, image, tmp_path / "nothing", "x" * 300, made.smear):
        refused("predict", other, image, "-o", tmp_path / "said.csv")
        refused("export", other, "-o", tmp_path / "bundle")
        refused("evaluate", other)
        refused("explain", other, image, "-o", tmp_path / "maps")
    assert not (tmp_path / "said.csv").exists()
    no_parts(tmp_path)


def test_predict_arguments(made: Made, tmp_path: Path) -> None:
    image = picture(tmp_path / "x.png")
    assert "allowed: .csv" in refused("predict", made.bundle, image, "-o", tmp_path / "said.xlsx")
    assert "allowed: .csv" in refused("predict", made.bundle, image, "-o", tmp_path)
    for path in (tmp_path / "none*", tmp_path / "nothing.png", "y" * 300, tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused("predict", made.bundle, path, "-o", tmp_path / "said.csv")


# --- predictions of any tool --------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "", "\0\1\2", "label,predicted\n", "lable,predicted\na,b\n", "label,x\na,b\n",
        "label,predicted\na,\n", "label,predicted\na,b,c,d\na\n", 'label,predicted\n"a,b\n',
        "label,predicted,prob_a,prob_b\na,b,.9,.9\n", "label,predicted,prob_a,prob_b\na,b,,1\n",
        "label,predicted,prob_a,prob_b\na,b,-1,2\n", "label,predicted,prob_a,prob_b\na,b,x,y\n",
        "label,predicted,prob_a,prob_b\nc,b,.5,.5\n", "label,predicted,prob_a\na,b,1\n",
        "label,predicted,prob_a,prob_b\na,b,90,10\n", "label;wrong\na;b\n",
    ],
)  # fmt: skip
def test_tables_that_hold_no_predictions(tmp_path: Path, text: str) -> None:
    path = tmp_path / "said.csv"
    path.write_text(text)
    refused("evaluate", path, "-o", tmp_path / "metrics.json")
    path.write_bytes("label,predicted\né,b\n".encode("latin-1"))
    refused("evaluate", path)
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        "label,predicted\na,b\n", "label,predicted\na,a\na,a\n",
        "label,predicted\nNA,nan\nnan,NA\n",
        "\ufefflabel,predicted\na,b\n", "image,label,predicted\nx,a,b\nx,a,b\ny,b,b\n",
        "label,predicted,patient\na,b,1\nb,b,\n", "label,predicted,prob_a\na,a,1\n",
    ],
)  # fmt: skip
def test_odd_predictions_that_can_be_judged(tmp_path: Path, text: str) -> None:
    (tmp_path / "said.csv").write_text(text)
    done("evaluate", tmp_path / "said.csv", "-o", tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["n"] == text.count("\n") - 1


def test_numbers_as_names_in_a_parquet(tmp_path: Path) -> None:
    """Patients that are numbers are resampled as patients, and 1 and 1.0 are one class."""
    n = 40
    frame = pd.DataFrame({"label": [0, 1] * 20, "predicted": [0.0, 1.0] * 15 + [1.0, 0.0] * 5,
                          "patient": np.arange(n) // 4})  # fmt: skip
    frame.to_parquet(tmp_path / "said.parquet")
    found = json.loads(done("evaluate", tmp_path / "said.parquet", "--json"))
    assert found["classes"] == ["0", "1"]
    assert (found["interval"]["unit"], found["interval"]["groups"]) == ("patient", 10)


def test_comparisons_that_cant_be_made(made: Made, tmp_path: Path) -> None:
    def table(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    first = table("a.csv", "image,label,predicted\nx,a,b\ny,b,b\n")
    refused("compare", first)
    refused("compare", first, first)
    refused("compare", first, tmp_path / "nothing.csv")
    assert "no image in common" in refused(
        "compare", first, table("b.csv", "image,label,predicted\nz,a,b\n")
    )
    assert "more than once" in refused(
        "compare", first, table("c.csv", "image,label,predicted\nx,a,b\nx,a,b\n")
    )
    assert "no column 'image'" in refused(
        "compare", first, table("d.csv", "label,predicted\na,b\n")
    )
    assert "labelled" in refused(
        "compare", first, table("e.csv", "image,label,predicted\nx,b,b\ny,b,b\n")
    )
    refused("compare", first, made.run)


def test_external_tests_that_are_none(made: Made, tmp_path: Path) -> None:
    said = refused("evaluate", made.run, "--on", made.cells, code=3)
    assert "images/basophil" in said
    for label in "ab":
        picture(tmp_path / "in" / label / "1.png", seed=ord(label))
    done("index", tmp_path / "in", "-o", tmp_path / "cells.parquet")
    on = ("--on", tmp_path / "cells.parquet")
    assert "labels the model doesn't know: a, b" in refused("evaluate", made.bundle, *on)
    refused("evaluate", tmp_path / "cells.parquet", *on)
    run = copied(made.run, tmp_path)
    (run / "environment.json").write_text("[")
    refused("evaluate", run, "--on", made.cells)
    os.unlink(run / "environment.json")  # noqa: PTH108
