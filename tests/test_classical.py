"""Classical models on deep features: output codes, inner splits, stacking, files, ONNX."""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import cross_val_predict
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.svm import SVC
from sklearn.utils.estimator_checks import check_estimator

from leukoscope.compat import onnx_session
from leukoscope.errors import InputError
from leukoscope.models import classical
from leukoscope.models.classical import FLOOR, Classical
from leukoscope.models.ecoc import OutputCodeSVM, coding_matrix, decode
from leukoscope.models.inner_splits import inner_splits
from leukoscope.models.joined import join, to_onnx

WIDTHS = (12, 20)
CLASSIFIERS = ("mlp", "random_forest", "svm", "knn", "sgd", "stacking")
PCAS = ("none", "network", "concatenated")
TOLERANCE = 2e-3  # libsvm stops at 1e-3, elsewhere when the sides are swapped


def cells(
    classes: int = 3, n: int = 120, distance: float = 0.7, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic features (n, 32) float32 in overlapping normal clouds, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(size=(classes, sum(WIDTHS)))
    features = rng.normal(size=(n, sum(WIDTHS))) + distance * centres[labels]
    return features.astype(np.float32), labels


def fitted(features: np.ndarray, labels: np.ndarray, groups: Any = None, **said: Any) -> Any:
    quick = {"forest_trees": 12, "folds": 3} | said
    groups = range(len(labels)) if groups is None else groups
    settings = Classical(**quick)
    splits = classical.splits_within(labels, groups, settings, 3)
    return classical.fit(features, labels, splits, WIDTHS, settings, seed=3)


# Settings


def test_settings_are_those_of_the_papers() -> None:
    said = Classical().model_dump()
    papers = {
        "mlp_optimizer": "adam", "mlp_learning_rate": 0.001, "mlp_epochs": 50,
        "forest_trees": 100, "forest_criterion": "gini", "forest_depth": 0,
        "svm_kernel": "rbf", "svm_c": 1.0, "svm_gamma": "scale",
        "knn_neighbours": 5, "knn_metric": "euclidean",
        "sgd_loss": "log_loss", "sgd_learning_rate": 0.01, "sgd_schedule": "constant",
        "sgd_epochs": 100, "sgd_penalty": "l2", "coding": "one_vs_rest", "folds": 5,
    }  # fmt: skip
    assert {key: said[key] for key in papers} == papers


@pytest.mark.parametrize(
    ("classifier", "expected"),
    [
        ("mlp", {"solver": "adam", "learning_rate_init": 0.001, "max_iter": 50, "n_iter_": 50}),
        ("random_forest", {"n_estimators": 100, "criterion": "gini", "max_depth": None}),
        ("svm", {"kernel": "rbf", "C": 1.0, "gamma": "scale"}),
        ("knn", {"n_neighbors": 5, "metric": "euclidean"}),
        (
            "sgd",
            {"loss": "log_loss", "eta0": 0.01, "learning_rate": "constant", "n_iter_": 100}
            | {"penalty": "l2"},
        ),
    ],
)
def test_settings_reach_the_estimator(classifier: str, expected: dict[str, Any]) -> None:
    features, labels = cells()
    model = fitted(features, labels, classifier=classifier, forest_trees=100)[-1]
    model = model.estimator if classifier == "svm" else model
    assert {key: getattr(model, key) for key in expected} == expected


def test_stacking_takes_its_settings() -> None:
    features, labels = cells()
    stack = fitted(features, labels, svm_c=2.0, svm_gamma=0.1, forest_depth=2, stacker_c=0.5)[-1]
    machine, forest = stack.estimators_
    assert (machine.c, machine.gamma_, machine.coding) == (2.0, 0.1, "one_vs_rest")
    assert max(tree.get_depth() for tree in forest.estimators_) == 2
    assert stack.final_estimator_.C == 0.5


@pytest.mark.parametrize(
    "wrong", [{"classifer": "svm"}, {"pca_variance": 1.5}, {"folds": 1}, {"svm_gamma": "auto"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Classical(**wrong)


def test_settings_need_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, leukoscope.models.classical; print({'torch', 'sklearn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# Output codes


def test_coding_matrices() -> None:
    assert coding_matrix(3, "one_vs_rest").tolist() == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    assert coding_matrix(3, "one_vs_one").tolist() == [[1, 1, 0], [-1, 0, 1], [0, -1, -1]]
    assert coding_matrix(2, "one_vs_rest").tolist() == [[1], [-1]]
    assert coding_matrix(5, "one_vs_one").shape == (5, 10)


def test_decoding_by_hand() -> None:
    """Hinge losses max(0, 1 - m s) / 2 of the machines a class takes part in, averaged."""
    scores = np.array([[0.5, -2.0, 3.0]])
    # One against the rest: losses (.25, 0, 2) of class 0, (.75, 1.5, 2) of 1, (.75, 0, 0) of 2
    rest = decode(scores, coding_matrix(3, "one_vs_rest"))
    assert rest == pytest.approx(-np.array([[2.25, 4.25, 0.75]]) / 3)
    # One against one: (.25, 1.5) of class 0, (.75, 0) of 1, (0, 2) of 2
    one = decode(scores, coding_matrix(3, "one_vs_one"))
    assert one == pytest.approx(-np.array([[1.75, 0.75, 2.0]]) / 2)


def test_one_vs_rest_predicts_as_scikit_learn() -> None:
    """The class of the least mean hinge loss is that of the highest score, always."""
    features, labels = cells(4, 160, 0.4)
    unseen, _ = cells(4, 400, 0.4, seed=1)
    mine = OutputCodeSVM("one_vs_rest").fit(features, labels)
    theirs = OneVsRestClassifier(SVC(gamma=mine.gamma_)).fit(features, labels)
    assert mine.binary_scores(unseen) == pytest.approx(theirs.decision_function(unseen), abs=1e-6)
    assert np.array_equal(mine.predict(unseen), theirs.predict(unseen))


def test_one_vs_one_predicts_as_scikit_learn_where_no_loss_is_left() -> None:
    """A class that wins all its duels by the full margin has loss 0, so both schemes choose it."""
    features, labels = cells(4, 160, 1.2)
    unseen, _ = cells(4, 400, 1.2, seed=1)
    mine = OutputCodeSVM("one_vs_one").fit(features, labels)
    theirs = OneVsOneClassifier(SVC(gamma=mine.gamma_)).fit(features, labels)
    margins = np.stack([e.decision_function(unseen) for e in theirs.estimators_], axis=1)
    assert mine.binary_scores(unseen) == pytest.approx(-margins, abs=TOLERANCE)
    sure = mine.class_scores(unseen).max(axis=1) == 0
    assert 20 < sure.sum() < 400
    assert np.array_equal(mine.predict(unseen)[sure], theirs.predict(unseen)[sure])
    assert (mine.predict(unseen) == theirs.predict(unseen)).mean() > 0.95


@pytest.mark.parametrize("coding", ["one_vs_rest", "one_vs_one"])
def test_two_classes_are_one_machine(coding: Any) -> None:
    features, labels = cells(2)
    mine = OutputCodeSVM(coding).fit(features, labels)
    theirs = SVC().fit(features.astype(float), labels)
    assert mine.gamma_ == pytest.approx(theirs._gamma)
    assert mine.binary_scores(features)[:, 0] == pytest.approx(
        -theirs.decision_function(features), abs=TOLERANCE
    )
    assert np.array_equal(mine.predict(features), theirs.predict(features))


@pytest.mark.parametrize("coding", ["one_vs_rest", "one_vs_one"])
def test_output_codes_keep_scikit_learns_contract(coding: Any) -> None:
    checks = check_estimator(OutputCodeSVM(coding), on_fail="raise", on_skip=None)
    assert len(checks) > 40


def test_prediction_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = cells()
    machine = OutputCodeSVM().fit(features, labels)
    whole = machine.decision_function(features)
    monkeypatch.setattr("leukoscope.models.ecoc._CHUNK_BYTES", 8 * 120 * 7)
    assert machine.decision_function(features) == pytest.approx(whole, abs=1e-12)


# oneDAL


@pytest.fixture
def onedal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines of any size are oneDAL's."""
    pytest.importorskip("sklearnex", reason="scikit-learn-intelex is not installed")
    monkeypatch.setattr("leukoscope.models.ecoc.ONEDAL_ROWS", 10)


@pytest.mark.parametrize("coding", ["one_vs_rest", "one_vs_one"])
@pytest.mark.parametrize("classes", [2, 4])
def test_onedal_gives_libsvms_machines(
    coding: Any, classes: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    features, labels = cells(classes, 400)
    unseen, _ = cells(classes, 200, seed=1)
    libsvm = OutputCodeSVM(coding).fit(features, labels)
    request.getfixturevalue("onedal")
    found = [OutputCodeSVM(coding).fit(features, labels) for _ in range(2)]
    wanted = libsvm.binary_scores(unseen)
    assert found[0].binary_scores(unseen) == pytest.approx(wanted, abs=5e-3)
    assert np.array_equal(found[0].binary_scores(unseen), found[1].binary_scores(unseen))
    monkeypatch.setattr("leukoscope.models.ecoc.ONEDAL_ROWS", 401)
    again = OutputCodeSVM(coding).fit(features, labels)
    assert np.array_equal(again.binary_scores(unseen), wanted), "few rows stay libsvm's"


@pytest.mark.usefixtures("onedal")
def test_a_stack_of_onedals_machines_is_kept_and_exported_and_says_so(tmp_path: Path) -> None:
    features, labels = cells()
    unseen, _ = cells(seed=5)
    model = fitted(features, labels, pca="network")
    expected = classical.probabilities(model, unseen)
    classical.save(model, tmp_path / "model.skops")
    loaded = classical.load(tmp_path / "model.skops")
    assert np.array_equal(classical.probabilities(loaded, unseen), expected)
    (logits,) = onnx_session(to_onnx(model, 32)).run(None, {"features": unseen})
    assert np.exp(logits) == pytest.approx(expected, abs=1e-4)
    (said,) = classical.caveats(None, Classical(), len(features), ["a", "b", "c"])
    assert "oneDAL" in said


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_features_may_be_mapped_from_disk(classifier: str, tmp_path: Path) -> None:
    features, labels = cells()
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    one, other = (fitted(f, labels, classifier=classifier, pca="network")
                  for f in (features, mapped))  # fmt: skip
    assert np.array_equal(one.predict_proba(features), other.predict_proba(mapped))
    classical.save(other, tmp_path / "model.skops")


# Inner splits


def check_parts(labels: np.ndarray, groups: np.ndarray, parts: Any, torn: list[int]) -> None:
    held = np.concatenate([held for _, held in parts])
    assert np.array_equal(np.sort(held), np.arange(len(labels)))
    for training, held in parts:
        assert not set(training) & set(held)
        assert set(labels[training]) == set(labels)
        kept = held[~np.isin(labels[held], torn)]
        others = training[~np.isin(labels[training], torn)]
        assert not set(groups[kept]) & set(groups[others])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_groups_stay_together_whatever_they_are(data: st.DataObject) -> None:
    n = data.draw(st.integers(6, 40))
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    labels[:6] = [0, 0, 1, 1, 2, 2]
    groups = np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    found = inner_splits(labels, groups, data.draw(st.integers(2, 6)), seed=0)
    check_parts(labels, groups, found.parts, found.torn)
    for lone in (c for c in range(3) if len(set(groups[labels == c])) == 1):
        assert lone in found.torn


def test_enough_groups_tear_no_class() -> None:
    labels = np.repeat(np.arange(5), 40)
    groups = labels * 100 + np.arange(200) % 4  # four patients of each class
    found = inner_splits(labels, groups, 5, seed=0)
    assert found.torn == []
    check_parts(labels, groups, found.parts, [])


def test_patients_that_share_classes_in_a_circle() -> None:
    """Two parts can't work here, three do: each patient held out in turn."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    groups = np.array(["a", "b", "b", "c", "c", "a"])
    found = inner_splits(labels, groups, 5, seed=0)
    assert found.torn == [] or len(found.torn) == 3
    check_parts(labels, groups, found.parts, found.torn)


def test_a_class_of_one_patient_is_torn_and_said() -> None:
    labels = np.array([0] * 6 + [1] * 6)
    patients = ["a"] * 3 + ["b"] * 3 + ["c"] * 6
    assert inner_splits(labels, patients, 3, seed=0).torn == [1]
    svm = Classical(classifier="svm")
    torn = classical.splits_within(labels, patients, svm, 0)
    (said,) = classical.caveats(torn, svm, 12, ["healthy", "AML"])
    assert "AML" in said
    assert "healthy" not in said
    whole = classical.splits_within(labels, range(12), Classical(), 0)
    assert classical.caveats(whole, Classical(), 12, ["healthy", "AML"]) == []
    assert classical.splits_within(labels, patients, Classical(classifier="mlp"), 0) is None


@pytest.mark.parametrize("classifier", ["svm", "stacking"])
def test_a_class_of_one_image_is_refused(classifier: str) -> None:
    features, labels = cells(2, 10)
    labels[:] = 0
    labels[4] = 1
    with pytest.raises(InputError, match="single image"):
        fitted(features, labels, classifier=classifier)
    assert classical.probabilities(
        fitted(features, labels, classifier="random_forest"), features
    ).shape == (10, 2)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_tiny_data_work(classifier: str) -> None:
    features, labels = cells(3, 6)
    for pca, groups in itertools.product(PCAS, (range(6), [0, 1, 2, 0, 1, 2], [0] * 6)):
        model = fitted(
            features, labels, groups, classifier=classifier, pca=pca, mlp_epochs=2, forest_trees=2
        )
        assert np.isfinite(classical.probabilities(model, features)).all()


# Stacking and calibration: what is held out


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[int], set[int]]]:
    """(estimator, trained rows, predicted rows) of every prediction of a base while fitting.

    Rows are known by their first feature.
    """
    log: list[tuple[str, set[int], set[int]]] = []

    def spy(kind: type, method: str) -> None:
        fit, predict = kind.fit, getattr(kind, method)  # type: ignore[attr-defined]

        @functools.wraps(fit)
        def spied_fit(self: Any, X: Any, y: Any, *rest: Any, **more: Any) -> Any:  # noqa: N803
            self.spied_rows = set(X[:, 0].astype(int))
            return fit(self, X, y, *rest, **more)

        @functools.wraps(predict)
        def spied_predict(self: Any, X: Any) -> Any:  # noqa: N803
            log.append((kind.__name__, self.spied_rows, set(X[:, 0].astype(int))))
            return predict(self, X)

        monkeypatch.setattr(kind, "fit", spied_fit)
        monkeypatch.setattr(kind, method, spied_predict)

    spy(OutputCodeSVM, "decision_function")
    spy(RandomForestClassifier, "predict_proba")
    spy(SVC, "decision_function")
    return log


@pytest.mark.parametrize(
    ("classifier", "bases"),
    [("stacking", {"OutputCodeSVM", "RandomForestClassifier"}), ("svm", {"SVC"})],
)
def test_nobody_learns_from_a_prediction_on_a_trained_group(
    seen: list[tuple[str, set[int], set[int]]], classifier: str, bases: set[str]
) -> None:
    features, labels = cells(3, 90)
    features[:, 0] = np.arange(90)
    groups = np.arange(90) // 6
    fitted(features, labels, groups, classifier=classifier)
    for base in bases:
        predicted = [rows for name, _, rows in seen if name == base]
        assert len(predicted) == 3
        assert set.union(*predicted) == set(range(90))
        assert sum(map(len, predicted)) == 90
    for _, trained, predicted_rows in seen:
        assert not {groups[row] for row in trained} & {groups[row] for row in predicted_rows}


def test_a_memorising_forest_gets_no_credit() -> None:
    """Labels are chance and each image stands there four times: the forest knows them by heart.

    Held out by image it is worth nothing to the stacker; were replicas on both sides, much.
    """
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, 32)).astype(np.float32)
    labels = np.repeat(rng.permutation(np.arange(40) % 2), 4)
    features = np.repeat(images, 4, axis=0)
    honest = fitted(features, labels, np.arange(160) // 4)[-1].final_estimator_
    leaky = fitted(features, labels, np.arange(160))[-1].final_estimator_
    assert leaky.coef_[0, -1] > 1
    assert honest.coef_[0, -1] < 0.1 * leaky.coef_[0, -1]


def test_the_stack_is_what_it_says() -> None:
    """Stacker: multinomial logistic regression on held-out scores; bases: fitted on all rows."""
    features, labels = cells()
    groups = np.arange(120) // 4
    stack = fitted(features, labels, groups)[-1]
    parts = inner_splits(labels, groups, 3, seed=3).parts
    machine = OutputCodeSVM()
    forest = RandomForestClassifier(12, random_state=3)
    held_out = np.hstack(
        [
            cross_val_predict(machine, features, labels, cv=parts, method="decision_function"),
            cross_val_predict(forest, features, labels, cv=parts, method="predict_proba"),
        ]
    )
    stacker = LogisticRegression(max_iter=1000).fit(held_out, labels)
    assert stack.final_estimator_.coef_ == pytest.approx(stacker.coef_)
    full = np.hstack(
        [
            machine.fit(features, labels).decision_function(features),
            forest.fit(features, labels).predict_proba(features),
        ]
    )
    assert stack.predict_proba(features) == pytest.approx(stacker.predict_proba(full))


def test_calibration_is_platts_on_held_out_scores() -> None:
    features, labels = cells()
    parts = inner_splits(labels, np.arange(120), 3, seed=3).parts
    expected = CalibratedClassifierCV(SVC(), ensemble=False, cv=parts).fit(features, labels)
    model = fitted(features, labels, classifier="svm")
    assert model.predict_proba(features) == pytest.approx(expected.predict_proba(features))


# Principal components


@pytest.mark.parametrize("n", [200, 25])
def test_components_are_scikit_learns_and_of_these_rows(n: int) -> None:
    """By covariance (n above the width) and by singular values (below) alike."""
    features, labels = cells(3, n)
    before = features.copy()
    features.setflags(write=False)
    model = fitted(features, labels, classifier="knn", pca="concatenated", pca_variance=0.8)
    pca = model[0].named_transformers_["network_0"]
    exact = PCA(0.8, svd_solver="full").fit(features.astype(np.float64))
    assert pca.n_components_ == exact.n_components_
    assert exact.explained_variance_ratio_.sum() >= 0.8
    assert pca.mean_ == pytest.approx(before.mean(axis=0), abs=1e-5)
    assert model[0].transform(features) == pytest.approx(exact.transform(features), abs=2e-3)
    assert model[0].transform(features).dtype == np.float32


def test_components_a_network_don_t_mix_networks() -> None:
    features, labels = cells()
    other = features.copy()
    other[:, 12:] *= np.random.default_rng(1).normal(size=20).astype(np.float32)
    widths = []
    for changed in (features, other):
        model = fitted(changed, labels, classifier="knn", pca="network", pca_variance=0.9)
        first, second = (t for _, t, _ in model[0].transformers_[:2])
        assert (first.n_features_in_, second.n_features_in_) == WIDTHS
        assert min(first.explained_variance_ratio_.sum(), 1) >= 0.9
        widths.append(first.n_components_)
        part = model[0].transform(changed)[:, : first.n_components_]
        assert part == pytest.approx(first.transform(changed[:, :12]))
    assert widths[0] == widths[1]


def test_all_variance_keeps_all_components() -> None:
    features, labels = cells()
    model = fitted(features, labels, classifier="knn", pca="network", pca_variance=1.0)
    assert model[0].transform(features).shape == features.shape


# Every classifier: determinism, files, ONNX


EVERY = [
    {"classifier": classifier, "pca": pca, "coding": coding}
    for classifier, pca, coding in itertools.product(
        CLASSIFIERS, PCAS, ("one_vs_rest", "one_vs_one")
    )
    if classifier == "stacking" or coding == "one_vs_rest"
]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("said", EVERY, ids=lambda said: "-".join(said.values()))
def test_onnx_agrees(said: dict[str, str], classes: int) -> None:
    from leukoscope.compat import onnx_session

    features, labels = cells(classes)
    unseen, _ = cells(classes, 100, seed=5)
    model = fitted(features, labels, **said)
    expected = classical.probabilities(model, unseen)
    assert expected.dtype == np.float64
    assert expected.sum(axis=1) == pytest.approx(1)
    graph = to_onnx(model, 32)
    session = onnx_session(graph, threads=1)
    assert [(i.name, i.shape[1]) for i in session.get_inputs()] == [("features", 32)]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    for n in (1, 100):
        (logits,) = session.run(None, {"features": unseen[:n]})
        assert logits.dtype == np.float32
        assert logits.shape == (n, classes)
        assert logits.min() >= np.log(FLOOR) - 1e-4
        soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert np.abs(soft - expected[:n]).max() < 1e-4
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_files_keep_the_model_and_fits_repeat(classifier: str, tmp_path: Path) -> None:
    features, labels = cells()
    unseen, _ = cells(seed=5)
    said = {"classifier": classifier, "pca": "network"}
    first, second = (fitted(features, labels, **said) for _ in range(2))
    path = tmp_path / "new" / "model.skops"
    classical.save(second, path)
    before = path.read_bytes()
    classical.save(first, path)
    assert path.read_bytes() == before, "nothing of where it lay in memory, or when, is written"
    expected = classical.probabilities(first, unseen)
    assert np.array_equal(classical.probabilities(second, unseen), expected)
    assert np.array_equal(classical.probabilities(classical.load(path), unseen), expected)
    assert [p.name for p in path.parent.iterdir()] == ["model.skops"]


@pytest.mark.parametrize("classifier", ["random_forest", "stacking"])
def test_threads_change_nothing(classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = cells()
    results = []
    for workers in (1, 4):
        monkeypatch.setattr("leukoscope.models.forest.WORKERS", workers)
        monkeypatch.setattr("leukoscope.parallel.WORKERS", workers)
        results.append(fitted(features, labels, classifier=classifier).predict_proba(features))
    assert np.array_equal(*results)


def test_a_model_names_no_training_rows() -> None:
    features, labels = cells()
    assert fitted(features, labels)[-1].cv == 3
    assert fitted(features, labels, classifier="svm")[-1].cv == 3


def rewrite(path: Path, change: Any) -> None:
    """Write the archive anew, each member through `change(name, bytes)`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def unknown_type(name: str, content: bytes) -> bytes:
    if name != "schema.json":
        return content
    schema = json.loads(content)
    schema["__module__"], schema["__class__"] = "subprocess", "Popen"
    return json.dumps(schema).encode()


def cut_array(name: str, content: bytes) -> bytes:
    return content[: len(content) // 2] if name.endswith(".npy") else content


@pytest.mark.parametrize("change", [unknown_type, cut_array, lambda *_: b"\0"])
def test_damaged_or_foreign_models_are_refused(change: Any, tmp_path: Path) -> None:
    features, labels = cells()
    path = tmp_path / "model.skops"
    classical.save(fitted(features, labels, classifier="knn"), path)
    rewrite(path, change)
    with pytest.raises(InputError, match="no classical model"):
        classical.load(path)


def test_no_model_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.skops").write_text("no archive")
    for name in ("text.skops", "missing.skops", "."):
        with pytest.raises(InputError, match="no classical model"):
            classical.load(tmp_path / name)


def test_other_estimators_are_refused(tmp_path: Path) -> None:
    import skops.io

    path = tmp_path / "model.skops"
    skops.io.dump(PCA(), path)
    with pytest.raises(InputError, match="holds a PCA"):
        classical.load(path)


def test_a_tree_that_points_outside_itself_is_refused(tmp_path: Path) -> None:
    """scikit-learn would read beyond its memory."""
    features, labels = cells()
    model = fitted(features, labels, classifier="random_forest")
    tree = model[-1].estimators_[2].tree_
    tree.feature[0] = 10**6
    path = tmp_path / "model.skops"
    classical.save(model, path)
    with pytest.raises(InputError, match="tree"):
        classical.load(path)


def test_steep_scores_keep_their_order() -> None:
    """Where every sigmoid is 0, scikit-learn gives chance; the logarithms know better."""
    from leukoscope.compat import onnx_session

    features, labels = cells(4, 200, 0.3)
    steep = features * np.float32(1000)
    model = fitted(steep, labels, classifier="sgd")
    last = model[-1]
    assert isinstance(last, SGDClassifier)
    scores = last.decision_function(steep)
    found = classical.probabilities(model, steep)
    no = scores.max(axis=1) < -800
    assert no.sum() > 5
    assert np.array_equal(found[no].argmax(axis=1), scores[no].argmax(axis=1))
    assert found[no].max(axis=1) == pytest.approx(1)
    mild = scores.max(axis=1) > -50
    assert found[mild] == pytest.approx(model.predict_proba(steep)[mild], abs=1e-6)
    (logits,) = onnx_session(to_onnx(model, 32), 1).run(None, {"features": steep})
    assert np.abs(np.exp(logits) - found).max() < 1e-4


# What can't work


def test_features_that_can_t_work() -> None:
    features, labels = cells()
    for values in ((np.nan, 0), (np.inf, 0), (np.inf, -np.inf)):
        broken = features.copy()
        broken[3, 4:6] = values
        with pytest.raises(InputError, match="finite"):
            fitted(broken, labels)
    dead = features.copy()
    dead[:, 12:] = 1.5
    with pytest.raises(InputError, match="Network 2"):
        fitted(dead, labels)
    for wrong in (np.zeros(120, int), labels * 2):
        with pytest.raises(InputError, match="classes number"):
            fitted(features, wrong)
    with pytest.raises(InputError, match="allowed: up to 120"):
        fitted(features, labels, classifier="knn", knn_neighbours=500)
    with pytest.raises(InputError, match="diverged"):
        fitted(features * np.float32(1e20), labels, classifier="sgd")
    with pytest.raises(ValueError, match="widths"):
        classical.fit(features, labels, None, (3, 4), Classical(), 0)


# Joined to a network


def test_network_and_classifier_become_one_graph() -> None:
    import torch
    from torch import nn

    from leukoscope.compat import onnx_session
    from leukoscope.models.classifier import seeded
    from leukoscope.models.graph import to_onnx as network_to_onnx

    features, labels = cells()
    model = fitted(features, labels, pca="network")
    with seeded(0):
        network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    first = network_to_onnx(network, (24, 20), ("features",))
    graph = join(first, to_onnx(model, 32))
    assert join(first, to_onnx(model, 32)) == graph, "the same model has the same hash"
    session = onnx_session(graph, threads=1)
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["logits", "features"]
    images = np.random.default_rng(0).normal(size=(5, 3, 24, 20)).astype(np.float32)
    with torch.no_grad():
        deep = network(torch.from_numpy(images)).numpy()
    for n in (1, 5):
        logits, given_back = session.run(None, {"images": images[:n]})
        assert given_back == pytest.approx(deep[:n], abs=1e-5)
        assert np.exp(logits) == pytest.approx(classical.probabilities(model, deep[:n]), abs=1e-4)


def test_only_a_network_of_features_can_be_joined() -> None:
    features, labels = cells()
    graph = to_onnx(fitted(features, labels, classifier="knn"), 32)
    with pytest.raises(ValueError, match="features"):
        join(graph, graph)


def test_replicas_of_an_image_stay_together_where_a_class_has_one_patient() -> None:
    """Class 1 is of one patient: it is split up by image, not by row."""
    labels = np.repeat([0, 1], [12, 8])
    patients = [f"p{i // 2}" for i in range(12)] + ["q"] * 8
    images = [*range(12), *np.repeat([100, 101, 102, 103], 2)]
    found = inner_splits(labels, patients, 3, seed=0, images=images)
    assert found.torn == [1]
    for inner, held in found.parts:
        assert not {images[i] for i in inner} & {images[i] for i in held}
