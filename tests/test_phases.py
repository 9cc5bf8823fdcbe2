"""What a phase trains, what it leaves alone, and what averaging leaves behind."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from leukoscope.data import synthetic
from leukoscope.data.index import examine
from leukoscope.models.classifier import Classifier, build
from leukoscope.models.layers import layer_parameters, stage_parameters
from leukoscope.models.weights import resolve
from leukoscope.train import loop
from leukoscope.train.loop import Part, batch, fit, outputs, thaw
from leukoscope.train.objective import classification_loss, mixing, mixup, soft_labels
from leukoscope.train.samples import PixelSamples, pixel_samples
from leukoscope.train.settings import Averaging, Phase, Training
from leukoscope.train.views import ImageFile, ViewSettings, augmented, prepare

NONE = resolve("none", "cnn")
VIEWS = ViewSettings(
    [{"step": "resize", "size": 32}],
    [{"operation": "rotate", "degrees": 20}, {"operation": "horizontal_flip"}], 1, 0,
)  # fmt: skip
BASE = Training(
    optimizer="adamw", learning_rate=1e-2, backbone_learning_rate=1e-3, weight_decay=0.01,
    batch_size=4, epochs=2, steps_per_epoch=3, patience=9,
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageFile]:
    """18 small synthetic cells."""
    folder = tmp_path_factory.mktemp("smear")
    synthetic.make(folder, images=18, size=48, patients=2, leaks=False)
    paths = sorted((folder / "images").rglob("*.jpg"))
    return {path.name: ImageFile(path, examine(path)["sha256"]) for path in paths}


@pytest.fixture
def samples(files: dict[str, ImageFile]) -> PixelSamples:
    table = pd.DataFrame({"image": list(files), "view": 0})
    return pixel_samples(table, files, VIEWS, NONE.input, "cpu")


@pytest.fixture
def part(files: dict[str, ImageFile]) -> Part:
    labels = pd.factorize(np.array([f.path.parent.name for f in files.values()]), sort=True)[0]
    return Part(np.arange(len(files)), labels.astype(np.int64), fresh="all")


def network() -> Classifier:
    return build("cnn", [], 6, NONE, seed=0)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    after = module.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def train(samples: PixelSamples, part: Part, settings: Training, folder: Path) -> Classifier:
    classifier = network()
    fit(classifier, "cnn", samples, part, Part(part.rows, part.labels), settings, folder, seed=0)
    return classifier


def test_frozen_weights_and_their_statistics_do_not_move(
    samples: PixelSamples, part: Part, tmp_path: Path
) -> None:
    before = state_of(network())
    head = train(samples, part, BASE.model_copy(update={"trained": "head"}), tmp_path / "head")
    assert moved(before, head) == {"head.0.weight", "head.0.bias"}
    settings = BASE.model_copy(update={"trained": "last", "layers": 2})
    last = train(samples, part, settings, tmp_path / "last")
    learns = layer_parameters("cnn", last.backbone, last=2)
    assert len(learns) == 3  # one convolution without bias, one normalisation
    statistics = {"blocks.13.running_mean", "blocks.13.running_var",
                  "blocks.13.num_batches_tracked"}  # fmt: skip
    expected = {f"backbone.{name}" for name in {*learns, *statistics}}
    assert moved(before, last) == expected | {"head.0.weight", "head.0.bias"}


def test_gradual_unfreezing_opens_a_stage_at_a_time_from_the_output() -> None:
    classifier = network()
    stages = stage_parameters("cnn", classifier.backbone)
    phase = Phase(trained="all", unfreeze_every=2, epochs=12)
    for epoch in range(1, 13):
        thaw(classifier, "cnn", phase, epoch)
        open_ = min(len(stages), 1 + (epoch - 1) // 2)
        wanted = {name for stage in stages[-open_:] for name in stage}
        learns = {n for n, p in classifier.backbone.named_parameters() if p.requires_grad}
        assert learns == wanted, epoch
        for module in classifier.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.training == any(p.requires_grad for p in module.parameters())


def test_head_and_backbone_have_rates_of_their_own(
    samples: PixelSamples, part: Part, tmp_path: Path
) -> None:
    """With Adam's first step every weight moves by its learning rate."""
    settings = BASE.model_copy(
        update={"optimizer": "adam", "weight_decay": 0.0, "epochs": 1, "steps_per_epoch": 1}
    )
    before = state_of(network())
    after = train(samples, part, settings, tmp_path).state_dict()
    for name, rate in (("head.0.weight", 1e-2), ("backbone.blocks.0.weight", 1e-3)):
        step = (after[name] - before[name]).abs()
        assert step.max() == pytest.approx(rate, rel=1e-3), name


def test_two_phases_go_on_from_the_best_of_the_first(
    samples: PixelSamples, part: Part, tmp_path: Path
) -> None:
    phases = [Phase(trained="head", epochs=2), Phase(trained="all", epochs=3)]
    settings = BASE.model_copy(update={"phases": phases})
    classifier = train(samples, part, settings, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["phase"].tolist() == [1, 1, 2, 2, 2]
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]
    best = history[history["phase"] == 2]["validation_loss"].min()
    logits, _ = outputs(classifier, samples, part.rows)
    loss = classification_loss(logits, soft_labels(torch.from_numpy(part.labels), 6))
    assert float(loss) == pytest.approx(best, rel=1e-5)
    assert {p.name for p in (tmp_path / "checkpoints").glob("phase-*")} == {
        "phase-1.safetensors", "phase-2.safetensors",
    }  # fmt: skip


PHASES = [Phase(trained="head", epochs=2), Phase(trained="all", unfreeze_every=1, epochs=2)]


@pytest.mark.parametrize(
    "more",
    [{}, {"schedule": "cosine", "mixup": 0.4, "averaging": Averaging(start=1)}, {"patience": 1}],
    ids=["two phases", "averaging", "early stopping"],
)
def test_training_cut_short_at_any_write_resumes_bit_identically(
    samples: PixelSamples, part: Part, tmp_path: Path, more: dict[str, object]
) -> None:
    settings = BASE.model_copy(update={"phases": PHASES, "steps_per_epoch": 1, **more})
    validation = Part(part.rows, part.labels)
    whole = train(samples, part, settings, tmp_path / "whole").state_dict()
    history = pd.read_csv(tmp_path / "whole" / "history.csv").drop(columns="seconds")
    real, left = os.replace, 0

    def replace(source: Path, target: Path) -> None:
        nonlocal left
        real(source, target)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    for write in itertools.count(1):
        left, folder = write, tmp_path / str(write)
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", replace)
            train(samples, part, settings, folder)
        if left > 0:
            break  # it has no more
        again = network()
        fit(again, "cnn", samples, part, validation, settings, folder, seed=0, resume=True)
        assert not moved(whole, again), write
        found = pd.read_csv(folder / "history.csv").drop(columns="seconds")
        pd.testing.assert_frame_equal(found, history)
    assert write > 10


def test_averaged_weights_are_the_mean_of_the_collected_ones(
    samples: PixelSamples, part: Part, tmp_path: Path
) -> None:
    """And normalisation statistics are those of the averaged network on training images."""
    settings = BASE.model_copy(update={"epochs": 4, "averaging": Averaging(start=2)})
    collected = []
    real = loop.AveragedModel.update_parameters

    def spy(self: object, module: nn.Module) -> None:
        collected.append(state_of(module))
        real(self, module)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.AveragedModel, "update_parameters", spy)
        averaged = train(samples, part, settings, tmp_path)
    assert len(collected) == 3
    for name, value in averaged.named_parameters():
        mean = torch.stack([state[name] for state in collected]).mean(dim=0)
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-7)
    # Refreshed by hand: the cumulative mean of the first layer's input statistics over a pass.
    convolution, norm = averaged.backbone.blocks[0], averaged.backbone.blocks[1]
    means = []
    with torch.no_grad():
        for step in range(len(part.rows) // 4):
            chosen, passes = batch(len(part.rows), 4, step, 0)
            images = samples.inputs(part.rows[chosen], part.views(chosen, passes))
            means.append(convolution(images).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0), rtol=1e-4,
                               atol=1e-5)  # fmt: skip


def test_mixup_takes_part_in_training(samples: PixelSamples, part: Part, tmp_path: Path) -> None:
    """The loss of the first step is that of the mixed batch."""
    settings = BASE.model_copy(
        update={"mixup": 0.4, "epochs": 1, "steps_per_epoch": 1, "trained": "head"}
    )
    train(samples, part, settings, tmp_path)
    found = pd.read_csv(tmp_path / "history.csv")["train_loss"][0]
    chosen, passes = batch(len(part.rows), 4, 0, 0)
    images = samples.inputs(part.rows[chosen], part.views(chosen, passes))
    targets = soft_labels(torch.from_numpy(part.labels[chosen]), 6)
    images, targets = mixup(
        images, targets, *mixing(4, 0.4, np.random.default_rng([0, loop._MIXUP, 0]))
    )
    classifier = network().eval()
    expected = classification_loss(classifier(images), targets)
    assert found == pytest.approx(expected.item(), rel=1e-5)


def test_fresh_views_differ_from_pass_to_pass_and_copy_to_copy(
    files: dict[str, ImageFile], samples: PixelSamples, part: Part
) -> None:
    chosen = np.zeros(3, np.int64)
    replicas = Part(np.array([0, 0]), np.array([0, 0]), np.array([0, 1]), "all")
    assert part.views(chosen, np.arange(3)).tolist() == [1, 2, 3]
    assert replicas.views(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])).tolist() == [1, 2, 3, 4]
    topped_up = Part(replicas.rows, replicas.labels, replicas.copies, "copies")
    assert topped_up.views(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])).tolist() == [0, 2, 0, 4]
    assert Part(part.rows, part.labels).views(chosen, np.arange(3)).tolist() == [0, 0, 0]
    # View k made on the spot is view k made in advance, but for rounding to whole levels.
    one = next(iter(files.values()))
    advance = augmented(prepare(one, VIEWS), one.sha256, ViewSettings(
        VIEWS.preprocessing, VIEWS.augmentation, 4, 0))  # fmt: skip
    made = samples.inputs(chosen, np.array([1, 2, 3])).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(made - advance).max() <= 0.51


def test_validations_within_a_pass(samples: PixelSamples, part: Part, tmp_path: Path) -> None:
    settings = BASE.model_copy(
        update={"validate_every": 2, "steps_per_epoch": 0, "epochs": 2, "trained": "head"}
    )
    train(samples, part, settings, tmp_path)
    steps = 2 * -(-len(part.rows) // 4)
    assert len(pd.read_csv(tmp_path / "history.csv")) == -(-steps // 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"trained": "last"},
        {"layers": 3},
        {"phases": [{"trained": "head", "unfreeze_every": 2}]},
        {"mixup": -1},
        {"batch_size": 1},
        {"averaging": {"start": 3}},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Training.model_validate(BASE.model_dump() | wrong)


def test_a_run_cut_short_before_averaging_keeps_the_frozen_layers_statistics(
    samples: PixelSamples, part: Part, tmp_path: Path
) -> None:
    settings = BASE.model_copy(
        update={"trained": "last", "layers": 2, "averaging": Averaging(start=1)}
    )
    whole = train(samples, part, settings, tmp_path / "whole").state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_use_average", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(samples, part, settings, tmp_path / "cut")
    again = network()
    fit(again, "cnn", samples, part, Part(part.rows, part.labels), settings, tmp_path / "cut",
        seed=0, resume=True)  # fmt: skip
    assert not moved(whole, again)
    frozen = "backbone.blocks.1.running_mean"
    assert torch.equal(again.state_dict()[frozen], network().state_dict()[frozen])
