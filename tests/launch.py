"""Several processes and hosts of one machine: torchrun, a Ray cluster, network namespaces."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
# Seconds that a process may take, on a machine however busy.
LIMIT = 900


def torchrun(*arguments: object, nodes: tuple[object, ...] = ("--standalone",)) -> list[str]:
    """The command that starts two processes; `nodes` says where their hosts meet."""
    here = ("--nproc-per-node", 2) if nodes == ("--standalone",) else ("--nproc-per-node", 1)
    return [sys.executable, "-m", "torch.distributed.run", *map(str, (*here, *nodes, *arguments))]


def environment(**more: str) -> dict[str, str]:
    """That of this process, with one thread a process and this checkout's modules."""
    source = str(Path(__file__).resolve().parents[1] / "src")
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source} | more


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster: its address, and what reaches it."""

    address: str
    environment: dict[str, str]
    pid: int


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def ray_head(
    *arguments: object, host: str = "127.0.0.1", within: tuple[str, ...] = ()
) -> Iterator[Cluster]:
    """A Ray head with its client server; stopped, with what it started, at the end."""
    pytest.importorskip("ray", reason="RAY ABSENT: pip install 'leukoscope[ray]'")
    # Sockets' paths are short, and pytest's folders are not.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    gcs, client = free_port(), free_port()
    env = environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(24), RAY_USAGE_STATS_ENABLED="0",
        RAY_ADDRESS=f"{host}:{gcs}",
    )  # fmt: skip
    command = [
        *within, sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        "--disable-usage-stats", "--include-dashboard=false", "--node-ip-address", host,
        "--port", str(gcs), "--ray-client-server-port", str(client), "--temp-dir", folder,
        "--object-store-memory", "100000000", "--min-worker-port", "0", "--max-worker-port", "0",
        *map(str, arguments),
    ]  # fmt: skip
    with background(command, env, "Ray runtime started") as head:
        yield Cluster(f"ray://{host}:{client}", env, head.pid)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def background(
    command: list[str], env: dict[str, str], ready: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A process that has said that it is `ready`, ended with all that it started."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, env=env, stdout=said, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            until = time.monotonic() + LIMIT
            while ready not in Path(f"/proc/self/fd/{said.fileno()}").read_text():
                assert process.poll() is None, command
                assert time.monotonic() < until, command
                time.sleep(0.1)
            yield process
        finally:
            started = descendants(process.pid)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            for child in started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, 9)
            process.kill()


def descendants(pid: int) -> list[int]:
    """The processes that one started, and those that they started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def called(pid: int) -> str:
    """A process's command line, "" where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[tuple[str, ...], tuple[str, ...], str, str]]:
    """Two network namespaces joined by a cable: the prefix of commands in each, their addresses.

    Skipped, loudly, where namespaces aren't permitted or there is no iproute2.
    """
    names = [f"leuko{os.getpid()}{side}" for side in "ab"]
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable",
            "netns", names[1])  # fmt: skip
        for number, name in enumerate(names, start=1):
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        one, other = (("ip", "netns", "exec", name) for name in names)
        yield one, other, "10.77.0.1", "10.77.0.2"
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        why = getattr(problem, "stderr", "") or str(problem)
        pytest.skip(f"NO NETWORK NAMESPACES HERE: {why.strip()}")
