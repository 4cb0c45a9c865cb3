"""`nanochat-tui eval humaneval`: programming problems, solved by a model and judged in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_tui.cli.evaluation_run import (
    absolute,
    chat_or_raw,
    following,
    kept_folder,
    model_argument,
    open_backend,
    print_found,
    problem_rows,
)
from nanochat_tui.cli.json_output import json_text
from nanochat_tui.evaluate.comparing import compare, compare_parts, open_pair
from nanochat_tui.evaluate.kept import find_kept
from nanochat_tui.evaluate.problems import Language, Problem, ProblemSet, SetName, read_problems, shipped_problems
from nanochat_tui.evaluate.sandbox.isolation import Isolation, isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.evaluate.solving import Evaluation, Report, Task, report, solve
from nanochat_tui.evaluate.toolchains import python, rustc
from nanochat_tui.paths import evaluations_directory
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.chat.backend import Backend

KS = (1, 10, 100)
SOME_TEMPERATURE = 0.8
"""Of several samples of a problem (the HumanEval paper's for pass@100); one sample is greedy."""


@dataclass(frozen=True)
class Asked:
    """The command's options."""

    model: str | None
    attach: str | None
    chosen: SetName
    problems: Path | None
    limit: int | None
    samples: int
    temperature: float | None
    seed: int
    max_tokens: int
    seconds: float
    chat: bool | None
    out: Path | None
    unsafe: bool
    threads: int | None

    def arguments(self, folder: Path) -> list[str]:
        """Return the arguments of `nanochat-tui` that continue it."""
        options = absolute(
            {
                "--attach": self.attach,
                "--set": self.chosen,
                "--problems": self.problems,
                "--limit": self.limit,
                "--samples": self.samples,
                "--temperature": self.temperature,
                "--seed": self.seed,
                "--max-tokens": self.max_tokens,
                "--timeout": self.seconds,
                "--chat": self.chat is True,
                "--raw": self.chat is False,
                "--out": folder,
                "--unsafe": self.unsafe,
                "--threads": self.threads,
            }
        )
        return ["eval", "humaneval", *model_argument(self.model, self.attach), *options]


@dataclass(frozen=True)
class Solved:
    """What the evaluation of a model found."""

    about: dict[str, Any]
    folder: Path
    title: str
    task: Task
    excluded: dict[str, str]
    report: Report

    def to_json(self) -> dict[str, Any]:
        """Plain values, for scripts."""
        return {**self.about, "folder": str(self.folder), "excluded": self.excluded, **asdict(self.report)}


def measure(asked: Asked, *, as_json: bool, lines: bool = False) -> None:
    """Solve the problems, judge the solutions and print pass@k."""
    found = evaluate_problems(asked, lines=lines)
    words = partial(in_words, found.title, found.task, found.report, found.folder)
    print_found(found.to_json(), words, as_json=as_json, lines=lines)


def evaluate_problems(asked: Asked, *, lines: bool = False, backend: Backend | None = None) -> Solved:
    """Do the evaluation with a model, which is opened and closed unless it is handed in. Raises UserError."""
    found_set = read_problems(asked.problems) if asked.problems is not None else shipped_problems(asked.chosen)
    problems = found_set.problems[: asked.limit]
    kind = isolation(asked.unsafe)
    # what is missing is said before an hour of writing
    tools = {problem.language: (rustc if problem.language == "rust" else python)().version for problem in problems}
    opened = backend or open_backend(asked.model, asked.attach, asked.threads)
    task = _task(asked, kind, chat=chat_or_raw(opened, asked.chat))
    about = _about(asked, found_set, opened, task, tools, len(problems))
    folder = kept_folder(asked.out, _set_name(asked), opened.name)
    evaluation = Evaluation(folder, about)
    total = len(problems) * asked.samples
    evaluation.folder.describe(_rows(problems), total)
    with evaluation.folder.hold(asked.arguments(folder), len(evaluation.rows)):
        with following(evaluation, total, found_set.title, lines=lines) as tick:
            solve(evaluation, opened, problems, task, tick)
        whole = report(evaluation.rows, problems, asked.samples, KS)
        found = Solved(about, folder, found_set.title, task, found_set.excluded, whole)
        evaluation.folder.finish(found.to_json())
    if backend is None:
        opened.close()
    return found


def _rows(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return problem_rows(
        [one.name for one in problems],
        [one.prompt for one in problems],
        reference=[one.solution or "" for one in problems],
        test=[one.test for one in problems],
        language=[one.language for one in problems],
    )


def _task(asked: Asked, kind: Isolation, *, chat: bool) -> Task:
    from nanochat_tui.chat.backend import Request
    from nanochat_tui.request import SamplingParams

    temperature = asked.temperature
    if temperature is None:
        temperature = 0.0 if asked.samples == 1 else SOME_TEMPERATURE
    request = Request(
        prompt="",
        max_tokens=asked.max_tokens,
        sampling=SamplingParams(temperature=temperature, top_k=0, top_p=0.95, seed=asked.seed),
    )
    return Task(asked.samples, request, chat, kind, Limits(seconds=asked.seconds))


def _about(
    asked: Asked, found_set: ProblemSet, backend: Backend, task: Task, tools: dict[Language, str], problems: int
) -> dict[str, Any]:
    """Return what an evaluation's folder says of it: with other answers it is another evaluation."""
    sampling = task.request.sampling
    return {
        "set": found_set.title,
        "problems": problems,
        "model": backend.name,
        "server": backend.kernel if asked.attach is not None else None,
        "samples": asked.samples,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": asked.seed,
        "max_tokens": asked.max_tokens,
        "chat": task.chat,
        "seconds": asked.seconds,
        "isolation": task.isolation.value,
        "tools": tools,
    }


def _set_name(asked: Asked) -> str:
    return asked.problems.name.partition(".")[0] if asked.problems is not None else f"humaneval-{asked.chosen}"


def in_words(title: str, task: Task, found: Report, folder: Path) -> str:
    """Say what came of it."""
    lines = [f"{display_safe(title)}: {found.problems} problems, {found.samples} samples of each"]
    if task.isolation is Isolation.NONE:
        lines.append("warning: the programs ran without isolation")
    for rate in found.rates:
        solved = "" if rate.value else f"; none of {rate.problems} problems was solved"
        lines.append(f"pass@{rate.k}: {rate.value:.1%} (95 % interval {rate.low:.1%} to {rate.high:.1%}{solved})")
    lines.append("verdicts: " + ", ".join(f"{count} {verdict}" for verdict, count in found.verdicts.items()))
    if found.unjudged:
        lines.append(f"{found.unjudged} problems have not all samples yet; run the command again")
    lines.append(f"samples and verdicts: {display_safe(str(folder))}")
    return "\n".join(lines)


def print_comparison(first: str, second: str, *, as_json: bool) -> None:
    """Print two evaluations next to each other, as a table in Markdown or as JSON."""
    root = evaluations_directory()
    both, different = open_pair(find_kept(first, root), find_kept(second, root))
    (a, rows_a), (b, rows_b) = both
    found = compare(rows_a, rows_b)
    if as_json:
        answer = {"models": [a.get("model"), b.get("model")], "different": different, **asdict(found)}
        print(json_text({**answer, "difference": found.difference, "significant": found.is_significant}))
        return
    names = [display_safe(str(about.get("model"))).replace("|", "\\|") for about in (a, b)]
    verdict = "the difference is significant" if found.is_significant else "the difference may be chance"
    lines = [
        f"| {display_safe(str(a.get('set')))} | {names[0]} | {names[1]} | difference |",
        "| --- | --- | --- | --- |",
        f"| pass@1 | {found.rates[0]:.1%} | {found.rates[1]:.1%} | {found.difference:+.1%} "
        f"({found.low:+.1%} to {found.high:+.1%}) |",
        f"| solved more often | {found.better[0]} | {found.better[1]} | sign test p = {found.sign_test:.3g} |",
        "",
        f"{found.problems} problems that both were given, 95 % interval over problems: {verdict}.",
    ]
    parts = compare_parts(rows_a, rows_b, a.get("parts") or ())
    if parts:
        lines += [
            "",
            "| part | n | " + " | ".join(names) + " | difference | sign test |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
    for part, one in parts:
        rates = f"{one.rates[0]:.1%} | {one.rates[1]:.1%}"
        difference = f"{one.difference:+.1%} ({one.low:+.1%} to {one.high:+.1%})"
        lines.append(f"| {display_safe(part)} | {one.problems} | {rates} | {difference} | p = {one.sign_test:.3g} |")
    if different:
        lines.append(f"The evaluations also differ in: {', '.join(map(display_safe, different))}.")
    print("\n".join(lines))
