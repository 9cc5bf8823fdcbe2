"""A Ray cluster of two real workers gives the bytes that this machine gives, also as one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from commands import TINY, Made, refused
from launch import LIMIT, Cluster, background, called, descendants, ray_head, two_hosts
from leukoscope import cluster
from leukoscope.errors import InputError, UnknownNameError


@pytest.fixture(scope="module")
def workers() -> Iterator[Cluster]:
    """Two workers on this machine."""
    with ray_head("--num-cpus", 2) as head:
        yield head


def leukoscope(
    on: Cluster, *arguments: object, within: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    command = [*within, sys.executable, "-m", "leukoscope", *map(str, arguments)]
    return subprocess.Popen(
        [*command, "--engine", on.address], env=on.environment | _own(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _own() -> dict[str, str]:
    return {"LEUKOSCOPE_CACHE": os.environ["LEUKOSCOPE_CACHE"]}


def finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out + err


def test_index_and_predict_give_the_same_bytes(
    made: Made, workers: Cluster, tmp_path: Path
) -> None:
    found, said = tmp_path / "cells.parquet", tmp_path / "far.csv"
    both = [
        leukoscope(workers, "index", made.smear / "cells.csv", "-o", found),
        leukoscope(workers, "predict", made.bundle, made.smear / "images", "-o", said),
    ]
    for process in both:
        finish(process)
    pd.testing.assert_frame_equal(pd.read_parquet(found), pd.read_parquet(made.cells))
    local = tmp_path / "near.csv"
    subprocess.run(
        [sys.executable, "-m", "leukoscope", "predict", made.bundle, made.smear / "images", "-o",
         local], check=True, env=workers.environment, capture_output=True,
    )  # fmt: skip
    assert said.read_bytes() == local.read_bytes()


def test_features_of_a_frozen_backbone_are_the_same_bytes(
    made: Made, workers: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = ["--arm", "mobilenetv2", *TINY[2:], "--weights", "none"]
    kept = []
    for name, more in (("near", []), ("far", ["--engine", workers.address])):
        monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / f"{name}-cache"))
        command = [sys.executable, "-m", "leukoscope", "train", "lightweight-cnn", made.cells,
                   "-o", tmp_path / name, "--split", made.split, *tiny, *more]  # fmt: skip
        subprocess.run(
            command, check=True, env=workers.environment | _own(), capture_output=True,
            timeout=LIMIT,
        )  # fmt: skip
        root = tmp_path / f"{name}-cache" / "features"
        kept.append({p.relative_to(root): p.read_bytes() for p in root.rglob("*.npy")})
    assert kept[0] == kept[1]
    assert kept[0]
    near, far = (pd.read_parquet(tmp_path / n / "predictions.parquet") for n in ("near", "far"))
    pd.testing.assert_frame_equal(near, far)


def test_a_worker_killed_midway_changes_nothing(
    made: Made, workers: Cluster, tmp_path: Path
) -> None:
    images = sorted((made.smear / "images").rglob("*.jpg")) * 30
    out = tmp_path / "far.csv"
    process = leukoscope(workers, "predict", made.bundle, *images, "-o", out)
    killed = 0
    while process.poll() is None and killed < 2:
        busy = [p for p in descendants(workers.pid) if called(p).startswith("ray::_chunk")]
        if busy:
            os.kill(busy[0], signal.SIGKILL)
            killed += 1
        time.sleep(0.2)
    finish(process)
    assert killed, "a worker was at work, and was killed"
    near = tmp_path / "near.csv"
    subprocess.run([sys.executable, "-m", "leukoscope", "predict", made.bundle, *images, "-o",
                    near], check=True, env=workers.environment, capture_output=True)  # fmt: skip
    assert out.read_bytes() == near.read_bytes()


@pytest.mark.parametrize(
    ("command", "engine", "near"),
    [("index", "rya", "'ray'"), ("predict", "ray:/host:1", "ray"), ("train", "openvino", "local"),
     ("predict", "onnxruntim", "'onnxruntime'"), ("index", "ray://host", "'ray://HOST:PORT'")],
)  # fmt: skip
def test_an_unknown_engine_is_refused_with_the_nearest(
    made: Made, tmp_path: Path, command: str, engine: str, near: str
) -> None:
    given = {"index": (made.smear,), "predict": (made.bundle, made.smear),
             "train": ("lightweight-cnn", made.cells)}[command]  # fmt: skip
    said = refused(command, *given, "-o", tmp_path / "out.csv", "--engine", engine)
    assert near in said
    assert engine in said


def test_addresses() -> None:
    for good in ("ray", "ray://head:10001", "ray://10.0.0.1:1", "ray://[fe80::1]:10001"):
        assert cluster.is_address(good)
    assert not cluster.is_address("local")
    for bad in ("ray://", "ray://a b:1", "ray://head:x", "http://head:1", "", "RAY"):
        with pytest.raises(UnknownNameError):
            cluster.is_address(bad)


def test_a_worker_of_other_versions_is_refused() -> None:
    with pytest.raises(InputError, match=r"numpy .* for 0\.0\.1"):
        cluster._check(cluster._versions() | {"numpy": "0.0.1"})


@pytest.mark.parametrize("broken", [1, 4, 5])
def test_a_connection_that_the_head_breaks_off_is_tried_again(broken: int) -> None:
    class Head:
        tried = 0

        def init(self, **_: object) -> None:
            self.tried += 1
            if self.tried <= broken:
                raise ConnectionAbortedError("Initialization failure\nits server is a zombie")

    head = Head()
    if broken < cluster.CONNECTIONS:
        cluster._connect(head, "ray://head:1")
        assert head.tried == broken + 1
    else:
        with pytest.raises(InputError, match="ray://head:1: its server is a zombie"):
            cluster._connect(head, "ray://head:1")


def test_two_hosts_work_as_one(made: Made, tmp_path: Path) -> None:
    """The head, without a core, in one network namespace; the worker, with two, in another."""
    pytest.importorskip("ray", reason="RAY ABSENT: pip install 'leukoscope[ray]'")
    out, local = tmp_path / "far.csv", tmp_path / "near.csv"
    with (
        two_hosts() as (here, there, first, second),
        ray_head("--num-cpus", 0, host=first, within=here) as head,
    ):
        joins = [*there, sys.executable, "-m", "ray.scripts.scripts", "start", "--block",
                 "--disable-usage-stats", "--address", head.environment["RAY_ADDRESS"],
                 "--node-ip-address", second, "--num-cpus", "2", "--object-store-memory",
                 "100000000", "--min-worker-port", "0", "--max-worker-port", "0"]  # fmt: skip
        with background(joins, head.environment):
            finish(leukoscope(head, "predict", made.bundle, made.smear / "images", "-o", out,
                              within=here))  # fmt: skip
    subprocess.run([sys.executable, "-m", "leukoscope", "predict", made.bundle,
                    made.smear / "images", "-o", local],
                   check=True, env=os.environ | _own(), capture_output=True)  # fmt: skip
    assert out.read_bytes() == local.read_bytes()
