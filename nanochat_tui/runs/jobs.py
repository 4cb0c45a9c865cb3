"""Jobs of clusters that train: what was submitted for a run directory, and how it is asked about and ended.

The run directory stays the contract: the job writes it as a trainer started here would, on a file system that both see
(Slurm) or a mounted bucket (SkyPilot). What is added is `job.json`: the system, the job's id, what was submitted.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.runs.directory import read_json, write_json
from nanochat_tui.text import display_safe

JOB_FILE = "job.json"
PATIENCE = 120.0
"""Seconds that a cluster's own command may take to answer."""
System = Literal["slurm", "sky"]
Phase = Literal["waiting", "running", "ended", "unknown"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a job asks its cluster for."""

    name: str
    nodes: int = 1
    processes: int = 1
    """Trainers on each node: one per GPU, or one."""
    gpus: str | None = None
    """GPUs of each node, as the cluster names them: 8, h100:8, H100:8."""
    cpus: int | None = None
    time: str | None = None
    """Longest time, as Slurm writes it: 24:00:00."""
    setup: tuple[str, ...] = ()
    """Shell lines before the training."""
    options: tuple[str, ...] = ()
    """Further options of the cluster, as `partition=long` for Slurm or `use_spot=true` for SkyPilot's resources."""
    mounts: tuple[str, ...] = ()
    """SkyPilot: PATH=SOURCE, such as /runs=s3://bucket."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was submitted."""

    system: System
    id: str
    name: str
    script: str
    submitted: float


@dataclass(frozen=True, slots=True)
class JobState:
    """What the cluster says of a job."""

    phase: Phase
    word: str
    """In the cluster's own words, such as PENDING."""
    detail: str = ""
    """Why it waits or where it runs."""


def write_job(directory: Path, job: Job) -> None:
    """Record a job in its run directory."""
    write_json(directory / JOB_FILE, asdict(job))


def read_job(directory: Path) -> Job:
    """The job of a run directory. Raises UserError when none was submitted for it."""
    shown = display_safe(str(directory))
    if not (directory / JOB_FILE).is_file():
        raise UserError(f"no job was submitted for {shown}; submit one with nanochat-train submit")
    found = read_json(directory / JOB_FILE)
    try:
        job = Job(**found)
    except TypeError:
        raise UserError(f"{shown}/{JOB_FILE} is not what submit wrote; submit the job again") from None
    if job.system not in ("slurm", "sky") or not all(isinstance(v, str) for v in (job.id, job.name, job.script)):
        raise UserError(f"{shown}/{JOB_FILE} is not what submit wrote; submit the job again")
    return job


def tell(command: Sequence[str]) -> str:
    """Run a cluster's command and return what it printed. Raises UserError in its own last words when it fails."""
    program = command[0]
    if shutil.which(program) is None:
        raise UserError(
            f"{program} is not on this machine; submit where it is, or write the job with --dry-run and take it there"
        )
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{program} did not answer within {PATIENCE:g} seconds; ask again") from None
    except OSError as error:
        raise UserError(f"cannot run {program}: {plain_reason(error)}") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        words = display_safe(said[0] if said else "it said nothing", 300)
        raise UserError(f"{program} refused: {words}")
    return done.stdout


def prepare_folder(directory: Path) -> None:
    """Make a run directory for a job. Raises UserError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {display_safe(str(directory))}: {plain_reason(error)}; name another place"
        ) from None


def remember(directory: Path, system: System, identifier: str, name: str, script: Path) -> Job:
    """Record and return a job that was submitted now."""
    job = Job(system, identifier, name, str(script), time.time())
    with contextlib.suppress(UserError):
        write_job(directory, job)
    return job
