"""Questions with an answer that a program can check, and the checks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.evaluate.judging import answer_code, judge
from nanochat_tui.evaluate.problems import Problem, ProblemSet
from nanochat_tui.evaluate.sandbox.isolation import Isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.text import display_safe

Check = Literal["exact", "contains", "regex"]
CHECKS: tuple[Check, ...] = ("exact", "contains", "regex")


@dataclass(frozen=True)
class Verified:
    """A reward between 0 and 1, and why."""

    reward: float
    reasoning: str


@dataclass(frozen=True)
class Question:
    """What is asked, and what verifies a reply. `truth` is the right answer, where one is known."""

    name: str
    text: str
    truth: str
    verify: Callable[[str], Verified]


def read_questions(path: Path, check: Check) -> list[Question]:
    """Read JSON lines of {"question", "answer"} (and "id", "check" for a line of its own).

    exact compares without case and white space at the ends, and takes the last line of a reply too; contains looks for
    the answer; regex searches for the answer as a pattern.

    Raises:
        UserError: a line is no such object, or its pattern is none.
    """
    shown = display_safe(str(path))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = plain_reason(error) if isinstance(error, OSError) else "it is no text"
        raise UserError(f"the questions {shown} cannot be read: {reason}") from None
    found: list[Question] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found.append(_question(line, f"{shown}, line {number}", number, check))
    if not found:
        raise UserError(f"{shown} holds no question")
    names = [question.name for question in found]
    if len(set(names)) < len(names):
        raise UserError(f"{shown} has two questions of the same id")
    return found


def _question(line: str, place: str, number: int, check: Check) -> Question:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise UserError(f'{place}: this is no object with "question" and "answer"')
    answer, own = row.get("answer"), row.get("check", check)
    if not isinstance(answer, (str, int, float)) or isinstance(answer, bool):
        raise UserError(f"{place}: answer must be a text or a number")
    if own not in CHECKS:
        raise UserError(f"{place}: check must be one of {', '.join(CHECKS)}")
    truth = str(answer)
    if own == "regex":
        try:
            re.compile(truth)
        except re.error as error:
            raise UserError(f"{place}: the answer is no regular expression: {error}") from None
    return Question(str(row.get("id", number)), row["question"], truth, _verifier(own, truth))


def _verifier(check: str, truth: str) -> Callable[[str], Verified]:
    wanted = truth.strip().casefold()

    def verify(reply: str) -> Verified:
        said = reply.strip().casefold()
        if check == "regex":
            right = re.search(truth, reply) is not None
        elif check == "contains":
            right = wanted in said
        else:
            right = wanted in (said, said.rpartition("\n")[2].strip().removesuffix("."))
        return Verified(float(right), "right" if right else f"the right answer is {truth}")

    return verify


def programming_questions(chosen: ProblemSet, kind: Isolation, limits: Limits) -> list[Question]:
    """Return programming problems as questions: the reward is 1 if the tests pass in the sandbox."""

    def question(problem: Problem) -> Question:
        def verify(reply: str) -> Verified:
            judged = judge(problem, answer_code(problem, reply), kind, limits)
            return Verified(
                float(judged.passed), judged.verdict + (f": {judged.detail[:500]}" if judged.detail else "")
            )

        text = f"Write this {problem.language.title()} function. Answer with the whole function in one code block.\n\n"
        return Question(problem.name, text + problem.prompt.rstrip(), problem.solution or "", verify)

    return [question(problem) for problem in chosen.problems]
