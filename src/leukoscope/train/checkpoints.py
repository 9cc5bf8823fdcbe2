"""Checkpoints: one safetensors file an epoch, whole or absent, verified when read.

Random numbers are functions of (seed, step), so weights, optimizer and history are all the state
there is; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from leukoscope.errors import InputError
from leukoscope.files import atomic
from leukoscope.progress import remark

KEPT = 2  # the newest, and the one before it should the newest be damaged


@dataclass
class Progress:
    """How far training has come. Epochs and steps count on through the phases; `first` and
    `first_step` are where the present phase began, the best epoch is the phase's; `averaged` epochs
    are in the average."""

    settings: str = ""
    phase: int = 0
    epoch: int = 0
    first: int = 1
    step: int = 0
    first_step: int = 0
    averaged: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def phase_epoch(self) -> int:
        """Epochs done of the present phase, counted by validations."""
        return self.epoch - self.first + 1

    @property
    def waited(self) -> int:
        """Epochs since the best one of this phase; 0 before its first."""
        return self.epoch - self.best_epoch if self.best_epoch >= self.first else 0

    def begin(self, phase: int) -> None:
        """Enter a phase; what was best before no longer counts."""
        self.phase, self.first, self.first_step = phase, self.epoch + 1, self.step
        self.best_epoch, self.best_loss = self.epoch, float("inf")

    def record(self, row: dict[str, Any], steps: int) -> None:
        """Note an epoch of so many steps: a row of history.csv with its validation loss."""
        self.history.append(row)
        self.epoch += 1
        self.step += steps
        first = self.best_epoch < self.first or not math.isfinite(self.best_loss)
        if first or row["validation_loss"] < self.best_loss:
            self.best_epoch, self.best_loss = self.epoch, row["validation_loss"]


def save(
    path: Path,
    module: nn.Module,
    state: Progress,
    optimizer: torch.optim.Optimizer | None = None,
    average: AveragedModel | None = None,
    *,
    twice: bool = False,
) -> None:
    """Write weights and progress, and what else goes on from here, as one file, atomically.

    `twice`: first a copy beside it, for what no earlier epoch stands in for.
    """
    tensors = {f"model.{key}": value for key, value in module.state_dict().items()}
    if optimizer is not None:
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in values.items()}
    if average is not None:
        tensors |= {f"average.{key}": value for key, value in average.state_dict().items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    progress = json.dumps(asdict(state))
    data = serialise(tensors, {"progress": progress, "digest": digest(tensors, progress)})
    for each in (_copy_of(path), path) if twice else (path,):
        with atomic(each) as temporary:
            # Its own save_file reports a full disk as an error without a number.
            temporary.write_bytes(data)


def load(path: Path, module: nn.Module) -> Progress:
    """Restore the module from one file; InputError where it is damaged."""
    try:
        tensors, state = _read(path)
        module.load_state_dict(_below(tensors, "model."))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        why = str(problem).splitlines()[-1].strip()
        raise InputError(
            f"Checkpoint {path.name} is damaged: {why[:200]}",
            fix=f"Delete the .safetensors in {path.parent}: --resume then trains it anew.",
        ) from None
    return state


def restore(path: Path, optimizer: torch.optim.Optimizer, average: AveragedModel | None) -> None:
    """Give optimizer and average the state that a checkpoint holds; it was verified by `load`."""
    tensors, _ = _read(path)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in _below(tensors, "optimizer.").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    if average is not None:
        average.load_state_dict(_below(tensors, "average."))


def _read(path: Path) -> tuple[dict[str, Tensor], Progress]:
    data = path.read_bytes()  # its own reader takes no path that isn't UTF-8
    tensors = deserialise(data)
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if metadata.get("digest") != digest(tensors, metadata["progress"]):
        raise ValueError("its digest doesn't match")
    return tensors, Progress(**json.loads(metadata["progress"]))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def epoch_file(folder: Path, epoch: int) -> Path:
    """The checkpoint after an epoch."""
    return folder / f"epoch-{epoch:08d}.safetensors"


def phase_file(folder: Path, phase: int) -> Path:
    """The best epoch of a phase; saved twice."""
    return folder / f"phase-{phase}.safetensors"


def _copy_of(path: Path) -> Path:
    return path.with_name(f"copy-of-{path.name}")


def newest(folder: Path, module: nn.Module) -> Progress | None:
    """Restore from the newest whole checkpoint, saying which damaged ones were passed over."""
    paths = sorted(folder.glob("epoch-*.safetensors"), reverse=True)
    for place, path in enumerate(paths, start=1):
        try:
            return load(path, module)
        except InputError as problem:
            left = "going on from the one before" if place < len(paths) else "training begins anew"
            remark(f"{problem.message}; {left}.")
    return None


def best(folder: Path, phase: int, module: nn.Module) -> None:
    """Restore the best epoch of a phase; a damaged file is replaced by its copy, which is said."""
    path = phase_file(folder, phase)
    try:
        load(path, module)
    except InputError as problem:
        load(_copy_of(path), module)
        remark(f"{problem.message}; going on from its copy.")
        share(_copy_of(path), path)


def prune(folder: Path) -> None:
    """Delete all but the newest checkpoints."""
    for path in sorted(folder.glob("epoch-*.safetensors"))[:-KEPT]:
        path.unlink(missing_ok=True)


def clear(run: Path) -> None:
    """Delete what only an unfinished run needs (`model/` holds the rest): gigabytes, of a large
    network."""
    for folder in (run / "checkpoints", *run.glob("networks/*/checkpoints")):
        for path in folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)
    for fold in (run / "checkpoints").glob("fold-*"):
        shutil.rmtree(fold, ignore_errors=True)


def share(source: Path, target: Path) -> None:
    """Give a file a second name, or a copy where the file system can't; `target` is whole or
    absent. Neither name is ever written in place."""
    with atomic(target) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of names, types, shapes and values, in the names' order, and of a text."""
    found = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        values = tensors[key].detach().cpu().contiguous()
        found.update(f"{key} {values.dtype} {list(values.shape)} ".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
