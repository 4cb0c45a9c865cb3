"""Which Rust texts compile alone: asked of rustc in the sandbox, many at a time, each one a module in its own file."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat_tui.evaluate.sandbox.isolation import Command, Isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.evaluate.sandbox.run import run
from nanochat_tui.evaluate.toolchains import rustc

BATCH = 300
"""Texts of one crate; an early error hides the later stages of all of them, so that more means more rounds."""
WORKERS = 2
"""Compilers that run at the same time."""
LIMITS = Limits(
    seconds=120, memory=2 << 30, address_space=None, processes=64, output=16 << 20, files=256 << 20, kept=16 << 20
)
"""Of one compiler: it maps far more than it uses, and has a few hundred bytes to say of each error."""
UNNAMED = "rustc ended without saying what is wrong"
DETAIL = 2000
"""Characters of a text's errors that are kept."""
_FILE = re.compile(r"f(\d+)\.rs$")
_SCRIPT = 'exec "$0" "$@" --out-dir "$HOME" "$GIVEN/lib.rs"'
_ARGUMENTS = (
    "--edition=2021",
    "--crate-name=alone",
    "--crate-type=lib",
    "--emit=metadata",
    "--cap-lints=allow",
    "--error-format=json",
)


@dataclass(frozen=True, slots=True)
class _Error:
    """One error of the compiler: the texts it names, and what it says."""

    numbers: frozenset[int]
    text: str


def compile_errors(
    sources: Sequence[str], kind: Isolation, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Return for each text what hinders it from compiling as a module of its own with the standard library, edition
    2021; "" for those that compile.

    Only types are checked (`--emit=metadata`): nothing is linked or run. The compiler itself runs in the sandbox, where
    a text that includes files finds none. `progress` is told how many are done, of how many. Raises UserError where
    rustc is missing.
    """
    rustc()
    size = max(1, min(BATCH, -(-len(sources) // WORKERS)))
    batches = [range(at, min(at + size, len(sources))) for at in range(0, len(sources), size)]
    bad: dict[int, str] = {}
    done = 0
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="rustc") as pool:
        for batch, found in zip(batches, pool.map(lambda b: _failing(sources, list(b), kind), batches), strict=True):
            bad |= found
            done += len(batch)
            if progress is not None:
                progress(done, len(sources))
    return [bad.get(i, "") for i in range(len(sources))]


def _failing(sources: Sequence[str], numbers: list[int], kind: Isolation) -> dict[int, str]:
    """Those texts that do not compile, with their errors; found by leaving out the ones that errors name, until there
    is none.
    """
    left, bad = numbers, dict[int, str]()
    with tempfile.TemporaryDirectory(prefix="nanochat-rustc-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the sandbox's user is another one
        for number in left:
            (folder / f"f{number}.rs").write_text(sources[number], encoding="utf-8", errors="backslashreplace")
        while left:
            failed = _errors(folder, left, kind)
            if failed is None:  # the compiler broke off without naming a place
                if len(left) == 1:
                    return bad | {left[0]: UNNAMED}
                half = len(left) // 2
                return bad | _failing(sources, left[:half], kind) | _failing(sources, left[half:], kind)
            if not failed:
                return bad
            bad |= failed
            left = [number for number in left if number not in failed]
    return bad


def _errors(folder: Path, numbers: list[int], kind: Isolation) -> dict[int, str] | None:
    """Errors by the number of the text; None when the compiler failed and names none of them."""
    (folder / "lib.rs").write_text("".join(f"pub mod f{number};\n" for number in numbers), encoding="utf-8")
    tool = rustc()
    command = Command(["/bin/sh", "-c", _SCRIPT, tool.program, *_ARGUMENTS], folder, tool.folders)
    outcome = run(kind, command, LIMITS)
    if outcome.succeeded:
        return {}
    found: dict[int, str] = {}
    for error in filter(None, map(_error, outcome.stderr.splitlines())):
        for number in error.numbers & set(numbers):
            found[number] = f"{found.get(number, '')}{error.text}"[:DETAIL]
    return found or None


def _error(line: bytes) -> _Error | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("level") != "error":
        return None
    numbers = frozenset(number for span in message.get("spans") or [] for number in _numbers(span))
    rendered = re.sub(r"\S*/f\d+\.rs", "main.rs", str(message.get("rendered") or message.get("message") or UNNAMED))
    return _Error(numbers, rendered)


def _numbers(span: dict[str, Any] | None) -> Iterator[int]:
    """The file of a span, or of the place where the macro was called that it is inside of."""
    while span:
        if found := _FILE.search(str(span.get("file_name", ""))):
            yield int(found[1])
        expansion = span.get("expansion")
        span = expansion.get("span") if isinstance(expansion, dict) else None
