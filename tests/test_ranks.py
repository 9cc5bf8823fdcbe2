"""Training by two processes of torchrun is training by one: gradients, histories, a killed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from commands import TINY, Made, refused
from launch import LIMIT, background, descendants, environment, torchrun, two_hosts
from leukoscope.train import ranks

SCRIPT = Path(__file__).with_name("ranks_script.py")
SENTENCE = "Another of the processes that train together ended"


def finished(*commands: list[str], env: dict[str, str]) -> None:
    """Run the commands at once; each must end with 0."""
    running = [
        subprocess.Popen(c, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for c in commands
    ]
    for process in running:
        said, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, said[-3000:]
        assert "Warning" not in said, said[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one` and `two`: what ranks_script.py writes, run by one process and by two."""
    folder = tmp_path_factory.mktemp("ranks")
    env = environment(LEUKOSCOPE_CACHE=str(folder / "cache"))
    finished([sys.executable, str(SCRIPT), "smear", str(folder / "smear")], env=env)
    for name in ("one", "two", "hosts"):
        (folder / name).mkdir()
    alone = [sys.executable, str(SCRIPT), str(folder / "one")]
    finished(alone, env=env)
    finished(torchrun(SCRIPT, folder / "two"), env=env)
    return folder


def apart(one: Path, other: Path) -> float:
    """The largest difference between two files' tensors, relative to each tensor's largest."""
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max() / (a[k].abs().max() + 1e-9)) for k in a)


@pytest.mark.parametrize("case", ["cnn", "mixup", "retinanet", "centernet"])
def test_gradients_and_statistics_are_those_of_one_process(folder: Path, case: str) -> None:
    """Five images, three and two: dropout, stochastic depth, normalisation, mixup, box losses."""
    name = f"gradients-{case}.safetensors"
    assert apart(folder / "one" / name, folder / "two" / name) < 1e-10


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [("head", 1e-5), ("all", 0.02), ("mixup", 0.02), ("last-then-all", 0.02), ("averaged", 0.02)],
)
def test_histories_are_those_of_one_process(folder: Path, case: str, tolerance: float) -> None:
    """Single precision, and Adam, whose first steps are the sign of a gradient however small."""
    one, two = (pd.read_csv(folder / n / f"{case}-0" / "history.csv") for n in ("one", "two"))
    columns = ["train_loss", "validation_loss"]
    np.testing.assert_allclose(two[columns], one[columns], rtol=tolerance)


def test_two_processes_resumed_are_bit_identical(folder: Path) -> None:
    assert apart(folder / "two" / "all.safetensors", folder / "two" / "resumed.safetensors") == 0


def test_shares_are_whole_blocks_and_miss_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world", lambda: 3)
    for n, block in ((5, 1), (130, 64), (200, 64), (1, 64)):
        shares = []
        for number in range(3):
            monkeypatch.setattr(ranks, "rank", lambda number=number: number)
            shares.append(ranks.share(n, block))
        assert np.concatenate(shares).astype(int).tolist() == list(range(n))
        assert all(len(s) == 0 or s[0] % block == 0 for s in shares)


def test_alone_nothing_is_changed() -> None:
    value = torch.ones(3)
    assert ranks.total(value) is value
    assert ranks.same([1.5]) == [1.5]
    module = torch.nn.Linear(1, 1)
    assert ranks.parallel(module) is module
    assert ranks.share(4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_normalisation_alone_is_torchs(layout: torch.memory_format, affine: bool) -> None:
    """Results, running statistics and gradients; of one process the whole batch is its own."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images, seen = drawn(5, 3, 4, 6).contiguous(memory_format=layout) + 7, drawn(5, 3, 4, 6)
    weights = (drawn(3), drawn(3)) if affine else (None, None)
    found = []
    for normalise in (ranks._batch_norm, torch.nn.functional.batch_norm):
        given = [images.clone().requires_grad_()]
        given += [w.clone().requires_grad_() for w in weights if w is not None]
        running = [torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
        normed = normalise(given[0], *running, *(given[1:] or weights), training=True)
        normed.backward(seen)
        found.append([normed.detach(), *running, *(g.grad for g in given)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_normalisation_of_halves() -> None:
    layer = torch.nn.BatchNorm2d(3)
    halves = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    given = (layer.running_mean, layer.running_var, layer.weight, layer.bias)
    normed = ranks._batch_norm(halves, *given)
    normed.sum().backward()
    assert normed.dtype == halves.grad.dtype == torch.bfloat16


def trains(made: Made, out: Path, *more: str) -> list[str]:
    return torchrun(
        "-m", "leukoscope", "train", "lightweight-cnn", made.cells, "-o", out, "--split",
        made.split, *TINY, "--set", "training.epochs=30", "--set", "training.patience=30", *more,
    )  # fmt: skip


def test_a_killed_process_stops_the_run_with_one_sentence_and_it_resumes(
    made: Made, tmp_path: Path
) -> None:
    env, out = environment(), tmp_path / "run"
    history = out / "history.csv"
    with (
        (tmp_path / "said").open("w+") as said,
        subprocess.Popen(trains(made, out), env=env, stderr=said, text=True) as launcher,
    ):
        until = time.monotonic() + LIMIT
        while not history.is_file() and launcher.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(descendants(launcher.pid)[-1], signal.SIGKILL)
        assert launcher.wait(LIMIT) != 0
        said.seek(0)
        text = said.read()
    assert text.count(SENTENCE) == 1, text
    assert "--resume" in text
    assert "bug in Leukoscope" not in text
    assert not (out / "metrics.json").exists()
    done = len(pd.read_csv(history))
    assert 1 <= done < 30
    finished([*trains(made, out), "--resume"], env=env)
    assert pd.read_csv(history)["epoch"].tolist() == list(range(1, 31))
    assert (out / "report.html").is_file()


def test_what_goes_wrong_is_said_once(made: Made, tmp_path: Path) -> None:
    asked = trains(made, tmp_path / "run", "--set", "training.batch_size=1")
    asked[asked.index(str(made.split))] = str(tmp_path / "none.parquet")
    found = subprocess.run(
        asked, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert found.returncode != 0
    assert sum("batch_size" in line for line in found.stderr.splitlines()) == 1, found.stderr
    assert not (tmp_path / "run").exists()


def test_other_commands_are_not_for_torchrun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without torchrun" in refused("index", tmp_path, "-o", tmp_path / "cells.parquet")


def test_two_hosts_train_as_one(folder: Path) -> None:
    """A process in each of two network namespaces, which share no loopback."""
    with two_hosts() as (here, there, first, second):
        env = environment(LEUKOSCOPE_CACHE=str(folder / "cache"), GLOO_SOCKET_IFNAME="cable")
        meet = ("--nnodes", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:29400")
        # Which of them is HEAD is said: torchrun guesses it from what the host's name resolves to.
        head = (*meet, "--local-addr", first, "--rdzv-conf", "is_host=1")
        worker = (*meet, "--local-addr", second, "--rdzv-conf", "is_host=0")
        other = torchrun(SCRIPT, folder / "hosts", "gradients", nodes=worker)
        with background([*there, *other], env):
            own = torchrun(SCRIPT, folder / "hosts", "gradients", nodes=head)
            finished([*here, *own], env=env)
    name = "gradients-cnn.safetensors"
    assert apart(folder / "one" / name, folder / "hosts" / name) < 1e-10
