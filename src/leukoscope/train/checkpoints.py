"""Checkpoints: one safetensors file an epoch, whole or absent, verified when read.

Random numbers are functions of (seed, step), so weights, optimizer and history are all the state
there is; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor, nn

from leukoscope.errors import InputError
from leukoscope.files import atomic

KEPT = 2  # the newest, and the one before it should the newest be damaged


@dataclass
class Progress:
    """How far training has come."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: str = ""


def save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: Progress) -> None:
    """Write weights, optimizer state and progress as one file, atomically."""
    tensors = {f"model.{key}": value for key, value in module.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(v) for key, v in values.items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    metadata = {"progress": json.dumps(asdict(state)), "digest": _digest(tensors)}
    with atomic(path) as temporary:
        # Its own save_file reports a full disk as an error without a number.
        temporary.write_bytes(serialise(tensors, metadata))


def load(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None) -> Progress:
    """Restore module and optimizer from one file; InputError where it is damaged."""
    try:
        data = path.read_bytes()  # its own reader takes no path that isn't UTF-8
        tensors = deserialise(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if metadata.get("digest") != _digest(tensors):
            raise InputError(f"Checkpoint {path.name} is damaged: its digest doesn't match")
        state = Progress(**json.loads(metadata["progress"]))
        prefix = "model."
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        why = str(problem).splitlines()[-1].strip()
        raise InputError(
            f"Checkpoint {path.name} can't be read: {why[:200]}", fix="Train the run again."
        ) from None
    if optimizer is not None:
        _load_optimizer(optimizer, tensors)
    return state


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def newest(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress | None, list[str]]:
    """Restore from the newest whole checkpoint; also sentences about damaged ones passed over."""
    remarks: list[str] = []
    for path in sorted(folder.glob("epoch-*.safetensors"), reverse=True):
        try:
            return load(path, module, optimizer), remarks
        except InputError as problem:
            remarks.append(f"{problem.message}; going on from the one before.")
    return None, remarks


def prune(folder: Path) -> None:
    """Delete all but the newest checkpoints."""
    for path in sorted(folder.glob("epoch-*.safetensors"))[:-KEPT]:
        path.unlink(missing_ok=True)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
