"""Training that is killed at any moment, on a full disk, with damaged checkpoints: it must end, by
--resume, with the very bytes of a run that nothing disturbed.

    python benchmarks/kills_training.py --kills 20

A run is `leukoscope train` with the tiny settings below. Starting Python with torch takes longer
than such a run, so most are forked from one process that has imported everything and run nothing;
`--real` adds some that are started as a user would. A kill is SIGKILL to the process group: at a
random moment of the time that the run takes undisturbed, or at one of its writes, counted: before
the file is flushed (and cut in half, as if writing had got no further), before it gets its name,
just after. What it leaves is resumed, killed again up to three times, resumed to its end and
compared. In every sixth trial the newest checkpoint is damaged, in another one a second run shares
the cache, and of another one the export is killed as well. `--disks` trains on file systems too
small for it, gives them room, and resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process must not meet another's threads
sys.path.insert(0, str(Path(__file__).parent))

import pandas as pd
from common import machine, markdown

from leukoscope import api
from leukoscope.cli import main as console
from leukoscope.data import synthetic
from leukoscope.models.backbones import backbones
from leukoscope.models.detectors import RetinaNet
from leukoscope.models.weights import BODIES

# RetinaNet as it is, around a smaller body and narrower, so that it can be run a hundred times.
BODIES["tiny_retinanet"] = "test_resnet"
backbones.register("tiny_retinanet")(functools.partial(RetinaNet, width=16))

FEW = (
    "training.batch_size=4", "training.steps_per_epoch=2", "training.validate_every=0",
    "classical.forest_trees=5", "classical.folds=2", "split.clean=60/20/20", "training.epochs=3",
)  # fmt: skip
PHASES = "training.phases=[{trained='head',epochs=2},{trained='all',unfreeze_every=1,epochs=3}]"
FAMILIES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "convnext-aml": ("convnext-aml", "convnext-base", (
        "model.backbone=test_convnext", PHASES, "training.averaging={start=2}",
        "preprocessing=[{step='resize',size=32},{step='equalise_luminance'}]")),
    "logmh-transfer, classical": ("logmh-transfer", "svm", (
        "features.networks=[{backbone='test_efficientnet',layer='gap',weights='none'}]",
        "preprocessing=[{step='resize',size=32},{step='logmh'}]")),
    "logmh-transfer, transfer": ("logmh-transfer", "inception-resnet-v2", (
        "model.backbone=test_resnet", "split.folds=1",
        "preprocessing=[{step='resize',size=32},{step='logmh'}]")),
    "logmh-transfer, cross-validated": ("logmh-transfer", "alexnet", (
        "model.backbone=cnn", "split.folds=2", "training.epochs=2",
        "preprocessing=[{step='resize',size=32},{step='logmh'}]")),
    "logmh-transfer, detector": ("logmh-transfer", "retinanet", (
        "model.backbone=tiny_retinanet", "split.folds=1",
        "preprocessing=[{step='resize',size=32},{step='logmh'}]")),
    "otsu-efficientnet": ("otsu-efficientnet", "segmented", (
        "model.backbone=test_efficientnet",
        "training.phases=[{trained='head',epochs=2},{trained='last',layers=4,epochs=2}]",
        "preprocessing=[{step='resize',size=32},{step='otsu_mask'}]")),
    "lightweight-cnn, frozen": ("lightweight-cnn", "mobilenetv2", (
        "model.backbone=test_efficientnet", "views.count=3",
        "preprocessing=[{step='resize',size=32},{step='stretch_contrast'}]")),
    "lightweight-cnn, from scratch": ("lightweight-cnn", "cnn", (
        "views.count=3", "preprocessing=[{step='resize',size=32}]")),
    "hybrid-stacking": ("hybrid-stacking", "hybrid", (
        "features.networks=[{backbone='test_resnet',layer='gap',weights='none'},"
        "{backbone='cnn',layer='gap',weights='none'}]", "training.epochs=2",
        "preprocessing=[{step='resize',size=32},{step='hsv_mask'}]")),
}  # fmt: skip
HOW = ("half written", "before it has its name", "after it has it")
KILLS = ("at a random moment", *(f"at a write, {how}" for how in HOW), "of a process of its own")
HEAD = ("family", "number", "undisturbed, s", "writes", "kills", "of them while resuming",
        "checkpoint damaged", "said so", "run beside it", "export killed", "disk full", "identical",
        "not identical")  # fmt: skip
WAIT = 600  # seconds after which a run counts as hanging


@dataclass(frozen=True)
class Kill:
    """When a process ends: `after` seconds, at its `write`-th write (in a way of HOW), or, of
    neither, never."""

    after: float | None = None
    write: int = 0
    how: int = 0


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), what it said, how long it took,
    how many writes it made."""

    code: int
    err: str
    seconds: float
    writes: int = 0


@dataclass
class Tally:
    """What was done to one family, and what came of it."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return sum(self.counts[what] for what in KILLS)


@dataclass(frozen=True)
class Place:
    """Where a trial's files lie; `cells` is what all are trained on."""

    folder: Path
    cells: Path

    @property
    def expected(self) -> Path:
        """The undisturbed run's `hashes`; a file of the folder above."""
        return self.folder.parent / "undisturbed.json"

    def command(self, family: str, out: str = "run", *, resume: bool = False) -> list[str]:
        recipe, arm, settings = FAMILIES[family]
        given = [part for setting in (*FEW, *settings) for part in ("--set", setting)]
        return ["train", recipe, str(self.cells), "-o", str(self.folder / out), "--arm", arm,
                "--weights", "none", *given, *(["--resume"] if resume else [])]  # fmt: skip


# --- processes ----------------------------------------------------------------------------------


def forked(arguments: Sequence[str], place: Place, kill: Kill = Kill()) -> Callable[[], Ended]:
    """Run `leukoscope ARGUMENTS` in a child of this process; a function that waits for its end."""
    log = Path(tempfile.mkdtemp(dir=place.expected.parent, prefix="log-"))
    (log / "err").touch()  # the kill may come before it is opened
    sys.stdout.flush()
    began = time.monotonic()
    child = os.fork()
    if not child:
        _child(arguments, place, kill, log)
    return lambda: _wait(child, kill, log, began)


def _child(arguments: Sequence[str], place: Place, kill: Kill, log: Path) -> None:
    code = 1
    try:
        os.setsid()
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT, 0o666), number)
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        os.environ["LEUKOSCOPE_CACHE"] = str(place.folder / "cache")
        written = _aim(kill)
        sys.argv = ["leukoscope", *arguments]
        try:
            console.run()
        except SystemExit as ended:
            code = int(ended.code or 0)
        (log / "writes").write_text(str(written[0]))
        (log / "modules").write_text("\n".join(sys.modules))
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - a child must never go on as its parent
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _aim(kill: Kill) -> list[int]:
    """Count this process's writes, and end it at the one that is meant."""
    written = [0]
    sync, replace = os.fsync, os.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fsync(handle: int) -> None:
        if written[0] + 1 == kill.write and kill.how == 0:
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        sync(handle)

    def renamed(source: Any, target: Any, **more: Any) -> None:
        written[0] += 1
        if written[0] == kill.write and kill.how <= 1:
            die()
        replace(source, target, **more)
        if written[0] == kill.write:
            die()

    os.fsync, os.replace = fsync, renamed
    return written


def _wait(child: int, kill: Kill, log: Path, began: float) -> Ended:
    """Wait for the end, and bring it about where its time has come."""
    until = began + (WAIT if kill.after is None else kill.after)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() >= until:
            os.kill(child, signal.SIGKILL)  # it is all of its group
            until = float("inf")
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    counted = log / "writes"
    writes = int(counted.read_text()) if counted.is_file() else 0
    return Ended(code, (log / "err").read_text(), time.monotonic() - began, writes)


def real(arguments: Sequence[str], place: Place, kill: Kill = Kill()) -> Ended:
    """Run `leukoscope ARGUMENTS` as a user would; `kill.write`: once so many half-written files
    have been seen."""
    start = "import kills_training; from leukoscope.cli.main import run; run()"
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", start, *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"LEUKOSCOPE_CACHE": str(place.folder / "cache"),
                          "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    seen: set[str] = set()
    while process.poll() is None:
        now = time.monotonic() - began
        if kill.write:
            seen |= {str(p) for p in (place.folder / "run").rglob(".part-*")}
        if now > (WAIT if kill.after is None else kill.after) or 0 < kill.write <= len(seen):
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0 if kill.write else 0.01)
    _, err = process.communicate()
    return Ended(process.returncode, err, time.monotonic() - began)


# --- what must be the same ----------------------------------------------------------------------


def hashes(folder: Path) -> dict[str, str]:
    """A hash of every file but for times; of a report, which is full of them, that it is there."""
    return {
        str(path.relative_to(folder)): ""
        if path.name in {"report.html", "report.pdf"}
        else hashlib.sha256(_timeless(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _timeless(path: Path) -> bytes:
    """The file's bytes without dates, seconds and the command, which alone may differ."""
    if path.suffix == ".csv" and path.name.startswith("history"):
        return pd.read_csv(path).drop(columns="seconds").to_csv().encode()
    if path.name in {"contract.json", "environment.json"}:
        values = json.loads(path.read_bytes())
        # `sha256` is the contract's own seal, over its date too.
        for key in ("created", "started", "seconds", "training_seconds", "command", "sha256"):
            values.pop(key, None)
        return json.dumps(values, sort_keys=True).encode()
    return path.read_bytes()


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# --- trials -------------------------------------------------------------------------------------


@contextlib.contextmanager
def trial(work: Path, cells: Path, tally: Tally, name: str) -> Iterator[Place]:
    """A folder of its own, kept only where something was wrong."""
    folder, before = work / name.replace("/", "-").replace(" ", "-"), len(tally.wrong)
    folder.mkdir()
    yield Place(folder, cells)
    if len(tally.wrong) == before:
        shutil.rmtree(folder)


def killed_and_resumed(
    family: str, place: Place, undisturbed: Ended, rng: random.Random, tally: Tally, *,
    beside: bool, damage: bool,
) -> None:  # fmt: skip
    """Up to four kills on the way to the end of one run.

    beside: another run of the same shares the cache from the start, and ends as well. damage: the
    newest checkpoint is damaged after the first kill.
    """
    other = forked(place.command(family, "beside"), place) if beside else None
    left, hits = 1.0, 0
    for _ in range(1 if damage else 4):
        # Damage needs something to damage: a kill in the second half of the run.
        share = left * (rng.uniform(0.4, 0.9) if damage else rng.random())
        write = Kill(write=1 + int(share * undisturbed.writes), how=rng.randrange(3))
        kill = write if rng.random() < 0.5 else Kill(after=share * undisturbed.seconds)
        ended = forked(_resumed(family, place), place, kill)()
        if ended.code != -signal.SIGKILL:
            break  # it was faster than that, or has nothing left to write
        tally.counts["at a random moment" if kill.after else f"at a write, {HOW[kill.how]}"] += 1
        tally.counts["while resuming"] += hits > 0
        left, hits = max(0.2, left - share), hits + 1
    harmed = _damage(place.folder / "run", rng) if damage and hits else ""
    ended = forked(_resumed(family, place), place)()
    tally.counts["checkpoint damaged"] += bool(harmed)
    tally.counts["damage said"] += bool(harmed) and harmed in ended.err
    judge(place, "run", ended, tally)
    if other is not None:
        tally.counts["run beside it"] += 1
        judge(place, "beside", other(), tally)


def _resumed(family: str, place: Place) -> list[str]:
    """The command that a user would give now."""
    return place.command(family, resume=(place.folder / "run").exists())


def _damage(run: Path, rng: random.Random) -> str:
    """Damage the newest checkpoint of an epoch, or of the best one; its name, "" without any."""
    kind = rng.choice(("epoch-*", "phase-*"))
    found = sorted(run.rglob(f"{kind}.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        return ""
    whole = found[-1].read_bytes()
    place = rng.randrange(len(whole))
    flipped = whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :]
    found[-1].write_bytes(rng.choice((b"", whole[:place], flipped, bytes(len(whole)))))
    return found[-1].name


def judge(place: Place, out: str, ended: Ended, tally: Tally) -> None:
    """Compare a finished run with the undisturbed one."""
    wrong = [f"exit code {ended.code}: {ended.err}"] if ended.code else []
    if not wrong:
        wrong = differences(json.loads(place.expected.read_text()), hashes(place.folder / out))
    tally.counts["runs compared"] += 1
    if wrong:
        tally.wrong.append(f"{place.folder / out}: {', '.join(wrong)}")


def killed_export(place: Place, rng: random.Random, tally: Tally) -> None:
    """An export killed at each of its writes in turn, done again, and compared."""
    out, other = place.folder / "bundle", place.folder / "other-bundle"
    export = ["export", str(place.folder / "run"), "-o"]
    writes = forked([*export, str(out)], place)().writes
    for number in range(1, writes + 1):
        kill = Kill(write=number, how=rng.randrange(3))
        ended = forked([*export, str(other)], place, kill)()
        tally.counts["export killed"] += ended.code == -signal.SIGKILL
    ended = forked([*export, str(other)], place)()
    if ended.code or (wrong := differences(hashes(out), hashes(other))):
        tally.wrong.append(f"{other}: {ended.err or wrong}")


def full_disk(family: str, place: Place, size: int, tally: Tally) -> None:
    """Train on a file system of `size` bytes, run and cache both; then give it room and resume."""
    with disk(place.folder, size):
        ended = forked(place.command(family), place)()
        full = (ended.code, ended.err.count("\n")) == (2, 1) and "the disk is full" in ended.err
        parts = [str(path) for path in place.folder.rglob(".part-*")]
        if parts or (ended.code and not full):
            tally.wrong.append(f"{size} bytes, exit {ended.code}, left {parts}: {ended.err}")
        subprocess.run(["mount", "-o", "remount,size=2g", str(place.folder)], check=True)
        tally.counts["disk full"] += full
        judge(place, "run", forked(_resumed(family, place), place)(), tally)


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """A small file system mounted on a folder; for root."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- all of it ----------------------------------------------------------------------------------


def survive(family: str, number: int, work: Path, cells: Path, args: argparse.Namespace) -> Tally:
    """All trials of one family."""
    tally = Tally()
    folder = work / str(number)
    place = Place(folder / "undisturbed", cells)
    place.folder.mkdir(parents=True)
    undisturbed = forked(place.command(family), place)()
    if undisturbed.code:
        raise SystemExit(f"{family} doesn't run: {undisturbed.err}")
    place.expected.write_text(json.dumps(hashes(place.folder / "run")))
    size = sum(path.stat().st_size for path in place.folder.rglob("*") if path.is_file())
    shutil.rmtree(place.folder)
    tally.counts["writes"], tally.seconds = undisturbed.writes, undisturbed.seconds
    attempt = itertools.count()
    while tally.kills < args.kills and not tally.wrong:
        seed = f"{args.seed}/{number}/{next(attempt)}"
        rng = random.Random(seed)
        kind = int(seed.rpartition("/")[2]) % 6
        with trial(folder, cells, tally, seed) as place:
            killed_and_resumed(family, place, undisturbed, rng, tally,
                               beside=kind == 2, damage=kind == 1)  # fmt: skip
            if kind == 3 and not tally.wrong:
                killed_export(place, rng, tally)
    for each in range(args.disks):
        seed = f"{args.seed}/{number}/disk {each}"
        # Where a run's first writes are, everything is small: half of the disks are.
        share = random.Random(seed).random() ** (1 + each % 2 * 2)
        with trial(folder, cells, tally, seed) as place:
            full_disk(family, place, 4096 + int(share * size), tally)
    for each in range(args.real):
        seed = f"{args.seed}/{number}/real {each}"
        with trial(folder, cells, tally, seed) as place:
            really_killed(family, place, undisturbed, random.Random(seed), tally)
    shutil.rmtree(folder) if not tally.wrong else None
    return tally


def really_killed(
    family: str, place: Place, undisturbed: Ended, rng: random.Random, tally: Tally
) -> None:
    """A process of its own, killed once a random number of half-written files has been seen; its
    resumption, killed at a random moment; resumed to the end."""
    for kill in (
        Kill(write=rng.randint(1, max(1, undisturbed.writes // 4))),
        Kill(after=rng.uniform(1, 5 + undisturbed.seconds)),
    ):
        ended = real(_resumed(family, place), place, kill)
        tally.counts["of a process of its own"] += ended.code == -signal.SIGKILL
    judge(place, "run", real(_resumed(family, place), place), tally)


def preload(work: Path, cells: Path) -> None:
    """Import here what a run imports, so that forked ones needn't."""
    place = Place(work / "first", cells)
    place.folder.mkdir()
    forked(place.command("hybrid-stacking"), place)()
    for name in next(work.glob("log-*/modules")).read_text().split():
        if name.partition(".")[0] not in {"__main__", "kills_training"}:
            with contextlib.suppress(Exception):  # some can't be imported by their name
                importlib.import_module(name)
    shutil.rmtree(place.folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="of each family, at least")
    parser.add_argument("--disks", type=int, default=0, help="full disks of each family (root)")
    parser.add_argument("--real", type=int, default=0, help="trials in processes of their own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", default=";".join(FAMILIES), help="separated by ;")
    args = parser.parse_args()
    began = time.monotonic()
    rows, wrong, total = [], [], Counter[str]()
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    synthetic.make(work / "smear", images=60, size=48, patients=12)
    os.environ["LEUKOSCOPE_CACHE"] = str(work / "cache")
    api.index(work / "smear" / "cells.csv", work / "cells.parquet")
    preload(work, work / "cells.parquet")
    for family in args.families.split(";"):
        number = list(FAMILIES).index(family)
        tally = survive(family, number, work, work / "cells.parquet", args)
        rows.append(row(family, number, tally))
        print(" | ".join(map(str, rows[-1])), file=sys.stderr, flush=True)
        wrong += tally.wrong
        total += tally.counts
    print(markdown(HEAD, rows))
    print(
        f"\n{sum(n for what, n in total.items() if what in KILLS)} kills; "
        + "; ".join(f"{what}: {n}" for what, n in total.items() if what != "writes")
    )
    print(f"\n`--seed {args.seed}`; {time.monotonic() - began:.0f} s; {machine('torch', 'timm')}")
    for each in wrong:
        print(f"WRONG: {each}")
    if not wrong:
        shutil.rmtree(work)
    return bool(wrong)


def row(family: str, number: int, tally: Tally) -> list[object]:
    counts = tally.counts
    return [family, number, f"{tally.seconds:.1f}", counts["writes"], tally.kills,
            counts["while resuming"], counts["checkpoint damaged"], counts["damage said"],
            counts["run beside it"], counts["export killed"], counts["disk full"],
            counts["runs compared"] - len(tally.wrong), len(tally.wrong)]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
