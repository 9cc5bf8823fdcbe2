"""The two protocols: which view of which image trains, validates and is scored.

`clean`: split the images first (whole patients, duplicates together), augment training images
only, score the untouched test part once. `published`: what the paper did, leaks included, so that
its inflation can be measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from leukoscope.data import split as splits
from leukoscope.data.duplicates import Duplicates
from leukoscope.data.index import CellIndex
from leukoscope.errors import InputError
from leukoscope.recipes.schema import Protocol, Recipe

COLUMNS = ["image", "view", "role", "label", "patient"]


def image_split(
    cells: CellIndex,
    recipe: Recipe,
    protocol: Protocol,
    given: pd.DataFrame | None,
    found: Duplicates,
    fold: int | None = None,
) -> pd.DataFrame:
    """One row an image: image, fold, role. The clean protocol refuses a leaking split (LeakError).

    Where the paper splits views, its images have no role of their own; they count as training.
    """
    if fold is not None and given is None and recipe.split.folds == 1:
        raise InputError(
            f"Fold {fold} was asked for, but this run has no folds",
            fix="Give a split file of several folds with --split, or --set split.folds=5.",
            field="fold",
        )
    if given is not None:
        if protocol == "clean":
            splits.check(cells, given, found=found)
            _require_test(given)
        return one_fold(given, fold)
    if recipe.split.folds > 1:
        return one_fold(all_folds(cells, recipe, protocol, found), fold)
    if protocol == "clean":
        shares = splits.ratios(recipe.split.clean)
        made = splits.split(cells, ratios=shares, seed=recipe.seed, found=found)
        _require_test(made)
        return made
    if recipe.split.published_unit == "view":
        return pd.DataFrame({"image": cells.frame["image"], "fold": 0, "role": "train"})
    return pd.DataFrame(
        {
            "image": cells.frame["image"],
            "fold": 0,
            "role": _stratified(cells.frame["label"], recipe),
        }
    )


def all_folds(
    cells: CellIndex, recipe: Recipe, protocol: Protocol, found: Duplicates
) -> pd.DataFrame:
    """K folds, a row an image and fold. Published: stratified at random, and each held-out fold
    is the validation part; clean: grouped, and each held-out fold is tested once."""
    folds = recipe.split.folds
    if protocol == "clean":
        return splits.split(cells, folds=folds, seed=recipe.seed, found=found)
    labels = cells.frame["label"]
    if labels.value_counts().min() < folds:
        raise InputError(
            f"{folds} folds need {folds} images of every class; the smallest has "
            f"{labels.value_counts().min()}",
            fix="Lower split.folds, or add images.",
            field="split.folds",
        )
    parts = StratifiedKFold(folds, shuffle=True, random_state=recipe.seed).split(labels, labels)
    frames = []
    for number, (_, held) in enumerate(parts):
        role = np.full(len(labels), "train", dtype=object)
        role[held] = "validation"
        frames.append(pd.DataFrame({"image": cells.frame["image"], "fold": number, "role": role}))
    return pd.concat(frames, ignore_index=True)


def _require_test(roles: pd.DataFrame) -> None:
    """InputError without a test part: figures on validation, which chose the model, flatter it."""
    if not (roles["role"] == "test").any():
        raise InputError(
            "The split has no test part, which the clean protocol scores",
            fix="Make one with: leukoscope split cells.parquet -o split.parquet --ratios 70/15/15",
            field="split",
        )


def one_fold(given: pd.DataFrame, fold: int | None) -> pd.DataFrame:
    """The rows of one fold; InputError where it isn't there, or isn't named and there are more."""
    folds = sorted(map(int, given["fold"].unique()))
    if fold is None and len(folds) > 1:
        raise InputError(
            f"The split holds {len(folds)} folds, a run trains on one",
            fix=f"Name it with --fold, from {folds[0]} to {folds[-1]}.",
            field="fold",
        )
    if fold is not None and fold not in folds:
        raise InputError(
            f"The split has no fold {fold}; allowed: {', '.join(map(str, folds))}",
            fix="Name one of these.",
            field="fold",
        )
    return given if fold is None else given[given["fold"] == fold].reset_index(drop=True)


def sample_table(
    cells: CellIndex, roles: pd.DataFrame, recipe: Recipe, pooled: bool
) -> pd.DataFrame:
    """One row a view: image, view, role, label, patient; view 0 is the image itself.

    Training images have all their views; validation and test images only themselves. `pooled`
    (the published protocol of a recipe that splits views): the views of all images are shuffled
    together and cut, so views of one image stand on both sides.
    """
    frame = cells.frame.set_index("image").loc[roles["image"]]
    count = recipe.views.count
    per_image = [count if pooled or role == "train" else 1 for role in roles["role"]]
    table = pd.DataFrame(
        {
            "image": np.repeat(roles["image"].to_numpy(), per_image),
            "view": np.concatenate([np.arange(n) for n in per_image]),
            "role": np.repeat(roles["role"].to_numpy(), per_image),
            "label": np.repeat(frame["label"].to_numpy(), per_image),
            "patient": np.repeat(frame["patient"].to_numpy(), per_image),
        }
    )
    if pooled:
        table["role"] = _at_random(len(table), recipe)
    return table[COLUMNS]


def scored_role(table: pd.DataFrame) -> str:
    """The part a protocol is judged by: test, or validation where the paper has no test part."""
    return "test" if (table["role"] == "test").any() else "validation"


def _stratified(labels: pd.Series, recipe: Recipe) -> np.ndarray:
    """Roles shuffled within each class, regardless of patient and duplicate: the papers' test
    parts have every class in proportion."""
    roles = np.empty(len(labels), dtype=object)
    for name, places in labels.groupby(labels).indices.items():
        seed = [recipe.seed, 3, *str(name).encode("utf-8", "backslashreplace")]
        roles[places] = _shuffled(len(places), recipe, seed)
    return roles


def _at_random(n: int, recipe: Recipe) -> np.ndarray:
    """Roles of n rows, shuffled regardless of patient, duplicate and class."""
    return _shuffled(n, recipe, [recipe.seed, 3])


def _shuffled(n: int, recipe: Recipe, seed: Sequence[int]) -> np.ndarray:
    shares = splits.ratios(recipe.split.published)
    ends = np.round(np.cumsum(shares) * n).astype(int)
    roles = np.repeat(splits.ROLES, np.diff(ends, prepend=0))
    return np.random.default_rng(seed).permutation(roles)
