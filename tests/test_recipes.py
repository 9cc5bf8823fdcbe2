"""Recipes say what the papers say; what a recipe can't say fails before any image is read.

The papers' figures are in tests/test_published_figures.py.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from leukoscope.data.datasets import datasets
from leukoscope.errors import InputError, UnknownNameError
from leukoscope.imaging.augmentation import check as check_augmentation
from leukoscope.models import weights
from leukoscope.models.backbones import check_architecture
from leukoscope.models.classifier import build_head
from leukoscope.recipes import schema
from leukoscope.recipes.schema import Recipe
from paper_settings import ALL_OPERATIONS, PAPERS, TRAPS

ROWS = [
    (name, arm, path, value)
    for name, arms in PAPERS.items()
    for arm, settings in arms.items()
    for path, value in settings.items()
]
resolve = functools.cache(schema.resolve)
EVERY_ARM = [(name, arm) for name in schema.names() for arm in schema.arms(schema.raw(name))]


def setting(recipe: Recipe, path: str) -> Any:
    """A setting by its dotted path; entries of a list by number, or a chain's by their name.

    `preprocessing.NAME` is the step's settings; `training.phases.epochs` the sum over phases.
    """
    value: Any = recipe
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value[part]
        elif not isinstance(value, list):
            value = getattr(value, part)
        elif part.isdigit():
            value = value[int(part)]
        elif path.startswith("training.phases"):
            value = sum(getattr(phase, part) for phase in value)
        else:
            value = _entry(value, part)
    return value


def _entry(chain: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = (entry for entry in chain if name in (entry.get("step"), entry.get("operation")))
    return {k: v for k, v in found.items() if k not in ("step", "operation")}


@pytest.mark.parametrize(("name", "arm", "path", "value"), ROWS)
def test_settings_are_the_papers(name: str, arm: str, path: str, value: Any) -> None:
    assert setting(resolve(name, arm=arm), path) == value


def test_every_arm_is_held_against_its_paper() -> None:
    assert [(name, arm) for name in sorted(PAPERS) for arm in PAPERS[name]] == EVERY_ARM


@pytest.mark.parametrize("name", schema.names())
def test_a_recipe_has_its_papers_operations_and_no_other(name: str) -> None:
    found = [entry["operation"] for entry in resolve(name).augmentation]
    assert sorted(found) == sorted(ALL_OPERATIONS[name].split())


@pytest.mark.parametrize(("name", "words"), TRAPS)
def test_traps_of_the_papers_are_named(name: str, words: str) -> None:
    assert any(words in trap for trap in resolve(name).traps)


@pytest.mark.parametrize(("name", "arm"), EVERY_ARM)
def test_every_arm_can_be_built_as_far_as_names_go(name: str, arm: str) -> None:
    recipe = resolve(name, arm=arm)
    assert recipe.dataset in datasets
    check_augmentation(recipe.augmentation)
    for network in recipe.networks:
        check_architecture(network.backbone)
        found = weights.resolve(network.weights, network.backbone)
        if network.weights == "auto":
            assert found.licence.lower() in ("apache-2.0", "bsd-3-clause")


@pytest.mark.parametrize(
    ("name", "width", "classes", "parameters"),
    [
        ("lightweight-cnn", 1280, 5, 1280 * 128 + 128 + 128 * 5 + 5),  # 0.165 M, not 1.2 M
        ("convnext-aml", 1024, 5, 5125),  # not 6,147
        ("otsu-efficientnet", 1792, 4, 1792 * 4 + 4),
    ],
)
def test_heads_have_the_papers_layers(name: str, width: int, classes: int, parameters: int) -> None:
    head = build_head(list(resolve(name).model.head), width, classes)
    assert sum(p.numel() for p in head.parameters()) == parameters


@pytest.mark.parametrize(("name", "arm"), EVERY_ARM)
def test_the_resolved_form_of_an_arm_is_a_recipe_again(name: str, arm: str, tmp_path: Path) -> None:
    recipe = resolve(name, arm=arm)
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps({"protocol": "clean", **recipe.resolved()}))
    again = resolve(str(path))
    assert again.resolved() == recipe.resolved()
    assert again.sha256 == recipe.sha256


# --- settings -------------------------------------------------------------------------------------


def test_settings_reach_their_place_by_full_or_short_name() -> None:
    found = schema.resolve("lightweight-cnn", settings=["training.epochs=3", "count=2", "seed = 7"])
    assert (found.training.epochs, found.views.count, found.seed) == (3, 2, 7)
    chain = '[{step = "resize", size = 64}]'
    assert schema.resolve("lightweight-cnn", settings=[f"preprocessing={chain}"]).preprocessing == [
        {"step": "resize", "size": 64}
    ]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (
            "otsu-efficientnet",
            'preprocessing=[{step = "resize", size = 224}, '
            '{step = "otsu_mask", polarity = "bright"}]',
        ),
        (
            "convnext-aml",
            'preprocessing=[{step = "resize", size = 384}, {step = "equalise_luminance"}]',
        ),
        ("hybrid-stacking", "classical.pca=concatenated"),
        ("hybrid-stacking", "classical.coding=one_vs_one"),
    ],
)
def test_the_other_reading_of_a_paper_is_a_setting(name: str, given: str) -> None:
    assert any(given in trap for trap in resolve(name).traps)
    assert schema.resolve(name, settings=[given]) != resolve(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.epoch=3"], r"training\.epochs"),
        (["epochs"], "no '='"),
        (["training.epochs=many"], r"training\.epochs.*got 'many'"),
        (["training.epochs=0"], r"training\.epochs"),
        (["training.learning_rate=-1"], r"learning_rate"),
        (["training.batch_size=1"], r"batch_size"),
        (["training.trained=perhaps"], r"training\.trained"),
        (["training.trained=last"], "layers"),
        (["training.phases=[{trained='head', unfreeze_every=1}]"], "unfreeze_every"),
        (["training.mixup=-0.4"], r"training\.mixup"),
        (["views.online=true"], "count"),
        (["exclude=['ugly']"], "exclude"),
        (["balance=even"], "balance"),
        (["features.networks=[{backbone='vgg16', layer='fc7'}]"], "either model.backbone or"),
        (["classical.pca=some"], r"classical\.pca"),
        (["preprocessing=[{step='resise'}]"], "'resize'"),
        (["split.clean=70/70/70"], "70/70/70"),
        (["split.folds=0"], r"split\.folds"),
    ],
)
def test_wrong_settings_say_what_is_allowed(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        schema.resolve("lightweight-cnn", settings=settings)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lightweight-cnn'"):
        schema.resolve("lightwieght-cnn")
    with pytest.raises(UnknownNameError, match="Did you mean 'mobilenetv2'"):
        schema.resolve("lightweight-cnn", arm="mobilenetv3")


def test_an_unknown_key_in_an_own_recipe_names_the_nearest(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    text = schema.text("lightweight-cnn")
    own.write_text(text.replace("learning_rate", "learnign_rate"))
    with pytest.raises(InputError, match=r"training\.learnign_rate.*Did you mean 'learning_rate'"):
        schema.resolve(str(own))
    own.write_text("name = ")
    with pytest.raises(InputError, match="is not TOML"):
        schema.resolve(str(own))
    with pytest.raises(InputError, match="can't be read"):
        schema.resolve(str(tmp_path / "absent.toml"))
