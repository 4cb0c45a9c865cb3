"""A model writes solutions to problems, the sandbox judges them, and both are kept: an evaluation that can go on.

The folder of an evaluation holds `evaluation.json` (what was asked of whom) and `samples.jsonl` (a row for each
completion with its verdict, appended as soon as it is known).
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Event as CancelEvent
from typing import Any

from nanochat_tui.chat.backend import Backend, Message, Request, TooLongError
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.folder import EvaluationFolder, read_about, read_rows
from nanochat_tui.evaluate.judging import Judged, answer_code, cut, judge
from nanochat_tui.evaluate.pass_at_k import PassRate, pass_rate
from nanochat_tui.evaluate.problems import Problem
from nanochat_tui.evaluate.sandbox.isolation import Isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.request import Token
from nanochat_tui.text import display_safe

ROWS = "samples.jsonl"
JUDGES = 2
"""Programs that run at the same time as the model writes."""
TOO_LONG = "prompt too long"
"""Verdict where the question does not fit into the model's context."""
_ASK = {
    "python": "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{}\n```",
    "rust": "Complete this Rust function. Answer with the whole function in one code block.\n\n```rust\n{}\n```",
}
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """What is asked: so many samples of each problem, by chat or as a text to continue, and how they are run."""

    samples: int
    request: Request
    """The settings; its prompt is replaced, its seed counted up from sample to sample."""
    chat: bool
    isolation: Isolation
    limits: Limits


@dataclass(frozen=True)
class Row:
    """A completion and its verdict, as samples.jsonl holds it."""

    problem: str
    sample: int
    completion: str
    verdict: str
    detail: str
    temperature: float | None = None
    """Where an evaluation has several."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Figures of this completion, such as its similarity to the author's text."""

    @property
    def key(self) -> tuple[str, float | None, int]:
        """What a row is about: a second one of the same replaces the first."""
        return self.problem, self.temperature, self.sample


@dataclass(frozen=True)
class Wanted:
    """A completion to write and to judge; the first is done one after the other, the second at the same time."""

    problem: str
    sample: int
    temperature: float | None
    write: Callable[[], str]
    judge: Callable[[str], Judged]


class Evaluation:
    """The folder of an evaluation and its rows."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        """Begin an evaluation, or continue one of the same settings. Raises UserError and WriteError as
        `EvaluationFolder` does.
        """
        self.folder = EvaluationFolder(folder, about)
        self.rows = _rows(self.folder.read_rows(ROWS), folder)

    def append(self, row: Row) -> None:
        """Keep a row. Raises WriteError."""
        self.rows.append(row)
        self.folder.append(ROWS, asdict(row))


def read_evaluation(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return what a folder says of its evaluation, and its rows. Raises UserError for one that is damaged."""
    return read_about(folder), _rows(read_rows(folder / ROWS)[0], folder)


def _rows(found: Sequence[dict[str, Any]], folder: Path) -> list[Row]:
    try:
        rows = [Row(**row) for row in found]
    except TypeError:
        raise UserError(f"{display_safe(str(folder / ROWS))} is damaged; name another folder with --out") from None
    return list({row.key: row for row in rows}.values())


def solve(
    evaluation: Evaluation, backend: Backend, problems: Sequence[Problem], task: Task, progress: Progress
) -> None:
    """Write and judge what is still missing of an evaluation, sample by sample over all problems.

    Raises:
        UserError: the model's backend or a compiler fails; what is judged by then is kept.
    """

    def one(problem: Problem, sample: int) -> Wanted:
        return Wanted(
            problem.name,
            sample,
            None,
            lambda: write(backend, problem, sample, task),
            lambda completion: judge(problem, completion, task.isolation, task.limits),
        )

    work(evaluation, [one(problem, sample) for sample in range(task.samples) for problem in problems], progress)


def work(evaluation: Evaluation, wanted: Sequence[Wanted], progress: Progress) -> None:
    """Write and judge those of `wanted` that an evaluation has no row of. Raises UserError as `solve` does."""
    done = {row.key for row in evaluation.rows}
    progress(len(done))
    waiting: deque[tuple[Wanted, str, Future[Judged]]] = deque()

    def settle(most: int) -> None:
        while len(waiting) > most:
            one, completion, verdict = waiting.popleft()
            found = verdict.result()
            evaluation.append(
                Row(one.problem, one.sample, completion, found.verdict, found.detail, one.temperature, found.scores)
            )
            progress(len(evaluation.rows))

    with ThreadPoolExecutor(JUDGES, thread_name_prefix="judge") as pool:
        try:
            for one in wanted:
                if (one.problem, one.temperature, one.sample) not in done:
                    try:
                        completion = one.write()
                        judged = pool.submit(one.judge, completion)
                    except TooLongError as error:  # of this problem alone: a model with a short context fails it
                        completion, judged = "", Future()
                        judged.set_result(Judged(TOO_LONG, str(error), 0.0))
                    waiting.append((one, completion, judged))
                    settle(2 * JUDGES)
        finally:
            settle(0)


def write(backend: Backend, problem: Problem, sample: int, task: Task) -> str:
    """Return a model's completion of a problem; a base model's ends at the problem's stop texts."""
    seed = task.request.sampling.seed
    sampling = task.request.sampling if seed is None else replace(task.request.sampling, seed=seed + sample)
    if task.chat:
        messages = (Message("user", _ASK[problem.language].format(problem.prompt.rstrip())),)
        request = replace(task.request, sampling=sampling, messages=messages, prompt=None)
        return answer_code(problem, "".join(texts(backend, request)))
    request = replace(task.request, sampling=sampling, messages=(), prompt=problem.prompt)
    text = ""
    with contextlib.closing(texts(backend, request)) as pieces:
        for piece in pieces:
            text += piece
            if cut(problem, text) != text:
                break
    return cut(problem, text)


def texts(backend: Backend, request: Request) -> Generator[str]:
    """Yield the pieces of a reply; a listener that leaves ends it."""
    cancel = CancelEvent()
    try:
        for event in backend.chat(request, cancel):
            if isinstance(event, Token) and not event.thinking:
                yield event.text
    finally:
        cancel.set()


@dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    problems: int
    samples: int
    rates: tuple[PassRate, ...]
    verdicts: dict[str, int]
    unjudged: int
    """Problems that have fewer samples than were asked for."""


def report(rows: Sequence[Row], problems: Sequence[Problem], samples: int, ks: Sequence[int]) -> Report:
    """Sum up the rows of an evaluation; problems without all their samples count in no rate."""
    names = {problem.name for problem in problems}
    counted = [row for row in rows if row.problem in names and row.sample < samples]
    of = Counter(row.problem for row in counted)
    right = Counter(row.problem for row in counted if row.verdict == "passed")
    whole = [(samples, right[name]) for name in sorted(names) if of[name] == samples]
    rates = tuple(pass_rate(whole, k) for k in ks if k <= samples)
    verdicts = dict(Counter(row.verdict for row in counted).most_common())
    return Report(len(problems), samples, rates, verdicts, len(names) - len(whole))
