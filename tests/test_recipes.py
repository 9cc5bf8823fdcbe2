"""Recipes say what the papers say; what a recipe can't say fails before any image is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from leukoscope.errors import InputError, UnknownNameError
from leukoscope.recipes import schema
from leukoscope.recipes.schema import Recipe, resolve

# One row a figure of the paper: recipe, arm, dotted setting, value.
PAPER = [
    ("lightweight-cnn", "mobilenetv2", "model.backbone", "mobilenetv2_100"),
    ("lightweight-cnn", "mobilenetv2", "model.frozen", True),
    ("lightweight-cnn", "mobilenetv2", "model.weights", "auto"),
    ("lightweight-cnn", "mobilenetv2", "training.optimizer", "adam"),
    ("lightweight-cnn", "mobilenetv2", "training.learning_rate", 5e-4),
    ("lightweight-cnn", "mobilenetv2", "training.betas", (0.9, 0.999)),
    ("lightweight-cnn", "mobilenetv2", "training.epsilon", 1e-7),
    ("lightweight-cnn", "mobilenetv2", "training.batch_size", 16),
    ("lightweight-cnn", "mobilenetv2", "training.epochs", 10),
    ("lightweight-cnn", "mobilenetv2", "training.steps_per_epoch", 250),
    ("lightweight-cnn", "mobilenetv2", "training.mixed_precision", True),
    ("lightweight-cnn", "mobilenetv2", "views.count", 16),
    ("lightweight-cnn", "mobilenetv2", "split.published", "80/20/0"),
    ("lightweight-cnn", "mobilenetv2", "split.published_unit", "view"),
    ("lightweight-cnn", "efficientnet-b0", "model.backbone", "efficientnet_b0"),
    ("lightweight-cnn", "efficientnet-b0", "model.frozen", True),
    ("lightweight-cnn", "efficientnet-b0", "training.steps_per_epoch", 1000),
    ("lightweight-cnn", "efficientnet-b0", "training.batch_size", 16),
    ("lightweight-cnn", "cnn", "model.backbone", "cnn"),
    ("lightweight-cnn", "cnn", "model.frozen", False),
    ("lightweight-cnn", "cnn", "model.weights", "none"),
]
PUBLISHED = [
    ("lightweight-cnn", "mobilenetv2", "accuracy", 0.9442),
    ("lightweight-cnn", "mobilenetv2", "log_loss", 0.1701),
    ("lightweight-cnn", "mobilenetv2", "macro_precision", 0.958),
    ("lightweight-cnn", "mobilenetv2", "macro_recall", 0.956),
    ("lightweight-cnn", "mobilenetv2", "macro_f1", 0.956),
    ("lightweight-cnn", "mobilenetv2", "macro_specificity", 0.985),
    ("lightweight-cnn", "mobilenetv2", "roc_auc_ovr", 0.997),
    ("lightweight-cnn", "mobilenetv2", "cohen_kappa", 0.928),
]
AUGMENTATION = {
    "horizontal_flip": {"p": 0.5},
    "vertical_flip": {"p": 0.5},
    "rotate": {"choices": [15, 30, 45, 90]},
    "channel_gain": {"gain": [0.9, 1.1]},
    "sharpness": {"factor": 1.5},
    "contrast": {"factor": [0.8, 1.2]},
    "gaussian_blur": {"sigma": [0.5, 1.5]},
    "gaussian_noise": {"sigma": [0.01, 0.05]},
    "random_crop": {"fraction": [0.8, 1.0]},
    "elastic": {"alpha": 30, "sigma": 5},
}


def setting(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for part in path.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(("name", "arm", "path", "value"), PAPER)
def test_settings_are_the_papers(name: str, arm: str, path: str, value: Any) -> None:
    assert setting(resolve(name, arm=arm), path) == value


@pytest.mark.parametrize(("name", "arm", "metric", "value"), PUBLISHED)
def test_published_figures_are_the_papers(name: str, arm: str, metric: str, value: float) -> None:
    assert resolve(name, arm=arm).published[metric] == value


def test_lightweight_cnn_has_every_operation_of_the_paper_and_its_head() -> None:
    recipe = resolve("lightweight-cnn")
    found = {entry["operation"]: entry for entry in recipe.augmentation}
    assert set(found) == set(AUGMENTATION)
    for operation, settings in AUGMENTATION.items():
        assert settings.items() <= found[operation].items()
    assert recipe.model.head == [
        {"layer": "dropout", "p": 0.3},
        {"layer": "dense", "units": 128},
        {"layer": "relu"},
        {"layer": "dropout", "p": 0.2},
    ]
    assert recipe.preprocessing[0] == {"step": "resize", "size": 224}
    assert recipe.preprocessing[1]["step"] == "stretch_contrast"  # a histogram method


@pytest.mark.parametrize("name", schema.names())
def test_every_arm_resolves_and_its_resolved_form_is_a_recipe_again(
    name: str, tmp_path: Path
) -> None:
    for arm in schema.arms(schema.raw(name)):
        recipe = resolve(name, arm=arm)
        path = tmp_path / f"{arm}.toml"
        path.write_text(tomli_w.dumps({"protocol": "clean", **recipe.resolved()}))
        assert resolve(str(path)) == recipe
        assert resolve(str(path)).sha256 == recipe.sha256


def test_settings_reach_their_place_by_full_or_short_name() -> None:
    found = resolve("lightweight-cnn", settings=["training.epochs=3", "count=2", "seed = 7"])
    assert (found.training.epochs, found.views.count, found.seed) == (3, 2, 7)
    chain = '[{step = "resize", size = 64}]'
    assert resolve("lightweight-cnn", settings=[f"preprocessing={chain}"]).preprocessing == [
        {"step": "resize", "size": 64}
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.epoch=3"], r"training\.epochs"),
        (["epochs"], "no '='"),
        (["training.epochs=many"], r"training\.epochs.*got 'many'"),
        (["training.epochs=0"], r"training\.epochs"),
        (["training.learning_rate=-1"], r"learning_rate"),
        (["training.batch_size=1"], r"batch_size"),
        (["model.frozen=perhaps"], r"model\.frozen"),
        (["preprocessing=[{step='resise'}]"], "'resize'"),
        (["split.clean=70/70/70"], "70/70/70"),
    ],
)
def test_wrong_settings_say_what_is_allowed(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("lightweight-cnn", settings=settings)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'lightweight-cnn'"):
        resolve("lightwieght-cnn")
    with pytest.raises(UnknownNameError, match="Did you mean 'mobilenetv2'"):
        resolve("lightweight-cnn", arm="mobilenetv3")


def test_an_unknown_key_in_an_own_recipe_names_the_nearest(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    text = schema.text("lightweight-cnn")
    own.write_text(text.replace("learning_rate", "learnign_rate"))
    with pytest.raises(InputError, match=r"training\.learnign_rate.*Did you mean 'learning_rate'"):
        resolve(str(own))
    own.write_text("name = ")
    with pytest.raises(InputError, match="is not TOML"):
        resolve(str(own))
    with pytest.raises(InputError, match="can't be read"):
        resolve(str(tmp_path / "absent.toml"))
