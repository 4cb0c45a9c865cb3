"""SkyPilot: a task that trains in a run directory on a cloud or cluster it knows, and the commands that drive it.

The run directory is a path there, on a mounted bucket if it should outlive the machines; a managed job is started again
after a preemption, and `--resume auto` continues. Data and tokenizer are paths of that machine, too.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.runs.jobs import Job, JobState, Phase, Request, prepare_folder, remember, tell
from nanochat_tui.runs.submission import MODULE
from nanochat_tui.text import display_safe

TASK = "task.yaml"
_NAME = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]")
_WAITING = ("PENDING", "SUBMITTED", "STARTING", "RECOVERING", "DEPRECATED_SUBMITTED")
_RUNNING = ("RUNNING", "CANCELLING", "WINDING_DOWN")
_RESOURCES = ("infra", "accelerators", "cpus", "memory", "instance_type", "use_spot", "disk_size", "image_id", "ports")


def task_yaml(request: Request, directory: PurePath, arguments: Sequence[str]) -> str:
    """Return the task file of a training in `directory` there; `arguments` are options of `nanochat-train train`.

    Raises UserError for names, options or mounts that SkyPilot would not take.
    """
    if not _NAME.fullmatch(request.name):
        raise UserError(f"SkyPilot's names have small letters, digits and dashes, not {display_safe(request.name)}")
    resources: dict[str, Any] = {}
    if request.gpus is not None:
        resources["accelerators"] = request.gpus
    if request.cpus is not None:
        resources["cpus"] = f"{request.cpus}+"
    for option in request.options:
        key, sign, value = option.partition("=")
        if key not in _RESOURCES or not sign:
            raise UserError(
                f"{display_safe(option)} is no setting of SkyPilot's resources; name one of {', '.join(_RESOURCES)}"
            )
        resources[key] = {"true": True, "false": False}.get(value, value)
    mounts = {}
    for mount in request.mounts:
        path, sign, source = mount.partition("=")
        if not sign or not path.startswith(("/", "~/")) or "://" not in source:
            raise UserError(f"a mount is PATH=BUCKET, such as /runs=s3://bucket, not {display_safe(mount)}")
        mounts[path] = {"source": source, "mode": "MOUNT"}
    train = shlex.join(["train", "--checkpoint-dir", str(directory), "--resume", "auto", *arguments])
    if request.nodes * request.processes == 1:
        run = [f"python -m {MODULE} {train}"]
    else:
        run = [
            'head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
            f'torchrun --nnodes "$SKYPILOT_NUM_NODES" --node-rank "$SKYPILOT_NODE_RANK" '
            f'--nproc-per-node {request.processes} --master-addr "$head" --master-port 29500 -m {MODULE} {train}',
        ]
    parts = [f"name: {request.name}", f"num_nodes: {request.nodes}"]
    maps: dict[str, dict[str, Any]] = {"resources": resources, "file_mounts": mounts}
    parts += [f"{key}: {json.dumps(entries)}" for key, entries in maps.items() if entries]
    for key, lines in (("setup", request.setup), ("run", run)):
        if lines:
            parts += [f"{key}: |", *(f"  {line}" for text in lines for line in text.splitlines())]
    return "\n".join(parts) + "\n"


def submit(directory: Path, task: str, name: str) -> Job:
    """Launch a task as a managed job; the task file and the job's name are kept in `directory`, on this machine."""
    prepare_folder(directory)
    file = directory / TASK
    file.write_text(task, encoding="utf-8")
    tell(["sky", "jobs", "launch", "--yes", "--detach-run", "--name", name, str(file)])
    return remember(directory, "sky", name, name, file)


def state(job: Job) -> JobState:
    """What SkyPilot says of the newest job of this name."""
    printed = tell(["sky", "jobs", "queue", "--all", "--output", "json"])
    start = re.search(r"^\[", printed, re.MULTILINE)  # other lines may come before
    try:
        rows = json.loads(printed[start.start() :]) if start else []
        mine = [row for row in rows if row.get("job_name") == job.name]
        newest = max(mine, key=lambda row: int(row.get("job_id") or 0), default=None)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(
            "sky jobs queue printed no list of jobs; update SkyPilot, or look with: sky jobs queue"
        ) from None
    if newest is None:
        return JobState("unknown", "UNKNOWN", "SkyPilot knows no job of this name")
    word = str(newest.get("status")).rsplit(".", 1)[-1]
    phase: Phase = "waiting" if word in _WAITING else "running" if word in _RUNNING else "ended"
    return JobState(phase, display_safe(word, 40), display_safe(str(newest.get("failure_reason") or ""), 200))


def cancel(job: Job) -> None:
    """End a job and its machines."""
    tell(["sky", "jobs", "cancel", "--yes", "--name", job.name])


def logs(job: Job) -> str:
    """What the job printed so far."""
    return tell(["sky", "jobs", "logs", "--no-follow", "--name", job.name])
