"""Machine code of the kernels, kept in the user's cache directory between starts.

The file's name is a hash of everything that decides what the code does: the sources of kernels and emitter,
the versions of Numba and LLVM, processor and instruction set. So an update never meets old code, and Numba
is imported only when there is something to compile. Python and the code share tables by position, so code of any
other sources than those this process runs would end it: the sources are read once, on import, and whoever compiles
proves that it compiled these.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_tui.engine.dispatch import KernelInfo, cpu_feature_text, cpu_name
from nanochat_tui.engine.kernels.kinds import COMMON
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.engine.simd.library import Target

Progress = Callable[[str], None]
Entry = Callable[..., int]
ENVIRONMENT = "NANOCHAT_CACHE_DIR"
KEPT = 12
"""Files of compiled code that are kept, the last used ones: several models, kernels and versions of the sources."""
STALE_SECONDS = 3600
"""Age at which a temporary file is taken to be left over from a process that ended while writing."""
_DIGEST = 32
_loaded: dict[tuple[str, int, frozenset[int]], Entry] = {}
_lock = threading.Lock()


def _sources_hash() -> str:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted([*here.glob("simd/*.py"), *here.glob("kernels/*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
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


def _file_name(target: Target) -> str:
    parts = (
        SOURCES,
        str(sorted(target.kinds)),
        _version("numba"),
        _version("llvmlite"),
        platform.python_version(),
        platform.machine(),
        cpu_name(),
        cpu_feature_text(),
    )
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    return f"{target.isa.name}-{target.group}-{digest}.o"


def _own_private(folder: Path) -> bool:
    """Create a folder that only this user can write, and say whether it is one: code is loaded from it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return False
    if os.name == "posix" and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def cache_directory() -> Path | None:
    """Return where compiled code is kept, or None if no directory is both private and writable.

    NANOCHAT_CACHE_DIR if set, else the user's cache directory, else one in the temporary directory (a
    home that is missing or read-only).
    """
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        candidates = [Path(chosen)]
    else:
        import tempfile

        import platformdirs

        owner = os.geteuid() if os.name == "posix" else "user"
        candidates = [
            Path(platformdirs.user_cache_dir("nanochat-tui")) / "kernels",
            Path(tempfile.gettempdir()) / f"nanochat-tui-{owner}" / "kernels",
        ]
    return next((folder for folder in candidates if _own_private(folder)), None)


def _read(path: Path) -> bytes | None:
    """Return the object code in a cache file, or None if it is absent or damaged."""
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


def _write(path: Path, code: bytes) -> None:
    import tempfile

    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(_sealed(code))
        Path(temporary).replace(path)
        _tidy(path.parent)
    except OSError:
        pass  # a full disk costs the next start a few seconds, nothing else


def _age(path: Path) -> float:
    """Return seconds since a file was last used; 0 if another process has just removed it."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _tidy(folder: Path) -> None:
    """Remove the compiled code that was not used for longest, and what interrupted processes left behind.

    Another process that wants a removed file compiles again; one that has read it needs it no more.
    """
    unused = sorted(folder.glob("*.o"), key=_age)[KEPT:]
    unused += [path for path in folder.glob("*.tmp") if _age(path) > STALE_SECONDS]
    for path in unused:
        with contextlib.suppress(OSError):
            path.unlink()


def _compile(kernel: KernelInfo, group: int, target: Target) -> bytes:
    """Compile in a child process: Numba holds the interpreter lock for seconds, and an application would freeze.

    Raises UserError if the sources on disk are no longer those of this process.
    """
    import subprocess

    _require_same_sources()
    if sys.executable:
        # -P: the working directory may be a checkout of another version, and must not be imported from
        command = [sys.executable, "-P", "-m", "nanochat_tui.engine.compile_cache", kernel.name, str(group)]
        command += [",".join(map(str, sorted(target.kinds))), SOURCES]
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
        child = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}, check=False
        )
        code = _unsealed(child.stdout)
        if child.returncode == 0 and code is not None:
            return code
    return _build(target)


def _build(target: Target) -> bytes:
    from nanochat_tui.engine.kernels.program import build_program

    code = build_program(target)
    _require_same_sources()
    return code


def _target(kernel_name: str, group: int, kinds: frozenset[int]) -> Target:
    from nanochat_tui.engine.simd.isa import ISAS
    from nanochat_tui.engine.simd.library import Target

    return Target(ISAS[kernel_name], group, cpu_name(), cpu_feature_text(), kinds)


def load_entry(
    kernel: KernelInfo, group: int, progress: Progress | None = None, kinds: frozenset[int] = COMMON
) -> Entry:
    """Return the program's entry for a kernel and a group size, compiling it if it is not in the cache.

    kinds: the kinds of matrices a model has (see `kernels.kinds`); fewer compile faster. progress: called with one line
    before anything that takes seconds. Raises UserError if it cannot be compiled because the program's files have
    changed since they were imported. The entry takes six int64 (see `kernels.program.work`)
    and releases the interpreter lock while it runs.
    """
    from nanochat_tui.engine.simd.library import ENTRY_ARGUMENTS, ENTRY_NAME, load_object

    with _lock:
        found = _loaded.get((kernel.name, group, kinds))
        if found is not None:
            return found
        target = _target(kernel.name, group, kinds)
        folder = cache_directory()
        path = folder / _file_name(target) if folder else None
        code = _read(path) if path else None
        if code is None:
            if progress:
                progress(f"compiling the {kernel.name} kernels for this processor (once, a few seconds)")
            code = _compile(kernel, group, target)
            if path:
                _write(path, code)
        address = load_object(target, code, [ENTRY_NAME])[ENTRY_NAME]
        made = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * ENTRY_ARGUMENTS)(address)
        _loaded[kernel.name, group, kinds] = made
        return made


if __name__ == "__main__":
    name, group_size, numbers, expected = sys.argv[1:]
    if expected != SOURCES:
        sys.exit("these are other sources than the caller's")
    made_for = _target(name, int(group_size), frozenset(map(int, numbers.split(","))))
    sys.stdout.buffer.write(_sealed(_build(made_for)))
