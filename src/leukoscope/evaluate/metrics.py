"""Metrics of a classifier: labels and probabilities in, numbers out.

Every metric is one decorated function. Those that are a function of sums over images (all that
derive from the confusion matrix, and Brier, log loss and ECE) are registered with `additive`, so
that a bootstrap gets every resample's value from one matrix product.

What is undefined is None with its reason, never 0. Macro averages run over the classes where the
per-class value is defined: recall leaves out classes without true images (as balanced accuracy
does), F1 and precision classes with neither true nor predicted images. A class that has images but
was never predicted has no precision of its own, yet counts as 0 in the mean, as in scikit-learn:
to ignore a class must not raise a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leukoscope.errors import some
from leukoscope.evaluate.predictions import Predictions
from leukoscope.registry import Registry

ECE_BINS = 15
_EPSILON = float(np.finfo(np.float64).eps)
NO_PROBS = "no probabilities were given"


class Undefined(ValueError):  # noqa: N818 - a state of the data, not an error of anyone's
    """Raised by a metric that these predictions don't define; the text is the reason."""


# --- the registry ---------------------------------------------------------------------------------

Metric = Callable[[Predictions], float]
Finish = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Additive:
    """A metric as `finish` of the sums over images of `contributions`.

    contributions: Predictions -> (n, m); finish: (..., m) -> (...), NaN where undefined.
    """

    contributions: Callable[[Predictions], np.ndarray]
    finish: Finish


metrics: Registry[Metric] = Registry("metric")
ADDITIVE: dict[str, Additive] = {}


def additive(
    name: str, contributions: Callable[[Predictions], np.ndarray], undefined: str
) -> Callable[[Finish], Finish]:
    """Decorator: register a metric given by sums over images; `undefined` is why it may be NaN."""

    def add(finish: Finish) -> Finish:
        @metrics.register(name)
        def value(predictions: Predictions) -> float:
            result = float(finish(contributions(predictions).sum(axis=0, dtype=np.float64)))
            if np.isnan(result):
                raise Undefined(undefined)
            return result

        ADDITIVE[name] = Additive(contributions, finish)
        return finish

    return add


# --- from the confusion matrix --------------------------------------------------------------------


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """(k, k) counts, rows true, columns predicted."""
    k = len(predictions.classes)
    cells = predictions.labels * k + predictions.predicted
    return np.bincount(cells, minlength=k * k).reshape(k, k)


def _cells(predictions: Predictions) -> np.ndarray:
    k = len(predictions.classes)
    return np.eye(k * k, dtype=bool)[predictions.labels * k + predictions.predicted]


def _matrices(sums: np.ndarray) -> np.ndarray:
    """Sums of `_cells` (..., k * k) as confusion matrices (..., k, k)."""
    k = round(sums.shape[-1] ** 0.5)
    return sums.reshape(*sums.shape[:-1], k, k)


@dataclass(frozen=True)
class Counts:
    """One-vs-rest counts of (stacks of) confusion matrices; arrays (..., k), n (..., 1)."""

    tp: np.ndarray
    support: np.ndarray
    predicted: np.ndarray
    n: np.ndarray

    @classmethod
    def of(cls, matrices: np.ndarray, classes: slice = slice(None)) -> Counts:
        """From confusion matrices (..., k, k), rows true; of all k `classes` or some of them."""
        tp = np.diagonal(matrices, axis1=-2, axis2=-1)[..., classes]
        support = matrices[..., classes, :].sum(axis=-1)
        predicted = matrices[..., classes].sum(axis=-2)
        return cls(tp, support, predicted, matrices.sum(axis=(-2, -1))[..., None])


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """above / below, NaN where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


def _mean_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def _precision(c: Counts) -> np.ndarray:
    return _ratio(c.tp, c.predicted)


def _recall(c: Counts) -> np.ndarray:
    return _ratio(c.tp, c.support)


def _specificity(c: Counts) -> np.ndarray:
    return _ratio(c.n - c.support - c.predicted + c.tp, c.n - c.support)


def _f1(c: Counts) -> np.ndarray:
    return _ratio(2 * c.tp, c.support + c.predicted)


def _ovr_accuracy(c: Counts) -> np.ndarray:
    return _ratio(c.n - c.support - c.predicted + 2 * c.tp, c.n)


PER_CLASS: dict[str, tuple[Callable[[Counts], np.ndarray], str]] = {
    "precision": (_precision, "the class was never predicted"),
    "recall": (_recall, "no image has this label"),
    "specificity": (_specificity, "every image has this label"),
    "f1": (_f1, "no image has this label and it was never predicted"),
    "ovr_accuracy": (_ovr_accuracy, ""),
}
PROPORTIONS = ("precision", "recall", "specificity", "ovr_accuracy")
"""Those of PER_CLASS that are a share of images; F1 is none."""


def class_metric(name: str, metric: str) -> str:
    """The dotted name of a class's metric, as in `ci` of metrics.json."""
    return f"per_class.{name}.{metric}"


def additive_by_class(classes: Sequence[str]) -> dict[str, Additive]:
    """PER_CLASS of each class by its dotted name, as functions of sums."""

    def of(function: Callable[[Counts], np.ndarray], column: int) -> Additive:
        def finish(sums: np.ndarray) -> np.ndarray:
            return function(Counts.of(_matrices(sums), slice(column, column + 1)))[..., 0]

        return Additive(_cells, finish)

    return {
        class_metric(name, metric): of(function, column)
        for column, name in enumerate(classes)
        for metric, (function, _) in PER_CLASS.items()
    }


def _of_confusion(name: str, undefined: str = "") -> Callable[[Callable[[Counts], Any]], Any]:
    """Decorator: register a metric of the one-vs-rest counts."""

    def add(function: Callable[[Counts], Any]) -> Any:
        def finish(sums: np.ndarray) -> np.ndarray:
            return function(Counts.of(_matrices(sums)))

        additive(name, _cells, undefined)(finish)
        return function

    return add


@_of_confusion("accuracy")
def accuracy(c: Counts) -> np.ndarray:
    """Correct / all, multiclass."""
    return c.tp.sum(axis=-1) / c.n[..., 0]


@_of_confusion("balanced_accuracy")
def balanced_accuracy(c: Counts) -> np.ndarray:
    """Mean recall over the classes that have true images (scikit-learn's definition)."""
    return _mean_defined(_recall(c))


@_of_confusion("macro_f1")
def macro_f1(c: Counts) -> np.ndarray:
    """Mean F1 over the classes that occur as label or prediction."""
    return _mean_defined(_f1(c))


@_of_confusion("micro_f1")
def micro_f1(c: Counts) -> np.ndarray:
    """F1 of the pooled counts: with one label an image, the accuracy."""
    return accuracy(c)


@_of_confusion("weighted_f1")
def weighted_f1(c: Counts) -> np.ndarray:
    """Mean F1 weighted by the number of true images."""
    return (c.support * np.nan_to_num(_f1(c))).sum(axis=-1) / c.n[..., 0]


@_of_confusion("macro_precision")
def macro_precision(c: Counts) -> np.ndarray:
    """Mean precision; a class with images but never predicted counts as 0, as in scikit-learn."""
    precision = _precision(c)
    missed = (c.predicted == 0) & (c.support > 0)  # to ignore a class must not raise the mean
    return _mean_defined(np.where(missed, 0.0, precision))


@_of_confusion("macro_recall")
def macro_recall(c: Counts) -> np.ndarray:
    """Mean recall over the classes that have true images: balanced accuracy by its other name."""
    return _mean_defined(_recall(c))


@_of_confusion("macro_specificity", "every image has the only label there is")
def macro_specificity(c: Counts) -> np.ndarray:
    """Mean one-vs-rest specificity over the classes that some image does not have."""
    return _mean_defined(_specificity(c))


@_of_confusion("mean_ovr_accuracy")
def mean_ovr_accuracy(c: Counts) -> np.ndarray:
    """Mean over all k classes of (TP + TN) / n = 1 - 2 (1 - accuracy) / k: flattering for large k.

    Not the multiclass accuracy, for which Patel et al. 2025 report it.
    """
    return _ovr_accuracy(c).mean(axis=-1)


@_of_confusion("cohen_kappa", "all labels and all predictions are one class")
def cohen_kappa(c: Counts) -> np.ndarray:
    """Agreement beyond chance (Cohen 1960), unweighted."""
    n = c.n[..., 0]
    chance = (c.support * c.predicted).sum(axis=-1)
    return _ratio(n * c.tp.sum(axis=-1) - chance, n * n - chance)


@_of_confusion("mcc", "all labels or all predictions are one class")
def mcc(c: Counts) -> np.ndarray:
    """Matthews correlation, multiclass (Gorodkin 2004, R_K)."""
    n = c.n[..., 0]
    chance = (c.support * c.predicted).sum(axis=-1)
    spread = (n * n - (c.support**2).sum(axis=-1)) * (n * n - (c.predicted**2).sum(axis=-1))
    return _ratio(n * c.tp.sum(axis=-1) - chance, np.sqrt(spread))


# --- from probabilities ---------------------------------------------------------------------------


def _probs(predictions: Predictions) -> np.ndarray:
    if predictions.probs is None:
        raise Undefined(NO_PROBS)
    return predictions.probs


def _with_count(values: np.ndarray) -> np.ndarray:
    return np.column_stack([values, np.ones(len(values))])


def _log_losses(predictions: Predictions) -> np.ndarray:
    true = np.take_along_axis(_probs(predictions), predictions.labels[:, None], axis=1)[:, 0]
    return _with_count(-np.log(np.clip(true, _EPSILON, 1 - _EPSILON)))


@additive("log_loss", _log_losses, "")
def log_loss(sums: np.ndarray) -> np.ndarray:
    """Mean -ln of the true class's probability, clipped to float64's epsilon as in scikit-learn."""
    return sums[..., 0] / sums[..., 1]


def _squared_errors(predictions: Predictions) -> np.ndarray:
    truth = np.eye(len(predictions.classes))[predictions.labels]
    return _with_count(((_probs(predictions) - truth) ** 2).sum(axis=1))


@additive("brier", _squared_errors, "")
def brier(sums: np.ndarray) -> np.ndarray:
    """Brier score as of 1950: squared errors summed over all classes, mean over images; 0 to 2."""
    return sums[..., 0] / sums[..., 1]


def confidence_bins(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Which of `bins` equal-width bins ((m-1)/M, m/M] each confidence falls in; (n,) from 0."""
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)


def _calibration_gaps(predictions: Predictions) -> np.ndarray:
    probs = _probs(predictions)
    confidence, correct = probs.max(axis=1), probs.argmax(axis=1) == predictions.labels
    bin_of = np.eye(ECE_BINS)[confidence_bins(confidence, ECE_BINS)]
    return _with_count(bin_of * (correct - confidence)[:, None])


@additive("ece", _calibration_gaps, "")
def ece(sums: np.ndarray) -> np.ndarray:
    """Expected calibration error of the most probable class (Guo et al. 2017, eq. 3), 15 bins."""
    return np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1]


def class_auc(predictions: Predictions, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve of each class against the rest, ties counted half.

    weights: (r, n) image weights of r resamples, default all 1. Returns (r, k), NaN where a class
    has no images or no others; one weighted midrank per class and resample.
    """
    probs = _probs(predictions)
    weights = np.ones((1, len(probs))) if weights is None else weights
    total = weights.sum(axis=1)
    result = np.full((len(weights), probs.shape[1]), np.nan)
    for c in range(probs.shape[1]):
        order = np.argsort(probs[:, c], kind="stable")
        ordered = probs[order, c]
        positive = predictions.labels[order] == c
        if not positive.any():
            continue
        below = np.zeros((len(weights), len(order) + 1))
        np.cumsum(weights[:, order], axis=1, out=below[:, 1:])
        first = np.searchsorted(ordered, ordered[positive], side="left")
        last = np.searchsorted(ordered, ordered[positive], side="right")
        own = weights[:, order[positive]]
        own_total = own.sum(axis=1)
        # Midranks among all, less the pairs of two positives, leave the pairs with a negative.
        wins = np.einsum("rp,rp->r", own, below[:, first] + below[:, last]) / 2 - own_total**2 / 2
        result[:, c] = _ratio(wins, own_total * (total - own_total))
    return result


def mean_auc(areas: np.ndarray) -> np.ndarray:
    """`roc_auc_ovr` of the areas of k classes (..., k): (...), NaN where all are undefined."""
    return _mean_defined(areas)


@metrics.register("roc_auc_ovr")
def roc_auc_ovr(predictions: Predictions) -> float:
    """Mean one-vs-rest area under the ROC curve over the classes that define one."""
    value = float(mean_auc(class_auc(predictions))[0])
    if np.isnan(value):
        raise Undefined("all images have the same label")
    return value


# --- everything at once ---------------------------------------------------------------------------

SCALARS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "micro_f1",
    "weighted_f1",
    "macro_precision",
    "macro_recall",
    "macro_specificity",
    "mean_ovr_accuracy",
    "cohen_kappa",
    "mcc",
    "roc_auc_ovr",
    "log_loss",
    "brier",
    "ece",
)
"""The scalars of metrics.json in its order; metrics registered elsewhere follow."""


def scalars(
    predictions: Predictions, names: Sequence[str] | None = None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The named metrics (default: every one), None where undefined, and the reasons by name.

    Raises UnknownNameError for a name that is no metric.
    """
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name in names or [*SCALARS, *(extra for extra in metrics if extra not in SCALARS)]:
        try:
            values[name] = metrics[name](predictions)
        except Undefined as reason:
            values[name], reasons[name] = None, str(reason)
    return values, reasons


def per_class(
    predictions: Predictions,
) -> tuple[dict[str, dict[str, float | int | None]], dict[str, str]]:
    """Per class precision, recall, specificity, f1, ovr_accuracy, roc_auc, support; reasons."""
    counts = Counts.of(confusion_matrix(predictions))
    columns = {name: (function(counts), why) for name, (function, why) in PER_CLASS.items()}
    if predictions.probs is None:
        columns["roc_auc"] = (np.full(len(predictions.classes), np.nan), NO_PROBS)
    else:
        why = "no image has this label, or every image has it"
        columns["roc_auc"] = (class_auc(predictions)[0], why)
    table: dict[str, dict[str, float | int | None]] = {}
    reasons = {}
    for position, name in enumerate(predictions.classes):
        row: dict[str, float | int | None] = {}
        for metric, (values, why) in columns.items():
            row[metric] = float(values[position])
            if np.isnan(values[position]):
                row[metric] = None
                reasons[class_metric(name, metric)] = why
        row["support"] = int(counts.support[position])
        table[name] = row
    return table, reasons


def summarise(predictions: Predictions, *, level: str = "image") -> dict[str, Any]:
    """metrics.json of DESIGN.md without `ci` and `baseline`, and `undefined`: {name: reason}.

    A macro average that left classes out stays defined and is listed in `notes`, with the classes.
    """
    values, reasons = scalars(predictions)
    table, class_reasons = per_class(predictions)
    return {
        "n": len(predictions),
        "level": level,
        **values,
        "per_class": table,
        "confusion_matrix": confusion_matrix(predictions).tolist(),
        "classes": list(predictions.classes),
        "undefined": reasons | class_reasons,
        "notes": _left_out(table),
    }


def _left_out(table: dict[str, dict[str, float | int | None]]) -> list[str]:
    """One sentence for each macro average that runs over fewer than all classes."""
    columns = {
        "macro_precision": "precision",
        "macro_recall and balanced_accuracy": "recall",
        "macro_f1": "f1",
        "macro_specificity": "specificity",
    }
    notes = []
    for average, column in columns.items():
        absent = [name for name, row in table.items() if row[column] is None]
        if column == "precision":  # those with images count as 0
            absent = [name for name in absent if not table[name]["support"]]
        if absent and len(absent) < len(table):
            why = PER_CLASS[column][1]
            notes.append(f"Left out of {average}: {some(absent)} ({why}).")
    return notes


def compute(
    labels: Sequence[str],
    predicted: Sequence[str],
    probs: np.ndarray | None,
    classes: Sequence[str],
    *,
    level: str = "image",
) -> dict[str, Any]:
    """`summarise` from class names: labels, predicted (n,), probs (n, k) or None, classes (k,).

    Raises InputError for bad shapes or probabilities, UnknownNameError for a label not in classes.
    """
    return summarise(Predictions.from_names(labels, predicted, probs, classes), level=level)
