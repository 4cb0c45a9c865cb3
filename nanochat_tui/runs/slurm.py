"""Slurm: a batch script that trains in a run directory, and the commands that submit, watch, requeue and cancel it.

The script starts one torchrun per node. Three minutes before the time is up Slurm signals it; it then asks the trainer
to stop by the control file, and puts the job back into the queue, where it continues with `--resume auto`, as after a
node that failed or a preemption.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.runs.jobs import Job, JobState, Phase, Request, prepare_folder, remember, tell
from nanochat_tui.runs.submission import MODULE
from nanochat_tui.text import display_safe

SCRIPT = "job.sh"
WARNING_SECONDS = 180
"""Before the end of the time a job has: for a checkpoint, with torchrun's half minute for what does not end."""
_WAITING = (
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SUSPENDED",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
)
_RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OPTION = re.compile(r"[a-z][a-z-]*(=[^\n\r\0]*)?")


def batch_script(request: Request, directory: Path, arguments: Sequence[str], python: str) -> str:
    """Return the batch script of a training in `directory` (absolute, seen by every node).

    `arguments` are options of `nanochat-train train`; `python` is the interpreter on the nodes. Raises UserError for
    options that are none.
    """
    if not _NAME.fullmatch(request.name):
        raise UserError(f"a job's name has letters, digits, dots and dashes, not {display_safe(request.name)}")
    for option in request.options:
        if not _OPTION.fullmatch(option):
            raise UserError(f"{display_safe(option)} is no option of sbatch; write it as partition=long")
    if any("\n" in str(word) or "\r" in str(word) for word in (directory, python)):
        raise UserError("a path with a line end cannot stand in a batch script; name another")
    wanted = {
        "job-name": request.name,
        "nodes": str(request.nodes),
        "ntasks-per-node": "1",
        "output": f"{directory}/slurm-%j.out".replace("%", "%%").replace("%%j", "%j"),
        "open-mode": "append",
        "requeue": None,
        "signal": f"B:USR1@{WARNING_SECONDS}",
        "time": request.time,
        "cpus-per-task": None if request.cpus is None else str(request.cpus),
        "gpus-per-node": request.gpus,
    }
    flags = [
        f"#SBATCH --{name}" + ("" if value is None else f"={_quoted(value)}")
        for name, value in wanted.items()
        if value is not None or name == "requeue"
    ]
    flags += [f"#SBATCH --{name}" + (f"={_quoted(value)}" if sign else "") for name, sign, value in _split(request)]
    train = shlex.join(["train", "--checkpoint-dir", str(directory), "--resume", "auto", *arguments])
    if request.nodes * request.processes == 1:
        program = f"{shlex.quote(python)} -m {MODULE} {train}"
    else:
        program = (
            f"{shlex.quote(python)} -m torch.distributed.run --nnodes {request.nodes} "
            f'--nproc-per-node {request.processes} --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" '
            f'--rdzv-endpoint "$head:$port" -m {MODULE} {train}'
        )
    lines = [
        "#!/bin/bash",
        *flags,
        "set -u",
        f"run={shlex.quote(str(directory))}",
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "port=$((20000 + SLURM_JOB_ID % 10000))  # another one for each job of a node",
        *request.setup,
        "again=0",
        "# before the time is up: stop at a checkpoint, then into the queue again",
        "trap 'again=1; echo stop > \"$run/control\"' USR1",
        f"srun --kill-on-bad-exit=1 {program} &",
        "training=$!",
        "code=0",
        'while kill -0 "$training" 2> /dev/null; do',
        '  wait "$training"',
        "  code=$?  # that of the signal, when one came: the loop asks again",
        "done",
        'if [ "$again" = 1 ] && [ "$code" = 0 ]; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _split(request: Request) -> list[tuple[str, str, str]]:
    return [option.partition("=") for option in request.options]


def _quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w./:@%+,=-]*", value) else '"' + value.replace('"', '\\"') + '"'


def submit(directory: Path, script: str, name: str) -> Job:
    """Submit a batch script for a run directory, where it is kept. Raises UserError in sbatch's words."""
    prepare_folder(directory)
    file = directory / SCRIPT
    file.write_text(script, encoding="utf-8")
    printed = tell(["sbatch", "--parsable", str(file)]).strip()
    identifier = printed.splitlines()[-1].split(";")[0] if printed else ""
    if not re.fullmatch(r"\d+", identifier):
        raise UserError(f"sbatch did not name a job but said: {display_safe(printed, 200) or 'nothing'}")
    return remember(directory, "slurm", identifier, name, file)


def state(job: Job) -> JobState:
    """What Slurm says of a job: from the queue, or for some minutes after its end from its controller."""
    try:
        line = tell(["squeue", "--noheader", "--states=all", f"--jobs={job.id}", "--format=%T|%R"]).strip()
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
        line = ""
    if not line:
        return JobState("unknown", "UNKNOWN", "Slurm has forgotten the job; the run directory says how it ended")
    word, _, detail = line.splitlines()[0].partition("|")
    phase: Phase = "waiting" if word in _WAITING else "running" if word in _RUNNING else "ended"
    return JobState(phase, display_safe(word, 40), display_safe(detail.strip(), 200))


def cancel(job: Job) -> None:
    """End a job, waiting or running; what it did since the last checkpoint is lost."""
    tell(["scancel", job.id])


def requeue(job: Job) -> None:
    """Put a job into the queue again; it continues from its newest checkpoint."""
    tell(["scontrol", "requeue", job.id])
