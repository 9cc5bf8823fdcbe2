"""What learns in a run, and what it then says: networks, and a classical model on their features.

Both kinds of recipe end in the same thing, logits and features of any rows of the experiment, so
that calibration, judgement and export know one kind of model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from leukoscope.data.balance import class_weights, replicate
from leukoscope.errors import InputError
from leukoscope.files import output_folder, to_json, write_text
from leukoscope.models import classical, ecoc
from leukoscope.models.classifier import Classifier, Pooled, build
from leukoscope.models.features import DeepFeatures, deep_features
from leukoscope.models.layers import layer_parameters
from leukoscope.models.weights import InputFormat
from leukoscope.progress import remark
from leukoscope.recipes import records
from leukoscope.recipes.experiment import Experiment
from leukoscope.recipes.schema import Network
from leukoscope.train import cache as caches
from leukoscope.train import checkpoints, ranks
from leukoscope.train.loop import Part, fit, outputs
from leukoscope.train.samples import FeatureSamples, Samples, feature_samples, pixel_samples

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Outputs = Mapping[str, tuple[Tensor, Tensor]]
"""Logits and features by role."""
DISTINCT_VIEWS = 8
_BALANCE = 6  # the name by which replication's random numbers fan out of the seed


@dataclass(frozen=True)
class Learned:
    """The networks of a run, as its recipe lists them, and the classical model where it has one.

    `size`: height and width of their input in pixels. `notes`: what to say beside the figures.
    """

    classifiers: list[Classifier]
    size: tuple[int, int]
    stage: Pipeline | None = None
    samples: Samples | None = None
    notes: tuple[str, ...] = ()


def untrained(job: Experiment) -> list[Classifier]:
    """Every network with its starting weights and a fresh head.

    Raises InputError where weights, or the layers that a phase trains, don't fit a network.
    """
    plan = job.plan
    found = []
    for network, start in zip(plan.networks, job.starts, strict=True):
        head = list(plan.model.head)
        made = build(network.backbone, head, len(job.classes), start, seed=plan.seed)
        for phase in plan.training.stretches:
            layer_parameters(network.backbone, made.backbone, last=phase.layers)
        if plan.classic:
            deep_features(network.backbone, made.backbone, network.layer)
        found.append(made)
    return found


def learn(job: Experiment, classifiers: list[Classifier], run: Path, *, resume: bool) -> Learned:
    """Train what the recipe trains; `run` gets history.csv and checkpoints/.

    Networks that only give features have a folder each in `networks/`, and history.csv a column
    `network`.
    """
    plan = job.plan
    if not plan.classic:
        samples = network_samples(job, 0, classifiers[0])
        averaged = fit_network(job, 0, classifiers[0], samples, run, resume=resume)
        notes = (f"The weights are the mean of {averaged} epochs.",) if averaged else ()
        return Learned(classifiers, samples.input_size, samples=samples, notes=notes)
    if plan.features.finetune:
        folders = []
        for place, (network, classifier) in enumerate(zip(plan.networks, classifiers, strict=True)):
            folders.append(run / "networks" / f"{place + 1}-{network.backbone}")
            fit_once(job, place, classifier, folders[-1], resume=resume)
        if ranks.first():
            _join_histories(plan.networks, folders, run)
    joined = joined_networks(
        [(n.backbone, n.layer) for n in plan.networks],
        classifiers,
        [start.input for start in job.starts],
        zscore=plan.features.zscore,
    ).eval()
    features = deep_features_of(job, joined)
    if not ranks.first():
        return Learned(classifiers, features.input_size)
    stage, said = fit_classical(job, features, joined.widths)
    return Learned(classifiers, features.input_size, stage, features, tuple(said))


def fit_once(
    job: Experiment, place: int, classifier: Classifier, folder: Path, *, resume: bool
) -> None:
    """`fit_network`, or its result where another arm trained just this network before.

    Arms that differ in the classical model alone share their networks. What is kept lies in the
    cache, named by the hash of everything that training depends on.
    """
    stated = {
        **records.inputs_of(job),
        **job.views.key(),
        "network": job.plan.networks[place].model_dump(exclude={"layer"}),
        "images_left_out": job.findings["excluded"],
        "head": job.plan.model.head,
        "training": job.plan.training.model_dump(),
        "balance": job.plan.balance,
        "online": job.plan.views.online,
        "classes": job.classes,
        "device": job.device,
        "format": caches.FORMAT,
    }
    kept = caches.folder() / "networks" / hashlib.sha256(to_json(stated).encode()).hexdigest()[:24]
    last = checkpoints.phase_file(kept, len(job.plan.training.stretches)).name
    own = classifier if job.plan.training.backbone_learns else classifier.head
    if ranks.same(ranks.first() and _reused(kept, last, own)):
        ranks.fetch(kept / last)
        if ranks.first():
            checkpoints.share(kept / "history.csv", output_folder(folder) / "history.csv")
        else:
            checkpoints.load(kept / last, own)
        return
    samples = network_samples(job, place, classifier)
    fit_network(job, place, classifier, samples, folder, resume=resume)
    if not ranks.first():
        return
    output_folder(kept)
    checkpoints.share(folder / "history.csv", kept / "history.csv")
    checkpoints.share(folder / "checkpoints" / last, kept / last)


def _reused(kept: Path, last: str, own: torch.nn.Module) -> bool:
    """Whether `kept` holds the network, whole; its weights are loaded then."""
    if not ((kept / last).is_file() and (kept / "history.csv").is_file()):
        return False
    try:
        checkpoints.load(kept / last, own)
    except InputError as problem:
        remark(f"{problem.message}; the network in {kept} is trained anew.")
        return False
    return True


def network_samples(job: Experiment, place: int, classifier: Classifier) -> Samples:
    """The views of the experiment as one network takes them; a frozen backbone that only ever
    sees views made in advance runs once per view."""
    plan, start, backbone = job.plan, job.starts[place], job.plan.networks[place].backbone
    training, boxes = plan.training, hasattr(classifier.backbone, "with_boxes")
    if boxes or training.backbone_learns or training.mixup or _fresh(job) != "none":
        return pixel_samples(job.table, job.files, job.views, start.input, job.device, boxes=boxes)
    identity = {"backbone": backbone, "weights": start.describe(), "seed": plan.seed}
    return feature_samples(
        job.table, job.files, job.views, Pooled(classifier), start.input, identity, job.device,
        job.spread,
    )  # fmt: skip


def _fresh(job: Experiment) -> str:
    """Which training rows are augmented on the spot (train.loop.Part)."""
    return "all" if job.plan.views.online else "copies" if job.plan.balance == "top_up" else "none"


def fit_network(
    job: Experiment,
    place: int,
    classifier: Classifier,
    samples: Samples,
    folder: Path,
    *,
    resume: bool,
) -> int:
    """Train one network on training rows, chosen on validation rows; how many epochs its weights
    are the mean of, 0 without averaging."""
    weights = None
    if job.plan.balance == "class_weights":
        weights = class_weights(job.labels(job.rows("train")), len(job.classes))
    held = job.rows("validation")
    state = fit(
        classifier, job.plan.networks[place].backbone, samples, training_part(job),
        Part(held, job.labels(held)), job.plan.training, folder,
        seed=job.plan.seed, device=job.device, resume=resume, class_weights=weights,
    )  # fmt: skip
    return state.averaged


def training_part(job: Experiment) -> Part:
    """The training rows, balanced as the recipe says."""
    rows = job.rows("train")
    labels = job.labels(rows)
    if job.plan.balance not in ("oversample", "top_up"):
        return Part(rows, labels, fresh=_fresh(job))
    places, copies = replicate(labels, np.random.default_rng([job.plan.seed, _BALANCE]))
    return Part(rows[places], labels[places], copies, _fresh(job))


def joined_networks(
    named: list[tuple[str, str]],
    classifiers: list[Classifier],
    formats: list[InputFormat],
    *,
    zscore: bool,
) -> DeepFeatures:
    """(backbone, layer) of each network; images come as the first network's format says."""
    parts: list[nn.Module] = [
        deep_features(name, classifier.backbone, layer)
        for (name, layer), classifier in zip(named, classifiers, strict=True)
    ]
    return DeepFeatures(parts, formats, formats[0], zscore)


def deep_features_of(job: Experiment, network: DeepFeatures) -> FeatureSamples:
    """The features of the rows of `job.table`, then those of `training_part` in its order.

    The latter are of augmented views where the networks saw such, so that replicas differ; at most
    DISTINCT_VIEWS of an image, since those are made of every image.
    """
    part = training_part(job)
    numbers = part.views(np.arange(len(part.rows)), np.zeros(len(part.rows), np.int64))
    numbers = np.where(numbers > 0, 1 + (numbers - 1) % DISTINCT_VIEWS, 0)
    training = job.table.iloc[part.rows]
    training = training.assign(view=np.where(numbers > 0, numbers, training["view"]))
    table = pd.concat([job.table, training], ignore_index=True)
    views = replace(job.views, count=max(job.views.count, int(table["view"].max()) + 1))
    identity = {
        "networks": [n.model_dump() for n in job.plan.networks],
        "zscore": job.plan.features.zscore,
        "weights": checkpoints.digest(network.state_dict()),
    }
    return feature_samples(
        table, job.files, views, network, job.starts[0].input, identity, job.device, job.spread
    )


def fit_classical(
    job: Experiment, samples: FeatureSamples, widths: Sequence[int]
) -> tuple[Pipeline, list[str]]:
    """The classical model on the training part's features, and what to say about it.

    Rows of one patient, picture or image never stand on two sides of its inner splits.
    """
    part, settings, seed = training_part(job), job.plan.classical, job.plan.seed
    groups = job.groups[part.rows].tolist()
    images = job.table["image"].iloc[part.rows].tolist()
    splits = classical.splits_within(part.labels, groups, settings, seed, images)
    features = samples.features[len(job.table) :]
    rows = len(features)
    if settings.classifier == "stacking" and rows >= ecoc.ONEDAL_ROWS and not ecoc.by_onedal(rows):
        remark(
            f"Support vector machines of {rows:,} rows take libsvm hours; "
            "after pip install 'leukoscope[fast]' it is minutes."
        )
    stage = classical.fit(features, part.labels, splits, widths, settings, seed)
    return stage, classical.caveats(splits, settings, rows, job.classes)


def said(learned: Learned, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """(n, classes) logits and (n, d) features of rows."""
    if learned.stage is None:
        assert learned.samples is not None
        return outputs(learned.classifiers[0], learned.samples, rows)
    assert isinstance(learned.samples, FeatureSamples)
    features = np.asarray(learned.samples.features[rows])
    probs = classical.probabilities(learned.stage, features)
    logits = np.log(np.clip(probs, classical.FLOOR, None))
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(features)


def after_each_phase(job: Experiment, learned: Learned, run: Path) -> dict[str, Tensor]:
    """Logits of the scored rows after each phase, of recipes with several.

    They are looked at, never chosen by. Leaves the network as it was.
    """
    if learned.stage is not None or len(job.plan.training.stretches) == 1:
        return {}
    classifier = learned.classifiers[0]
    kept = classifier if job.plan.training.backbone_learns else classifier.head
    found = {}
    for number in range(1, len(job.plan.training.stretches) + 1):
        checkpoints.best(run / "checkpoints", number, kept)
        found[str(number)] = said(learned, job.scored(job.role))[0]
    return found


def _join_histories(networks: Sequence[Network], folders: Sequence[Path], run: Path) -> None:
    names = [n.backbone for n in networks]
    if len(set(names)) < len(names):  # the same one, at several layers
        names = [f"{n.backbone} {n.layer}" for n in networks]
    frames = [
        pd.read_csv(folder / "history.csv").assign(network=name)
        for name, folder in zip(names, folders, strict=True)
    ]
    joined = pd.concat(frames, ignore_index=True)
    write_text(run / "history.csv", joined.to_csv(index=False, lineterminator="\n"))
