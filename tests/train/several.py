"""Trainings of several processes for tests, by torchrun on ports of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from trained import words

ENVIRONMENT = {**os.environ, "MALLOC_TOP_PAD_": "0", "OMP_NUM_THREADS": "1"}
"""With the settings of the allocator, for which each process would start itself again."""


def several(directory: Path, processes: int = 2, *more: str, **changes: Any) -> list[str]:
    """The command that trains with `processes` processes on this machine."""
    program = words(directory, **changes)[2:]  # behind the interpreter and -m
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [*launcher, *program, *more]


def run_several(command: list[str], expect: int = 0) -> str:
    """Run it to its end and return what it printed."""

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=ENVIRONMENT)
    printed = done.stdout + done.stderr
    assert (done.returncode == 0) == (expect == 0), printed
    return printed
