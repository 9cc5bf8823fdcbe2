"""One run of a recipe, in the order a method section tells it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from leukoscope.data import duplicates
from leukoscope.data import split as splits
from leukoscope.data.audit import audit
from leukoscope.data.index import CellIndex
from leukoscope.data.index import load as load_index
from leukoscope.errors import UnknownNameError
from leukoscope.files import output_folder
from leukoscope.imaging.augmentation import check as check_augmentation
from leukoscope.models import weights as model_weights
from leukoscope.models.backbones import check_architecture
from leukoscope.models.classifier import Classifier, build
from leukoscope.models.weights import Weights
from leukoscope.recipes import deploy, records
from leukoscope.recipes.protocols import image_split, sample_table, scored_role
from leukoscope.recipes.schema import PROTOCOLS, Protocol, Recipe, resolve
from leukoscope.train.loop import Part, Settings, fit, outputs
from leukoscope.train.samples import Samples, feature_samples, pixel_samples
from leukoscope.train.views import ImageFile, ViewSettings


def train(
    recipe: str,
    cells: Path,
    out: Path,
    *,
    protocol: Protocol = "clean",
    arm: str | None = None,
    weights: str | None = None,
    split: Path | None = None,
    fold: int | None = None,
    settings: Sequence[str] = (),
    resume: bool = False,
    device: str = "auto",
) -> Path:
    """Train one arm of a recipe on an index and judge it; returns the run folder.

    recipe: a shipped recipe's name or a TOML file. weights: `auto`, `none`, or a path; the arm's
    own where None. fold: which fold of a K-fold split file. settings: `key=value`. With `resume` a
    finished run is returned as it is. Raises InputError before any image is read where something
    can't work, LeakError where the clean protocol meets a leaking split.
    """
    began = time.time()
    if protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    plan = resolve(recipe, arm=arm, settings=settings)
    check_augmentation(plan.augmentation)
    start = starting_weights(plan, weights)
    where = records.choose_device(device)
    index = load_index(cells)
    given = splits.read(split) if split else None
    pooled = protocol == "published" and given is None and plan.split.published_unit == "view"

    # Data: split first, look for leaks, list every view that takes part.
    copies = duplicates.find(index)
    roles = image_split(index, plan, protocol, given, copies, fold)
    findings = audit(index, roles, found=copies)
    table = sample_table(index, roles, plan, pooled)
    classes = records.check_labels(index, table)
    # Before the folder is claimed, since weights that don't fit are found out here.
    head = list(plan.model.head)
    classifier = build(plan.model.backbone, head, len(classes), start, seed=plan.seed)
    inputs = records.inputs_of(index, table if pooled else roles, start)
    run = records.claim(output_folder(out), plan, protocol, inputs, resume)
    if resume and (run / "environment.json").is_file():
        return run  # finished before
    records.keep_split(run, roles, table, findings, pooled)

    # Model: a backbone with its starting weights, a fresh head, the views it needs.
    samples = make_samples(plan, index, table, classifier, start, where)

    # Training on training rows, chosen on validation rows.
    parts = {role: _part(table, role, classes) for role in ("train", "validation")}
    trained = classifier.head if plan.model.frozen else classifier
    fit(
        classifier, trained, samples, parts["train"], parts["validation"], _settings(plan), run,
        device=where, resume=resume,
    )  # fmt: skip

    # Judgement: calibrated on validation, scored once.
    said = {
        role: outputs(classifier, samples, records.scored_rows(table, role, pooled))
        for role in table["role"].unique()
        if role != "train" or protocol == "clean"  # novelty, fitted under clean alone, needs it
    }
    contract = deploy.calibrate(plan, protocol, index, start, samples.input_size, classes,
                                table, said)  # fmt: skip
    deploy.save_model(classifier, contract, run / "model")
    predictions = records.predictions(table, said, contract, pooled)
    records.judge(run, predictions, index, roles, classes, scored_role(table), protocol)
    records.environment(run, plan, protocol, index, cells, start, where, began)
    return run


def starting_weights(plan: Recipe, given: str | None) -> Weights:
    """The arm's weights: `none` for what is trained from scratch, whatever was asked for."""
    check_architecture(plan.model.backbone)
    wanted = plan.model.weights if plan.model.weights == "none" else given or plan.model.weights
    return model_weights.resolve(wanted, plan.model.backbone)


def make_samples(
    plan: Recipe,
    index: CellIndex,
    table: pd.DataFrame,
    classifier: Classifier,
    start: Weights,
    device: str,
) -> Samples:
    """The views of `table` as the network takes them; a frozen backbone runs once per view."""
    hashes = index.frame.set_index("image")["sha256"]
    files = {i: ImageFile(index.path(i), hashes[i]) for i in table["image"].unique()}
    view_settings = ViewSettings(plan.preprocessing, plan.augmentation, plan.views.count, plan.seed)
    if not plan.model.frozen:
        return pixel_samples(table, files, view_settings, start, device)
    identity = {"backbone": plan.model.backbone, "weights": start.describe(), "seed": plan.seed}
    return feature_samples(table, files, view_settings, classifier, start, identity, device)


def _part(table: pd.DataFrame, role: str, classes: Sequence[str]) -> Part:
    chosen = (table["role"] == role).to_numpy()
    labels = pd.Categorical(table["label"], categories=list(classes)).codes
    return Part(chosen.nonzero()[0], labels[chosen].astype("int64"))


def _settings(plan: Recipe) -> Settings:
    training = plan.training
    return Settings(
        learning_rate=training.learning_rate,
        betas=training.betas,
        epsilon=training.epsilon,
        batch_size=training.batch_size,
        epochs=training.epochs,
        steps_per_epoch=training.steps_per_epoch,
        patience=training.patience,
        mixed_precision=training.mixed_precision,
        seed=plan.seed,
    )
