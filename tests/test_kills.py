"""Training killed at random moments ends as if it had not been; a few kills of each recipe family.

The many are recorded in docs/measured/survival-training.md.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "kills_training.py"


def test_killed_and_resumed_runs_are_bit_identical(tmp_path: Path) -> None:
    """In a process of its own: forked ones must not meet other tests' threads."""
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "2"], check=False, capture_output=True, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert int(re.search(r"^(\d+) kills", ended.stdout, re.MULTILINE)[1]) >= 18  # type: ignore[index]
    assert "WRONG" not in ended.stdout
