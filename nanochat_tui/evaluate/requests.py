"""Requests for a Rust function: what a model answers, and whether it is what was asked for.

Three things are asked of an answer. Does it parse without error and declare a function of the asked name, with the
asked parameters? Does it compile alone? And does its body do anything but name a value?
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.evaluate.rust_functions import RustFunction, first_function, same_call
from nanochat_tui.evaluate.summary import wilson
from nanochat_tui.text import display_safe

GOALS = {"asked_for": 0.60, "compiles": 0.25}
"""Shares that a small chat model is to reach; of answers that only name a value, fewer than `MOST_CONSTANT`."""
MOST_CONSTANT = 0.20


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, and the function that was asked for, as its author wrote it."""

    prompt: str
    wanted: RustFunction
    source: str = ""
    """Where it comes from, such as a crate."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer is worth."""

    request: Request
    text: str
    """The Rust in it."""
    parses: bool
    asked_for: bool
    """Whether it parses and its first function has the name and the parameters."""
    constant: bool
    """Whether its first function only names a value."""
    errors: str | None = None
    """What the compiler says against it, "" for nothing; None where it was not asked."""

    @property
    def compiles(self) -> bool:
        """Whether it compiles alone."""
        return self.errors == ""

    def to_json(self) -> dict[str, Any]:
        """A row for a file of answers."""
        return {
            "prompt": self.request.prompt,
            "name": self.request.wanted.name,
            "answer": self.text,
            "parses": self.parses,
            "asked_for": self.asked_for,
            "compiles": self.compiles,
            "errors": self.errors,
            "constant": self.constant,
            "source": self.request.source,
        }


def read_requests(path: Path) -> list[Request]:
    """Read JSON lines of {"prompt", "completion"}, the completion declaring the function asked for. Raises UserError.

    Those without parameters are left out: they ask for too little.
    """
    shown = display_safe(str(path))
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"cannot read {shown}: {plain_reason(error)}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, completion = row["prompt"], row["completion"]
            wanted = first_function(completion) if isinstance(completion, str) else None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{shown}, line {number} is not an object with prompt and completion") from None
        if wanted is None or not isinstance(prompt, str):
            raise UserError(f"{shown}, line {number}: the completion is no Rust function that parses")
        if wanted.parameters:
            found.append(Request(prompt, wanted, str(row.get("crate", ""))))
    if not found:
        raise UserError(f"{shown} holds no request for a function with parameters")
    return found


def rust_of(answer: str) -> str:
    """Return the Rust of an answer: of its first code block if it has one, else all of it."""
    block = re.search(r"```(?:rust|rs)?[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return block.group(1) if block else answer


def judge(request: Request, answer: str) -> Answer:
    """Say what an answer is worth, but for compiling."""
    text = rust_of(answer)
    found = first_function(text)
    return Answer(
        request,
        text,
        parses=found is not None,
        asked_for=found is not None and same_call(found, request.wanted),
        constant=found is not None and found.constant,
    )


def with_compiled(answers: Sequence[Answer], errors_of: Callable[[Sequence[str]], Sequence[str]]) -> list[Answer]:
    """Return the answers with what the compiler says of those that parse; `errors_of` gives "" for what compiles."""
    errors = iter(errors_of([answer.text for answer in answers if answer.parses]))
    return [replace(a, errors=next(errors)) if a.parses else a for a in answers]


def summarise(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return counts, shares with 95 % intervals, and which goals are met."""
    total = len(answers)
    counts = {
        "parses": sum(a.parses for a in answers),
        "asked_for": sum(a.asked_for for a in answers),
        "compiles": sum(a.compiles for a in answers),
        "constant": sum(a.constant for a in answers),
    }
    shares = {name: count / total for name, count in counts.items()}
    met = {name: shares[name] >= goal for name, goal in GOALS.items()}
    return {
        "requests": total,
        **counts,
        "shares": shares,
        "intervals_95": {name: list(wilson(count, total)) for name, count in counts.items()},
        "goals_met": met | {"constant": shares["constant"] < MOST_CONSTANT},
    }
