"""What `eval rust` asks of a model, made of held-out Rust files: bodies, functions alone, gaps and lines.

All items are text, so that files, checkpoints and servers are asked the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.evaluate.functions import find_functions
from nanochat_tui.evaluate.problems import STOPS, Problem, shipped_problems
from nanochat_tui.evaluate.rust_functions import free_functions
from nanochat_tui.text import display_safe

Part = Literal["bodies", "compile", "tests", "infill", "lines"]
PARTS: dict[Part, str] = {
    "bodies": "bodies of held-out functions: ended, parse, long enough",
    "compile": "functions asked for alone: compile",
    "tests": "60 small functions: pass their tests",
    "infill": "one line of a body, with what follows: exact",
    "lines": "the next line: exact",
}
BEFORE, AFTER = 6_000, 2_000
"""Characters of a file before and after what is to be written: about the context of the smallest models."""
LONGEST = 3
"""Characters of a reference body per token that a completion may have."""
SHORTEST_LINE = 8
MAX_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A held-out file."""

    crate: str
    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to write: what stands before it, what its author wrote, and what else that part needs."""

    part: Part
    name: str
    before: str
    reference: str
    header: str = ""
    """bodies: the function alone, up to its brace."""
    after: str = ""
    """infill: what follows."""
    problem: Problem | None = None
    """compile, tests: the function as a problem."""


def shipped_sources() -> list[Source]:
    """Return the held-out files that come along, written for this and under the licence of the program."""
    folder = files("nanochat_tui.evaluate") / "problem_sets" / "held_out"
    return [
        Source("held-out", one.name, one.read_text(encoding="utf-8"))
        for one in sorted(folder.iterdir(), key=lambda file: file.name)
        if one.name.endswith(".rs")
    ]


def read_sources(place: Path) -> list[Source]:
    """Read a Rust file, or all of a folder. Raises UserError for one that cannot be read, or without any."""
    shown = display_safe(str(place))
    paths = sorted(place.rglob("*.rs")) if place.is_dir() else [place]
    found = []
    try:
        for path in paths:
            if path.is_file() and path.stat().st_size <= MAX_FILE:
                name = str(path.relative_to(place)) if path != place else path.name
                found.append(Source(place.name, name, path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{display_safe(str(path))} cannot be read: {plain_reason(error)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{display_safe(str(path))} is not UTF-8 text; leave it out") from None
    if not found:
        raise UserError(f"{shown} holds no Rust file; give .rs files, or a folder made by nanochat-train prepare-data")
    return found


def make_items(
    sources: Sequence[Source],
    parts: Iterable[Part],
    count: int,
    max_tokens: int,
    errors_of: Callable[[Sequence[str]], Sequence[str]],
) -> list[Item]:
    """Choose at most `count` items of each part, by a hash of their places: the same whatever else there is.

    `errors_of` is asked which functions compile alone. Raises UserError without any item.
    """
    makers: dict[Part, Callable[[], Iterable[Item]]] = {
        "bodies": lambda: chosen(_bodies(sources, LONGEST * max_tokens), count),
        "compile": lambda: _alone(sources, count, errors_of),
        "tests": lambda: [_asked("tests", problem) for problem in shipped_problems("rust-small").problems[:count]],
        "infill": lambda: chosen(_gaps(sources), count),
        "lines": lambda: chosen(_lines(sources), count),
    }
    found = [item for part in PARTS if part in parts for item in makers[part]()]
    if not found:
        raise UserError("the held-out text holds nothing to ask for; give more Rust files")
    return found


def chosen(items: Iterable[Item], count: int) -> list[Item]:
    """Choose `count` items by a hash of their names, each name once."""
    named = {item.name: item for item in items}
    return [named[name] for name in sorted(named, key=lambda name: hashlib.sha256(name.encode()).digest())[:count]]


def before_of(text: str) -> str:
    """Return the end of a text, from the beginning of a line on."""
    if len(text) <= BEFORE:
        return text
    cut = text[-BEFORE:]
    return cut[cut.find("\n") + 1 :] if "\n" in cut else cut


def _place(source: Source, text_before: str) -> str:
    return f"{source.crate}/{source.path}:{text_before.count(chr(10)) + 1}"


def _bodies(sources: Sequence[Source], longest: int) -> Iterator[Item]:
    for source in sources:
        for function in find_functions(source.text, source.crate, source.path):
            if len(function.body) <= longest:
                name = f"bodies/{_place(source, function.before)}"
                yield Item("bodies", name, before_of(function.before), function.body, function.header)


def _alone(
    sources: Sequence[Source], count: int, errors_of: Callable[[Sequence[str]], Sequence[str]]
) -> Iterator[Item]:
    """Functions that are documented and compile alone with the standard library."""
    asked = []
    for source in sources:
        for function in free_functions(source.text):
            brace = function.source.find("{", len(function.signature))
            if not function.documentation or brace < 0:
                continue
            documentation = "".join(f"/// {line}".rstrip() + "\n" for line in function.documentation.splitlines())
            uses = "".join(f"{use}\n" for use in function.uses)
            prompt = f"{uses}\n" if uses else ""
            prompt += f"{documentation}pub {function.source[: brace + 1]}\n"
            body = function.source[brace + 1 :].lstrip("\n")
            name = f"compile/{source.crate}/{source.path}/{function.name}"
            asked.append(_asked("compile", _problem(name, prompt, body, function.name)))
    some = chosen(asked, 2 * count)
    errors = errors_of([item.before + item.reference for item in some])
    yield from [item for item, error in zip(some, errors, strict=True) if not error][:count]


def _problem(name: str, prompt: str, solution: str, function: str) -> Problem:
    return Problem(name, "rust", "humaneval-rust", prompt, "", function, solution, STOPS["humaneval-rust"])


def _asked(part: Part, problem: Problem) -> Item:
    name = problem.name if problem.name.startswith(f"{part}/") else f"{part}/{problem.name}"
    return Item(part, name, problem.prompt, problem.solution or "", problem=problem)


def _gaps(sources: Sequence[Source]) -> Iterator[Item]:
    for source in sources:
        for function in find_functions(source.text, source.crate, source.path):
            after = source.text[len(function.before) + len(function.body) :]
            lines = function.body.splitlines(keepends=True)
            for number, line in enumerate(lines[:-1]):
                if not _says_something(line):
                    continue
                start = function.before + "".join(lines[:number])
                indent = line[: len(line) - len(line.lstrip())]
                rest = "".join(lines[number + 1 :]) + after
                name = f"infill/{_place(source, start)}"
                yield Item("infill", name, before_of(start + indent), line.strip(), after="\n" + rest[:AFTER])


def _lines(sources: Sequence[Source]) -> Iterator[Item]:
    for source in sources:
        lines = source.text.splitlines()
        for number in range(5, len(lines)):
            if _says_something(lines[number]):
                before = "\n".join(lines[:number])
                yield Item(
                    "lines", f"lines/{_place(source, before + chr(10))}", before_of(before), lines[number].strip()
                )


def _says_something(line: str) -> bool:
    """Whether a line is code of some length: no comment, no brace alone."""
    text = line.strip()
    return len(text) >= SHORTEST_LINE and not text.startswith(("//", "/*", "*")) and bool(re.search(r"\w", text))
