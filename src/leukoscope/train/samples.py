"""What a network trains on: pooled features of a frozen backbone, or the pixels themselves.

Both give the same two things, so the loop and everything after it know one kind of sample: the
pooled features of some rows, and a module from those to logits.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from leukoscope.compat import import_timm
from leukoscope.files import explain_os_errors
from leukoscope.models.classifier import Classifier, Pooled
from leukoscope.models.graph import session_of, to_onnx
from leukoscope.models.weights import Weights
from leukoscope.train import cache as caches
from leukoscope.train.cache import ArrayCache
from leukoscope.train.views import ImageFile, ViewSettings, fill, get, prepare

BATCH = 32  # views through a backbone at once; measured best on two cores


class Samples(Protocol):
    """Rows of a table of (image, view), as inputs of a network."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""

    def inputs(self, rows: np.ndarray) -> Tensor:
        """What the trained part of the network takes for these rows."""

    def logits(self, classifier: Classifier, inputs: Tensor) -> Tensor:
        """The (n, classes) logits of such inputs."""

    def pooled(self, classifier: Classifier, rows: np.ndarray) -> Tensor:
        """The (n, d) pooled features of these rows."""


@dataclass(frozen=True)
class FeatureSamples:
    """Features of a frozen backbone, (n, d) on disk, one row a view; only the head runs."""

    features: np.ndarray
    input_size: tuple[int, int]

    def inputs(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.features[rows]))

    def logits(self, classifier: Classifier, inputs: Tensor) -> Tensor:
        return classifier.head(inputs)

    def pooled(self, classifier: Classifier, rows: np.ndarray) -> Tensor:  # noqa: ARG002
        return self.inputs(rows)


@dataclass(frozen=True)
class PixelSamples:
    """Normalised images; the whole network runs."""

    cache: ArrayCache
    hashes: Sequence[str]
    views: Sequence[int]
    weights: Weights
    input_size: tuple[int, int]
    device: str = "cpu"

    def inputs(self, rows: np.ndarray) -> Tensor:
        pixels = np.stack([get(self.cache, self.hashes[i], self.views[i]) for i in rows])
        return normalise(torch.from_numpy(pixels).to(self.device), self.weights)

    def logits(self, classifier: Classifier, inputs: Tensor) -> Tensor:
        return classifier(inputs)

    def pooled(self, classifier: Classifier, rows: np.ndarray) -> Tensor:
        return classifier.pooled(self.inputs(rows))


def normalise(pixels: Tensor, weights: Weights) -> Tensor:
    """uint8 RGB (n, h, w, 3) to float32 (n, 3, h, w) as the weights' contract wants it."""
    mean = torch.tensor(weights.input.mean, device=pixels.device)
    std = torch.tensor(weights.input.std, device=pixels.device)
    scaled = pixels.float().mul_(1 / (255 * std)).sub_(mean / std)
    return scaled.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def feature_samples(
    table: pd.DataFrame,
    files: dict[str, ImageFile],
    settings: ViewSettings,
    classifier: Classifier,
    weights: Weights,
    identity: dict[str, object],
    device: str,
) -> FeatureSamples:
    """Run the frozen backbone over every view of `table` (image, view) that isn't kept yet.

    `identity` names the backbone and its weights: with the settings it keys what is kept.
    """
    size = size_of(files, settings)
    identity = {**identity, "timm": import_timm().__version__, "device": device.split(":")[0]}
    cache = ArrayCache("features", {**settings.key(), "size": size, **identity})
    extract = _Extractor(classifier, weights, device)
    wanted = _blocks(table, files)
    fill(files.values(), lambda f: wanted[f.sha256], settings, size, cache, extract, "Features")
    hashes = [files[image].sha256 for image in table["image"]]
    first = get(cache, hashes[0], int(table["view"].iloc[0]))
    # Unlinked at once, so that a killed run leaves nothing behind; written, not mapped, since
    # where a disk is full writing to a mapping kills the process.
    with explain_os_errors(cache.root), tempfile.TemporaryFile(dir=cache.root) as scratch:
        for sha256, view in zip(hashes, table["view"], strict=True):
            scratch.write(np.asarray(get(cache, sha256, int(view)), np.float32).tobytes())
        scratch.flush()
        features = np.memmap(scratch, dtype=np.float32, mode="r", shape=(len(table), len(first)))
    return FeatureSamples(features, size)


def pixel_samples(
    table: pd.DataFrame,
    files: dict[str, ImageFile],
    settings: ViewSettings,
    weights: Weights,
    device: str,
) -> PixelSamples:
    """Make every view of `table` (image, view) that isn't kept yet, as uint8 pixels."""
    caches.trim()
    size = size_of(files, settings)
    cache = ArrayCache("views", {**settings.key(), "size": size})
    wanted = _blocks(table, files)
    fill(
        files.values(),
        lambda f: wanted[f.sha256],
        settings,
        size,
        cache,
        lambda views: views,
        "Views",
    )
    hashes = [files[image].sha256 for image in table["image"]]
    views = [int(view) for view in table["view"]]
    return PixelSamples(cache, hashes, views, weights, size, device)


def _blocks(table: pd.DataFrame, files: dict[str, ImageFile]) -> dict[str, list[str]]:
    wanted: dict[str, set[str]] = {}
    for image, view in zip(table["image"], table["view"], strict=True):
        name = "augmented" if view else "original"
        wanted.setdefault(files[image].sha256, set()).add(name)
    return {sha256: sorted(blocks) for sha256, blocks in wanted.items()}


def size_of(files: dict[str, ImageFile], settings: ViewSettings) -> tuple[int, int]:
    """Height and width of images after preprocessing, by the first of them."""
    height, width = prepare(next(iter(files.values())), settings).shape[:2]
    return height, width


Run = Callable[[np.ndarray], np.ndarray]


class _Extractor:
    """uint8 views (n, h, w, 3) to pooled features (n, d) float32 of a frozen backbone.

    By ONNX Runtime on a CPU, several times as fast as torch there; by torch on a GPU. Built at the
    first call, since a run whose features are all kept needs neither.
    """

    def __init__(self, classifier: Classifier, weights: Weights, device: str) -> None:
        self.classifier, self.weights, self.device = classifier, weights, device
        self.run: Run | None = None
        self.lock = threading.Lock()

    def __call__(self, views: np.ndarray) -> np.ndarray:
        with self.lock:
            if self.run is None:
                size = (views.shape[1], views.shape[2])
                self.run = self._onnx(size) if self.device == "cpu" else self._torch()
        parts = np.array_split(views, -(-len(views) // BATCH))
        return np.concatenate([self.run(part) for part in parts]).astype(np.float32)

    def _onnx(self, size: tuple[int, int]) -> Run:
        session = session_of(to_onnx(Pooled(self.classifier), size, ("features",)), threads=1)

        def run(views: np.ndarray) -> np.ndarray:
            images = normalise(torch.from_numpy(views), self.weights).contiguous().numpy()
            return session.run(None, {"images": images})[0]

        return run

    def _torch(self) -> Run:
        self.classifier.eval().to(self.device)

        def run(views: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                images = normalise(torch.from_numpy(views).to(self.device), self.weights)
                return self.classifier.pooled(images).float().cpu().numpy()

        return run
