"""Training a whole network on a GPU: ours, timm's loader, and tensors that never leave the GPU."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import alternate, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leukoscope.compat import import_timm
from leukoscope.files import sha256_of
from leukoscope.models.classifier import build
from leukoscope.models.weights import resolve as resolve_weights
from leukoscope.train.loop import batch, precision
from leukoscope.train.samples import pixel_samples
from leukoscope.train.views import ImageFile, ViewSettings

AUGMENTATION = [
    {"operation": "horizontal_flip"},
    {"operation": "random_resized_crop"},
    {"operation": "colour_jitter"},
]


def gpu_table(folder: Path) -> str:
    """The table; without a GPU a line that says so."""
    if not torch.cuda.is_available():
        return "SKIPPED: no GPU here, so training on one was not measured."
    return measure(folder, "cuda", "convnext_base", size=224, batch_size=64, steps=20)


def measure(
    folder: Path, device: str, backbone: str, *, size: int, batch_size: int, steps: int
) -> str:
    """Images a second of one network's training step fed in three ways, five rounds in turn."""
    network = build(backbone, [], 8, resolve_weights("none", backbone), seed=0)
    network = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    resident = torch.rand(batch_size, 3, size, size, device=device)
    resident = resident.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch_size, device=device) % 8

    def run(batches: Iterable[Tensor]) -> float:
        taken = iter(batches)
        next(taken)  # what starts the loader is nobody's rate
        _wait(device)
        began = time.perf_counter()
        for images in taken:
            _step(network, optimizer, images, labels, device)
        _wait(device)
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory() as cache:
        os.environ["LEUKOSCOPE_CACHE"] = cache
        own = _ours(folder, device, size, batch_size)
        seconds = alternate(
            {
                "resident random tensors": lambda: run([resident] * (steps + 1)),
                "ours": lambda: run(own(steps + 1)),
                "timm's loader": lambda: run(_timm(folder, device, size, batch_size, steps + 1)),
            }
        )
    of = f"{backbone}, {size} px, batches of {batch_size}, {device}"
    return f"{of}\n\n{table(seconds, against='resident random tensors', items=steps * batch_size)}"


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    device: str,
) -> None:
    with precision(wanted=True, device=device):
        loss = cross_entropy(network(images).float(), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _ours(folder: Path, device: str, size: int, batch_size: int):  # type: ignore[no-untyped-def]
    paths = sorted(path for path in folder.rglob("*.jpg"))
    files = {str(path): ImageFile(path, sha256_of(path)) for path in paths}
    views = ViewSettings([{"step": "resize", "size": size}], AUGMENTATION, 1, 0)
    listed = pd.DataFrame({"image": list(files), "view": 0})
    form = resolve_weights("none", "cnn").input
    samples = pixel_samples(listed, files, views, form, device)

    def batches(steps: int) -> Iterator[Tensor]:
        chosen = (batch(len(paths), batch_size, step, 0) for step in range(steps))
        return samples.batches((rows, np.asarray(1 + passes)) for rows, passes in chosen)

    return batches


def _timm(folder: Path, device: str, size: int, batch_size: int, steps: int) -> Iterator[Tensor]:
    """What timm's train.py is fed with: its own loader, workers on all cores."""
    import_timm()
    from timm.data import ImageDataset, create_loader

    loader = create_loader(
        ImageDataset(str(folder)), (3, size, size), batch_size, is_training=True, color_jitter=0.2,
        num_workers=os.cpu_count(), use_prefetcher=device != "cpu", device=torch.device(device),
    )  # fmt: skip
    done = 0
    while done < steps:
        for images, _ in loader:
            if done == steps:
                return
            done += 1
            yield images.contiguous(memory_format=torch.channels_last)
