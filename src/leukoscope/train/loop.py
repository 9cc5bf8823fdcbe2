"""The training loop: phases of epochs of steps, validation, early stopping, best checkpoint."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel, update_bn

from leukoscope.errors import InputError
from leukoscope.files import output_folder, write_text
from leukoscope.models.classifier import Classifier, seeded
from leukoscope.models.layers import layer_parameters, stage_parameters
from leukoscope.progress import track
from leukoscope.train import checkpoints, ranks
from leukoscope.train.checkpoints import Progress
from leukoscope.train.objective import classification_loss, mixing, mixup, soft_labels
from leukoscope.train.samples import FeatureSamples, PixelSamples, Samples
from leukoscope.train.schedule import learning_rates
from leukoscope.train.settings import Averaging, Phase, Training

EVALUATION_BATCH = 64
_SHUFFLE, _STEP, _MIXUP, _REFRESH = 1, 2, 4, 5  # names by which one seed fans out


@dataclass(frozen=True)
class Part:
    """The rows of one role, (n,), with a label each.

    `copies` (n,) numbers replicas of a row, 0 for the original. `fresh`: which of them are seen as
    a new augmented view at every pass: `none`, the `copies`, or `all`.
    """

    rows: np.ndarray
    labels: np.ndarray
    copies: np.ndarray | None = None
    fresh: str = "none"

    def views(self, chosen: np.ndarray, passes: np.ndarray) -> np.ndarray:
        """The view number of each chosen entry in its pass, 0 for the row as it stands."""
        copies = np.zeros(len(chosen), np.int64) if self.copies is None else self.copies[chosen]
        if self.fresh == "none":
            return np.zeros_like(copies)
        several = 1 if self.copies is None else int(self.copies.max()) + 1
        numbers = 1 + passes * several + copies
        return numbers if self.fresh == "all" else np.where(copies > 0, numbers, 0)


@dataclass(frozen=True)
class Job:
    """What stays the same over a training run."""

    classifier: Classifier
    name: str
    samples: Samples
    training: Part
    validation: Part
    settings: Training
    seed: int
    device: str
    class_weights: Tensor | None

    @property
    def kept(self) -> nn.Module:
        """What training can change, and checkpoints hold."""
        return self.classifier if self.settings.backbone_learns else self.classifier.head


def fit(
    classifier: Classifier,
    name: str,
    samples: Samples,
    training: Part,
    validation: Part,
    settings: Training,
    folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    resume: bool = False,
    class_weights: np.ndarray | None = None,
) -> Progress:
    """Train the classifier on the backbone `name`, and leave it as its best epoch was.

    With averaging it is left as the average of the collected epochs, its normalisation statistics
    refreshed; early stopping waits until as many are collected as the rates take to settle.
    `folder` gets `history.csv` and `checkpoints/`; `phase-N.safetensors` there is the network after
    phase N. class_weights: (classes,) or None. The same seed gives the same weights, resumed or
    not. Processes that torchrun started train together (train.ranks); the first one writes.
    Raises InputError where `resume` finds a run of other settings, or the loss is no longer a
    number.
    """
    kept = output_folder(folder / "checkpoints")
    # Convolutions are computed by channels last, on a CPU and on a GPU's tensor cores alike.
    classifier.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = None if class_weights is None else torch.from_numpy(class_weights).to(device)
    job = Job(classifier, name, samples, training, validation, settings, seed, device, weights)
    fresh = state = Progress(settings=f"{settings!r} seed {seed}")
    with ranks.together():
        if settings.batch_size < ranks.world():
            raise InputError(
                f"A batch of {settings.batch_size} images can't be shared by {ranks.world()} "
                "processes",
                fix="Start fewer, or raise training.batch_size.",
                field="training.batch_size",
            )
        if resume and ranks.first():
            state = _found(kept, job, fresh)
    if epoch := ranks.same(state.epoch):
        path = checkpoints.epoch_file(kept, epoch)
        ranks.fetch(path)
        state = state if ranks.first() else checkpoints.load(path, job.kept)
    elif not resume:
        for old in kept.glob("*.safetensors"):
            old.unlink()
    with _threads(1 if isinstance(samples, FeatureSamples) else torch.get_num_threads()):
        for number, phase in enumerate(settings.stretches, start=1):
            if number >= state.phase:
                _phase(job, number, phase, state, folder)
    return state


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """torch's threads within the block; a head's step is so small that sharing it out between
    cores takes several times as long as computing it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _found(kept: Path, job: Job, fresh: Progress) -> Progress:
    """How far the run in `kept` had come, its weights loaded; `fresh` where there is none."""
    state = checkpoints.newest(kept, job.kept)
    if state is None:
        return fresh
    if state.settings != fresh.settings:
        raise InputError(
            f"The run in {kept.parent} was started with other settings",
            fix="Resume with the same ones, or start a new run with another -o.",
            field="resume",
        )
    # A kill may have fallen between the last checkpoint and its line.
    write_history(kept.parent / "history.csv", state.history)
    return state


def _phase(job: Job, number: int, phase: Phase, state: Progress, folder: Path) -> None:
    """One phase from where `state` is; the classifier ends as the phase's best epoch was."""
    kept = folder / "checkpoints"
    if number > state.phase:
        state.begin(number)
    # The phase's best epoch so far; of its own name, or a run cut short between two phases would
    # end the first with the second's.
    ended = checkpoints.phase_file(kept, number)
    optimizer = _optimizer(job)
    last = number == len(job.settings.stretches)
    average = AveragedModel(job.kept) if last and job.settings.averaging.start else None
    if state.phase_epoch:
        checkpoints.restore(checkpoints.epoch_file(kept, state.epoch), optimizer, average)
    rates = _rates(job.settings, phase, averaged=average is not None)
    rounds = _rounds(job, phase)
    for round_ in rounds[state.phase_epoch :]:
        enough = average is None or state.averaged >= job.settings.averaging.anneal_epochs
        if state.waited >= job.settings.patience and enough:
            break
        began = time.perf_counter()
        thaw(job.classifier, job.name, phase, round_.epoch)
        for group, series in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = series[round_.epoch - 1]
        row = ranks.same(_epoch(job, optimizer, round_, state) | _validate(job))
        state.record(
            {"phase": number, "epoch": state.epoch + 1, **row,
             "learning_rate": optimizer.param_groups[0]["lr"],
             "seconds": round(time.perf_counter() - began, 3)},
            len(round_.steps),
        )  # fmt: skip
        if average is not None and round_.epoch >= job.settings.averaging.start:
            average.update_parameters(job.kept)
            state.averaged += 1
        if ranks.first():
            _keep(job, state, optimizer, average, ended)
            write_history(folder / "history.csv", state.history)
    if state.averaged and average is not None:
        # A resumed run may have no epoch left, and which layers are frozen decides below.
        thaw(job.classifier, job.name, phase, rounds[state.phase_epoch - 1].epoch)
        _use_average(job, average)
        if ranks.first():
            checkpoints.save(ended, job.kept, state, twice=True)
    else:
        _take_best(job, kept, number)


def _take_best(job: Job, kept: Path, number: int) -> None:
    """The classifier as the phase's best epoch was, in every process."""
    if ranks.first():
        checkpoints.best(kept, number, job.kept)
    path = checkpoints.phase_file(kept, number)
    ranks.fetch(path)
    if not ranks.first():
        checkpoints.load(path, job.kept)


def _keep(
    job: Job,
    state: Progress,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    ended: Path,
) -> None:
    """Checkpoint of an epoch; `ended` is that of the phase's best."""
    if state.best_epoch == state.epoch:
        checkpoints.save(ended, job.kept, state, twice=True)
    path = checkpoints.epoch_file(ended.parent, state.epoch)
    checkpoints.save(path, job.kept, state, optimizer, average)
    checkpoints.prune(ended.parent)


def _optimizer(job: Job) -> torch.optim.Optimizer:
    """Adam or AdamW with a group for the head and one for the backbone."""
    settings = job.settings
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    groups: list[dict[str, Any]] = [{"params": list(job.classifier.head.parameters())}]
    if settings.backbone_learns:
        groups.append({"params": list(job.classifier.backbone.parameters())})
    return kind(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        # One kernel a step. It takes weights and moments to lie alike in memory, which those of
        # convolutions, kept by channels, don't when a run goes on.
        fused=not settings.backbone_learns,
    )


def _rates(settings: Training, phase: Phase, *, averaged: bool) -> list[list[float]]:
    """Learning rates by epoch of the head, and of the backbone where it learns."""
    averaging = settings.averaging if averaged else Averaging()
    initial = [settings.learning_rate]
    if settings.backbone_learns:
        initial.append(settings.backbone_learning_rate or settings.learning_rate)
    return [learning_rates(r, phase.epochs, settings.schedule, averaging) for r in initial]


@dataclass(frozen=True)
class Round:
    """Steps of a phase between two validations, in its epoch `epoch` (from 1)."""

    steps: range
    epoch: int


def _rounds(job: Job, phase: Phase) -> list[Round]:
    settings = job.settings
    steps = settings.steps_per_epoch or -(-len(job.training.rows) // settings.batch_size)
    total = steps * phase.epochs
    ends = [*range(0, total, settings.validate_every or steps), total]
    return [Round(range(start, end), 1 + (end - 1) // steps)
            for start, end in itertools.pairwise(ends)]  # fmt: skip


def thaw(classifier: Classifier, name: str, phase: Phase, epoch: int) -> None:
    """Let those parameters learn that the phase trains in its epoch `epoch`, and no others.

    Frozen layers keep their normalisation statistics; dropout and stochastic depth act where
    anything near them learns.
    """
    backbone = classifier.backbone
    names: set[str] = set()
    if phase.trained == "last":
        names = set(layer_parameters(name, backbone, last=phase.layers))
    elif phase.trained == "all":
        stages = stage_parameters(name, backbone)
        open_ = 1 + (epoch - 1) // phase.unfreeze_every if phase.unfreeze_every else len(stages)
        names = {p for stage in stages[-open_:] for p in stage}
    for key, parameter in backbone.named_parameters():
        parameter.requires_grad_(key in names)
    classifier.eval()
    classifier.head.train()
    backbone.train(bool(names))
    for module in backbone.modules():
        if isinstance(module, _NormBase):
            module.train(any(p.requires_grad for p in module.parameters()))


def _epoch(
    job: Job, optimizer: torch.optim.Optimizer, round_: Round, state: Progress
) -> dict[str, float]:
    settings, size = job.settings, job.settings.batch_size
    own = len(ranks.share(size))
    loss_sum, correct = 0.0, 0
    steps = [state.first_step + place for place in round_.steps]
    made = _batches(job, steps, lambda step: _mixture(job, step)[0])
    said = f"Epoch {state.epoch + 1}, phase {state.phase}"
    network = ranks.parallel(_Step(job))
    for step, (rows, labels, views, inputs) in track(
        zip(steps, made, strict=True), said, len(steps)
    ):
        targets = soft_labels(labels, job.classifier.classes)
        if settings.mixup:
            inputs, targets = mixup(inputs, targets, *_mixture(job, step)[1:])
        with (
            seeded(job.seed, _STEP, step),
            precision(settings.mixed_precision, job.device),
            ranks.whole_batch(size),
        ):
            loss, logits = network(inputs, targets, rows[:own], views[:own])
        optimizer.zero_grad(set_to_none=True)
        (loss * ranks.world()).backward()  # gradients are averaged over the processes
        optimizer.step()
        loss_sum += float(loss.detach()) * size
        correct += int((logits.detach().argmax(1) == labels[:own]).sum())
    loss_sum, correct = ranks.total(torch.tensor([loss_sum, correct], dtype=torch.float64)).tolist()
    seen = len(steps) * size
    with ranks.together():
        if not np.isfinite(loss_sum):
            raise InputError(
                f"The training loss is no longer a number in epoch {state.epoch + 1}",
                fix="Lower training.learning_rate.",
                field="training.learning_rate",
            )
    return {"train_loss": loss_sum / seen, "train_accuracy": correct / seen}


class _Step(nn.Module):
    """This process's part of the loss of one batch, a scalar, with its (n, classes) logits; the
    parts of all processes add up to the batch's loss."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.kept, self.job = job.kept, job  # the parameters that may learn

    def forward(
        self, inputs: Tensor, targets: Tensor, rows: np.ndarray, views: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        job, settings = self.job, self.job.settings
        logits, box_loss = _forward(job, inputs, rows, views)
        loss = classification_loss(
            logits.float(), targets, gamma=settings.focal_gamma, class_weights=job.class_weights
        )
        part = len(rows) / settings.batch_size
        return loss * part + settings.box_weight * box_loss, logits


def _mixture(job: Job, step: int) -> tuple[np.ndarray, float, np.ndarray, int]:
    """Which places of its batch this process reads: its own, and with mixup their partners; then
    what `mixup` takes: the weight, the partners' places among these, and how many are its own."""
    size, alpha = job.settings.batch_size, job.settings.mixup
    own = ranks.share(size)
    if not alpha:
        return own, 1.0, own, len(own)
    weight, partner = mixing(size, alpha, np.random.default_rng([job.seed, _MIXUP, step]))
    places = np.concatenate([own, np.setdiff1d(partner[own], own)])
    found = np.empty(size, np.int64)
    found[places] = np.arange(len(places))
    return places, weight, found[partner[own]], len(own)


def _batch(job: Job, step: int) -> tuple[np.ndarray, Tensor, np.ndarray]:
    """Rows, labels and view numbers of one step."""
    part = job.training
    chosen, passes = batch(len(part.rows), job.settings.batch_size, step, job.seed)
    labels = torch.from_numpy(part.labels[chosen]).to(job.device)
    return part.rows[chosen], labels, part.views(chosen, passes)


def _batches(
    job: Job, steps: Sequence[int], places: Callable[[int], Any] = lambda _: slice(None)
) -> Iterator[tuple[np.ndarray, Tensor, np.ndarray, Tensor]]:
    """Rows, labels, view numbers and inputs of these steps, or of `places` in each."""

    def cut(step: int) -> tuple[np.ndarray, Tensor, np.ndarray]:
        (rows, labels, views), own = _batch(job, step), places(step)
        return rows[own], labels[own], views[own]

    chosen, again = itertools.tee(map(cut, steps))
    inputs = job.samples.batches((rows, views) for rows, _, views in again)
    for (rows, labels, views), made in zip(chosen, inputs, strict=True):
        yield rows, labels, views, made.to(job.device)


def _forward(
    job: Job, inputs: Tensor, rows: np.ndarray, views: np.ndarray
) -> tuple[Tensor, Tensor | float]:
    """Logits, and the box loss of a detector (0 for other networks)."""
    with_boxes = getattr(job.classifier.backbone, "with_boxes", None)
    if with_boxes is None:
        return job.samples.logits(job.classifier, inputs), 0.0
    feature_map, branches = with_boxes(inputs)
    assert isinstance(job.samples, PixelSamples), "detectors train on pixels"
    boxes = job.samples.boxes(rows, views).to(job.device)
    logits = job.classifier.head(feature_map.mean(dim=(2, 3)))
    loss = job.classifier.backbone.box_loss(branches, boxes, ranks.total)  # type: ignore[operator]
    return logits, loss


def precision(wanted: bool, device: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision in bfloat16 on a GPU; a CPU gains nothing at these sizes (measured)."""
    if wanted and device != "cpu":
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def batch(n: int, size: int, step: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of n rows step `step` takes, and in which pass: shuffled passes one after the other,
    cut into batches.

    A batch may end one pass and begin the next, so none is ever short and none a singleton.
    """
    places = np.arange(step * size, (step + 1) * size)
    passes, within = np.divmod(places, n)
    rows = [_order(n, int(p), seed)[w] for p, w in zip(passes, within, strict=True)]
    return np.array(rows), passes


@lru_cache(maxsize=4)
def _order(n: int, number: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, _SHUFFLE, number]).permutation(n)


def outputs(classifier: Classifier, samples: Samples, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """(n, classes) logits and (n, d) pooled features of rows, in inference mode, on the CPU."""
    classifier.eval()
    logits, features = [], []
    with torch.inference_mode():
        for start in range(0, len(rows), EVALUATION_BATCH):
            pooled = samples.pooled(classifier, rows[start : start + EVALUATION_BATCH])
            pooled = pooled.to(next(classifier.head.parameters()).device)
            logits.append(classifier.head(pooled).float().cpu())
            features.append(pooled.float().cpu())
    return torch.cat(logits), torch.cat(features)


def _validate(job: Job) -> dict[str, float]:
    """Unweighted classification loss, so that runs of differing balance compare."""
    rows = job.validation.rows
    own = ranks.share(len(rows), EVALUATION_BATCH)  # the same batches, whoever runs them
    logits = torch.zeros(len(rows), job.classifier.classes)
    if len(own):
        logits[own] = outputs(job.classifier, job.samples, rows[own])[0]
    logits = ranks.total(logits)
    labels = torch.from_numpy(job.validation.labels)
    targets = soft_labels(labels, job.classifier.classes)
    loss = classification_loss(logits, targets, gamma=job.settings.focal_gamma)
    return {
        "validation_loss": float(loss),
        "validation_accuracy": float((logits.argmax(1) == labels).float().mean()),
    }


def _use_average(job: Job, average: AveragedModel) -> None:
    """Give the classifier the averaged weights, with normalisation statistics of its own; those of
    frozen layers stay."""
    job.kept.load_state_dict(average.module.state_dict())
    size = job.settings.batch_size
    steps = max(1, len(job.training.rows) // size)

    if job.settings.backbone_learns:
        frozen = {
            name: (norm, {key: value.clone() for key, value in norm.named_buffers()})
            for name, norm in job.classifier.backbone.named_modules()
            if isinstance(norm, _NormBase) and not any(p.requires_grad for p in norm.parameters())
        }
        with seeded(job.seed, _REFRESH):
            update_bn((made for *_, made in _batches(job, range(steps))), job.classifier)
        for norm, kept in frozen.values():
            norm.load_state_dict(kept, strict=False)
    job.classifier.eval()


def write_history(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """history.csv: one line an epoch; losses in nats, accuracies in [0, 1], seconds."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
