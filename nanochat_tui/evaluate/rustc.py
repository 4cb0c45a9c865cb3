"""Which Rust functions compile alone: asked of rustc, many at a time, each in a module and a file of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.system import usable_cpu_count

BATCH = 300
"""Functions of one crate; an early error hides the later stages of all of them, so that more means more rounds."""
TIMEOUT = 120
_FILE = re.compile(r"f(\d+)\.rs$")


def find_rustc() -> str:
    """Return the compiler's path. Raises UserError where it is missing."""
    found = shutil.which("rustc")
    if found is None:
        raise UserError(
            "rustc is missing, which says whether a function compiles; install Rust (https://rustup.rs, or the "
            "package rustc of your system)"
        )
    return found


def rustc_version() -> str:
    """Return what `rustc --version` prints. Raises UserError where it is missing."""
    done = subprocess.run([find_rustc(), "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def compile_alone(sources: Sequence[str], progress: Callable[[int, int], None] | None = None) -> list[bool]:
    """Say of each text whether it compiles as a module of its own with the standard library, edition 2021.

    Only types are checked (`--emit=metadata`): nothing is linked or run. `progress` is told how many are done, of how
    many. Raises UserError where rustc is missing.
    """
    rustc = find_rustc()
    batches = [range(at, min(at + BATCH, len(sources))) for at in range(0, len(sources), BATCH)]
    good: set[int] = set()
    done = 0
    with ThreadPoolExecutor(max(1, usable_cpu_count())) as pool:
        for batch, found in zip(batches, pool.map(lambda b: _compiling(rustc, sources, list(b)), batches), strict=True):
            good |= found
            done += len(batch)
            if progress is not None:
                progress(done, len(sources))
    return [i in good for i in range(len(sources))]


def _compiling(rustc: str, sources: Sequence[str], numbers: list[int]) -> set[int]:
    """The numbers of those texts that compile; found by leaving out the ones that errors name, until there is none."""
    left = numbers
    with tempfile.TemporaryDirectory(prefix="nanochat-rustc-") as name:
        folder = Path(name)
        for number in left:
            (folder / f"f{number}.rs").write_text(sources[number], encoding="utf-8")
        while left:
            failed = _errors(rustc, folder, left)
            if failed is None:  # the compiler broke off without naming a place
                if len(left) == 1:
                    return set()
                half = len(left) // 2
                return _compiling(rustc, sources, left[:half]) | _compiling(rustc, sources, left[half:])
            if not failed:
                return set(left)
            left = [number for number in left if number not in failed]
    return set()


def _errors(rustc: str, folder: Path, numbers: list[int]) -> set[int] | None:
    """Numbers of the files with errors; None when it failed and none can be told."""
    (folder / "lib.rs").write_text("".join(f"pub mod f{number};\n" for number in numbers), encoding="utf-8")
    command = [rustc, "--edition=2021", "--crate-name=alone", "--crate-type=lib", "--emit=metadata"]
    try:
        done = subprocess.run(
            [*command, "--cap-lints=allow", "--error-format=json", "--out-dir", str(folder), str(folder / "lib.rs")],
            capture_output=True,
            cwd=folder,
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "RUST_BACKTRACE": "0"},
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode == 0:
        return set()
    failed = {number for line in done.stderr.splitlines() for number in _places(line)} & set(numbers)
    return failed or None


def _places(line: bytes) -> Iterator[int]:
    try:
        message = json.loads(line)
    except ValueError:
        return
    if not isinstance(message, dict) or message.get("level") != "error":
        return
    for span in message.get("spans") or []:
        yield from _numbers(span)


def _numbers(span: dict[str, Any] | None) -> Iterator[int]:
    """The file of a span, or of the place where the macro was called that it is inside of."""
    while span:
        if found := _FILE.search(str(span.get("file_name", ""))):
            yield int(found[1])
        expansion = span.get("expansion")
        span = expansion.get("span") if isinstance(expansion, dict) else None
