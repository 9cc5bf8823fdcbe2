"""Starts review servers from a process that has imported everything already, a line of JSON each:

    {"arguments": [...], "log": path, "anew": false}

Each is a process in a group of its own, as the command itself would be (`anew`: it is the command,
imports and all). Answers with its id; who dies is forgotten at once, so that an id that is gone is
dead.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import leukoscope.review.server  # noqa: F401  (what takes the time)
from leukoscope.cli.main import run

PROGRAM = "from leukoscope.cli.main import run; run()"


def main() -> None:
    """Until stdin ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _become(**json.loads(line))
        print(pid, flush=True)  # noqa: T201


def _become(arguments: list[str], log: str, anew: bool) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY), stream)
    if anew:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, *arguments])
    sys.argv = ["leukoscope", *arguments]
    run()


if __name__ == "__main__":
    main()
