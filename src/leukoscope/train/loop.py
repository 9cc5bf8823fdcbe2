"""The training loop: epochs of steps, validation, early stopping, best checkpoint."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leukoscope.errors import InputError
from leukoscope.files import output_folder, write_text
from leukoscope.models.classifier import Classifier, seeded
from leukoscope.progress import track
from leukoscope.train import checkpoints
from leukoscope.train.checkpoints import Progress
from leukoscope.train.samples import Samples

EVALUATION_BATCH = 256
_SHUFFLE, _STEP = 1, 2  # names by which one seed fans out


@dataclass(frozen=True)
class Settings:
    """Optimisation as a recipe states it; learning rate per step, losses in nats."""

    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    batch_size: int
    epochs: int
    steps_per_epoch: int
    patience: int
    mixed_precision: bool
    seed: int


@dataclass(frozen=True)
class Part:
    """The rows of one role, with a label each."""

    rows: np.ndarray
    labels: np.ndarray


def fit(
    classifier: Classifier,
    trained: nn.Module,
    samples: Samples,
    training: Part,
    validation: Part,
    settings: Settings,
    folder: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
) -> Progress:
    """Train `trained` (the head, or the whole classifier) and leave it as its best epoch was.

    `folder` gets `history.csv` and `checkpoints/`. The same seed gives the same weights, resumed
    or not. Raises InputError where `resume` finds a run of other settings.
    """
    kept = output_folder(folder / "checkpoints")
    classifier.to(device)
    optimizer = torch.optim.Adam(
        trained.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
    )
    state = _start(kept, trained, optimizer, settings, resume)
    for epoch in range(state.epoch + 1, settings.epochs + 1):
        if epoch - state.best_epoch > settings.patience and state.best_epoch:
            break
        began = time.perf_counter()
        row = _epoch(classifier, trained, samples, training, optimizer, settings, epoch, device)
        row |= _validate(classifier, samples, validation)
        state.history.append(
            {"phase": 1, "epoch": epoch, **row, "learning_rate": settings.learning_rate,
             "seconds": round(time.perf_counter() - began, 3)}
        )  # fmt: skip
        state.epoch = epoch
        if row["validation_loss"] < state.best_loss:
            state.best_loss, state.best_epoch = row["validation_loss"], epoch
            checkpoints.save(kept / "best.safetensors", trained, optimizer, state)
        checkpoints.save(kept / f"epoch-{epoch:04d}.safetensors", trained, optimizer, state)
        checkpoints.prune(kept)
        write_history(folder / "history.csv", state.history)
    checkpoints.load(kept / "best.safetensors", trained, None)
    return state


def _start(
    kept: Path,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    resume: bool,
) -> Progress:
    if resume:
        state, remarks = checkpoints.newest(kept, trained, optimizer)
        for remark in remarks:
            print_remark(remark)
        if state is not None:
            if state.settings != repr(settings):
                raise InputError(
                    f"The run in {kept.parent} was started with other settings",
                    fix="Resume with the same ones, or start a new run with another -o.",
                    field="resume",
                )
            return state
    for old in kept.glob("*.safetensors"):
        old.unlink()
    return Progress(settings=repr(settings))


def print_remark(remark: str) -> None:
    """Say something that isn't an error, on stderr."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(remark, highlight=False, markup=False)


def _epoch(
    classifier: Classifier,
    trained: nn.Module,
    samples: Samples,
    part: Part,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    epoch: int,
    device: str,
) -> dict[str, float]:
    steps = settings.steps_per_epoch or -(-len(part.rows) // settings.batch_size)
    classifier.eval()  # a frozen backbone keeps its statistics; only what trains is in train mode
    trained.train()
    loss_sum, correct, seen = 0.0, 0, 0
    first = (epoch - 1) * steps
    for step in track(range(first, first + steps), f"Epoch {epoch}/{settings.epochs}"):
        chosen = batch(len(part.rows), settings.batch_size, step, settings.seed)
        labels = torch.from_numpy(part.labels[chosen]).to(device)
        inputs = samples.inputs(part.rows[chosen]).to(device)
        with seeded(settings.seed, _STEP, step), precision(settings.mixed_precision, device):
            logits = samples.logits(classifier, inputs)
            loss = cross_entropy(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += float(loss.detach()) * len(chosen)
        correct += int((logits.detach().argmax(1) == labels).sum())
        seen += len(chosen)
    if not np.isfinite(loss_sum):
        raise InputError(
            f"The training loss is no longer a number in epoch {epoch}",
            fix="Lower training.learning_rate.",
            field="training.learning_rate",
        )
    return {"train_loss": loss_sum / seen, "train_accuracy": correct / seen}


def precision(wanted: bool, device: str) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision in bfloat16 on a GPU; a CPU gains nothing at these sizes (measured)."""
    if wanted and device != "cpu":
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def batch(n: int, size: int, step: int, seed: int) -> np.ndarray:
    """Which of n rows step `step` takes: shuffled passes one after the other, cut into batches.

    A batch may end one pass and begin the next, so none is ever short and none a singleton.
    """
    places = np.arange(step * size, (step + 1) * size)
    passes, within = np.divmod(places, n)
    return np.array([_order(n, int(p), seed)[w] for p, w in zip(passes, within, strict=True)])


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


def _validate(classifier: Classifier, samples: Samples, part: Part) -> dict[str, float]:
    logits, _ = outputs(classifier, samples, part.rows)
    labels = torch.from_numpy(part.labels)
    return {
        "validation_loss": float(cross_entropy(logits, labels)),
        "validation_accuracy": float((logits.argmax(1) == labels).float().mean()),
    }


def write_history(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """history.csv: one line an epoch; losses in nats, accuracies in [0, 1], seconds."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
