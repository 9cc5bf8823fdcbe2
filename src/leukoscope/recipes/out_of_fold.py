"""What a run says of its own training images, each by a head that was not trained on it.

With a frozen backbone a head takes seconds, so a few more of them are affordable. Their answers
join the validation images in calibration: prediction sets by class need many images of each, and
validation alone has few of the rare ones (cross-conformal prediction, Vovk 2015). They also tell
where the labels of training images are doubtful.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leukoscope.data.balance import class_weights
from leukoscope.models.classifier import Classifier, build_head, seeded
from leukoscope.recipes.experiment import Experiment
from leukoscope.recipes.learning import Learned, training_part
from leukoscope.train.loop import Part, fit, outputs
from leukoscope.train.samples import FeatureSamples

FOLDS = 5
_HEAD = 8  # the name by which the folds' heads fan out of the seed


@dataclass(frozen=True)
class OutOfFold:
    """Logits (n, classes) of training images, by their places (n,) in the experiment's table."""

    rows: np.ndarray
    logits: Tensor


def out_of_fold(job: Experiment, learned: Learned, run: Path, *, resume: bool) -> OutOfFold | None:
    """Answers about training images out of fold; None where the network itself learns, where a
    classical model follows it, or under the published protocol, which calibrates nothing.

    Images of one patient and near-duplicates share a fold. A fold without which a class is missing
    is left out: a head that never saw a class says nothing about it.
    """
    samples = learned.samples
    if job.protocol != "clean" or learned.stage or not isinstance(samples, FeatureSamples):
        return None
    rows, part = job.scored("train"), training_part(job)
    found = []
    for number, held in enumerate(_folds(job.labels(rows), job.groups[rows], job.plan.seed)):
        own = rows[held]
        others = _cut(part, ~np.isin(job.groups[part.rows], job.groups[own]))
        if len(np.unique(others.labels)) == len(job.classes):
            folder = run / "checkpoints" / f"fold-{number}"
            head = _trained(job, learned.classifiers[0], samples, others, folder, resume=resume)
            found.append((own, outputs(head, samples, own)[0]))
    if not found:
        return None
    return OutOfFold(np.concatenate([own for own, _ in found]), torch.cat([x for _, x in found]))


def _folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """Places of the images that each fold holds out, stratified by class; groups stay together."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(FOLDS, int(np.bincount(labels).max()), len(np.unique(groups)))
    if folds < 2:
        return []
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # a class smaller than the number of folds is no fault
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        held = [own for _, own in splitter.split(labels, labels, groups)]
    return [own for own in held if len(own)]


def _cut(part: Part, kept: np.ndarray) -> Part:
    copies = None if part.copies is None else part.copies[kept]
    return Part(part.rows[kept], part.labels[kept], copies, part.fresh)


def _trained(
    job: Experiment,
    classifier: Classifier,
    samples: FeatureSamples,
    training: Part,
    folder: Path,
    *,
    resume: bool,
) -> Classifier:
    """A fresh head on the frozen backbone, trained as the run's own was."""
    plan = job.plan
    with seeded(plan.seed, _HEAD):
        head = build_head(list(plan.model.head), samples.features.shape[1], len(job.classes))
    fresh = Classifier(classifier.backbone, head)
    weights = None
    if plan.balance == "class_weights":
        weights = class_weights(training.labels, len(job.classes))
    held = job.rows("validation")
    fit(
        fresh, plan.networks[0].backbone, samples, training, Part(held, job.labels(held)),
        plan.training, folder, seed=plan.seed, device=job.device, resume=resume,
        class_weights=weights,
    )  # fmt: skip
    return fresh
