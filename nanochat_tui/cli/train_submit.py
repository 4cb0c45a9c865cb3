"""`nanochat-train submit` and `job`: a training as a job of Slurm or SkyPilot, and what became of it."""

from __future__ import annotations

import inspect
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import JsonOption
from nanochat_tui.cli.train_options import CONFIG_OPTION, config_parameters, merged_config
from nanochat_tui.errors import UserError
from nanochat_tui.runs import skypilot, slurm
from nanochat_tui.runs.dataset_check import check_dataset
from nanochat_tui.runs.jobs import JOB_FILE, Job, JobState, Request, read_job
from nanochat_tui.runs.launcher import check_free, config_arguments
from nanochat_tui.runs.state import read_state
from nanochat_tui.text import display_safe, printable


def _option(text: str) -> Any:
    return typer.Option(help=text, show_default=False, rich_help_panel="Job")


def submit(
    *,
    to: Annotated[Literal["slurm", "sky"], _option("Cluster system: Slurm, or SkyPilot as a managed job.")],
    checkpoint_dir: Annotated[
        Path, _option("Run directory: on a file system all nodes see (Slurm), on the job's machines (SkyPilot).")
    ],
    config: CONFIG_OPTION = None,
    nodes: Annotated[int, _option("Machines of the job.")] = 1,
    processes_per_node: Annotated[int, _option("Trainers on each machine, one per GPU.")] = 1,
    gpus: Annotated[str | None, _option("GPUs of each machine, in the cluster's words: 8, h100:8, H100:8.")] = None,
    cpus: Annotated[int | None, _option("Processors of the job on each machine.")] = None,
    time: Annotated[str | None, _option("Slurm: longest time, as 24:00:00; it then continues in the queue.")] = None,
    name: Annotated[str | None, _option("The job's name; that of the run directory by default.")] = None,
    setup: Annotated[list[str] | None, _option("Shell line before the training; may be repeated.")] = None,
    option: Annotated[
        list[str] | None, _option("Option of sbatch or SkyPilot's resources, as partition=long; may be repeated.")
    ] = None,
    mount: Annotated[
        list[str] | None, _option("SkyPilot: PATH=BUCKET to mount, as /runs=s3://bucket; may be repeated.")
    ] = None,
    python: Annotated[str, _option("Slurm: Python interpreter on the nodes; this one by default.")] = sys.executable,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job's file, and submit nothing.")] = False,
    **options: Any,
) -> None:
    """Submit a training as a job. It begins, or continues from the newest checkpoint of its run directory.

    The run directory tells all of it, as that of a training here; `nanochat-train job RUN` asks the cluster.
    """
    if nodes < 1 or processes_per_node < 1:
        raise UserError("--nodes and --processes-per-node must be at least 1")
    settings = merged_config(config, options)
    directory = checkpoint_dir
    request = Request(
        name or directory.name or "training",
        nodes,
        processes_per_node,
        gpus,
        cpus,
        time,
        tuple(setup or ()),
        tuple(option or ()),
        tuple(mount or ()),
    )
    if to == "slurm":
        directory = directory.absolute()
        settings = settings.with_absolute_paths()
        if mount:
            raise UserError("--mount is for SkyPilot; nodes of Slurm share a file system")
        if problems := check_dataset(settings).problems:
            raise UserError("; ".join(problems))
        text = slurm.batch_script(request, directory, config_arguments(settings), python)
    else:
        if time:
            raise UserError("--time is for Slurm; a job of SkyPilot ends with its training")
        text = skypilot.task_yaml(request, directory, config_arguments(settings))
        directory = Path("runs") / request.name  # what is known of it on this machine
    if dry_run:
        typer.echo(text, nl=False)
        return
    _check_no_job(directory)
    check_free(directory, continues=True)
    job = (slurm if to == "slurm" else skypilot).submit(directory, text, request.name)
    typer.echo(
        f"submitted {job.system} job {display_safe(job.id)}; look at it with: nanochat-train job {directory}", err=True
    )


submit.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *(p for p in inspect.signature(submit, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD),
        *(p for p in config_parameters() if p.name != "processes"),
    ]
)
submit.__annotations__ |= {p.name: p.annotation for p in config_parameters()}


def _check_no_job(directory: Path) -> None:
    """Raise UserError while an earlier job of the run directory waits or runs."""
    if not (directory / JOB_FILE).is_file():
        return
    job = read_job(directory)
    found = _state(job)
    if found.phase in ("waiting", "running"):
        raise UserError(
            f"{job.system} job {display_safe(job.id)} of this run directory is there already ({found.word}); cancel it "
            f"with nanochat-train job {display_safe(str(directory))} cancel, or name another directory"
        )


def _state(job: Job) -> JobState:
    return slurm.state(job) if job.system == "slurm" else skypilot.state(job)


def job(
    run: Annotated[Path, typer.Argument(help="Run directory that was given to submit; for SkyPilot runs/NAME.")],
    action: Annotated[
        Literal["status", "cancel", "requeue", "logs"], typer.Argument(help="What to do; status by default.")
    ] = "status",
    as_json: JsonOption = False,
) -> None:
    """Ask the cluster about a submitted training, cancel it, put it into the queue again, or print what it said."""
    found = read_job(run)
    if action == "cancel":
        (slurm if found.system == "slurm" else skypilot).cancel(found)
    elif action == "requeue":
        if found.system != "slurm":
            raise UserError("SkyPilot starts a preempted job again by itself; submit an ended one again")
        slurm.requeue(found)
    elif action == "logs":
        typer.echo(printable(_logs(found, run)), nl=False)
        return
    state = _state(found)
    training = read_state(run)
    if as_json:
        typer.echo(json_text({**asdict(found), **asdict(state), "life": training.life, "step": training.step}))
        return
    detail = f" ({state.detail})" if state.detail else ""
    typer.echo(f"{found.system} job {display_safe(found.id)}: {state.word}{detail}")
    if training.life != "unknown":
        typer.echo(f"training: {training.life}, step {training.step:,} of {training.total:,}")


def _logs(found: Job, run: Path) -> str:
    if found.system == "sky":
        return skypilot.logs(found)
    file = run / f"slurm-{found.id}.out"
    if not file.is_file():
        raise UserError(f"there is no {display_safe(str(file))} yet; the job has printed nothing, or runs elsewhere")
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - (1 << 16)))
        return stream.read().decode("utf-8", "replace")
