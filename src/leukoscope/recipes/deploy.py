"""From a trained classifier to what is used: calibrated, stored, exported as a bundle."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor

import leukoscope
from leukoscope.bundle import card
from leukoscope.bundle import contract as contracts
from leukoscope.bundle.contract import Contract, Input, Model, Origin, PredictionSets
from leukoscope.bundle.inference import Reader, answers
from leukoscope.data.index import CellIndex
from leukoscope.errors import InputError
from leukoscope.evaluate.calibration import fit_conformal, fit_temperature, softmax
from leukoscope.evaluate.novelty import fit as fit_novelty
from leukoscope.files import atomic, output_folder, read_json, sha256_of, write_json, write_text
from leukoscope.models.classifier import Classifier, build
from leukoscope.models.graph import classifier_graph
from leukoscope.models.weights import Weights
from leukoscope.models.weights import resolve as resolve_weights
from leukoscope.recipes.schema import Protocol, Recipe

COVERAGE = 0.9
WEIGHTS = "model.safetensors"
Outputs = Mapping[str, tuple[Tensor, Tensor]]
"""Logits and pooled features by role."""


def calibrate(
    plan: Recipe,
    protocol: Protocol,
    index: CellIndex,
    start: Weights,
    size: tuple[int, int],
    classes: Sequence[str],
    table: pd.DataFrame,
    said: Outputs,
) -> Contract:
    """The contract: temperature, prediction sets and novelty, fitted on validation.

    Under the published protocol validation is what is scored, so nothing is fitted to it.
    """
    logits, features = (part.numpy() for part in said["validation"])
    temperature, sets, novelty = 1.0, None, None
    if protocol == "clean":
        labels = _codes(table, "validation", classes)
        temperature = fit_temperature(logits, labels)
        sets = PredictionSets(
            coverage=COVERAGE,
            thresholds=fit_conformal(softmax(logits, temperature), labels, coverage=COVERAGE),
            calibrated_on=len(labels),
        )
        novelty = fit_novelty(
            said["train"][1].numpy(), _codes(table, "train", classes), features, logits
        )
    contract = Contract(
        leukoscope=leukoscope.__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        name=f"{plan.name}-{plan.arm}",
        version="1",
        input=Input(size=size, mean=start.input.mean, std=start.input.std),
        preprocessing=plan.preprocessing,
        classes=list(classes),
        temperature=temperature,
        prediction_sets=sets,
        novelty=novelty,
        model=Model(
            architecture=plan.model.backbone, arguments=start.arguments, head=plan.model.head
        ),
        origin=_origin(plan, protocol, index, start),
        validation={},
    )
    seen = answers(logits, features, contract)
    training = table.loc[table["role"] == "train", "label"]
    expected = _validation(seen.probs, seen.novelty) | {"majority": training.mode()[0]}
    return contract.model_copy(update={"validation": expected})


def _validation(probs: np.ndarray, novelty: np.ndarray) -> dict[str, Any]:
    """What confidence and novelty were on validation: later drift is measured against it."""
    confidence = probs.max(axis=1)
    known = novelty[np.isfinite(novelty)]
    return {
        "n": len(probs),
        "mean_confidence": float(confidence.mean()),
        "sd_confidence": float(confidence.std()),
        "mean_novelty": float(known.mean()) if len(known) else None,
        "sd_novelty": float(known.std()) if len(known) else None,
    }


def _origin(plan: Recipe, protocol: Protocol, index: CellIndex, start: Weights) -> Origin:
    patients = index.frame["patient"].dropna().nunique()
    return Origin(
        recipe=plan.name,
        arm=plan.arm,
        protocol=protocol,
        seed=plan.seed,
        recipe_sha256=plan.sha256,
        data=index.name,
        data_licence=index.licence,
        data_citation=index.citation,
        data_sha256=index.sha256,
        images=len(index.frame),
        patients=int(patients) or None,
        synthetic=index.synthetic,
        weights=start.describe(),
    )


def _codes(table: pd.DataFrame, role: str, classes: Sequence[str]) -> np.ndarray:
    rows = table[(table["role"] == role) & (table["view"] == 0)]
    return pd.Categorical(rows["label"], categories=list(classes)).codes.astype(np.int64)


def save_model(classifier: Classifier, contract: Contract, folder: Path) -> None:
    """Write `model.safetensors` and `contract.json`."""
    output_folder(folder)
    tensors = {k: v.detach().cpu().contiguous() for k, v in classifier.state_dict().items()}
    with atomic(folder / WEIGHTS) as temporary:
        temporary.write_bytes(serialise(tensors))
    stated = contract.model.model_copy(update={"sha256": sha256_of(folder / WEIGHTS)})
    write_json(folder / contracts.CONTRACT,
               contract.model_copy(update={"model": stated}).model_dump())  # fmt: skip


def load_model(run: Path) -> tuple[Classifier, Contract]:
    """The classifier of a run, verified against its contract; InputError where it is damaged."""
    folder = run / "model"
    if not folder.is_dir():
        raise InputError(
            f"{run} is no finished run: it holds no model folder",
            fix="Train it with: leukoscope train RECIPE cells.parquet -o RUN (or --resume).",
            field="run",
        )
    contract = contracts.read(folder)
    path = folder / WEIGHTS
    if not path.is_file() or sha256_of(path) != contract.model.sha256:
        raise InputError(
            f"{path} is missing or isn't the file its contract was written for",
            fix="Train the run again.",
            field="run",
        )
    model = contract.model
    start = resolve_weights("none", model.architecture)
    start = Weights("none", start.input, model.arguments)
    classifier = build(model.architecture, model.head, len(contract.classes), start, seed=0)
    try:
        classifier.load_state_dict(deserialise(path.read_bytes()))
    except (RuntimeError, SafetensorError) as problem:
        raise InputError(
            f"{path} doesn't fit its contract: {str(problem).splitlines()[-1].strip()[:160]}",
            fix="Train the run again.",
            field="run",
        ) from None
    return classifier.eval(), contract


def reader_of(run: Path) -> Reader:
    """A run as an inference reader, through the very graph that `export` writes."""
    classifier, contract = load_model(run)
    return Reader(contract, classifier_graph(classifier, contract.input.size))


def export(run: Path, out: Path) -> Path:
    """Write the bundle of a run: graph, contract, model card. Returns the bundle's folder.

    Raises InputError where the run isn't finished or the folder can't be written.
    """
    classifier, contract = load_model(run)
    if contract.origin.protocol != "clean":
        raise InputError(
            f"{run} was trained under the published protocol, whose figures are inflated and whose "
            "probabilities aren't calibrated",
            fix="Export a run of --protocol clean.",
            field="run",
        )
    described = read_json(run / "metrics.json")
    card.render(contract, described)  # what is wrong with it is said before anything is written
    folder = _bundle_folder(out)
    graph = classifier_graph(classifier, contract.input.size)
    with atomic(folder / contracts.GRAPH) as temporary:
        temporary.write_bytes(graph)
    digest = sha256_of(folder / contracts.GRAPH)
    contract = contract.model_copy(
        update={"model": contract.model.model_copy(update={"sha256": digest})}
    )
    write_json(folder / contracts.CONTRACT, contract.model_dump())
    write_text(folder / "README.md", card.render(contract, described))
    return folder


def _bundle_folder(out: Path) -> Path:
    """The folder to export to; InputError where a run's model or somebody's README stands there."""
    folder = output_folder(out)
    model = (folder / WEIGHTS).exists()
    foreign = (folder / "README.md").exists() and not (folder / contracts.CONTRACT).exists()
    if model or foreign:
        raise InputError(
            f"{folder} holds {WEIGHTS if model else 'a README.md'}, not a bundle",
            fix="Choose a new folder with -o.",
            field="output",
        )
    return folder
