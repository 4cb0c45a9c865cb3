"""Starting a trainer that outlives its parent: its own session, output to a file, never two in one directory.

The process may run behind a prefix. `torchrun …` gets the module to run; behind `ssh host` the command becomes one
quoted line for the remote shell, which redirects its output there, so that a lost connection does not end the run;
anything else (`nice -n 10`, `srun`, `env NAME=VALUE`) is simply put in front.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import psutil
from filelock import Timeout

from nanochat_tui.browser import check_command
from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.paths import place_of
from nanochat_tui.runs.config import LENGTHS, TrainConfig
from nanochat_tui.runs.directory import RunDirectory, read_json, write_json
from nanochat_tui.runs.ending import record_end
from nanochat_tui.runs.lock import lock_refusal, take
from nanochat_tui.runs.presets import PRESETS
from nanochat_tui.runs.state import CONSOLE_FILE, LAUNCH_FILE, last_words, read_state
from nanochat_tui.runs.submission import MODULE, cluster_of, submit_command
from nanochat_tui.text import display_safe

_LOCK = ".launch.lock"


@dataclass(frozen=True, slots=True)
class Launched:
    """A started trainer, or the client (ssh) through which it was started."""

    pid: int
    directory: Path
    command: list[str]
    console: Path
    process: subprocess.Popen[bytes]
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once the process is gone and was waited for."""

    def failure(self) -> str | None:
        """What the process said when it ended badly, as one sentence; None while it runs or when it ended well."""
        if not self.ended.is_set() or not self.process.returncode:
            return None
        clients = [word for word in self.command if is_remote([word])]
        code, name = self.process.returncode, PurePath((clients or self.command)[0]).name
        how = f"with code {code}" if code > 0 else f"by signal {-code}"
        words = last_words(self.console)
        return f"{display_safe(name)} ended {how}" + (f": {words}" if words else "")

    def when_ended(self, call: Callable[[Launched], object]) -> None:
        """Call `call(self)` in a thread of its own once the process is gone; at once when it is."""

        def wait() -> None:
            self.ended.wait()
            call(self)

        threading.Thread(target=wait, name=f"watch-{self.pid}", daemon=True).start()

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


def place_text(prefix: Sequence[str]) -> str:
    """Where a command with this prefix runs, in words that end a sentence."""
    if (cluster := cluster_of(prefix)) is not None:
        return f"as a job of {cluster}"
    if is_remote(prefix):
        at = next(i for i, word in enumerate(prefix) if PurePath(word).name in ("ssh", "ssh.exe"))
        try:
            host = prefix[_end_of_ssh(prefix, at) - 1]
        except UserError:
            host = ""
        return f"on the other machine, behind {display_safe(f'ssh {host}'.strip(), 60)}"
    if prefix:
        return f"on this machine, behind {display_safe(shlex.join(prefix), 60)}"
    return "on this machine"


def is_remote(prefix: Sequence[str]) -> bool:
    """Whether the command will run on another machine, where this one's paths and programs mean nothing."""
    return cluster_of(prefix) is None and any(PurePath(word).name in ("ssh", "ssh.exe") for word in prefix)


def config_arguments(config: TrainConfig) -> list[str]:
    """Options of `nanochat-train train` for every field that differs from the named configuration."""
    words = [] if config.config == TrainConfig.model_fields["config"].default else ["--config", config.config]
    base = {name: info.default for name, info in type(config).model_fields.items()} | PRESETS[config.config].values
    # one length on the command line replaces all those of the named configuration
    lengths = any(getattr(config, name) != base[name] for name in LENGTHS)
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name == "config" or (value == base[name] and not (lengths and name in LENGTHS)):
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
    """The exact command: the prefix, the program, `train`, the run directory and the given options.

    Raises UserError for a prefix that is off in the browser or names no host.
    """
    check_command(prefix)
    if cluster_of(prefix) is not None:
        return submit_command(arguments, directory, prefix)
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
    remote = is_remote(prefix)
    if not remote:
        config = config.with_absolute_paths()
    command = train_command(config_arguments(config), folder, prefix)
    return start(command, folder, remote=remote, environment=environment, prefix=prefix)


def resume(checkpoint: Path, prefix: Sequence[str] = (), *, environment: Any = None, **changes: object) -> Launched:
    """Continue a run from one of its checkpoints, detached. Raises UserError as `launch` does."""
    folder = checkpoint.parent
    command = train_command(resume_arguments(checkpoint, **changes), folder, prefix)
    return start(command, folder, remote=is_remote(prefix), continues=True, environment=environment, prefix=prefix)


def launch_prefix(directory: Path) -> str:
    """The prefix a run was last started behind, as one would type it; empty when there was none or it is not known."""
    try:
        words = read_json(directory / LAUNCH_FILE).get("prefix")
    except UserError:
        return ""
    return shlex.join(map(str, words)) if isinstance(words, list) else ""


def parse_length(text: str) -> dict[str, object]:
    """Read the length of a run as a person types it: 9000 (steps), 90 min, 1.5 h, 2 epochs, 50M tokens; empty: none.

    Returns one of the fields steps, minutes, epochs and tokens. Raises UserError.
    """
    text = text.strip().lower().replace("_", "").replace(",", "")
    if not text:
        return {}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?)\s*([a-z]*)", text)
    unit = found[3] if found else ""
    count = float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2]] if found else 0.0
    if (found and found[2] == "m" and not unit) or (found and found[2] == "m" and unit in ("in", "inute", "inutes")):
        unit, count = "min", float(found[1])
    if count > 0:
        if unit in ("", "step", "steps") and count.is_integer():
            return {"steps": int(count)}
        if unit in ("token", "tokens") and count.is_integer():
            return {"tokens": int(count)}
        if unit in ("min", "minute", "minutes"):
            return {"minutes": count}
        if unit in ("h", "hour", "hours"):
            return {"minutes": 60 * count}
        if unit in ("epoch", "epochs"):
            return {"epochs": count}
    raise UserError("the length must be steps (9000), or a time or amount such as 90 min, 1.5 h, 2 epochs, 50M tokens")


def default_name(config: TrainConfig) -> str:
    """A name for a new run, such as d20-1123-0747."""
    return f"{config.config}-{time.strftime('%m%d-%H%M%S')}"


def check_free(directory: Path, *, continues: bool = False) -> None:
    """Raise UserError unless a trainer may be started in `directory` now."""
    state = read_state(directory)
    shown = display_safe(str(directory))
    refusal = lock_refusal(directory) if directory.is_dir() else None
    if refusal is not None:
        raise UserError(refusal)
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
    prefix: Sequence[str] = (),
) -> Launched:
    """Start `command` for a run directory, detached. Raises UserError; see `launch`."""
    if remote and not directory.is_dir():
        # the directory is on the other machine: what ssh itself says is kept with this program's own state
        state = place_of("state") / "launches"
        state.mkdir(parents=True, exist_ok=True)
        console = state / f"{directory.name}-{time.strftime('%Y%m%d-%H%M%S')}.txt"
        return _reap(_spawn(command, directory, console, environment))
    fresh = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {display_safe(str(directory))}: {plain_reason(error)}; name another place"
        ) from None
    with _locked(directory):
        check_free(directory, continues=continues)
        console = directory / (CONSOLE_FILE if not remote else "ssh.txt")
        try:
            launched = _spawn(command, directory, console, environment)
        except UserError:
            if fresh:  # nothing was started, so nothing stays
                console.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    (directory / _LOCK).unlink(missing_ok=True)
                    directory.rmdir()
            raise
        try:
            born = psutil.Process(launched.pid).create_time()
        except psutil.Error:
            born = time.time()
        write_json(
            directory / LAUNCH_FILE,
            {
                "command": list(command),
                "prefix": list(prefix),
                "console": console.name,
                "pid": launched.pid,
                "process_started": born,
                "host": socket.gethostname(),
                "started": time.time(),
            },
        )
    return _reap(launched)  # not before, for how it ended is noted in the file just written


def _spawn(command: Sequence[str], directory: Path, console: Path, environment: dict[str, str] | None) -> Launched:
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.DETACHED_PROCESS}
    try:
        with console.open("ab") as file:
            file.write(f"$ {shlex.join(command)}\n".encode())
        output = os.open(console, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        raise UserError(
            f"cannot write {display_safe(str(console))}: {plain_reason(error)}; free space or move"
        ) from None
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
        raise UserError(
            f"cannot start {display_safe(command[0])}: {plain_reason(error)}; check the command prefix"
        ) from None
    finally:
        os.close(output)
    return Launched(process.pid, directory, list(command), console, process)


def _reap(launched: Launched) -> Launched:
    """Wait for the process in a thread: this program is its parent, and an unreaped child would look alive."""

    def wait() -> None:
        code = launched.process.wait()
        if code:
            with contextlib.suppress(UserError):
                if read_json(launched.directory / LAUNCH_FILE).get("pid") == launched.pid:
                    record_end(launched.directory, code)
        launched.ended.set()

    threading.Thread(target=wait, name=f"reap-{launched.pid}", daemon=True).start()
    return launched


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second launcher out between the look at the directory and the note that it is taken."""
    shown = display_safe(str(directory))
    try:
        lock = take(directory / _LOCK)
    except Timeout:
        raise UserError(f"another program is starting a trainer in {shown} at this moment; look again") from None
    except OSError as error:
        raise UserError(f"cannot write in {shown}: {plain_reason(error)}; name another directory") from None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
