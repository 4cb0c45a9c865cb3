"""Program that makes a new root for a sandbox out of bind mounts and runs a command in it; started by `isolation`.

It needs the right to mount: it runs in mount and PID namespaces of its own, made by `unshare`. Run as a file, with the
standard library only: enter.py JSON, where JSON holds `folders`, `links`, `writable`, `size` (bytes of each writable
folder), `command` and `environment`.
"""

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, NOATIME, NODIRATIME = 1, 2, 4, 8, 32, 1024, 2048
BIND, RECURSIVE, PRIVATE, RELATIME = 4096, 16384, 1 << 18, 1 << 21
DETACH = 2
MOUNTED = tempfile.gettempdir()
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(libc.mount(*arguments), target)


def _kept_flags(path: str) -> int:
    """Return the flags of a mount that a user namespace may not take away."""
    flags = os.statvfs(path).f_flag
    pairs = ((os.ST_NOSUID, NOSUID), (os.ST_NODEV, NODEV), (os.ST_NOEXEC, NOEXEC))
    times = ((os.ST_NOATIME, NOATIME), (os.ST_NODIRATIME, NODIRATIME), (os.ST_RELATIME, RELATIME))
    return sum(mount for stat, mount in (*pairs, *times) if flags & stat)


def _bind(source: str, target: Path, readonly: bool) -> None:
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(source, str(target), "", BIND)
    if readonly:
        _mount("", str(target), "", BIND | REMOUNT | RDONLY | NOSUID | _kept_flags(str(target)))


def main(text: str) -> None:
    """Build the root in a tmpfs, make it `/`, and run the command there."""
    wanted = json.loads(text)
    os.umask(0o022)
    _mount("", "/", "", PRIVATE | RECURSIVE)
    # what lies in the folder for temporary files is opened before the tmpfs hides it
    opened = [(os.open(source, os.O_PATH), target) for source, target in wanted["folders"]]
    _mount("tmpfs", MOUNTED, "tmpfs", NOSUID | NODEV, "mode=0755,size=1m")
    root = Path(MOUNTED, "root")
    root.mkdir()
    _mount(str(root), str(root), "", BIND)
    for source, target in wanted["links"]:
        Path(f"{root}{target}").symlink_to(source)
    for descriptor, target in opened:
        _bind(f"/proc/self/fd/{descriptor}", Path(f"{root}{target}"), readonly=True)
        os.close(descriptor)
    for device in ("null", "zero", "full", "random", "urandom"):
        _bind(f"/dev/{device}", root / "dev" / device, readonly=False)
    for name in wanted["writable"]:
        Path(f"{root}{name}").mkdir()
        _mount("tmpfs", f"{root}{name}", "tmpfs", NOSUID | NODEV, f"mode=1777,size={wanted['size']}")
    (root / "proc").mkdir()
    _mount("proc", str(root / "proc"), "proc", NOSUID | NODEV | NOEXEC)
    (root / "old").mkdir()
    os.chdir(root)
    _checked(libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b"old"), "pivot_root")
    os.chdir(wanted["writable"][0])
    _checked(libc.umount2(b"/old", DETACH), "/old")
    Path("/old").rmdir()
    _mount("", "/", "", REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os._exit(_supervised(wanted["command"], wanted["environment"]))


def _supervised(command: list[str], environment: dict[str, str]) -> int:
    """Run a command as a child and return its exit code, 128 and the signal if one killed it.

    This process stays the namespace's first one: it is killed when its parent dies, which a process that changes its
    user id is not, and all others end with it.
    """
    started = os.fork()
    if started == 0:
        os.execve(command[0], command, environment)  # noqa: S606 - this process becomes the command
    while True:
        ended, status = os.wait()
        if ended == started:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    main(sys.argv[1])
