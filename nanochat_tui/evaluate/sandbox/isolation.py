"""How a sandbox is isolated: bubblewrap where it works, namespaces made by `unshare` elsewhere, nothing on request.

The program sees the system's programs and libraries and the folders it is given, read-only, and two writable folders
in memory, `/work` and `/tmp`. It has no network, no capability and no other process to see. Started by root it runs
under a user id that no other process has, so that the kernel's bound on processes per user holds, too.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.sandbox.limits import Limits

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/nix/store")
"""What programs of the system need."""
WORK, TEMPORARY = "/work", "/tmp"  # noqa: S108 - the second one in the sandbox
TRIAL_SECONDS = 60
_FIRST_USER, _USERS = 1 << 30, 1 << 29
GIVEN = "/given"
_PATH = "/usr/local/bin:/usr/bin:/bin"


class Isolation(Enum):
    """What separates a program from the system."""

    BUBBLEWRAP = "bubblewrap"
    NAMESPACES = "namespaces"
    NONE = "none"


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and what it may read.

    arguments: the first one is an absolute path. given: a folder that the program finds by its environment variable
    GIVEN, its files readable by all. toolchains: folders of programs, which keep their paths.
    """

    arguments: Sequence[str]
    given: Path | None = None
    toolchains: Sequence[Path] = ()


def environment(work: str = WORK, given: str = GIVEN) -> dict[str, str]:
    """Return the environment of a sandboxed program."""
    return {"PATH": _PATH, "HOME": work, "TMPDIR": work, "LANG": "C.UTF-8", "GIVEN": given}


def isolation(unsafe: bool = False) -> Isolation:
    """Return the isolation that works here.

    Raises:
        UserError: none works, and `unsafe` is not set.
    """
    for kind in (Isolation.BUBBLEWRAP, Isolation.NAMESPACES):
        if _works(kind):
            return kind
    if unsafe:
        return Isolation.NONE
    raise UserError(
        "no isolation for untrusted programs works here: install bubblewrap (apt-get install bubblewrap) on a Linux "
        "system that allows user namespaces, or run the programs unprotected with --unsafe"
    )


@cache
def _works(kind: Isolation) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        arguments = isolated(kind, Command(["/bin/true"]), Limits())
        done = subprocess.run(
            arguments, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=TRIAL_SECONDS
        )
    except (OSError, UserError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def isolated(kind: Isolation, command: Command, limits: Limits) -> list[str]:
    """Return the arguments that start a command isolated. Raises UserError if a program for it is missing."""
    inner = [*_limiting(limits), *command.arguments]
    if kind is Isolation.NONE:
        return inner
    inner = [*_unprivileged(), *inner]
    folders = [(str(folder), str(folder)) for folder in command.toolchains]
    if command.given is not None:
        folders.append((str(command.given.resolve()), GIVEN))
    if kind is Isolation.BUBBLEWRAP:
        return [*_bubblewrap(folders, limits), *inner]
    enter = str(Path(__file__).with_name("enter.py"))
    return [*_namespaces(), sys.executable, "-I", "-S", enter, _plan(folders, inner, limits)]


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise UserError(f"{name} is missing; install the package util-linux")
    return found


def _is_root() -> bool:
    return os.geteuid() == 0


def _limiting(limits: Limits) -> list[str]:
    # a processor second is used up at most once per second and processor; the wall clock is the real bound
    processor = int(limits.seconds) * (os.cpu_count() or 1) + 2
    bounds = [f"--cpu={processor}", f"--fsize={limits.files}", "--core=0", "--nofile=256"]
    if limits.address_space is not None:
        bounds.append(f"--as={limits.address_space}")
    if _is_root():
        bounds.append(f"--nproc={limits.processes}")  # of a user id of its own; elsewhere all that the user runs count
    return [_program("prlimit"), *bounds, "--"]


def _unprivileged() -> list[str]:
    call = [_program("setpriv"), "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    if _is_root():
        user = _FIRST_USER + secrets.randbelow(_USERS)
        call += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    return [*call, "--"]


def _bubblewrap(folders: Sequence[tuple[str, str]], limits: Limits) -> list[str]:
    found = shutil.which("bwrap")
    if found is None:
        raise UserError("bubblewrap is missing; install the package bubblewrap")
    call = [found, "--die-with-parent", "--new-session", "--clearenv", "--chdir", WORK]
    for space in ("pid", "net", "ipc", "uts"):
        call.append(f"--unshare-{space}")
    if _is_root():
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_SYS_RESOURCE"):
            call += ["--cap-add", capability]
    else:
        call.append("--unshare-user")
    for source, target in _links():
        call += ["--symlink", source, target]
    bound = [*_system(), *folders]
    for parent in sorted({str(parent) for _, target in bound for parent in Path(target).parents} - {"/", *_places()}):
        call += ["--perms", "0755", "--dir", parent]  # else only root could pass through
    for source, target in bound:
        call += ["--ro-bind", source, target]
    call += ["--proc", "/proc", "--dev", "/dev"]
    for place in (WORK, TEMPORARY):
        call += ["--perms", "1777", "--size", str(limits.files), "--tmpfs", place]
    for name, value in environment().items():
        call += ["--setenv", name, value]
    return [*call, "--"]


def _namespaces() -> list[str]:
    call = [_program("setpriv"), "--pdeathsig", "KILL", _program("unshare")]
    call += ["--mount", "--pid", "--net", "--ipc", "--uts"]
    if not _is_root():
        call += ["--user", "--map-root-user"]
    return [*call, "--fork", "--kill-child=KILL", "--"]


def _plan(folders: Sequence[tuple[str, str]], inner: Sequence[str], limits: Limits) -> str:
    return json.dumps(
        {
            "folders": [*_system(), *folders],
            "links": _links(),
            "writable": [WORK, TEMPORARY],
            "size": limits.files,
            "command": inner,
            "environment": environment(),
        }
    )


def _links() -> list[tuple[str, str]]:
    """Return the system's folders that are symbolic links, as (target, place)."""
    return [
        (str(Path(place).readlink()), place) for place in SYSTEM if place.count("/") == 1 and Path(place).is_symlink()
    ]


def _places() -> set[str]:
    """Return the system's folders that every sandbox has."""
    return {place for _, place in [*_links(), *_system()]}


def _system() -> list[tuple[str, str]]:
    links = {place for _, place in _links()}
    return [(place, place) for place in SYSTEM if place not in links and Path(place).exists()]
