"""What a run writes down: claim, predictions, metrics, environment, report."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tomli_w
import torch

import leukoscope
from leukoscope.bundle.contract import Contract
from leukoscope.data.index import CellIndex
from leukoscope.data.table import write_parquet
from leukoscope.errors import InputError, some
from leukoscope.evaluate.calibration import softmax
from leukoscope.files import plain, read_json, sha256_of, write_json, write_text
from leukoscope.models.weights import Weights
from leukoscope.recipes.deploy import Outputs
from leukoscope.recipes.judgement import baseline, measure
from leukoscope.recipes.schema import Protocol, Recipe

PACKAGES = ("torch", "timm", "onnxruntime", "numpy", "opencv-python-headless", "scikit-learn",
            "kornia", "pandas")  # fmt: skip


def inputs_of(index: CellIndex, roles: pd.DataFrame, start: Weights) -> dict[str, Any]:
    """What a run is made from beside its recipe: hashes of the images, split and weights."""
    rows = roles.sort_values(["image", "role"])[["image", "role"]].to_csv(index=False)
    return {
        "images": index.sha256,
        "split": hashlib.sha256(rows.encode("utf-8", "backslashreplace")).hexdigest(),
        "weights": start.describe(),
    }


def claim(
    out: Path, plan: Recipe, protocol: Protocol, inputs: dict[str, Any], resume: bool
) -> Path:
    """Take `out` as the run folder; write `recipe.toml` and `checkpoints/inputs.json`.

    InputError where another run stands there, or where `resume` meets another recipe, setting,
    index, split or weights: half a run must not go on with other data.
    """
    path = out / "recipe.toml"
    text = tomli_w.dumps({"protocol": protocol, **plain(plan.resolved())})
    given = out / "checkpoints" / "inputs.json"
    if path.exists():
        if not resume:
            raise InputError(
                f"{out} holds a run already",
                fix="Go on with --resume, or choose another folder with -o.",
                field="output",
            )
        if path.read_bytes() != text.encode():
            raise InputError(
                f"The run in {out} was started with another recipe, arm, protocol or setting",
                fix="Resume with the same ones, or choose another folder with -o.",
                field="resume",
            )
        changed = [k for k, v in read_json(given).items() if v != plain(inputs).get(k)]
        if changed:
            raise InputError(
                f"The run in {out} was started with other {' and '.join(changed)}",
                fix="Resume with the same ones, or choose another folder with -o.",
                field="resume",
            )
    write_json(given, inputs)
    write_text(path, text)
    return out


def check_labels(index: CellIndex, table: pd.DataFrame) -> list[str]:
    """The classes in order; InputError unless there are two, all of them in training."""
    classes = sorted(index.frame["label"].unique())
    if len(classes) < 2:
        raise InputError(
            f"The index holds one class only: {some(classes)}",
            fix="Add images of at least one more class.",
            field="label",
        )
    for role in ("train", "validation"):
        present = set(table.loc[table["role"] == role, "label"])
        absent = [name for name in classes if name not in present]
        if absent:
            raise InputError(
                f"No {role} image of class {some(absent)}",
                fix="Make another split, or add images of that class.",
                field="split",
            )
    return classes


def choose_device(wanted: str) -> str:
    """`auto` is the GPU where torch sees one, otherwise the CPU."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(wanted).type not in {"cpu", "cuda"}:
            raise RuntimeError
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"Device {wanted!r} can't be used here; allowed: cpu"
            + (", cuda" if torch.cuda.is_available() else ""),
            fix="Choose --device cpu or auto; leukoscope doctor says what works.",
            field="device",
        ) from None
    return wanted


def keep_split(
    run: Path, roles: pd.DataFrame, table: pd.DataFrame, findings: dict[str, Any], pooled: bool
) -> None:
    """Write split.parquet and audit.json; a split of views is written with its `view` column."""
    if pooled:
        sides = table.groupby("image")["role"].nunique()
        split = sorted(sides.index[sides > 1])
        findings["verdict"] = "leak"
        findings["views_across_roles"] = len(split)
        findings["summary"] = [
            f"Leak, as published: views of {len(split)} of {len(sides)} images stand in training "
            "and in validation, because the views were made before the split.",
            *findings["summary"],
        ]
        roles = table[["image", "view", "role"]].assign(fold=0)
    write_parquet(pa.Table.from_pandas(roles, preserve_index=False), run / "split.parquet")
    write_json(run / "audit.json", findings)


def scored_rows(table: pd.DataFrame, role: str, pooled: bool) -> np.ndarray:
    """The rows of a role that are scored: the images themselves; where views were split, all."""
    rows = table["role"] == role
    if not pooled or role == "train":
        rows &= table["view"] == 0
    return rows.to_numpy().nonzero()[0]


def predictions(
    table: pd.DataFrame, said: Outputs, contract: Contract, pooled: bool
) -> pd.DataFrame:
    """image, patient, label, predicted, prob_<class>…, role, view of every scored row."""
    parts = []
    for role, (logits, _) in said.items():
        if role == "train":
            continue
        rows = table.iloc[scored_rows(table, role, pooled)]
        probs = softmax(logits.numpy(), contract.temperature)
        part = rows[["image", "patient", "label"]].reset_index(drop=True)
        part["predicted"] = np.array(contract.classes)[probs.argmax(axis=1)]
        for column, name in enumerate(contract.classes):
            part[f"prob_{name}"] = probs[:, column]
        part["role"] = role
        part["view"] = rows["view"].to_numpy()
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def judge(
    run: Path,
    frame: pd.DataFrame,
    index: CellIndex,
    roles: pd.DataFrame,
    classes: Sequence[str],
    role: str,
    protocol: Protocol,
) -> None:
    """Write predictions.parquet and metrics.json; the trivial baselines stand beside."""
    write_parquet(pa.Table.from_pandas(frame, preserve_index=False), run / "predictions.parquet")
    part = frame[frame["role"] == role]
    result = {"role": role, "protocol": protocol, **measure(part, classes)}
    result["baseline"] = baseline(index, roles, role)
    if result["baseline"]["colour_knn"] is None:
        why = "the protocol scores views, and no image has a role of its own"
        result["undefined"] |= {"baseline.majority": why, "baseline.colour_knn": why}
    write_json(run / "metrics.json", result)


def environment(
    run: Path,
    plan: Recipe,
    protocol: Protocol,
    index: CellIndex,
    cells: Path,
    start: Weights,
    device: str,
    began: float,
) -> None:
    """Write environment.json: what ran, where, on what, and the command that repeats it."""
    write_json(
        run / "environment.json",
        {
            "leukoscope": leukoscope.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in PACKAGES},
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
            "threads": torch.get_num_threads(),
            "seed": plan.seed,
            "protocol": protocol,
            "recipe": plan.name,
            "arm": plan.arm,
            "recipe_sha256": plan.sha256,
            "weights": start.describe(),
            "index": {
                "path": str(Path(cells).resolve()),
                "root": str(index.root),
                "name": index.name,
                "licence": index.licence,
                "citation": index.citation,
                "layout": index.layout,
                "n": len(index.frame),
                "patients": int(index.frame["patient"].nunique()),
                "sha256": sha256_of(cells),
                "synthetic": index.synthetic,
            },
            "started": datetime.datetime.fromtimestamp(began, datetime.UTC).isoformat(
                timespec="seconds"
            ),
            "seconds": round(time.time() - began, 1),
            "command": shlex.join(["leukoscope", *sys.argv[1:]]),
        },
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
