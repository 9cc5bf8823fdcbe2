"""The int8 bundle of a run: quantised, judged on validation, and calibrated anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from leukoscope.bundle.contract import Contract, PredictionSets
from leukoscope.bundle.inference import Reader, answers, noise
from leukoscope.bundle.quantisation import quantised
from leukoscope.data.table import read_parquet
from leukoscope.errors import InputError
from leukoscope.evaluate.calibration import fit_conformal, fit_temperature, softmax
from leukoscope.evaluate.novelty import fit as fit_novelty
from leukoscope.files import read_json
from leukoscope.parallel import ahead
from leukoscope.recipes import origins

COST = 0.005
"""Macro F1 on validation that int8 may cost."""
CALIBRATION = 128  # images
TRAINING = 5_000  # images whose features novelty's statistics are made of
SPARED = (0, 3, 12)
"""How many of the first convolutions stay in floats: the fewest that pass are taken. The fourth of
MobileNetV2 is its dearest in floats and suffers little."""

Describe = Callable[[np.ndarray, np.ndarray], dict[str, Any]]
Part = tuple[list[Path], np.ndarray]
"""Files and their labels as integers (n,)."""


def int8_of(
    run: Path, contract: Contract, graph: bytes, describe: Describe
) -> tuple[bytes, Contract]:
    """The int8 graph of a run's fp32 one, and its contract with all that was fitted to outputs
    fitted to its own: temperature and prediction sets (those calibrated on training images out of
    fold stay), novelty, and what drift is measured against
    (`describe` makes that of probabilities (n, k) and novelty (n,) on validation).

    Raises InputError where the run's images are no more there, or where int8 costs more than COST
    of macro F1 on validation.
    """
    validation, training = _parts(run, contract)
    reader = Reader(contract, graph)
    wanted, _ = _outputs(reader, validation[0])
    paths = _spread(validation[0], CALIBRATION)
    images = np.stack(list(ahead(reader.image, paths)))
    before, costs = macro_f1(wanted, validation[1]), []
    model = contract.model.model_copy(update={"precision": "int8"})
    for spared in SPARED:
        found = quantised(graph, images, spared=spared)
        own = Reader(contract.model_copy(update={"model": model}), found)
        logits, features = _outputs(own, validation[0])
        costs.append(before - macro_f1(logits, validation[1]))
        if costs[-1] <= COST:
            fitted = _calibrated(own, logits, features, validation, training)
            answer = own.run(noise(fitted.input.size), ("logits",))[0][0]
            rehearsed = fitted.model.model_copy(update={"rehearsal": answer.tolist()})
            fitted = fitted.model_copy(update={"model": rehearsed})
            seen = answers(logits, features, fitted)
            stated = describe(seen.probs, seen.novelty) | {"int8_macro_f1_cost": costs[-1]}
            return found, fitted.model_copy(update={"validation": fitted.validation | stated})
    raise InputError(
        f"int8 costs {100 * min(costs):.1f} points of macro F1 on {len(validation[0])} validation "
        f"images; allowed: {100 * COST:.1f}",
        fix="Export with --precision fp32.",
        field="precision",
    )


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Macro F1 of logits (n, k) over the classes of labels (n,)."""
    return float(
        f1_score(labels, logits.argmax(axis=1), labels=np.unique(labels), average="macro",
                 zero_division=0)
    )  # fmt: skip


def _calibrated(
    reader: Reader,
    logits: np.ndarray,
    features: np.ndarray,
    validation: Part,
    training: Part,
) -> Contract:
    """The contract with what was fitted to fp32 outputs fitted to these."""
    contract, labels = reader.contract, validation[1]
    update: dict[str, Any] = {}
    sets = contract.prediction_sets
    # Sets that training images out of fold calibrated stay, with their temperature: int8 shifts the
    # logits by less than a rare class's few validation images scatter.
    if sets is not None and not sets.out_of_fold:
        temperature, coverage = fit_temperature(logits, labels), sets.coverage
        probs = softmax(logits, temperature)
        update["temperature"] = temperature
        update["prediction_sets"] = PredictionSets(
            coverage=coverage,
            thresholds=fit_conformal(probs, labels, coverage=coverage),
            calibrated_on=len(labels),
        )
    if contract.novelty is not None:
        seen = _outputs(reader, training[0])[1]
        update["novelty"] = fit_novelty(seen, training[1], features, logits)
    return contract.model_copy(update=update)


def _outputs(reader: Reader, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, k) and features (n, d) of files."""

    def see(path: Path) -> list[np.ndarray]:
        return reader.run(reader.image(path)[None], ("logits", "features"))

    logits, features = zip(*ahead(see, paths), strict=True)
    return np.concatenate(logits), np.concatenate(features)


def _parts(run: Path, contract: Contract) -> tuple[Part, Part]:
    """The validation images, and at most TRAINING of the training images."""
    origin = origins.of_run(run)
    if origin is None:
        raise InputError(
            f"The images that {run} was made from aren't where it says, and int8 needs them",
            fix="Put the index and its images back, or export with --precision fp32.",
            field="precision",
        )
    split = read_parquet(run / "split.parquet", "a split", fix="Train the run again.",
                         field="run").to_pandas()  # fmt: skip
    fold = read_json(run / "environment.json").get("model_of_fold")
    if fold is not None and "fold" in split:
        split = split[split["fold"] == fold]
    label = origin.index.frame.set_index("image")["label"]

    def part(names: Sequence[str]) -> Part:
        labels = [contract.classes.index(label[name]) for name in names]
        return origin.paths(names), np.array(labels, np.int64)

    held = sorted(set(split.loc[split["role"] == "validation", "image"]) & set(label.index))
    if not held:
        raise InputError(
            f"{run} has no validation images, on which int8 is judged",
            fix="Export with --precision fp32.",
            field="precision",
        )
    return part(held), part(_spread(origin.training, TRAINING))


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly over all."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
