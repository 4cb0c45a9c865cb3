"""`nanochat-tui eval humaneval`: programming problems, solved by a model and judged in a sandbox."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_tui.cli.evaluation import progress
from nanochat_tui.cli.json_output import json_text
from nanochat_tui.cli.options import FileOptions, find_model
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.comparing import compare, open_pair
from nanochat_tui.evaluate.problems import Language, ProblemSet, SetName, read_problems, shipped_problems
from nanochat_tui.evaluate.sandbox.isolation import Isolation, isolation
from nanochat_tui.evaluate.sandbox.limits import Limits
from nanochat_tui.evaluate.solving import Evaluation, Report, Task, report, solve
from nanochat_tui.evaluate.toolchains import python, rustc
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


def measure(asked: Asked, *, as_json: bool) -> None:
    """Solve the problems, judge the solutions and print pass@k."""
    found_set = read_problems(asked.problems) if asked.problems is not None else shipped_problems(asked.chosen)
    problems = found_set.problems[: asked.limit]
    kind = isolation(asked.unsafe)
    # what is missing is said before an hour of writing
    tools = {problem.language: (rustc if problem.language == "rust" else python)().version for problem in problems}
    backend = open_backend(asked.model, asked.attach, asked.threads)
    chat = backend.is_chat if asked.chat is None else asked.chat
    if chat and not backend.is_chat:
        raise UserError("this model has no chat template; leave --chat out")
    task = _task(asked, kind, chat=chat)
    about = _about(asked, found_set, backend, task, tools, len(problems))
    folder = asked.out or Path("evaluations") / _folder_name(backend.name, asked)
    evaluation = Evaluation(folder, about)
    with progress("solving", len(problems) * asked.samples) as tick:
        solve(evaluation, backend, problems, task, tick)
    backend.close()
    found = report(evaluation.rows, problems, asked.samples, KS)
    answer = {**about, "folder": str(folder), "excluded": found_set.excluded, **asdict(found)}
    print(json_text(answer) if as_json else in_words(found_set.title, task, found, folder))


def open_backend(model: str | None, attach: str | None, threads: int | None, *, chat: bool = False) -> Backend:
    """Return a loaded model: a file on the engine, or a server's. Raises UserError."""
    from nanochat_tui.cli.narration import Narration

    files = FileOptions(None, None, threads, None, None, None, None, None)
    backend: Backend
    if attach is not None:
        from nanochat_tui.chat.remote import RemoteBackend

        files.refuse_with_server()
        backend = RemoteBackend(attach, model)
    else:
        backend = files.backend(find_model(model, chat=chat))
    with Narration() as narrate:
        backend.load(narrate)
    return backend


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


def _folder_name(model: str, asked: Asked) -> str:
    which = asked.problems.name.partition(".")[0] if asked.problems is not None else f"humaneval-{asked.chosen}"
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in model)
    return f"{which}-{kept}".strip(".") or which


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


def print_comparison(first: Path, second: Path, *, as_json: bool) -> None:
    """Print two evaluations next to each other, as a table in Markdown or as JSON."""
    both, different = open_pair(first, second)
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
    if different:
        lines.append(f"The evaluations also differ in: {', '.join(map(display_safe, different))}.")
    print("\n".join(lines))
