"""What test_ranks.py compares: trained by one process, or by those that torchrun starts.

Usage: ranks_script.py OUT [gradients]. Writes a .safetensors a case into OUT, by the first process;
`ranks_script.py smear FOLDER` draws the images beside OUT.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

from leukoscope.data import synthetic
from leukoscope.data.index import examine
from leukoscope.models.classifier import Classifier, Pooled, build, seeded
from leukoscope.models.weights import resolve
from leukoscope.recipes.schema import resolve as resolve_recipe
from leukoscope.train import loop, ranks
from leukoscope.train.loop import Job, Part, fit
from leukoscope.train.objective import mixup, soft_labels
from leukoscope.train.samples import feature_samples, pixel_samples
from leukoscope.train.settings import Averaging, Phase, Training
from leukoscope.train.views import ImageFile, ViewSettings

NONE = resolve("none", "cnn")
VIEWS = ViewSettings(
    [{"step": "resize", "size": 32}], resolve_recipe("lightweight-cnn").augmentation, 3, 0
)
HEAD = [{"layer": "dropout", "p": 0.5}, {"layer": "dense", "units": 8}, {"layer": "relu"}]
# Five images a batch: one process presents three of them, the other two.
BASE = Training(
    optimizer="adamw", learning_rate=1e-3, batch_size=5, epochs=2, steps_per_epoch=3, patience=3,
)  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "head": {"trained": "head"},
    "mixup": {"mixup": 0.4, "focal_gamma": 2.0},
    "last-then-all": {
        "phases": [Phase(trained="last", layers=1, epochs=1), Phase(unfreeze_every=1, epochs=1)]
    },
    "averaged": {"averaging": Averaging(start=2, anneal_epochs=1)},
}


class DropsPaths(nn.Module):
    """Stochastic depth, as timm's networks have it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return images
        return images * images.new_empty(len(images), 1, 1, 1).bernoulli_(0.8) / 0.8


def network(name: str = "cnn") -> Classifier:
    made = build(name, HEAD, 6, resolve("none", name), seed=0)
    if name == "cnn":
        made.backbone.add_module("deep", DropsPaths())
    return made


def data(folder: Path) -> tuple[pd.DataFrame, dict[str, ImageFile], Part, Part]:
    paths = sorted((folder / "images").rglob("*.jpg"))
    files = {path.name: ImageFile(path, examine(path)["sha256"]) for path in paths}
    images = np.repeat(list(files), VIEWS.count)
    views = np.tile(np.arange(VIEWS.count), len(files))
    table = pd.DataFrame({"image": images, "view": views})
    codes = pd.factorize(pd.Series([files[i].path.parent.name for i in images]), sort=True)[0]
    rows, labels = np.arange(len(table)), codes.astype(np.int64)
    held = views == 0
    training = Part(rows[held], labels[held], fresh="all")
    return table, files, training, Part(rows[~held], labels[~held])


def main(out: Path, only_gradients: bool) -> None:
    table, files, training, validation = data(out.parent / "smear")
    samples = pixel_samples(table, files, VIEWS, NONE.input, "cpu")

    def trained(name: str, settings: Training, **more: Any) -> None:
        classifier = network()
        own, part = samples, training
        if name == "head":
            part = Part(training.rows, training.labels)
            own = feature_samples(table, files, VIEWS, Pooled(classifier), NONE.input, {}, "cpu")
        folder = out / f"{name}-{ranks.rank()}"
        weights = np.linspace(0.5, 1.5, 6, dtype=np.float32)
        fit(classifier, "cnn", own, part, validation, settings, folder, seed=0,
            class_weights=weights, **more)  # fmt: skip
        if ranks.first():
            whole = {k: v.contiguous() for k, v in classifier.state_dict().items()}
            save_file(whole, out / f"{name}.safetensors")

    def gradients(name: str, backbone: str, settings: Training) -> None:
        """Of one step in double precision, where rounding can't hide a difference."""
        own = pixel_samples(table, files, VIEWS, NONE.input, "cpu", boxes=backbone != "cnn")
        classifier, weights = network(backbone).double(), torch.linspace(0.5, 1.5, 6)
        job = Job(classifier, backbone, own, training, validation, settings, 0, "cpu", weights)
        places, *mixture = loop._mixture(job, 0)
        ((rows, labels, views, inputs),) = loop._batches(job, [0], lambda _: places)
        targets = soft_labels(labels, 6).double()
        inputs = inputs.double()
        if settings.mixup:
            inputs, targets = mixup(inputs, targets, *mixture)
        mine, step = mixture[-1], ranks.parallel(loop._Step(job).train())
        with seeded(0, 1), ranks.whole_batch(settings.batch_size):
            loss, _ = step(inputs, targets, rows[:mine], views[:mine])
        (loss * ranks.world()).backward()
        found = {k: p.grad.contiguous() for k, p in classifier.named_parameters()}
        found |= {k: v.contiguous() for k, v in classifier.named_buffers() if "running" in k}
        if ranks.first():
            save_file(found, out / f"{name}.safetensors")

    with ranks.joined("cpu"):
        for backbone in ("cnn", "retinanet", "centernet"):
            gradients(f"gradients-{backbone}", backbone, BASE)
        gradients("gradients-mixup", "cnn", BASE.model_copy(update=CASES["mixup"]))
        if only_gradients:
            return
        for name, changes in CASES.items():
            trained(name, BASE.model_copy(update=changes))
        with cut_short(), contextlib.suppress(KeyboardInterrupt):
            trained("resumed", BASE)
        trained("resumed", BASE, resume=True)


@contextlib.contextmanager
def cut_short() -> Iterator[None]:
    """Training ends in the second epoch."""
    real, calls = loop._validate, []

    def cut(job: Job) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(job)

    loop._validate = cut
    try:
        yield
    finally:
        loop._validate = real


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "smear":
        synthetic.make(Path(sys.argv[2]), images=24, size=48, patients=2, leaks=False)
    else:
        main(Path(sys.argv[1]), only_gradients=sys.argv[2:] == ["gradients"])
