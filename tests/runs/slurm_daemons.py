"""Slurm's daemons on this machine for a test: munged, slurmctld and slurmd, in a folder and on ports of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={processors} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES OverSubscribe=FORCE:4 State=UP
"""


def missing() -> str | None:
    """What keeps the daemons from being started here; None when nothing does."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return "Slurm's daemons are started by root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster of this machine; yields the environment its clients need. `folder` is short: sockets lie in it."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    os.chmod(folder, 0o755)  # noqa: PTH101, S103
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().split(".")[0],
            controller=free_port(),
            node=free_port(),
            folder=folder,
            processors=psutil.cpu_count(),
        )
    )
    environment = {**os.environ, "SLURM_CONF": str(configuration)}
    subprocess.run(["mungekey", "--create", "--keyfile", str(folder / "munge.key")], check=True)
    munge = ["munged", "--foreground", "--force", "--num-threads=1", f"--socket={folder}/munge.socket"]
    munge += [f"--key-file={folder}/munge.key", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed"]
    commands = [munge, ["slurmctld", "-D"], ["slurmd", "-D"]]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("wb")
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
            if command is munge:
                _until((folder / "munge.socket").exists, folder)
        _until(lambda: "idle" in _nodes(environment), folder)
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _nodes(environment: dict[str, str]) -> str:
    done = subprocess.run(["sinfo", "--noheader", "--format=%t"], capture_output=True, env=environment, check=False)
    return done.stdout.decode()


def _until(there: Callable[[], bool], folder: Path) -> None:
    end = time.monotonic() + 120
    while not there():
        said = "\n".join(file.read_text(errors="replace")[-1500:] for file in folder.glob("*.out"))
        assert time.monotonic() < end, said
        time.sleep(0.2)
