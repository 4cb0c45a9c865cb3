"""Starting a trainer that outlives whoever started it: its own session, output to a file, never two in one directory.

The process may run behind a prefix. `torchrun …` gets the module to run; behind `ssh host` the command becomes one
quoted line for the remote shell, which redirects its output there, so that a lost connection does not end the run;
anything else (`nice -n 10`, `srun`, `env NAME=VALUE`) is simply put in front.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import psutil

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.folders import place_of
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RunDirectory, write_json
from nanochat_tui.runs.state import LAUNCH_FILE, read_state

MODULE = "nanochat_tui.cli.train_entry"
CONSOLE_FILE = "console.txt"
"""What the process printed, errors before its first step included; the trainer's own log.txt lies beside it."""
_LOCK = ".launch.lock"
_LOCK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Launched:
    """A started trainer, or the client (ssh) through which it was started."""

    pid: int
    directory: Path
    command: list[str]
    console: Path
    process: subprocess.Popen[bytes]

    @property
    def text(self) -> str:
        """The command line as one could type it."""
        return shlex.join(self.command)


def split_prefix(text: str) -> list[str]:
    """Split a prefix as a shell would. Raises UserError when a quotation is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"the command prefix cannot be read ({str(error).lower()}); close its quotation marks"
        ) from None


def is_remote(prefix: Sequence[str]) -> bool:
    """Whether the command will run on another machine, where this one's paths and programs mean nothing."""
    return any(PurePath(word).name in ("ssh", "ssh.exe") for word in prefix)


def config_arguments(config: TrainConfig) -> list[str]:
    """Options of `nanochat-train train` for every field that is not at its default."""
    words: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value == field.default:
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, (list, tuple)):
            words += [word for item in value for word in (flag, str(item))]
        elif value is not None:
            words += [flag, str(value)]
    return words


def train_command(arguments: Sequence[str], directory: Path | PurePath, prefix: Sequence[str] = ()) -> list[str]:
    """The exact command: the prefix, the program, `train`, the run directory and the given options."""
    words = ["train", "--checkpoint-dir", str(directory), *arguments]
    torchrun = any(PurePath(word).name == "torchrun" for word in prefix)
    if not is_remote(prefix):
        program = ["-m", MODULE] if torchrun else [sys.executable, "-m", MODULE]
        return [*prefix, *program, *words]
    at = next(i for i, word in enumerate(prefix) if PurePath(word).name in ("ssh", "ssh.exe"))
    host_end = _end_of_ssh(prefix, at)
    program = ["-m", MODULE] if torchrun else ["nanochat-train"]
    line = " ".join(map(_remote_word, [*prefix[host_end:], *program, *words]))
    folder = _remote_word(str(directory))
    console = _remote_word(f"{directory}/{CONSOLE_FILE}")
    return [*prefix[:host_end], f"mkdir -p {folder} && nohup {line} >> {console} 2>&1 < /dev/null"]


def _end_of_ssh(prefix: Sequence[str], at: int) -> int:
    """Index after ssh's own options and host name; what follows belongs to the remote command."""
    with_value = set("BbcDEeFIiJLlmOopQRSWw")
    index = at + 1
    while index < len(prefix) and prefix[index].startswith("-") and len(prefix[index]) > 1:
        index += 2 if prefix[index][-1] in with_value and len(prefix[index]) == 2 else 1
    if index >= len(prefix):
        raise UserError("the command prefix names no host; write it as: ssh HOST")
    return index + 1


def _remote_word(word: str) -> str:
    """Quote a word for a remote shell, leaving the home directory's mark to it."""
    if word.startswith("~/"):
        return "~/" + (shlex.quote(word[2:]) if word[2:] else "")
    return shlex.quote(word)


def resume_arguments(checkpoint: Path, **changes: object) -> list[str]:
    """Options that continue a run from a checkpoint, with what should be different now, such as `steps=9000`."""
    words = ["--resume", str(checkpoint)]
    for name, value in changes.items():
        if value is not None:
            words += ["--" + name.replace("_", "-"), str(value)]
    return words


def launch(
    config: TrainConfig, prefix: Sequence[str] = (), directory: Path | None = None, *, environment: Any = None
) -> Launched:
    """Start a new run in `directory` (default: ./runs/NAME-TIME), detached from this process.

    Raises UserError when a run lives or lies there already, or the command cannot be started.
    """
    folder = directory if directory is not None else Path("runs") / default_name(config)
    command = train_command(config_arguments(config), folder, prefix)
    return start(command, folder, remote=is_remote(prefix), environment=environment)


def resume(checkpoint: Path, prefix: Sequence[str] = (), *, environment: Any = None, **changes: object) -> Launched:
    """Continue a run from one of its checkpoints, detached. Raises UserError as `launch` does."""
    folder = checkpoint.parent
    command = train_command(resume_arguments(checkpoint, **changes), folder, prefix)
    return start(command, folder, remote=is_remote(prefix), continues=True, environment=environment)


def default_name(config: TrainConfig) -> str:
    """A name for a new run, such as d20-1123-0747."""
    return f"{config.config}-{time.strftime('%m%d-%H%M%S')}"


def check_free(directory: Path, *, continues: bool = False) -> None:
    """Raise UserError unless a trainer may be started in `directory` now."""
    state = read_state(directory)
    shown = display_safe(str(directory))
    if state.alive:
        where = f"process {state.pid}" + ("" if state.local else f" on {display_safe(state.host)}")
        raise UserError(f"a trainer is at work in {shown} already ({where}); stop it first or name another directory")
    if continues:
        return
    if RunDirectory(directory).checkpoints():
        raise UserError(f"{shown} holds a run with checkpoints; resume it or name another directory")
    metrics = directory / "metrics.jsonl"
    if metrics.is_file() and metrics.stat().st_size:
        raise UserError(f"{shown} holds the figures of an earlier run; name another directory")


def start(
    command: Sequence[str],
    directory: Path,
    *,
    remote: bool = False,
    continues: bool = False,
    environment: dict[str, str] | None = None,
) -> Launched:
    """Start `command` for a run directory, detached. Raises UserError; see `launch`."""
    if remote and not directory.is_dir():
        # the directory is on the other machine: what ssh itself says is kept with this program's own state
        state = place_of("state") / "launches"
        state.mkdir(parents=True, exist_ok=True)
        console = state / f"{directory.name}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        return _spawn(command, directory, console, environment)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {display_safe(str(directory))}: {error.strerror}; name another place") from None
    with _locked(directory):
        check_free(directory, continues=continues)
        console = directory / (CONSOLE_FILE if not remote else "ssh.txt")
        launched = _spawn(command, directory, console, environment)
        try:
            born = psutil.Process(launched.pid).create_time()
        except psutil.Error:
            born = time.time()
        write_json(
            directory / LAUNCH_FILE,
            {
                "command": list(command),
                "pid": launched.pid,
                "process_started": born,
                "host": socket.gethostname(),
                "started": time.time(),
            },
        )
    return launched


def _spawn(command: Sequence[str], directory: Path, console: Path, environment: dict[str, str] | None) -> Launched:
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
    try:
        with console.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
        output = os.open(console, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        raise UserError(f"cannot write {display_safe(str(console))}: {error.strerror}; free space or move") from None
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            close_fds=True,
            **detached,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot start {display_safe(command[0])}: {reason}; check the command prefix") from None
    finally:
        os.close(output)
    # as long as this program lives it is the parent, and an unreaped child would look alive
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    return Launched(process.pid, directory, list(command), console, process)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second launcher out between the look at the directory and the note that it is taken."""
    lock = directory / _LOCK
    for attempt in (0, 1):
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError:
            with contextlib.suppress(OSError):
                if attempt == 0 and time.time() - lock.stat().st_mtime > _LOCK_SECONDS:
                    lock.unlink()
                    continue
            shown = display_safe(str(directory))
            raise UserError(f"somebody else is starting a trainer in {shown} at this moment; look again") from None
        except OSError as error:
            shown = display_safe(str(directory))
            raise UserError(f"cannot write in {shown}: {error.strerror}; name another directory") from None
    try:
        os.write(descriptor, json.dumps({"pid": os.getpid()}).encode())
        os.close(descriptor)
        yield
    finally:
        lock.unlink(missing_ok=True)
