"""What a run starts from: the recipe, the images, their roles, and the views that take part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from leukoscope.cluster import Spread
from leukoscope.data import duplicates
from leukoscope.data import split as splits
from leukoscope.data.audit import audit
from leukoscope.data.duplicates import Duplicates
from leukoscope.data.index import CellIndex
from leukoscope.imaging.quality import FLAGS, Limits, flags
from leukoscope.models import weights as model_weights
from leukoscope.models.backbones import check_architecture
from leukoscope.models.weights import Weights
from leukoscope.parallel import ahead
from leukoscope.progress import track
from leukoscope.recipes import records
from leukoscope.recipes.protocols import image_split, sample_table, scored_role
from leukoscope.recipes.schema import Protocol, Recipe
from leukoscope.train.cache import ArrayCache
from leukoscope.train.views import ImageFile, ViewSettings, indexed_image

_SAMPLE = 7  # the name by which the choice of images fans out of the seed


@dataclass(frozen=True)
class Experiment:
    """One run, before anything has learnt.

    `table` has a row a view (image, view, role, label, patient); `roles` a row an image; `pooled`:
    views of all images were split, so that images have no role. `groups` (rows of `table`,): what
    must not be on two sides of any split within training. `starts`: the weights of each network.
    `spread`: where features are made.
    """

    plan: Recipe
    protocol: Protocol
    index: CellIndex
    roles: pd.DataFrame
    table: pd.DataFrame
    classes: list[str]
    pooled: bool
    groups: np.ndarray
    starts: list[Weights]
    device: str
    findings: dict[str, Any]
    spread: Spread = ahead

    @property
    def role(self) -> str:
        """The part the run is judged by."""
        return scored_role(self.table)

    @property
    def files(self) -> dict[str, ImageFile]:
        """The images that take part."""
        hashes = self.index.frame.set_index("image")["sha256"]
        return {i: ImageFile(self.index.path(i), hashes[i]) for i in self.table["image"].unique()}

    @property
    def views(self) -> ViewSettings:
        plan = self.plan
        return ViewSettings(plan.preprocessing, plan.augmentation, plan.views.count, plan.seed)

    def rows(self, role: str) -> np.ndarray:
        """Places in `table` of a role, all its views."""
        return (self.table["role"] == role).to_numpy().nonzero()[0]

    def scored(self, role: str) -> np.ndarray:
        """Places in `table` of a role that are scored: the images; where views were split, all."""
        return records.scored_rows(self.table, role, self.pooled)

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Class numbers of these rows, int64."""
        codes = pd.Categorical(self.table["label"], categories=self.classes).codes
        return codes[rows].astype(np.int64)


def prepare(
    plan: Recipe,
    protocol: Protocol,
    index: CellIndex,
    *,
    weights: str | None,
    given: pd.DataFrame | None,
    fold: int | None,
    device: str,
    spread: Spread = ahead,
) -> Experiment:
    """Split first, look for leaks, leave outliers out, list every view that takes part.

    Raises InputError where something can't work and LeakError where the clean protocol meets a
    leaking split; nothing is written.
    """
    starts = starting_weights(plan, weights)
    where = records.choose_device(device)
    drawn = at_most(index, plan.images_per_class, plan.seed)
    if given is not None and drawn is not index:
        left_out = set(index.frame["image"]) - set(drawn.frame["image"])
        given = given[~given["image"].isin(left_out)].reset_index(drop=True)
    index = drawn
    copies = duplicates.find(index)
    pooled = protocol == "published" and given is None and plan.split.published_unit == "view"
    roles = image_split(index, plan, protocol, given, copies, fold)
    findings = audit(index, roles, found=copies)
    findings["excluded"] = outliers(index, roles, plan, protocol)
    taking_part = ~roles["image"].isin([entry["image"] for entry in findings["excluded"]])
    table = sample_table(index, roles[taking_part], plan, pooled)
    classes = records.check_labels(index, table)
    return Experiment(plan, protocol, index, roles, table, classes, pooled,
                      _groups(index, copies, table), starts, where, findings, spread)  # fmt: skip


def at_most(index: CellIndex, per_class: int, seed: int) -> CellIndex:
    """The index with at most `per_class` images of each class, drawn at random; 0: all of it."""
    frame = index.frame
    if not per_class or frame["label"].value_counts().max() <= per_class:
        return index
    order = np.random.default_rng([seed, _SAMPLE]).permutation(len(frame))
    rank = frame.iloc[order].groupby("label").cumcount().sort_index()
    kept = frame[(rank < per_class).to_numpy()].reset_index(drop=True)
    return replace(index, frame=kept)


def starting_weights(plan: Recipe, given: str | None) -> list[Weights]:
    """Each network's weights: `none` for what is trained from scratch, whatever was asked for,
    except where a file of its own is given."""
    found = []
    for network in plan.networks:
        check_architecture(network.backbone)
        named = given not in (None, "auto", "none")
        scratch = network.weights == "none" and not (named and plan.classic)
        wanted = "none" if scratch else given or network.weights
        found.append(model_weights.resolve(wanted, network.backbone))
    return found


def outliers(
    index: CellIndex, roles: pd.DataFrame, plan: Recipe, protocol: Protocol
) -> list[dict[str, Any]]:
    """The images that the recipe leaves out, as {image, role, flags}.

    Under the clean protocol test images stay: a laboratory can't choose what it is sent.
    """
    if not plan.exclude:
        return []
    asked = roles if protocol == "published" else roles[roles["role"] != "test"]
    found = _flags(index, asked["image"].tolist())
    wrong = {image: sorted(set(plan.exclude) & set(said)) for image, said in found.items()}
    return [
        {"image": image, "role": role, "flags": wrong[image]}
        for image, role in zip(asked["image"], asked["role"], strict=True)
        if wrong[image]
    ]


def _flags(index: CellIndex, images: Sequence[str]) -> dict[str, list[str]]:
    """The quality flags of each image; kept by content between runs."""
    cache = ArrayCache("quality", {"flags": FLAGS, **asdict(Limits())})
    hashes = index.frame.set_index("image")["sha256"]
    todo = {hashes[i]: index.path(i) for i in images if cache.get(hashes[i], "flags") is None}

    def look(item: tuple[str, Path]) -> tuple[str, np.ndarray]:
        said = flags(indexed_image(ImageFile(item[1], item[0])))
        return item[0], np.array([name in said for name in FLAGS])

    for sha256, bits in track(ahead(look, todo.items()), "Image quality", total=len(todo)):
        cache.put(sha256, "flags", bits)
    found = {}
    for image in images:
        kept = cache.get(hashes[image], "flags")
        assert kept is not None, "made above"
        found[image] = [name for name, bit in zip(FLAGS, kept, strict=True) if bit]
    return found


def _groups(index: CellIndex, copies: Duplicates, table: pd.DataFrame) -> np.ndarray:
    group = pd.Series(splits.groups(index, copies), index=index.frame["image"])
    return group[table["image"]].to_numpy()
