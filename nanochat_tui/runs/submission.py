"""Submitting trainings to a cluster from the launcher: its prefix begins with `slurm` or `sky`, then options of submit.

The work is done by `nanochat-train submit` and `job` in a process of their own, exactly as the command line that is
shown says it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.runs.jobs import JOB_FILE, PATIENCE
from nanochat_tui.text import display_safe

MODULE = "nanochat_tui.cli.train_entry"
CLUSTERS = {"slurm": "Slurm", "sky": "SkyPilot"}
"""First words of a prefix, and the systems they submit to."""
ACTIONS = {
    "status": "Ask about",
    "cancel": "Cancel",
    "requeue": "Put back into the queue",
    "logs": "Show the output of",
}
"""What can be done with a job, and how it is offered."""
MOST_JOBS = 8


def cluster_of(prefix: Sequence[str]) -> str | None:
    """Return the system that a prefix submits to, or None for a command that runs at once."""
    return CLUSTERS.get(prefix[0]) if prefix else None


def submit_command(arguments: Sequence[str], directory: Path | PurePath, prefix: Sequence[str]) -> list[str]:
    """The command that submits a training; `prefix` names the system, then options of `nanochat-train submit`."""
    words = list(arguments)
    if "--processes" in words:  # the job says how many there are
        at = words.index("--processes")
        del words[at : at + 2]
    own = ["submit", "--to", prefix[0], "--checkpoint-dir", str(directory), *prefix[1:]]
    return [sys.executable, "-m", MODULE, *own, *words]


def submit(arguments: Sequence[str], directory: Path, prefix: Sequence[str]) -> str:
    """Submit a training; return what was said of it. Raises UserError in the command's words if it is refused."""
    return _run(submit_command(arguments, directory, prefix))


def ask(directory: Path, action: str) -> str:
    """Do one of ACTIONS with the job of a run directory; return what was said. Raises UserError."""
    return _run([sys.executable, "-m", MODULE, "job", str(directory), action])


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", check=False, timeout=2 * PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"the cluster did not answer within {2 * PATIENCE:g} seconds; ask again") from None
    except OSError as error:
        raise UserError(f"the command could not be run: {plain_reason(error)}") from None
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        said = done.stderr.strip().removeprefix("error: ") or (lines[-1] if lines else "it said nothing")
        raise UserError(display_safe(said, 600))
    return "\n".join(display_safe(line, 300) for line in lines)


def submitted(root: Path) -> list[Path]:
    """Return directories in a folder of runs for which jobs were submitted, the latest first."""
    try:
        found = [(path.stat().st_mtime, path.parent) for path in root.glob(f"*/{JOB_FILE}")]
    except OSError:
        return []
    return [directory for _, directory in sorted(found, reverse=True)[:MOST_JOBS]]
