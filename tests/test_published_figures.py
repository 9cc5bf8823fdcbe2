"""The recipes' tables hold the papers' figures, all of them; and what the papers' own figures
imply is what the traps say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import paper_figures as paper
from leukoscope.data.datasets import datasets
from leukoscope.evaluate.metrics import PER_CLASS, metrics
from leukoscope.evaluate.significance import mcnemar_counts, paired_t
from leukoscope.recipes import schema
from leukoscope.recipes.schema import PublishedTable
from paper_figures import TABLES

EVERY_TABLE = [(name, title) for name, tables in TABLES.items() for title in tables]
LAST = {*metrics, *PER_CLASS, "roc_auc", "support", "seconds", "train_accuracy", "train_loss",
        "validation_accuracy", "validation_loss"}  # fmt: skip


def tables(name: str) -> dict[str, PublishedTable]:
    return {table.title: table for table in schema.resolve(name).published}


@pytest.mark.parametrize(("name", "title"), EVERY_TABLE)
def test_a_table_is_the_papers_to_the_last_figure(name: str, title: str) -> None:
    found, stated = tables(name)[title].figures, TABLES[name][title]
    assert list(found) == list(stated)
    for arm, figures in stated.items():
        assert found[arm] == pytest.approx(figures, abs=1e-9)


def test_every_table_is_held_against_its_paper() -> None:
    found = [(name, title) for name in schema.names() for title in tables(name)]
    assert sorted(found) == sorted(EVERY_TABLE)


@pytest.mark.parametrize("name", schema.names())
def test_figures_are_of_arms_metrics_and_classes_that_there_are(name: str) -> None:
    recipe = schema.resolve(name)
    arms = schema.arms(schema.raw(name))
    for table in recipe.published:
        known = datasets["leukemia-0.2" if table.classes == 5 else recipe.dataset].classes
        assert {*table.figures} <= {*arms}
        assert all({test.a, test.b} <= {*arms} for test in table.tests)
        for path, value in itertools.chain(*(f.items() for f in table.figures.values())):
            assert path.rpartition(".")[2] in LAST
            assert value > 1 if path.endswith(("support", "seconds")) else 0 <= value < 1.1
            if "per_class" in path:
                assert path.partition("per_class.")[2].rpartition(".")[0] in known
    assert {*(recipe.ablation.arms if recipe.ablation else ())} <= {*arms}


def test_only_one_paper_is_about_two_data_sets() -> None:
    for name in schema.names():
        classes = [table.classes for table in schema.resolve(name).published]
        assert classes == ([2, 5, 2, 5] if name == "logmh-transfer" else [0] * len(classes))


# --- tests ----------------------------------------------------------------------------------------


def test_paired_t_of_the_table_is_the_papers() -> None:
    stated = {"precision": (1.3761, 0.2408), "recall": (0.9087, 0.4149), "f1": (3.3024, 0.0299)}
    table = tables("convnext-aml")["ConvNeXt beside other networks (table 3)"]
    assert [(t.test, t.a, t.b) for t in table.tests] == [
        ("paired_t", "convnext-base", "resnet50")
    ] * 4
    for place, metric in enumerate(paper.PRF):
        test = table.tests[place]
        assert (test.metric, test.statistic, test.p) == (metric, *stated[metric])
        sides = [[row[place] for row in rows] for rows in (paper.CONVNEXT, paper.RESNET50)]
        found = paired_t(*sides)
        assert found["t"] == pytest.approx(test.statistic, abs=5e-5)
        assert found["p"] == pytest.approx(test.p, abs=5e-5)


def test_the_papers_t_test_of_accuracy_is_degenerate_never_zero() -> None:
    test = tables("convnext-aml")["ConvNeXt beside other networks (table 3)"].tests[3]
    assert (test.metric, test.statistic, test.p) == ("accuracy", None, None)
    assert "degenerate" in test.note
    found = paired_t([0.95] * 5, [0.91] * 5)
    assert (found["t"], found["p"]) == (None, None)
    assert found["degenerate"]


def test_mcnemar_of_the_counts_is_the_papers() -> None:
    (test,) = tables("hybrid-stacking")["Area under the ROC curve by model (figure 13)"].tests
    assert (test.test, test.a, test.b) == ("mcnemar", "hybrid", "vit")
    found = mcnemar_counts(383, 286)
    assert found["chi2"] == pytest.approx(test.statistic, abs=0.005)
    assert found["p"] == pytest.approx(test.p, abs=1e-6)


# --- ablations ------------------------------------------------------------------------------------


def test_the_factorial_ablation_switches_what_it_says() -> None:
    ablation = schema.resolve("convnext-aml").ablation
    assert ablation is not None
    assert ablation.kind == "factorial"
    assert sorted(map(sorted, ablation.arms.values())) == [
        [], ["mixup"], ["mixup", "swa"], ["swa"]
    ]  # fmt: skip
    for arm, factors in ablation.arms.items():
        training = schema.resolve("convnext-aml", arm=arm).training
        assert (training.mixup > 0) == ("mixup" in factors)
        assert (training.averaging.start > 0) == ("swa" in factors)


def test_the_cumulative_ablation_adds_one_step_at_a_time() -> None:
    ablation = schema.resolve("hybrid-stacking").ablation
    assert ablation is not None
    assert ablation.kind == "cumulative"
    order = ["segmentation", "augmentation", "oversampling", "pca"]
    assert list(ablation.arms.values()) == [order[:n] for n in range(5)]
    for arm, factors in ablation.arms.items():
        recipe = schema.resolve("hybrid-stacking", arm=arm)
        switched = [
            any(step["step"] == "hsv_mask" for step in recipe.preprocessing),
            bool(recipe.augmentation) and recipe.views.online,
            recipe.balance == "oversample",
            recipe.classical.pca != "none",
        ]
        assert [factor in factors for factor in order] == switched
        assert recipe.classic


# --- what the papers' figures imply ---------------------------------------------------------------


def test_convnext_ablation_accuracies_are_shares_of_750_images() -> None:
    for figures in paper.CONVNEXT_TABLES["Ablation of mixup and averaging (section 4.7)"].values():
        for metric in ("validation.accuracy", "accuracy"):
            assert round(figures[metric] * 750) / 750 == pytest.approx(figures[metric], abs=6e-5)
        assert figures["accuracy"] - figures["validation.accuracy"] > 0.027


def test_logmh_f1_scores_that_no_precision_and_recall_give() -> None:
    impossible = [
        arm
        for rows in (paper.BINARY, paper.FIVE_CLASSES)
        for arm, row in rows.items()
        # Rounding moves the mean of two and the third by at most .01 points.
        if row["macro_f1"] > (row["macro_precision"] + row["macro_recall"]) / 2 + 1.001e-4
    ]
    assert len(impossible) == 9
    rows = paper.FIVE_CLASSES.values()
    assert sum(row["macro_recall"] != row["accuracy"] for row in rows) == 9
    assert 100 - np.mean(paper.INCEPTION_ERRORS) == pytest.approx(95.52, abs=0.005)
    assert 100 - np.mean(paper.FOREST_ERRORS) == pytest.approx(88.02, abs=0.005)


def test_otsu_counts_give_the_table_with_the_missing_image_in_early_pre_b() -> None:
    # Rows true, columns predicted: Benign, Pre-B, Pro-B, Early Pre-B.
    counts = np.array([[71, 2, 1, 3], [0, 141, 0, 3], [4, 14, 101, 1], [11, 11, 0, 125]])
    assert counts.sum(axis=1).tolist() == list(paper.SUPPORT)
    right = counts.diagonal()
    stated = np.array(paper.SEGMENTED_1) / 100
    assert stated[:, 0] == pytest.approx(right / counts.sum(axis=0), abs=5e-5)
    assert stated[:, 1] == pytest.approx(right / counts.sum(axis=1), abs=5e-5)
    assert right.sum() / counts.sum() == pytest.approx(0.8975, abs=5e-5)
    assert pytest.approx(0.97, abs=0.005) == (76 + 140 + 119 + 137) / 488
    assert 358 + 685 + 668 + 557 == 2268 != 358 + 658 + 668 + 557


@pytest.mark.parametrize(
    ("rows", "averages"),
    [
        (paper.SEGMENTED_1, (90.05, 89.83, 89.52)),
        (paper.RAW_1, (84.83, 79.29, 80.16)),
        (paper.SEGMENTED_2, (96, 97, 97)),
        (paper.RAW_2, (94, 94, 94)),
    ],
)
def test_otsu_macro_averages_are_means(
    rows: tuple[tuple[float, ...], ...], averages: tuple[float, ...]
) -> None:
    slack = 0.011 if averages[0] % 1 else 1.0
    assert np.mean(rows, axis=0) == pytest.approx(averages, abs=slack)


def test_lightweight_figures_that_do_not_agree_on_balanced_classes() -> None:
    figures = paper.LIGHTWEIGHT_TABLES["MobileNetV2 on the validation part (abstract)"]
    found = figures["mobilenetv2"]
    assert found["macro_recall"] != found["accuracy"]
    assert (found["accuracy"] - 0.2) / 0.8 == pytest.approx(0.930, abs=5e-4)
    assert np.mean((94.1, 94.3, 94.5, 94.2, 94.6)) == pytest.approx(94.34)
    assert (paper.HISTORY[-1][2] / 100, paper.HISTORY[-1][3]) == (0.9442, 0.1701)


def test_hybrid_accuracy_is_a_mean_of_one_vs_rest_accuracies() -> None:
    right, images = sum(paper.CORRECT), sum(paper.TOTAL)
    assert (right, images) == (11680, 12184)
    assert right / images == pytest.approx(0.9586, abs=5e-5)
    # Each error is one of the class that it was and one of the class that it was taken for.
    assert 1 - 2 * (images - right) / (5 * images) == pytest.approx(0.98345, abs=5e-6)
    means = np.mean(paper.HYBRID, axis=0)
    assert means == pytest.approx([98.344, 95.658, 95.838, 98.968, 95.742])
    assert abs(means - paper.HYBRID_MEANS).round(2).tolist() == [0.01, 0.21, 0.0, 0.0, 0.0]
    assert images == 11028 + 383 + 286 + 487
    assert 11028 + 383 == 11411 != right
    assert np.mean(paper.HYBRID_AUC) == pytest.approx(0.956)


def test_hybrid_ablation_mixes_two_measures() -> None:
    baseline = paper.STEPS["baseline"][0] / 100
    assert 5 * (1 - baseline) / 2 > 1  # errors an image, if it were a mean of five
    assert all(f1 > (precision + recall) / 2
               for _, precision, recall, _, f1 in paper.STEPS.values())  # fmt: skip
