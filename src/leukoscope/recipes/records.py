"""What a run writes down: claim, predictions, metrics, environment, report."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import tomli_w
import torch
from torch import Tensor

import leukoscope
from leukoscope.bundle.contract import Contract
from leukoscope.bundle.inference import answers
from leukoscope.data.index import CellIndex
from leukoscope.data.table import write_parquet
from leukoscope.errors import InputError, some
from leukoscope.evaluate.calibration import coverage, softmax
from leukoscope.evaluate.metrics import summarise
from leukoscope.files import plain, read_json, sha256_of, sweep, write_json, write_text
from leukoscope.recipes.judgement import baseline, measure, scored
from leukoscope.recipes.schema import Protocol, Recipe
from leukoscope.train import ranks

if TYPE_CHECKING:
    from leukoscope.recipes.experiment import Experiment
    from leukoscope.recipes.out_of_fold import OutOfFold

PACKAGES = ("torch", "timm", "onnxruntime", "numpy", "opencv-python-headless", "scikit-learn",
            "kornia", "pandas")  # fmt: skip


def inputs_of(job: Experiment) -> dict[str, Any]:
    """What a run is made from beside its recipe: hashes of the images, split and weights."""
    roles = job.table if job.pooled else job.roles
    rows = roles.sort_values(["image", "role"])[["image", "role"]].to_csv(index=False)
    return {
        "images": job.index.sha256,
        "split": hashlib.sha256(rows.encode("utf-8", "backslashreplace")).hexdigest(),
        "weights": [start.describe() for start in job.starts],
    }


def claim(out: Path, job: Experiment, resume: bool) -> bool:
    """Take `out` as the run folder; write what is known before training. False: it is finished.

    InputError where another run stands there, or where `resume` meets another recipe, setting,
    index, split or weights: half a run must not go on with other data.
    """
    inputs, given = inputs_of(job), out / "checkpoints" / "inputs.json"
    if claim_recipe(out, job.plan, job.protocol, resume):
        changed = [k for k, v in read_json(given).items() if v != plain(inputs).get(k)]
        if changed:
            raise InputError(
                f"The run in {out} was started with other {' and '.join(changed)}",
                fix="Resume with the same ones, or choose another folder with -o.",
                field="resume",
            )
    write_json(given, inputs)
    write_recipe(out, job.plan, job.protocol)
    if resume and (out / "environment.json").is_file():
        return False
    keep_split(out, job)
    return True


def claim_recipe(out: Path, plan: Recipe, protocol: Protocol, resume: bool) -> bool:
    """Whether the same run was begun here; InputError where another one was, or no `resume`."""
    path = out / "recipe.toml"
    if not path.exists():
        return False
    if not resume:
        raise InputError(
            f"{out} holds a run already",
            fix="Go on with --resume, or choose another folder with -o.",
            field="output",
        )
    if path.read_bytes() != _recipe_text(plan, protocol).encode():
        raise InputError(
            f"The run in {out} was started with another recipe, arm, protocol or setting",
            fix="Resume with the same ones, or choose another folder with -o.",
            field="resume",
        )
    sweep(out)
    return True


def write_recipe(out: Path, plan: Recipe, protocol: Protocol) -> None:
    """Write recipe.toml, a recipe by itself that says just what ran."""
    write_text(out / "recipe.toml", _recipe_text(plan, protocol))


def _recipe_text(plan: Recipe, protocol: Protocol) -> str:
    return tomli_w.dumps({"protocol": protocol, **plain(plan.resolved())})


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
    """`auto` is the GPU where torch sees one, otherwise the CPU; processes that train together
    have a GPU each."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and ranks.world() > 1:
        wanted = f"cuda:{ranks.local()}"
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
    return "cpu" if torch.device(wanted).type == "cpu" else wanted  # "cpu:0" is no other one


def keep_split(run: Path, job: Experiment) -> None:
    """Write split.parquet and audit.json; a split of views is written with its `view` column."""
    roles, findings = job.roles, dict(job.findings)
    if job.pooled:
        sides = job.table.groupby("image")["role"].nunique()
        split = sorted(sides.index[sides > 1])
        findings["verdict"] = "leak"
        findings["views_across_roles"] = len(split)
        findings["summary"] = [
            f"Leak, as published: views of {len(split)} of {len(sides)} images stand in training "
            "and in validation, because the views were made before the split.",
            *findings["summary"],
        ]
        roles = job.table[["image", "view", "role"]].assign(fold=0)
    write_parquet(pa.Table.from_pandas(roles, preserve_index=False), run / "split.parquet")
    write_json(run / "audit.json", findings)


def scored_rows(table: pd.DataFrame, role: str, pooled: bool) -> np.ndarray:
    """The rows of a role that are scored: the images themselves; where views were split, all."""
    rows = table["role"] == role
    if not pooled or role == "train":
        rows &= table["view"] == 0
    return rows.to_numpy().nonzero()[0]


def judge(
    job: Experiment,
    said: Mapping[str, tuple[Tensor, Tensor]],
    folds: OutOfFold | None,
    contract: Contract,
    phases: Mapping[str, Tensor],
    notes: Sequence[str],
    run: Path,
) -> None:
    """Write predictions.parquet and metrics.json; the trivial baselines stand beside.

    said: logits and features by role. folds: of training images out of fold. phases: logits of the
    scored rows after each phase of training. notes: what to say beside the figures.
    """
    frame = predictions(job, said, folds, contract)
    write_parquet(pa.Table.from_pandas(frame, preserve_index=False), run / "predictions.parquet")
    part = frame[frame["role"] == job.role]
    result = {"role": job.role, "protocol": job.protocol, **measure(part, job.classes)}
    result["notes"] = [*result["notes"], *notes]
    result["baseline"] = baseline(job.index, job.roles, job.role)
    if result["baseline"]["colour_knn"] is None:
        why = "the protocol scores views, and no image has a role of its own"
        result["undefined"] |= {"baseline.majority": why, "baseline.colour_knn": why}
    if job.role != "validation":
        chosen_by = frame[frame["role"] == "validation"]
        result["validation"] = summarise(scored(chosen_by, job.classes))
    rows = job.table.iloc[job.scored(job.role)]
    result["phases"] = {
        number: measure(_answers(job, rows, softmax(logits.numpy(), 1.0)), job.classes)
        for number, logits in phases.items()
    }
    result["trust"] = trust(job, said, contract)
    write_json(run / "metrics.json", result)


def trust(
    job: Experiment, said: Mapping[str, tuple[Tensor, Tensor]], contract: Contract
) -> dict[str, Any] | None:
    """How prediction sets and novelty keep their promises on the scored part; None under the
    published protocol, which fits neither."""
    if contract.prediction_sets is None or contract.novelty is None:
        return None
    logits, features = (part.numpy() for part in said[job.role])
    seen = answers(logits, features, contract)
    return {
        "prediction_sets": {
            "nominal": contract.prediction_sets.coverage,
            **coverage(seen.sets, job.labels(job.scored(job.role))),
        },
        "accepted_as_known": float((seen.novelty <= 1).mean()),
    }


def predictions(
    job: Experiment,
    said: Mapping[str, tuple[Tensor, Tensor]],
    folds: OutOfFold | None,
    contract: Contract,
) -> pd.DataFrame:
    """image, patient, slide, label, predicted, prob_<class>…, role, view of every scored row; rows
    of training are out of fold."""
    held = {role: (job.scored(role), logits) for role, (logits, _) in said.items()
            if role != "train"}  # fmt: skip
    if folds is not None:
        held["train"] = (folds.rows, folds.logits)
    parts = []
    for role, (places, logits) in held.items():
        rows = job.table.iloc[places]
        probs = softmax(logits.numpy(), contract.temperature)
        part = _answers(job, rows, probs)
        parts.append(part.assign(role=role, view=rows["view"].to_numpy()))
    return pd.concat(parts, ignore_index=True)


def _answers(job: Experiment, rows: pd.DataFrame, probs: np.ndarray) -> pd.DataFrame:
    """image, patient, slide, label, predicted, prob_<class>… of rows of the experiment's table
    with (n, k) probabilities."""
    slides = job.index.frame.set_index("image")["slide"]
    part = rows[["image", "patient", "label"]].reset_index(drop=True)
    part.insert(2, "slide", slides[part["image"]].to_numpy())
    part["predicted"] = np.array(job.classes)[probs.argmax(axis=1)]
    for column, name in enumerate(job.classes):
        part[f"prob_{name}"] = probs[:, column]
    return part


def environment(job: Experiment, cells: Path, began: float, run: Path) -> None:
    """Write environment.json: what ran, where, on what, and the command that repeats it."""
    plan, index, device = job.plan, job.index, job.device
    write_json(
        run / "environment.json",
        {
            "leukoscope": leukoscope.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in PACKAGES},
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            "threads": torch.get_num_threads(),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "seed": plan.seed,
            "protocol": job.protocol,
            "recipe": plan.name,
            "arm": plan.arm,
            "recipe_sha256": plan.sha256,
            "weights": [start.describe() for start in job.starts],
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
            "training_seconds": training_seconds(run),
            "command": shlex.join(["leukoscope", *sys.argv[1:]]),
        },
    )


def training_seconds(run: Path) -> float | None:
    """What the epochs took, validation included, over all resumptions, and whichever run trained a
    network that several share; None where no network learnt. Views and features aren't in it."""
    path = run / "history.csv"
    return round(float(pd.read_csv(path)["seconds"].sum()), 1) if path.is_file() else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
