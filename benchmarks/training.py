"""Training of `lightweight-cnn`, ours beside the plain loop; on a GPU, training a whole network.

    python benchmarks/training.py ../shared/data/pbc-mini --weights \
../shared/weights/mobilenetv2_100_in1k.safetensors [-o docs/measured/speed-training.md]

Ours: each view made once, run once through the frozen backbone, the head trained on the kept
features; cold (the cache empty: decoding, views and features are in the time) and warm. The plain
loop presents every view of every epoch anew: a DataLoader decodes, preprocesses and augments, the
backbone runs under torch's no_grad by channels last, and the same head takes the same steps; the
fastest of several numbers of workers and threads is taken. Its whole time is its measured rate
times what it would present (stated), since it takes half an hour. Processor seconds are beside
the times by the clock, since they depend less on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import machine, markdown
from gpu_training import gpu_table
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from leukoscope.files import sha256_of
from leukoscope.models.classifier import Classifier, Pooled, build, seeded
from leukoscope.models.weights import Weights
from leukoscope.models.weights import resolve as resolve_weights
from leukoscope.recipes.schema import Recipe, resolve
from leukoscope.train.loop import _STEP, Part, batch, fit
from leukoscope.train.samples import feature_samples, normalise
from leukoscope.train.views import ImageFile, ViewSettings, fresh, prepare

BACKBONE = "mobilenetv2_100"
LOADERS = ((0, 2), (1, 1), (2, 1), (2, 2))  # (workers of the DataLoader, threads of torch)
STEPS = 20  # of the plain loop a measurement
SEED = 0


@dataclass(frozen=True)
class Task:
    """Images with their roles, all views of the training images, and the recipe."""

    plan: Recipe
    weights: Weights
    files: dict[str, ImageFile]
    table: pd.DataFrame
    classes: list[str]

    @property
    def views(self) -> ViewSettings:
        plan = self.plan
        return ViewSettings(plan.preprocessing, plan.augmentation, plan.views.count, SEED)

    def part(self, role: str) -> Part:
        rows = (self.table["role"] == role).to_numpy().nonzero()[0]
        labels = pd.Categorical(self.table["label"], categories=self.classes).codes
        return Part(rows, labels[rows].astype(np.int64))

    def network(self) -> Classifier:
        return build(BACKBONE, self.plan.model.head, len(self.classes), self.weights, seed=SEED)


def task_of(folder: Path, weights: Path, images: int, held: int) -> Task:
    """`images` images for training and `held` for validation, drawn evenly from class folders."""
    plan = resolve("lightweight-cnn")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    rng = np.random.default_rng(SEED)
    files, rows = {}, []
    for label in classes:
        paths = sorted((folder / label).iterdir())
        drawn = [paths[i] for i in rng.permutation(len(paths))]
        train, validation = images // len(classes), held // len(classes)
        for place, path in enumerate(drawn[: train + validation]):
            name = f"{label}/{path.name}"
            files[name] = ImageFile(path, sha256_of(path))
            role = "train" if place < train else "validation"
            many = plan.views.count if role == "train" else 1
            rows += [(name, view, label, role) for view in range(many)]
    table = pd.DataFrame(rows, columns=["image", "view", "label", "role"])
    return Task(plan, resolve_weights(str(weights), BACKBONE), files, table, classes)


def ours(task: Task, epochs: int, cache: Path) -> tuple[float, float, float]:
    """Seconds for the features, seconds for the head, and the last validation accuracy."""
    os.environ["LEUKOSCOPE_CACHE"] = str(cache)
    network = task.network()
    settings = task.plan.training.model_copy(
        update={"epochs": epochs, "steps_per_epoch": 0, "patience": epochs}
    )
    with tempfile.TemporaryDirectory() as run:
        began = time.perf_counter()
        samples = feature_samples(
            task.table, task.files, task.views, Pooled(network), task.weights.input,
            {"backbone": BACKBONE}, "cpu",
        )  # fmt: skip
        extracted = time.perf_counter()
        state = fit(network, BACKBONE, samples, task.part("train"), task.part("validation"),
                    settings, Path(run), seed=SEED)  # fmt: skip
        ended = time.perf_counter()
    return extracted - began, ended - extracted, state.history[-1]["validation_accuracy"]


class Presented(Dataset[tuple[Tensor, int]]):
    """Views made at every presentation, as a plain loop has them."""

    def __init__(self, task: Task, part: Part, order: Sequence[int]) -> None:
        self.task, self.part, self.order = task, part, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        number = self.order[place]
        row = self.task.table.iloc[self.part.rows[number]]
        file = self.task.files[row["image"]]
        image = torch.from_numpy(prepare(file, self.task.views)).permute(2, 0, 1)[None]
        pixels = image.float().div_(255)
        if row["view"]:
            pixels = fresh(pixels, [file.sha256], [row["view"]], self.task.views)
        return normalise(pixels, self.task.weights.input)[0], int(self.part.labels[number])


class PlainLoop:
    """A frozen backbone and a head, every view of every epoch presented anew."""

    def __init__(self, task: Task, workers: int, threads: int) -> None:
        self.task, self.workers, self.threads = task, workers, threads
        self.network = task.network().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        settings = task.plan.training
        self.size = settings.batch_size
        self.optimizer = torch.optim.Adam(
            self.network.head.parameters(), settings.learning_rate, settings.betas, settings.epsilon
        )

    def pooled(self, part: Part, order: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        # Forked workers hang where OpenCV or torch have threads already.
        more: dict[str, Any] = {}
        if self.workers:
            more = {"prefetch_factor": 4, "multiprocessing_context": "spawn"}
        data = Presented(self.task, part, order)
        loader = DataLoader(data, self.size, num_workers=self.workers, **more)
        for images, labels in loader:
            with torch.no_grad():
                pooled = self.network.pooled(images.contiguous(memory_format=torch.channels_last))
            yield pooled, labels

    def train(self, steps: range) -> float:
        """Seconds a step of these, the loader's start not among them."""
        torch.set_num_threads(self.threads)
        part = self.task.part("train")
        chosen = [batch(len(part.rows), self.size, step, SEED)[0] for step in steps]
        began = 0.0
        for pooled, labels in self.pooled(part, np.concatenate(chosen).tolist()):
            began = began or time.perf_counter()
            self.step(pooled, labels)
        return (time.perf_counter() - began) / max(1, len(steps) - 1)

    def validate(self, count: int) -> float:
        """Seconds an image of the first `count` validation images."""
        torch.set_num_threads(self.threads)
        began = time.perf_counter()
        for pooled, _ in self.pooled(self.task.part("validation"), range(count)):
            self.network.head.eval()(pooled)
        return (time.perf_counter() - began) / count

    def accuracy(self, epochs: int) -> float:
        """Validation accuracy after all epochs. A frozen backbone gives a view the same features
        at every presentation, so here, where nothing is timed, they are computed once."""
        torch.set_num_threads(self.threads)
        train, held = self.task.part("train"), self.task.part("validation")
        features, truth = (
            torch.cat(parts)
            for parts in zip(*self.pooled(train, range(len(train.rows))), strict=True)
        )
        for step in range(epochs * -(-len(train.rows) // self.size)):
            chosen = batch(len(train.rows), self.size, step, SEED)[0]
            with seeded(SEED, _STEP, step):  # the same units drop out as in ours
                self.step(features[chosen], truth[chosen])
        pooled, labels = (
            torch.cat(parts)
            for parts in zip(*self.pooled(held, range(len(held.rows))), strict=True)
        )
        with torch.no_grad():
            said = self.network.head.eval()(pooled).argmax(1)
        return float((said == labels).float().mean())

    def step(self, pooled: Tensor, labels: Tensor) -> None:
        """One step of the head."""
        loss = cross_entropy(self.network.head.train()(pooled), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def fastest(task: Task) -> tuple[PlainLoop, str]:
    """The plain loop at its best numbers of workers and threads, and what each took."""
    tried = {}
    for workers, threads in LOADERS:
        loop = PlainLoop(task, workers, threads)
        tried[workers, threads] = loop.train(range(8))
    best = min(tried, key=lambda key: tried[key])
    said = ", ".join(f"{w} workers and {t} threads {1e3 * s / 16:.1f} ms an image"
                     for (w, t), s in tried.items())  # fmt: skip
    return PlainLoop(task, *best), said


def compare(task: Task, epochs: int, rounds: int) -> str:
    """Alternating: ours from beginning to end, cold and warm; the plain loop for some steps."""
    plain, tried = fastest(task)
    alone = PlainLoop(task, 0, 1)  # processor time is what it says only of one process
    n, held = len(task.part("train").rows), len(task.part("validation").rows)
    steps = -(-n // plain.size)
    seconds: dict[str, list[float]] = {}
    accuracy = 0.0
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            used = time.process_time()
            features, head, accuracy = ours(task, epochs, Path(cache))
            used = time.process_time() - used
            again = sum(ours(task, epochs, Path(cache))[:2])
        start = number * STEPS
        step, image = plain.train(range(start, start + STEPS)), plain.validate(32)
        presented = epochs * (steps * step + held * image)
        busy = time.process_time()
        alone.train(range(start, start + STEPS // 2))
        busy = (time.process_time() - busy) / (STEPS // 2 * plain.size) * epochs * (n + held)
        for name, value in (("features", features), ("head", head), ("cold", features + head),
                            ("warm", again), ("plain", presented), ("processor", used),
                            ("plain processor", busy)):  # fmt: skip
            seconds.setdefault(name, []).append(value)
        print({name: round(values[-1], 1) for name, values in seconds.items()}, file=sys.stderr)
    theirs = PlainLoop(task, 0, 1).accuracy(epochs)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: sorted(p / s for p, s in zip(seconds["plain"], seconds[name], strict=True))
              for name in ("cold", "warm")}  # fmt: skip
    rows = [
        ["plain loop (from its rate)", f"{middle['plain']:.0f}", "1", ""],
        *[[f"ours, {name}", f"{middle[name]:.1f}", f"**{statistics.median(ratios[name]):.1f}**",
           f"{ratios[name][0]:.1f} to {ratios[name][-1]:.1f}"] for name in ratios],
        ["of it features of all views", f"{middle['features']:.1f}", "", ""],
        ["of it the head", f"{middle['head']:.1f}", "", ""],
        ["processor seconds, plain loop", f"{middle['plain processor']:.0f}", "1", ""],
        ["processor seconds, ours, cold", f"{middle['processor']:.1f}",
         f"**{middle['plain processor'] / middle['processor']:.1f}**", ""],
    ]  # fmt: skip
    head_line = ["", "seconds, median", "times the plain loop's speed", "slowest to fastest round"]
    return (
        f"{n // task.plan.views.count} training images, {task.plan.views.count} views, {epochs} "
        f"epochs over all of them, {held} validation images an epoch; {rounds} rounds in turn; "
        f"seed {SEED}. Validation accuracy {accuracy:.4f}, of the plain loop {theirs:.4f}.\n\n"
        f"{markdown(head_line, rows)}\n\n"
        f"Plain loop tried with {tried}; a round measures {STEPS} of its "
        f"{epochs * steps:,} steps and 32 validation images.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="a folder of class folders")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--training", type=int, default=480, help="training images")
    parser.add_argument("--validation", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    parts = [f"python {' '.join(sys.argv)}", machine("torch", "onnxruntime", "numpy")]
    task = task_of(given.images, given.weights, given.training, given.validation)
    parts.append(compare(task, given.epochs, given.rounds))
    parts.append(gpu_table(given.images))
    text = "\n\n".join(parts)
    print(text)
    if given.output:
        with given.output.open("a", encoding="utf-8") as handle:
            handle.write(f"\n{text}\n")


if __name__ == "__main__":
    main()
