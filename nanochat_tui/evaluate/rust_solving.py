"""How a model's answers to the items of `eval rust` are written and judged."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nanochat_tui.chat.backend import Backend, Request
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.functions import judge as judge_body
from nanochat_tui.evaluate.functions import passes
from nanochat_tui.evaluate.judging import Judged, body_of, judge, source_of
from nanochat_tui.evaluate.rust_functions import first_function
from nanochat_tui.evaluate.rust_items import Item
from nanochat_tui.evaluate.rustc import compile_errors
from nanochat_tui.evaluate.solving import Task, Wanted, texts, write

LINE_TOKENS = 64
"""Most tokens of one line."""


@dataclass(frozen=True)
class Asking:
    """How items are asked: at these temperatures, so many samples each (one where nothing is drawn)."""

    task: Task
    temperatures: Sequence[float]

    def samples(self, temperature: float) -> int:
        """Samples of an item at a temperature."""
        return self.task.samples if temperature > 0 else 1


def wanted_of(backend: Backend, items: Sequence[Item], asking: Asking) -> list[Wanted]:
    """Return what is to be written and judged, sample by sample."""
    found = []
    for temperature in asking.temperatures:
        request = asking.task.request
        warm = replace(request, sampling=replace(request.sampling, temperature=temperature))
        task = replace(asking.task, request=warm)
        for sample in range(asking.samples(temperature)):
            found += [_wanted(backend, item, sample, task, temperature) for item in items]
    return found


def _wanted(backend: Backend, item: Item, sample: int, task: Task, temperature: float) -> Wanted:
    return Wanted(
        item.name,
        sample,
        temperature,
        lambda: complete(backend, item, sample, task),
        lambda completion: judge_item(item, completion, task),
    )


def complete(backend: Backend, item: Item, sample: int, task: Task) -> str:
    """Return what a model writes for an item."""
    if item.problem is not None:
        return write(backend, item.problem, sample, task)
    seed = task.request.sampling.seed
    sampling = task.request.sampling if seed is None else replace(task.request.sampling, seed=seed + sample)
    request = replace(task.request, sampling=sampling, messages=(), prompt=item.before)
    if item.part == "bodies":
        return _body(backend, item, request)
    request = replace(request, max_tokens=min(LINE_TOKENS, request.max_tokens or LINE_TOKENS))
    if item.part == "infill":
        request = replace(request, suffix=item.after)
    text = ""
    with contextlib.closing(texts(backend, request)) as pieces:
        for piece in pieces:
            text += piece
            if "\n" in text.lstrip():
                break
    return text.lstrip().split("\n")[0].strip()


def _body(backend: Backend, item: Item, request: Request) -> str:
    text = ""
    with contextlib.closing(texts(backend, request)) as pieces:
        for piece in pieces:
            text += piece
            if "}" in piece and (verdict := judge_body(item.header, text)).closed:
                return verdict.text
    return text


def judge_item(item: Item, completion: str, task: Task) -> Judged:
    """Say what a completion is worth, with `similarity` to the author's text and whether it is `exact`; of functions
    asked for, also whether they `compile` and are `constant`.

    Raises:
        UserError: rustc is missing.
    """
    if item.problem is not None:
        return _judge_function(item, completion, task)
    scores = _scores(completion, item.reference)
    if item.part == "bodies":
        found = judge_body(item.header, completion)
        if passes(found, item.reference):
            return Judged("passed", "", 0.0, scores)
        state = "too short" if found.valid else "does not parse" if found.closed else "does not end"
        return Judged(state, "", 0.0, scores)
    return Judged("passed" if scores["exact"] else "differs", "", 0.0, scores)


def _judge_function(item: Item, completion: str, task: Task) -> Judged:
    problem = item.problem
    assert problem is not None  # noqa: S101 - the caller looked
    source = source_of(problem, completion)
    scores = _scores(body_of(problem, completion), item.reference)
    function = first_function(source)
    if item.part == "tests":
        found = judge(problem, completion, task.isolation, task.limits)
        compiles = found.verdict != "compile error"
    else:
        (errors,) = compile_errors([source], task.isolation)
        compiles = not errors
        found = Judged("passed" if compiles else "compile error", errors, 0.0)
    constant = function is not None and function.constant
    return replace(found, scores={**scores, "compiles": float(compiles), "constant": float(constant)})


def _scores(text: str, reference: str) -> dict[str, float]:
    return {"similarity": edit_similarity(text, reference), "exact": float(text.split() == reference.split())}


def edit_similarity(text: str, reference: str) -> float:
    """Return 1 - Levenshtein distance / length of the longer text, white space at both ends left out.

    The measure of CrossCodeEval (Ding et al. 2023). Raises UserError where rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise UserError(
            "edit similarity needs the package rapidfuzz; install it with: pip install 'nanochat-tui[eval]'"
        ) from None
    return float(Levenshtein.normalized_similarity(text.strip(), reference.strip()))


def infill_problem(backend: Backend) -> str | None:
    """Return why a model cannot fill in the middle, or None if it can."""
    from nanochat_tui.chat.local import LocalBackend

    if isinstance(backend, LocalBackend):
        return None if backend.model.codec.infill is not None else "the file has no FIM tokens"
    try:
        for _ in texts(backend, Request(prompt="fn main() {\n", suffix="\n}\n", max_tokens=1)):
            pass
    except UserError as error:
        return f"the server cannot fill in the middle ({error})"
    return None
