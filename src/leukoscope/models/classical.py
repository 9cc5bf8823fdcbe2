"""Classical models on deep features: settings, fitting, probabilities, files."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Hashable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from leukoscope import files
from leukoscope.errors import InputError, some
from leukoscope.models.inner_splits import InnerSplits, inner_splits
from leukoscope.tables import Table

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator
    from sklearn.pipeline import Pipeline

FLOOR = 1e-7  # probabilities below it are as good as none; their logarithm stays finite
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=100_000)]


class Classical(Table):
    """A classical model on the networks' features; scikit-learn's terms and, where not said
    otherwise, its meanings.

    `pca` reduces the features `network` by network before they are concatenated, or
    `concatenated`, to the components that keep `pca_variance` of the variance. `coding` is that of
    the output-code machines in `stacking`, `folds` the parts of every inner split. `forest_depth`
    0: no limit. `svm_*` is for `svm` and `stacking`, `forest_*` for `random_forest` and `stacking`.
    """

    classifier: Literal["mlp", "random_forest", "svm", "knn", "sgd", "stacking"] = "stacking"
    pca: Literal["none", "network", "concatenated"] = "none"
    pca_variance: Annotated[float, Field(gt=0, le=1)] = 0.95
    coding: Literal["one_vs_rest", "one_vs_one"] = "one_vs_rest"
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    mlp_hidden: Count = 100
    mlp_optimizer: Literal["adam"] = "adam"
    mlp_learning_rate: Positive = 0.001
    mlp_epochs: Count = 50
    forest_trees: Count = 100
    forest_criterion: Literal["gini", "entropy", "log_loss"] = "gini"
    forest_depth: Annotated[int, Field(ge=0, le=10_000)] = 0
    svm_kernel: Literal["rbf"] = "rbf"
    svm_c: Positive = 1.0
    svm_gamma: Literal["scale"] | Positive = "scale"
    knn_neighbours: Count = 5
    knn_metric: Literal["euclidean"] = "euclidean"
    sgd_loss: Literal["log_loss"] = "log_loss"
    sgd_penalty: Literal["l2", "l1"] = "l2"
    sgd_alpha: Positive = 0.0001
    sgd_learning_rate: Positive = 0.01
    sgd_schedule: Literal["constant", "invscaling", "adaptive", "optimal"] = "constant"
    sgd_epochs: Count = 100
    stacker_c: Positive = 1.0


def splits_within(
    labels: np.ndarray,
    groups: Iterable[Hashable],
    settings: Classical,
    seed: int,
    images: Iterable[Hashable] | None = None,
) -> InnerSplits | None:
    """The inner splits of the training rows that `settings` ask for; None where they need none.

    `groups` (n,) say which rows must never stand on two sides of a split; `images` (n,) which are
    of one image, for classes whose one group has to be split up. Raises InputError where a class
    has a single row.
    """
    if settings.classifier not in ("svm", "stacking"):
        return None
    return inner_splits(labels, groups, settings.folds, seed, images)


def caveats(
    splits: InnerSplits | None, settings: Classical, rows: int, classes: Sequence[str]
) -> list[str]:
    """What to say of a model that `fit` makes of so many rows and these inner splits.

    `classes` are the names of the labels 0, 1, ….
    """
    said = []
    if splits and splits.torn:
        said.append(
            f"Too few patients (images, where patients are unknown) of "
            f"{some([classes[c] for c in splits.torn])} for an "
            f"inner split that keeps them apart: the {settings.classifier} set its confidence "
            "there on patients that it was trained on, so it is too high"
        )
    from leukoscope.models.ecoc import by_onedal

    if settings.classifier == "stacking" and by_onedal(rows):
        said.append(
            "The support vector machines were fitted by oneDAL (scikit-learn-intelex "
            f"{version('scikit-learn-intelex')}), which gives libsvm's solution within the "
            "solvers' tolerance of 0.001"
        )
    return said


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    splits: InnerSplits | None,
    widths: Sequence[int],
    settings: Classical,
    seed: int,
) -> Pipeline:
    """A fitted pipeline with `predict_proba`: principal components where wanted, a classifier.

    `features` (n, d) float32 are the networks' features side by side, `widths` their widths, which
    sum to d; they may be memory-mapped and are never copied whole. `labels` (n,) are class numbers
    0 … k-1, each there; `splits` those of `splits_within`. Components are fitted on these rows,
    blind to labels, and once, before the inner splits.

    Cost beside the features: components by covariance a copy of a network's features, a d x d
    float32 matrix and d³ operations, by singular values (n < d) two copies; `svm` one float64 copy
    and n² to n³ kernel evaluations of d multiplications, on one core, `folds` + 1 times;
    `stacking` what OutputCodeSVM says, as often. `knn` and `svm` carry (part of) the training
    features in the model and its graph. 81,214 x 7,424: docs/measured/speed-classical.md.

    Raises InputError where features aren't finite, don't differ, or are too few.
    """
    features = np.asarray(features, dtype=np.float32)
    _check(features, labels, widths, settings)
    parts = splits.parts if splits else []
    steps = [("classifier", _classifier(settings, parts, seed))]
    if settings.pca != "none":
        columns = list(widths) if settings.pca == "network" else [sum(widths)]
        steps.insert(0, ("pca", _components(columns, len(features), settings.pca_variance)))
    return _fitted(steps, features, labels, settings)


# How scikit-learn says that descent ran into infinities: sgd, mlp.
_DIVERGED = ("Floating-point under-/overflow occurred", "non-finite parameter weights")


def _fitted(
    steps: list[tuple[str, BaseEstimator]],
    features: np.ndarray,
    labels: np.ndarray,
    settings: Classical,
) -> Pipeline:
    import joblib
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import Pipeline

    with joblib.parallel_config("threading", n_jobs=1), warnings.catch_warnings():
        # The number of epochs is the recipe's, whether or not it has converged by then.
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            model = Pipeline(steps).fit(features, labels)
        except ValueError as problem:
            if not any(sign in str(problem) for sign in _DIVERGED):
                raise
            rate = f"{settings.classifier}_learning_rate"
            raise InputError(
                f"Training diverged at classical.{rate} = {getattr(settings, rate)}",
                fix=f"Lower classical.{rate}, or z-score the features.",
                field=f"classical.{rate}",
            ) from None
    if settings.classifier in ("svm", "stacking"):
        model[-1].set_params(cv=settings.folds)  # what is saved needn't name the training rows
    vars(model[-1]).pop("_optimizer", None)  # the MLP's moments: twice its weights, used no more
    return model


def _check(
    features: np.ndarray, labels: np.ndarray, widths: Sequence[int], settings: Classical
) -> None:
    n, d = features.shape
    if sum(widths) != d or len(labels) != n:
        raise ValueError(f"{n} rows of {d} features, but {len(labels)} labels, widths {widths}")
    present = np.unique(labels)
    if len(present) < 2 or not np.array_equal(present, np.arange(len(present))):
        raise InputError(
            f"Training images are of the classes number {some([str(c) for c in present])}; "
            "two or more, without a gap, are needed",
            fix="Add images of the missing classes, or leave these out.",
            field="labels",
        )
    with np.errstate(invalid="ignore"):  # inf - inf, which is what is looked for
        total = features.sum(dtype=np.float64)
    if not np.isfinite(total):
        raise InputError(
            "Deep features are not finite numbers",
            fix="Check the network's weights, or lower its learning rate.",
            field="features",
        )
    for number, part in enumerate(np.split(features, np.cumsum(widths)[:-1], axis=1)):
        if (part.max(axis=0) == part.min(axis=0)).all():
            raise InputError(
                f"Network {number + 1} gives the same features for all {n} training images",
                fix="Check its weights, and that the images differ.",
                field="features",
            )
    if settings.classifier == "knn" and settings.knn_neighbours > n:
        raise InputError(
            f"knn_neighbours is {settings.knn_neighbours}; allowed: up to {n}, the training images",
            fix=f"Set classical.knn_neighbours={min(5, n)}.",
            field="classical.knn_neighbours",
        )


def _components(widths: Sequence[int], rows: int, variance: float) -> BaseEstimator:
    """Principal components of each of these stretches of columns, concatenated.

    Both solvers are exact and free of chance; the covariance needs no copy of the features, but is
    the dearer one where rows are fewer than columns.
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.decomposition import PCA

    ends = np.cumsum(widths).tolist()
    return ColumnTransformer(
        [
            (
                f"network_{number}",
                PCA(
                    n_components=variance if variance < 1 else None,
                    svd_solver="covariance_eigh" if rows >= width else "full",
                ),
                slice(end - width, end),
            )
            for number, (width, end) in enumerate(zip(widths, ends, strict=True))
        ]
    )


def _classifier(
    settings: Classical, splits: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> BaseEstimator:
    """The unfitted classifier; `splits` are what `svm` and `stacking` hold out by."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import StackingClassifier
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

    from leukoscope.models.ecoc import OutputCodeSVM

    s = settings
    match s.classifier:
        case "mlp":
            return MLPClassifier(
                hidden_layer_sizes=(s.mlp_hidden,),
                solver=s.mlp_optimizer,
                learning_rate_init=s.mlp_learning_rate,
                max_iter=s.mlp_epochs,
                n_iter_no_change=s.mlp_epochs,  # all of them, as the paper has it
                random_state=seed,
            )
        case "random_forest":
            return _forest(s, seed)
        case "svm":
            # Platt's sigmoid a class on held-out scores; the machine itself sees all rows.
            machine = SVC(C=s.svm_c, gamma=s.svm_gamma, kernel=s.svm_kernel)
            return CalibratedClassifierCV(machine, method="sigmoid", ensemble=False, cv=splits)
        case "knn":
            return KNeighborsClassifier(s.knn_neighbours, metric=s.knn_metric, algorithm="brute")
        case "sgd":
            return SGDClassifier(
                loss=s.sgd_loss,
                penalty=s.sgd_penalty,
                alpha=s.sgd_alpha,
                learning_rate=s.sgd_schedule,
                eta0=s.sgd_learning_rate,
                max_iter=s.sgd_epochs,
                tol=None,
                random_state=seed,
            )
        case "stacking":
            # cross_val_predict on `splits` feeds the stacker; then both bases see all rows.
            bases = [
                ("svm", OutputCodeSVM(s.coding, s.svm_c, s.svm_gamma)),
                ("forest", _forest(s, seed)),
            ]
            stacker = LogisticRegression(C=s.stacker_c, max_iter=1000)
            return StackingClassifier(bases, stacker, cv=splits)


def _forest(settings: Classical, seed: int) -> BaseEstimator:
    from leukoscope.models.forest import Forest

    return Forest(
        settings.forest_trees,
        criterion=settings.forest_criterion,
        max_depth=settings.forest_depth or None,
        random_state=seed,
    )


def probabilities(model: Pipeline, features: np.ndarray) -> np.ndarray:
    """(n, k) float64 probabilities of the classes 0 … k-1 for features (n, d) float32."""
    from scipy.special import log_expit, softmax
    from sklearn.linear_model import SGDClassifier

    features = np.asarray(features, dtype=np.float32)
    if isinstance(model[-1], SGDClassifier) and len(model.classes_) > 2:
        # predict_proba's sigmoids over their sum, but as logarithms: steep scores, which a
        # constant rate gives, underflow there in every class and come out as chance.
        return softmax(log_expit(model.decision_function(features).astype(np.float64)), axis=1)
    return np.asarray(model.predict_proba(features), dtype=np.float64)


# What a saved model may hold beside skops' own list of harmless types.
_TRUSTED = (
    "leukoscope.models.ecoc.OutputCodeSVM",
    "leukoscope.models.forest.Forest",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
)


def save(model: Pipeline, path: Path) -> None:
    """Write the model as .skops, atomically; the same model gives the same bytes.

    InputError where the place can't be written to.
    """
    import skops.io

    with files.atomic(Path(path)) as temporary:
        temporary.write_bytes(_without_addresses(skops.io.dumps(model)))


def _without_addresses(data: bytes) -> bytes:
    """A .skops whose parts are numbered as they come: skops names them by where they happened to
    lie in memory, and zip dates them."""
    with zipfile.ZipFile(io.BytesIO(data)) as given:
        schema = json.loads(given.read("schema.json"))
        parts = {name: given.read(name) for name in given.namelist() if name != "schema.json"}
    ids: dict[int, int] = {}
    names: dict[str, str] = {}

    def number(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "__id__":
                node[key] = ids.setdefault(value, len(ids))
            elif isinstance(value, str) and value in parts:
                node[key] = names.setdefault(value, f"{len(names)}{Path(value).suffix}")
            elif isinstance(value, dict | list):
                number(value)

    number(schema)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as made:
        for name, part in [*((new, parts[old]) for old, new in names.items()),
                           ("schema.json", json.dumps(schema).encode())]:  # fmt: skip
            made.writestr(zipfile.ZipInfo(name), part, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def load(path: Path) -> Pipeline:
    """Read a model that `save` wrote; nothing but named types is ever made.

    Raises InputError where the file is missing, damaged, or holds anything else.
    """
    import skops.io
    from sklearn.pipeline import Pipeline

    try:
        model = skops.io.load(Path(path), trusted=list(_TRUSTED))
        if isinstance(model, Pipeline):
            _check_trees(model[-1])
    except _DAMAGE as problem:
        why = (str(problem) or type(problem).__name__).splitlines()[0]
        raise _unusable(path, why) from None
    if not isinstance(model, Pipeline):
        raise _unusable(path, f"it holds a {type(model).__name__}")
    return model


_DAMAGE = (
    ArithmeticError, AttributeError, EOFError, ImportError, LookupError, NotImplementedError,
    OSError, RecursionError, TypeError, ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def _check_trees(classifier: BaseEstimator) -> None:
    """ValueError where a tree points outside itself: scikit-learn follows without looking."""
    for part in getattr(classifier, "estimators_", []):
        _check_trees(part)
        if not hasattr(part, "tree_"):
            continue
        tree = part.tree_
        inner = tree.children_left != -1
        children = np.concatenate([tree.children_left[inner], tree.children_right[inner]])
        parents = np.concatenate([np.flatnonzero(inner)] * 2)
        feature = tree.feature[inner]
        if (
            (children <= parents).any()  # a tree lists parents first, so there are no circles
            or (children >= tree.node_count).any()
            or (feature < 0).any()
            or (feature >= tree.n_features).any()
            or tree.n_features != classifier.n_features_in_
        ):
            raise ValueError("a tree in it is damaged")


def _unusable(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} is no classical model of Leukoscope: {why}",
        fix="Check the path, or train again.",
        field="model",
    )
