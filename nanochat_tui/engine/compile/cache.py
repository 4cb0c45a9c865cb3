"""Machine code of the kernels, kept in the user's cache directory between starts.

The file's name is a hash of everything that decides what the code does: the sources of kernels and emitter,
the versions of Numba and LLVM, processor and instruction set. So an update never meets old code, and Numba
is imported only when there is something to compile. Python and the code share tables by position, so code of any
other sources than those this process runs would end it: the sources are read once, on import, and the process that
compiles proves that it compiled these.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_tui.engine.compile.targets import KERNELS, KernelInfo, compiled_for
from nanochat_tui.engine.layout.kinds import ALL, Q8
from nanochat_tui.errors import UserError, WriteError
from nanochat_tui.files import atomic_write
from nanochat_tui.locks import ProcessLock
from nanochat_tui.paths import CACHE_VARIABLE, own_private, temporary_folder, user_folder

if TYPE_CHECKING:
    from nanochat_tui.engine.simd.library import Target

Progress = Callable[[str], None]
Known = frozenset[tuple[str, int]]
Entry = Callable[..., int]
ENVIRONMENT = CACHE_VARIABLE
GENERAL = "NANOCHAT_ONE_PROGRAM"
"""Set to 1, all models share a program that is made for none of them: it takes twice as long to compile, but a run of
many small models (tests) compiles once."""
KEPT = 40
"""Files of compiled code (0.15 MB each) that are kept, the last used ones: several models, kinds of caches, kernels and
versions of the sources."""
PARTS = {"work": ("program", "kernels"), "screened_logits": ("screen",)}
"""Functions that are entered by address, and the parts of each, which are compiled at the same time, every one by a
process of its own: LLVM and Numba let only one thread work."""
FOLDER = "kernels"
"""Name of the folder in the user's cache directory."""
STALE_SECONDS = 3600
"""Age at which a temporary file is taken to be left over from a process that ended while writing."""
HASHED_FOLDERS = ("kernels", "layout", "simd")
HASHED_FILES = ("amx_self_check", "builders", "lower", "specialise")
"""Sources that decide what the code does: whole folders of the engine, and files of this one."""
_DIGEST = 32
_FILE_NAME = re.compile(r"[a-z0-9-]+-[0-9]+-[0-9a-f]{24}\.(?:o|verdict)")
_UNFINISHED = re.compile(rf"\.{_FILE_NAME.pattern}\.[0-9a-f]+\.tmp")
_loaded: dict[Wanted, int] = {}
_lock = ProcessLock()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a program is made for, as `simd.library.Target`, which only those who compile import. root: of PARTS."""

    kernel: str
    group: int
    cpu: str
    features: str
    kinds: frozenset[int]
    known: Known
    root: str = "work"

    def target(self) -> Target:
        """Return the same for the compiler."""
        from nanochat_tui.engine.simd.isa import ISAS
        from nanochat_tui.engine.simd.library import Target

        return Target(ISAS[self.kernel], self.group, self.cpu, self.features, self.kinds, known=self.known)


def _sources_hash() -> str:
    digest = hashlib.sha256()
    here = Path(__file__).parents[1]
    files = [path for folder in HASHED_FOLDERS for path in here.glob(f"{folder}/*.py")]
    for path in sorted([*files, *(here / "compile" / f"{name}.py" for name in HASHED_FILES)]):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


SOURCES = _sources_hash()
"""Hash of the sources as they were when this process imported them."""


def _require_same_sources() -> None:
    if _sources_hash() != SOURCES:
        raise UserError("the program's files have changed since it was started, as in an update; start it again")


def _version(package: str) -> str:
    """Return an installed package's version by its folder's name: `importlib.metadata` takes 14 ms to import."""
    for folder in sys.path:
        for found in sorted(Path(folder or ".").glob(f"{package}-*.dist-info")):
            return found.name
    from importlib.metadata import version

    return version(package)


def _file_name(wanted: Wanted) -> str:
    parts = (
        SOURCES,
        wanted.root,
        str(sorted(wanted.kinds)),
        str(sorted(wanted.known)),
        _version("numba"),
        _version("llvmlite"),
        platform.python_version(),
        platform.machine(),
        wanted.cpu,
        wanted.features,
    )
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    return f"{wanted.kernel}-{wanted.group}-{digest}.o"


def verdict_name(wanted: Wanted) -> str:
    """Return the name of the file that says whether kernels passed their self-check."""
    return _file_name(wanted).removesuffix(".o") + ".verdict"


def cache_directory() -> Path | None:
    """Return where compiled code is kept, or None if no directory is both private and writable.

    NANOCHAT_CACHE_DIR if set, else the user's cache directory, else one in the temporary directory (a
    home that is missing or read-only).
    """
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen) if own_private(Path(chosen)) else None
    usual = user_folder("cache")
    if usual is not None and own_private(usual / FOLDER):
        return usual / FOLDER
    return temporary_folder(FOLDER)


def read(path: Path) -> bytes | None:
    """Return what a cache file holds, or None if it is absent or damaged."""
    try:
        code = _unsealed(path.read_bytes())
    except OSError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the age of a file is that of its last use
    return code


def _sealed(code: bytes) -> bytes:
    return hashlib.sha256(code).digest() + code


def _unsealed(data: bytes) -> bytes | None:
    code = data[_DIGEST:]
    return code if hashlib.sha256(code).digest() == data[:_DIGEST] else None


def write(path: Path, code: bytes) -> None:
    """Keep something in a cache file, if there is room for it."""
    # a full disk costs the next start a few seconds, nothing else; a file that a power failure damaged is not read
    with contextlib.suppress(WriteError, OSError):
        with atomic_write(path, synced=False) as file:
            file.write(_sealed(code))
        _tidy(path.parent)


def _age(path: Path) -> float:
    """Return seconds since a file was last used; 0 if another process has just removed it."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def own_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of compiled code in a folder, and those being written: one that a user named may hold others."""
    names = sorted(folder.iterdir())
    unfinished = [path for path in names if _UNFINISHED.fullmatch(path.name)]
    return [path for path in names if _FILE_NAME.fullmatch(path.name)], unfinished


def _tidy(folder: Path) -> None:
    """Remove the compiled code that was not used for longest, and what interrupted processes left behind.

    Another process that wants a removed file compiles again; one that has read it needs it no more.
    """
    kept, unfinished = own_files(folder)
    for path in sorted(kept, key=_age)[KEPT:] + [path for path in unfinished if _age(path) > STALE_SECONDS]:
        with contextlib.suppress(OSError):
            path.unlink()


def child_environment() -> dict[str, str]:
    """Return the environment for a child process that imports this package."""
    path = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("NUMBA_DISABLE_JIT", None)  # is for debugging others' functions; ours would not compile
    return environment


def _command(wanted: Wanted, part: str) -> list[str]:
    """Return the command of a child process that compiles a part of a target's code and writes it to its stdout."""
    # -P: the working directory may be a checkout of another version, and must not be imported from
    command = [sys.executable, "-P", "-m", "nanochat_tui.engine.compile.cache", part]
    kinds = ",".join(map(str, sorted(wanted.kinds)))
    known = ",".join(f"{name}={value}" for name, value in sorted(wanted.known))
    return [*command, wanted.kernel, str(wanted.group), kinds, known, SOURCES]


def _compile(wanted: Wanted) -> list[bytes]:
    """Compile in child processes: Numba holds the interpreter lock for seconds, and an application would freeze.

    Returns what `_build` makes of each part. Raises UserError if the sources on disk are no longer those of this
    process.
    """
    import subprocess

    _require_same_sources()
    parts = PARTS[wanted.root]
    codes: list[bytes | None] = [None] * len(parts)
    if sys.executable:
        environment = child_environment()

        def run(index: int) -> None:
            command = _command(wanted, parts[index])
            with contextlib.suppress(OSError):  # no process can be started: it is compiled here
                done = subprocess.run(
                    command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, check=False
                )
                codes[index] = _unsealed(done.stdout) if done.returncode == 0 else None

        waiting = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(parts))]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
    return [_build(wanted, part) if code is None else code for part, code in zip(parts, codes, strict=True)]


def _build(wanted: Wanted, part: str) -> bytes:
    """Return the object files of a part, as `library.joined` puts them together."""
    from nanochat_tui.engine.compile.builders import BUILDERS
    from nanochat_tui.engine.simd.objects import joined

    code = joined(BUILDERS[part](wanted.target()))
    _require_same_sources()
    return code


def _wanted(kernel_name: str, group: int, kinds: frozenset[int], known: Known, root: str = "work") -> Wanted:
    kernel = next(kernel for kernel in KERNELS if kernel.name == kernel_name)
    return Wanted(kernel.name, group, *compiled_for(kernel), kinds, known, root)


def load_entry(
    kernel: KernelInfo,
    group: int,
    progress: Progress | None = None,
    kinds: frozenset[int] = ALL,
    known: Known = frozenset(),
) -> Entry:
    """Return the program's entry for a kernel and a group size, compiling it if it is not in the cache.

    kinds: the kinds of matrices a model has (see `layout.kinds`); known: slots of its tables that have one value (see
    `plan.Tables.known`); what cannot happen is not compiled. progress: called with one line before anything that takes
    seconds. Raises UserError if it cannot be compiled because the program's files have changed since they were
    imported. The entry takes six int64 (see `kernels.program.work`) and releases the interpreter lock while it runs.
    """
    from nanochat_tui.engine.simd.objects import ENTRY_ARGUMENTS

    if os.environ.get(GENERAL) == "1":
        kinds, known = ALL, frozenset()
    address = _load(_wanted(kernel.name, group, kinds, known), progress)
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * ENTRY_ARGUMENTS)(address)


def load_screen(kernel: KernelInfo) -> int:
    """Return the address of a kernel's `kernels.screen.screened_logits`, compiling it if it is not in the cache.

    It is apart from the program, as most models and short replies do without. Raises UserError as `load_entry`.
    """
    return _load(_wanted(kernel.name, 128, frozenset({Q8}), frozenset(), "screened_logits"), None)


def _load(wanted: Wanted, progress: Progress | None) -> int:
    """Return the address of a program's root."""
    from nanochat_tui.engine.simd.objects import load_objects, parted, symbol

    with _lock:
        found = _loaded.get(wanted)
        if found is not None:
            return found
        folder = cache_directory()
        path = folder / _file_name(wanted) if folder else None
        code = read(path) if path else None
        if code is None:
            if progress:
                progress(f"compiling the {wanted.kernel} kernels for this processor (once, a few seconds)")
            code = b"".join(_compile(wanted))
            if path:
                write(path, code)
        name = symbol(wanted.root)
        _loaded[wanted] = load_objects(wanted.cpu, wanted.features, parted(code), [name])[name]
        return _loaded[wanted]


def _pairs(text: str) -> Known:
    return frozenset((name, int(value)) for name, value in (pair.split("=") for pair in filter(None, text.split(","))))


if __name__ == "__main__":
    which, name, group_size, numbers, values, expected = sys.argv[1:]
    if expected != SOURCES:
        sys.exit("these are other sources than the caller's")
    made_for = _wanted(name, int(group_size), frozenset(map(int, numbers.split(","))), _pairs(values))
    sys.stdout.buffer.write(_sealed(_build(made_for, which)))
