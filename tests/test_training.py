"""Views, caches, checkpoints and the loop: the fast way gives the plain way's numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from leukoscope.data import synthetic
from leukoscope.data.index import examine
from leukoscope.errors import InputError
from leukoscope.files import held
from leukoscope.models.classifier import Pooled, build, seeded
from leukoscope.models.weights import resolve
from leukoscope.recipes.schema import resolve as resolve_recipe
from leukoscope.train import cache as caches
from leukoscope.train import checkpoints, loop, views
from leukoscope.train import samples as samples_module
from leukoscope.train.cache import ArrayCache
from leukoscope.train.loop import Part, batch, fit
from leukoscope.train.samples import feature_samples, normalise, pixel_samples
from leukoscope.train.settings import Training
from leukoscope.train.views import ImageFile, ViewSettings, augmented, prepare

RECIPE = resolve_recipe("lightweight-cnn")
NONE = resolve("none", "cnn")
VIEWS = ViewSettings([{"step": "resize", "size": 32}], RECIPE.augmentation, 3, 0)
SETTINGS = Training(
    learning_rate=5e-4, epsilon=1e-7, batch_size=4, epochs=3, steps_per_epoch=5, patience=3,
    trained="all",
)  # fmt: skip
HEAD = SETTINGS.model_copy(update={"trained": "head"})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageFile]:
    """24 small synthetic cells."""
    folder = tmp_path_factory.mktemp("smear")
    synthetic.make(folder, images=24, size=48, patients=2, leaks=False)
    paths = sorted((folder / "images").rglob("*.jpg"))
    return {path.name: ImageFile(path, examine(path)["sha256"]) for path in paths}


@pytest.fixture
def table(files: dict[str, ImageFile]) -> pd.DataFrame:
    """Every view of every image, with a label."""
    names = np.repeat(list(files), VIEWS.count)
    return pd.DataFrame(
        {
            "image": names,
            "view": np.tile(np.arange(VIEWS.count), len(files)),
            "label": [files[n].path.parent.name for n in names],
        }
    )


def parts(table: pd.DataFrame) -> tuple[Part, Part]:
    codes = pd.factorize(table["label"], sort=True)[0].astype(np.int64)
    rows = np.arange(len(table))
    held = table["view"].to_numpy() == 0
    return Part(rows[~held], codes[~held]), Part(rows[held], codes[held])


def test_views_are_functions_of_content_seed_and_number(files: dict[str, ImageFile]) -> None:
    one = next(iter(files.values()))
    image = prepare(one, VIEWS)
    views = augmented(image, one.sha256, VIEWS)
    assert views.shape == (2, 32, 32, 3)
    assert views.dtype == np.uint8
    assert np.array_equal(views, augmented(image, one.sha256, VIEWS))
    more = ViewSettings(VIEWS.preprocessing, VIEWS.augmentation, 5, 0)
    np.testing.assert_allclose(views.astype(int), augmented(image, one.sha256, more)[:2], atol=1)
    assert not np.array_equal(views, augmented(image, "0" * 64, VIEWS))


def test_the_cache_keeps_by_content_and_survives_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    cache = ArrayCache("test", {"a": 1})
    assert cache.get("ab" * 32, "original") is None
    cache.put("ab" * 32, "original", np.arange(6).reshape(2, 3))
    assert np.array_equal(cache.get("ab" * 32, "original"), np.arange(6).reshape(2, 3))
    assert ArrayCache("test", {"a": 2}).get("ab" * 32, "original") is None
    cache.path("ab" * 32, "original").write_bytes(b"\x93NUMPY damaged")
    assert cache.get("ab" * 32, "original") is None
    caches.trim(limit=0)
    assert cache.path("ab" * 32, "original").exists(), "a run beside this one may be using it"
    os.utime(cache.path("ab" * 32, "original"), (0, 0))
    left = tmp_path / "test" / ".part-killed.npy"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    monkeypatch.setattr(caches.trim, "__defaults__", (0,))
    with held(tmp_path, shared=True), caches.in_use():
        assert cache.get("ab" * 32, "original") is None
        assert left.exists(), "another run uses the cache"
    with caches.in_use():
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_features_of_a_frozen_backbone_train_the_head_to_the_plain_loops_numbers(
    files: dict[str, ImageFile], table: pd.DataFrame, tmp_path: Path
) -> None:
    """The plain loop decodes, augments and runs the backbone for every presented view."""
    train, validation = parts(table)
    fast = build("cnn", RECIPE.model.head, 6, NONE, seed=0)
    samples = feature_samples(
        table, files, VIEWS, Pooled(fast), NONE.input, {"backbone": "cnn"}, "cpu"
    )
    state = fit(fast, "cnn", samples, train, validation, HEAD, tmp_path, seed=0)

    plain = build("cnn", RECIPE.model.head, 6, NONE, seed=0).eval()
    optimizer = torch.optim.Adam(plain.head.parameters(), lr=5e-4, eps=1e-7)

    def view(row: int) -> np.ndarray:
        file = files[table["image"][row]]
        image = prepare(file, VIEWS)
        number = table["view"][row]
        return augmented(image, file.sha256, VIEWS)[number - 1] if number else image

    losses = []
    for step in range(15):
        chosen, _ = batch(len(train.rows), 4, step, 0)
        images = np.stack([view(row) for row in train.rows[chosen]])
        plain.head.train()
        with torch.no_grad():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
            pooled = plain.pooled(normalise(pixels, NONE.input))
        with seeded(0, loop._STEP, step):
            loss = cross_entropy(plain.head(pooled), torch.from_numpy(train.labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    fast_losses = [row["train_loss"] for row in state.history]
    np.testing.assert_allclose(fast_losses, np.reshape(losses, (3, 5)).mean(axis=1), rtol=1e-4)
    checkpoints.load(tmp_path / "checkpoints" / "epoch-00000003.safetensors", fast.head)
    for one, other in zip(fast.head.parameters(), plain.head.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(fast.backbone.parameters(), plain.backbone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_image_changed_since_it_was_indexed_is_refused(
    files: dict[str, ImageFile], tmp_path: Path
) -> None:
    one = next(iter(files.values()))
    other = tmp_path / "cell.jpg"
    other.write_bytes(one.path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="changed since it was indexed"):
        prepare(ImageFile(other, one.sha256), VIEWS)
    with pytest.raises(InputError, match="can't be read any more"):
        prepare(ImageFile(tmp_path / "gone.jpg", one.sha256), VIEWS)


def test_images_of_another_size_after_preprocessing_are_refused_every_time(
    files: dict[str, ImageFile], tmp_path: Path, table: pd.DataFrame
) -> None:
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((48, 60, 3), np.uint8))
    odd = ImageFile(tmp_path / "wide.png", examine(tmp_path / "wide.png")["sha256"])
    mixed = files | {"wide.png": odd}
    rows = pd.concat([table, table.head(1).assign(image="wide.png")], ignore_index=True)
    as_they_are = ViewSettings([], RECIPE.augmentation, 2, 0)
    for _ in range(2):
        with pytest.raises(InputError, match=r"wide\.png is 60x48 and others are 48x48"):
            pixel_samples(rows, mixed, as_they_are, NONE.input, "cpu")


def test_batches_walk_through_whole_passes_and_are_never_short() -> None:
    steps, passes = zip(*(batch(10, 4, step, 0) for step in range(5)), strict=True)
    assert np.concatenate(passes).tolist() == [0] * 10 + [1] * 10
    assert all(len(rows) == 4 for rows in steps)
    flat = np.concatenate(steps)
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert not np.array_equal(flat[:10], flat[10:])


@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_run_is_bit_identical(
    files: dict[str, ImageFile], table: pd.DataFrame, tmp_path: Path, stop: int
) -> None:
    train, validation = parts(table)
    samples = pixel_samples(table, files, VIEWS, NONE.input, "cpu")

    def trained(folder: Path, settings: Training, resume: bool) -> dict[str, torch.Tensor]:
        network = build("cnn", RECIPE.model.head, 6, NONE, seed=0)
        fit(network, "cnn", samples, train, validation, settings, folder, seed=0, resume=resume)
        return network.state_dict()

    whole = trained(tmp_path / "whole", SETTINGS, resume=False)
    cut = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_validate", _interrupt_after(stop))
        with pytest.raises(KeyboardInterrupt):
            trained(cut, SETTINGS, resume=False)
    # The newest checkpoint is damaged as well: the one before it serves.
    newest = sorted((cut / "checkpoints").glob("epoch-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    resumed = trained(cut, SETTINGS, resume=True)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    drop = ["seconds"]
    histories = [
        pd.read_csv(tmp_path / n / "history.csv").drop(columns=drop) for n in ("whole", "cut")
    ]
    pd.testing.assert_frame_equal(*histories)


def _interrupt_after(epochs: int):
    real, calls = loop._validate, []

    def validate(*arguments):
        calls.append(1)
        if len(calls) > epochs:
            raise KeyboardInterrupt
        return real(*arguments)

    return validate


def test_resume_refuses_other_settings(
    files: dict[str, ImageFile], table: pd.DataFrame, tmp_path: Path
) -> None:
    train, validation = parts(table)
    network = build("cnn", RECIPE.model.head, 6, NONE, seed=0)
    samples = pixel_samples(table, files, VIEWS, NONE.input, "cpu")
    once = SETTINGS.model_copy(update={"epochs": 1, "steps_per_epoch": 2})
    fit(network, "cnn", samples, train, validation, once, tmp_path, seed=0)
    with pytest.raises(InputError, match="other settings"):
        fit(network, "cnn", samples, train, validation, SETTINGS, tmp_path, seed=0, resume=True)


def test_early_stopping_keeps_the_best_epoch(
    files: dict[str, ImageFile], table: pd.DataFrame, tmp_path: Path
) -> None:
    train, validation = parts(table)
    network = build("cnn", RECIPE.model.head, 6, NONE, seed=0)
    samples = pixel_samples(table, files, VIEWS, NONE.input, "cpu")
    losses = iter([1.0, 0.5, 0.7, 0.6, 0.1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_validate", lambda *_: {"validation_loss": next(losses),
                                                     "validation_accuracy": 0.0})  # fmt: skip
        settings = SETTINGS.model_copy(update={"epochs": 9, "steps_per_epoch": 1, "patience": 2})
        state = fit(network, "cnn", samples, train, validation, settings, tmp_path, seed=0)
    assert state.epoch == 4
    assert state.best_epoch == 2
    best = build("cnn", RECIPE.model.head, 6, NONE, seed=1)
    checkpoints.load(tmp_path / "checkpoints" / "phase-1.safetensors", best)
    assert all(
        torch.equal(a, b)
        for a, b in zip(best.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_a_diverging_loss_stops_with_the_fix(
    files: dict[str, ImageFile], table: pd.DataFrame, tmp_path: Path
) -> None:
    train, validation = parts(table)
    network = build("cnn", RECIPE.model.head, 6, NONE, seed=0)
    samples = pixel_samples(table, files, VIEWS, NONE.input, "cpu")
    wild = SETTINGS.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(InputError, match=r"learning_rate"):
        fit(network, "cnn", samples, train, validation, wild, tmp_path, seed=0)


def test_every_image_is_decoded_once_and_every_view_runs_through_the_backbone_once(
    files: dict[str, ImageFile],
    table: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    decoded, run = [], []
    prepared, onnx = views.prepare, samples_module._Extractor._onnx

    def prepare_counted(image: ImageFile, settings: ViewSettings) -> np.ndarray:
        decoded.append(image.sha256)
        return prepared(image, settings)

    def onnx_counted(self: Any, size: tuple[int, int]) -> Any:
        extract = onnx(self, size)
        return lambda pixels: (run.append(len(pixels)), extract(pixels))[1]

    monkeypatch.setattr(views, "prepare", prepare_counted)
    monkeypatch.setattr(samples_module._Extractor, "_onnx", onnx_counted)
    found = []
    for _ in range(2):
        network = Pooled(build("cnn", [], 6, NONE, seed=0))
        made = feature_samples(table, files, VIEWS, network, NONE.input, {"backbone": "cnn"}, "cpu")
        found.append(np.array(made.features))
    assert sorted(decoded) == sorted(file.sha256 for file in files.values())
    assert sum(run) == len(table)
    assert np.array_equal(*found)


def test_two_processes_fill_one_cache_and_agree(
    files: dict[str, ImageFile], table: pd.DataFrame, tmp_path: Path
) -> None:
    """Both start on an empty folder; a third, later, finds every block and makes none."""
    code = """
import sys
from pathlib import Path
from typing import Any
import numpy as np, pandas as pd
from leukoscope.models.classifier import Pooled, build
from leukoscope.models.weights import resolve
from leukoscope.train.samples import feature_samples
from leukoscope.train.views import ImageFile, ViewSettings
table = pd.read_parquet(sys.argv[1])
files = {i: ImageFile(Path(p), s) for i, p, s in zip(table.image, table.path, table.sha256)}
settings = ViewSettings([{"step": "resize", "size": 32}], [{"operation": "rotate"}], 3, 0)
none = resolve("none", "cnn")
network = Pooled(build("cnn", [], 6, none, seed=0))
made = feature_samples(table, files, settings, network, none.input, {"backbone": "cnn"}, "cpu")
np.save(sys.argv[2], made.features)
"""
    described = table.assign(
        path=[str(files[i].path) for i in table["image"]],
        sha256=[files[i].sha256 for i in table["image"]],
    )
    described.to_parquet(tmp_path / "table.parquet")
    cache = tmp_path / "cache"
    environment = os.environ | {"LEUKOSCOPE_CACHE": str(cache)}

    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, tmp_path / "table.parquet", tmp_path / name]
        return subprocess.Popen(command, env=environment)

    both = [start("one.npy"), start("other.npy")]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    one, other = (np.load(tmp_path / name) for name in ("one.npy", "other.npy"))
    assert np.array_equal(one, other)
    assert len(list(cache.rglob("*.npy"))) == 2 * len(files)
    assert not list(cache.rglob(".part-*")), "nothing half-written is left"


def test_a_half_written_block_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    cache, whole = ArrayCache("test", {}), np.arange(1000.0)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cache.put("ab" * 32, "original", whole)
    assert cache.get("ab" * 32, "original") is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    cache.put("ab" * 32, "original", whole)
    path = cache.path("ab" * 32, "original")
    content = path.read_bytes()
    for length in (0, 5, 60, 128, 500, len(content) - 1):
        path.write_bytes(content[:length])
        assert cache.get("ab" * 32, "original") is None, f"{length} bytes of {len(content)}"


def test_features_are_torchs_whatever_the_neighbours(
    files: dict[str, ImageFile],
    table: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path))
    network = Pooled(build("cnn", [], 6, NONE, seed=0)).eval()
    made = feature_samples(table, files, VIEWS, network, NONE.input, {"backbone": "cnn"}, "cpu")
    pixels = pixel_samples(table, files, VIEWS, NONE.input, "cpu")
    rows = np.arange(len(table))
    with torch.no_grad():
        wanted = network(pixels.inputs(rows, np.zeros(len(rows), np.int64)))
    torch.testing.assert_close(
        torch.from_numpy(np.array(made.features)), wanted, rtol=1e-4, atol=1e-5
    )


def test_batches_read_ahead_are_the_batches_asked_for(
    files: dict[str, ImageFile], table: pd.DataFrame
) -> None:
    samples = pixel_samples(table, files, VIEWS, NONE.input, "cpu")
    rng = np.random.default_rng(0)
    chosen = [(rng.integers(len(table), size=4), rng.integers(3, size=4)) for _ in range(12)]
    for made, (rows, numbers) in zip(samples.batches(iter(chosen)), chosen, strict=True):
        assert torch.equal(made, samples.inputs(rows, numbers))
        assert made.is_contiguous(memory_format=torch.channels_last)


def test_a_heads_training_leaves_torchs_threads_as_they_were(
    files: dict[str, ImageFile], table: pd.DataFrame, tmp_path: Path
) -> None:
    train, validation = parts(table)
    network = build("cnn", RECIPE.model.head, 6, NONE, seed=0)
    samples = feature_samples(
        table, files, VIEWS, Pooled(network), NONE.input, {"backbone": "cnn"}, "cpu"
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        fit(network, "cnn", samples, train, validation, HEAD, tmp_path, seed=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
