"""Coverage-guided fuzzing of one reader: python tests/fuzz/run.py READER [--minutes 30]

Needs atheris (pip install -c constraints.txt -e '.[fuzz]'; there are wheels for Linux on x86-64 and
for macOS). It starts from the seeds and the kept corpus. What it finds is written to --work
(default fuzzing/READER) and stops it: repair the cause, then keep the smallest input that shows it
in tests/fuzz/corpus/READER/, where `make test` replays it:

    python tests/fuzz/run.py READER --minimise fuzzing/READER/crash-… --keep short-name
    python tests/fuzz/run.py READER --merge     # inputs of --work that reach new code, each kept
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import logging
import os
import platform
import random
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import atheris

SECONDS = 10  # an input may take, on a busy machine, before it counts as a hang
MEMORY = 2048  # MB the process may use
LONGEST = 16384  # bytes of an input

# ruff: noqa: E402 - what is to be watched is imported inside the block
with atheris.instrument_imports(include=["leukoscope", "PIL", "tomllib"]):
    from readers import CORPUS, READERS, judge
from mutate import mutate
from seeds import SEEDS

endings: Counter[str] = Counter()
"""How inputs ended: read, or refused."""


def one(reader: str, data: bytes) -> None:
    """The property of one input; what it raises is a finding."""
    endings["refused" if judge(reader, data) else "read"] += 1


def changed(data: bytes, longest: int, seed: int) -> bytes:
    """libFuzzer's own change of bytes, or one that keeps the format whole."""
    rng = random.Random(seed)
    if rng.random() < 0.4:
        return atheris.Mutate(data, longest)
    made = mutate(data, rng)
    return made if len(made) <= longest else atheris.Mutate(data, longest)


def fuzz(reader: str, minutes: float, work: Path) -> None:
    """Fuzz until `minutes` of running, or a finding; ends the process."""
    ran, started = 0.0, time.monotonic()
    last = started

    def step(data: bytes) -> None:
        nonlocal ran, last
        now = time.monotonic()
        # A process that was stopped doesn't fuzz: such gaps don't count.
        ran += now - last if now - last < SECONDS else 0.0
        last = now
        if ran >= 60 * minutes:
            print(json.dumps(_about(reader, ran, now - started)), flush=True)
            os.kill(os.getpid(), signal.SIGUSR1)  # libFuzzer says its figures and ends
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        one(reader, data)
        signal.setitimer(signal.ITIMER_PROF, 0)

    one(reader, SEEDS[reader]()[0])  # whatever is imported late, before the clock runs
    begin = work / "seeds"
    begin.mkdir(parents=True, exist_ok=True)
    (work / "corpus").mkdir(exist_ok=True)
    for data in SEEDS[reader]():
        (begin / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    kept = CORPUS / reader
    arguments = [
        sys.argv[0], str(work / "corpus"), str(begin), *([str(kept)] if kept.is_dir() else []),
        f"-artifact_prefix={work}/", f"-max_len={LONGEST}", f"-rss_limit_mb={MEMORY}",
        "-timeout=900", "-close_fd_mask=2", "-len_control=0",
        "-print_final_stats=1", "-reduce_inputs=0",
    ]  # fmt: skip
    atheris.Setup(arguments, step, custom_mutator=changed)
    atheris.Fuzz()


def _about(reader: str, ran: float, wall: float) -> dict[str, object]:
    """What a record says beside libFuzzer's own figures."""
    return {
        "reader": reader, "ran_s": round(ran), "wall_s": round(wall), **endings,
        "cpu_s": round(time.process_time()), "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "atheris": version("atheris"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }  # fmt: skip


def _hang(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s of processor time")


def finding(reader: str, data: bytes) -> str:
    """What an input shows, as type and place; "" where nothing."""
    try:
        judge(reader, data)
    except Exception as problem:  # noqa: BLE001 - any is a finding
        place = traceback.extract_tb(problem.__traceback__)[-1]
        return f"{type(problem).__name__} {place.filename}:{place.lineno}"
    return ""


def minimised(reader: str, data: bytes) -> bytes:
    """The input with every part taken out that its finding doesn't need."""
    wanted, size = finding(reader, data), len(data) // 2
    while wanted and size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if finding(reader, shorter) == wanted:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def main() -> None:
    about = argparse.ArgumentParser(description="Fuzz one reader.")
    about.add_argument("reader", choices=READERS)
    about.add_argument("--minutes", type=float, default=30)
    about.add_argument("--work", type=Path, help="default: fuzzing/READER")
    about.add_argument("--minimise", type=Path, metavar="FILE", help="a finding to keep")
    about.add_argument("--keep", default="", help="its name in the corpus")
    given = about.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # as the command line has it
    signal.signal(signal.SIGPROF, _hang)
    if given.minimise:
        small = minimised(given.reader, given.minimise.read_bytes())
        path = CORPUS / given.reader / (given.keep or given.minimise.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(small)
        print(f"{path}: {len(small)} bytes, {finding(given.reader, small) or 'no finding'}")
        return
    fuzz(given.reader, given.minutes, given.work or Path("fuzzing") / given.reader)


if __name__ == "__main__":
    main()
