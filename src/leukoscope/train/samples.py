"""What a network trains on: pooled features of a frozen backbone, or the pixels themselves.

Both give the same two things, so the loop and everything after it know one kind of sample: the
pooled features of some rows, and a module from those to logits.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from leukoscope.cluster import Spread
from leukoscope.compat import import_timm, onnx_session
from leukoscope.files import explain_os_errors
from leukoscope.imaging.augmentation import augment_masks, view_generator
from leukoscope.imaging.cells import box_of
from leukoscope.models.classifier import Classifier
from leukoscope.models.graph import to_onnx
from leukoscope.models.weights import InputFormat
from leukoscope.parallel import ahead
from leukoscope.train.cache import ArrayCache, explained
from leukoscope.train.views import NUCLEUS, ImageFile, ViewSettings, fill, fresh, get, prepare

READ_AHEAD = 8  # batches that are read before the device asks for them


class Samples(Protocol):
    """Rows of a table of (image, view), as inputs of a network.

    `views` (n,) are view numbers made on the spot; 0 is the row's own view.
    """

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""

    def inputs(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """What the trained part of the network takes for these rows."""

    def batches(self, chosen: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Tensor]:
        """The inputs of each (rows, views) in turn, read ahead where that takes time."""

    def logits(self, classifier: Classifier, inputs: Tensor) -> Tensor:
        """The (n, classes) logits of such inputs."""

    def pooled(self, classifier: Classifier, rows: np.ndarray) -> Tensor:
        """The (n, d) pooled features of these rows."""


@dataclass(frozen=True)
class FeatureSamples:
    """Features of a frozen backbone, (n, d) on disk, one row a view; only the head runs."""

    features: np.ndarray
    input_size: tuple[int, int]

    def inputs(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        assert not views.any(), "features are of views made in advance"
        return torch.from_numpy(np.ascontiguousarray(self.features[rows]))

    def batches(self, chosen: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Tensor]:
        return (self.inputs(rows, views) for rows, views in chosen)

    def logits(self, classifier: Classifier, inputs: Tensor) -> Tensor:
        return classifier.head(inputs)

    def pooled(self, classifier: Classifier, rows: np.ndarray) -> Tensor:  # noqa: ARG002
        return self.inputs(rows, np.zeros(len(rows)))


@dataclass(frozen=True)
class PixelSamples:
    """Normalised images; the whole network runs."""

    cache: ArrayCache
    hashes: Sequence[str]
    own_views: np.ndarray
    settings: ViewSettings
    format: InputFormat
    input_size: tuple[int, int]
    device: str = "cpu"

    def inputs(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        return self._on_device(self._read(rows, views), rows, views)

    def batches(self, chosen: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Tensor]:
        """While the device computes, threads read what comes next into memory that it can copy
        from by itself; augmentation and normalisation are the device's."""
        read = ahead(lambda part: (self._read(*part), *part), chosen, depth=READ_AHEAD)
        return (self._on_device(*batch) for batch in read)

    def _read(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """(n, h, w, 3) uint8 pixels that the rows' views are made from."""
        pixels = torch.from_numpy(
            np.stack(
                [
                    get(self.cache, self.hashes[i], 0 if view else int(self.own_views[i]))
                    for i, view in zip(rows, views, strict=True)
                ]
            )
        )
        return pixels if self.device == "cpu" else pixels.pin_memory()

    def _on_device(self, pixels: Tensor, rows: np.ndarray, views: np.ndarray) -> Tensor:
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        images = images.float().div_(255)
        made = np.flatnonzero(views)
        if len(made):
            hashes = [self.hashes[i] for i in rows[made]]
            place = torch.from_numpy(made).to(self.device)
            images[place] = fresh(images[place], hashes, views[made].tolist(), self.settings)
        return normalise(images, self.format)

    def boxes(self, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """(n, 4) boxes of the rows' main cells: x, y, width, height as fractions of the image.

        By the nucleus, moved as the view was; the whole image where no nucleus is left in it.
        """
        numbers = np.where(views > 0, views, self.own_views[rows])
        found = []
        for row, number in zip(rows, numbers, strict=True):
            mask = torch.from_numpy(np.array(self._nucleus(row), np.float32))[None]
            drawn = [view_generator(self.settings.seed, self.hashes[row], int(number))]
            if number:
                mask = augment_masks(mask, drawn, self.settings.augmentation)
            found.append(_box(mask[0, 0].numpy() > 0.5))
        return torch.tensor(found, dtype=torch.float32)

    def _nucleus(self, row: int) -> np.ndarray:
        mask = self.cache.get(self.hashes[row], NUCLEUS)
        if mask is None:
            raise KeyError(f"the nucleus of {self.hashes[row]}")
        return mask

    def logits(self, classifier: Classifier, inputs: Tensor) -> Tensor:
        return classifier(inputs)

    def pooled(self, classifier: Classifier, rows: np.ndarray) -> Tensor:
        return classifier.pooled(self.inputs(rows, np.zeros(len(rows), np.int64)))


def _box(nucleus: np.ndarray) -> tuple[float, float, float, float]:
    """x, y, width, height of the cell as fractions of the image; all of it without a nucleus."""
    box, (height, width) = box_of(nucleus), nucleus.shape
    return box.x / width, box.y / height, box.width / width, box.height / height


def normalise(images: Tensor, form: InputFormat) -> Tensor:
    """RGB in [0, 1], float32 (n, 3, h, w), as the weights' contract wants it."""
    mean, std = (
        torch.tensor(v, device=images.device)[:, None, None] for v in (form.mean, form.std)
    )
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def feature_samples(
    table: pd.DataFrame,
    files: dict[str, ImageFile],
    settings: ViewSettings,
    network: nn.Module,
    form: InputFormat,
    identity: Mapping[str, object],
    device: str,
    spread: Spread = ahead,
) -> FeatureSamples:
    """Run a frozen network, normalised images to (n, d), over every view of `table` (image, view)
    that isn't kept yet.

    `identity` names the network and its weights: with the settings it keys what is kept. `spread`:
    over a cluster, whose workers compute on CPUs.
    """
    size = size_of(files, settings)
    identity = {**identity, "timm": import_timm().__version__, "device": device.split(":")[0]}
    cache = ArrayCache("features", {**settings.key(), "size": size, **identity})
    extract = _Extractor(network, form, device, size)
    wanted = _blocks(table, files)
    fill(files.values(), lambda f: wanted[f.sha256], settings, size, cache, extract, "Features",
         spread)  # fmt: skip
    hashes = [files[image].sha256 for image in table["image"]]
    first = get(cache, hashes[0], int(table["view"].iloc[0]))
    # Unlinked at once, so that a killed run leaves nothing behind; written, not mapped, since
    # where a disk is full writing to a mapping kills the process.
    with (
        explained(),
        explain_os_errors(cache.root),
        tempfile.TemporaryFile(dir=cache.root) as scratch,
    ):
        for sha256, view in zip(hashes, table["view"], strict=True):
            scratch.write(np.asarray(get(cache, sha256, int(view)), np.float32).tobytes())
        scratch.flush()
        features = np.memmap(scratch, dtype=np.float32, mode="r", shape=(len(table), len(first)))
    return FeatureSamples(features, size)


def pixel_samples(
    table: pd.DataFrame,
    files: dict[str, ImageFile],
    settings: ViewSettings,
    form: InputFormat,
    device: str,
    *,
    boxes: bool = False,
) -> PixelSamples:
    """Make every view of `table` (image, view) that isn't kept yet, as uint8 pixels; with `boxes`
    the nuclei of all images too, by which detectors know where the cells are."""
    size = size_of(files, settings)
    cache = ArrayCache("views", {**settings.key(), "size": size})
    wanted = _blocks(table, files)
    more = [NUCLEUS] if boxes else []
    fill(files.values(), lambda f: wanted[f.sha256] + more, settings, size, cache,
         lambda views: views, "Views")  # fmt: skip
    hashes = [files[image].sha256 for image in table["image"]]
    views = table["view"].to_numpy()
    return PixelSamples(cache, hashes, views, settings, form, size, device)


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
    """uint8 views (n, h, w, 3) to features (n, d) float32 of a frozen network.

    By ONNX Runtime on a CPU, several times as fast as torch there; by torch on a GPU. Built at the
    first call, since a run whose features are all kept needs neither. Sent to another machine, it
    is its graph that goes.
    """

    def __init__(
        self, network: nn.Module, form: InputFormat, device: str, size: tuple[int, int]
    ) -> None:
        self.network, self.form, self.device, self.size = network, form, device, size
        self.run: Run | None = None
        self.lock = threading.Lock()

    def __call__(self, views: np.ndarray) -> np.ndarray:
        with self.lock:
            if self.run is None:
                self.run = self._onnx(self.size) if self.device == "cpu" else self._torch()
        return self.run(views).astype(np.float32, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._onnx(self.size).__reduce__()

    def _onnx(self, size: tuple[int, int]) -> _OnnxRun:
        return _OnnxRun(to_onnx(self.network, size, ("features",)), size, self.form)

    def _torch(self) -> Run:
        network = self.network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

        def run(views: np.ndarray) -> np.ndarray:
            images = torch.from_numpy(views).to(self.device).permute(0, 3, 1, 2)
            with torch.inference_mode():
                return network(normalise(images.float().div_(255), self.form)).float().cpu().numpy()

        return run


class _OnnxRun:
    """One view at a time on the thread that asks: it stays in the core's cache, which is twice as
    fast as 16 together, and its features can't depend on its neighbours."""

    def __init__(self, graph: bytes, size: tuple[int, int], form: InputFormat) -> None:
        self.given, self.size = (graph, size, form), size
        self.session: Any = None  # built where it runs; Ray's client passes it on unused
        self.lock = threading.Lock()
        levels = torch.arange(256).div(255).expand(1, 3, 1, 256)
        self.values = np.ascontiguousarray(normalise(levels, form)[0, :, 0].numpy())

    def __reduce__(self) -> tuple[Any, ...]:
        return _OnnxRun, self.given

    def __call__(self, views: np.ndarray) -> np.ndarray:
        with self.lock:
            if self.session is None:
                self.session = onnx_session(self.given[0], threads=1, one_image=True)
        image = np.empty((1, 3, *self.size), np.float32)
        found = []
        for view in views:
            for channel, plane in enumerate(image[0]):
                np.take(self.values[channel], view[..., channel], out=plane, mode="clip")
            found.append(self.session.run(None, {"images": image})[0])
        return np.concatenate(found).astype(np.float32, copy=False)
