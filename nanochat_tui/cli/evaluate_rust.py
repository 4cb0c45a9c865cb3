"""`nanochat-tui eval rust`: held-out functions completed greedily by the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_tui.cli.evaluation import Measured, open_model, progress
from nanochat_tui.cli.evaluation_text import document_text, load_tokenizer
from nanochat_tui.cli.json_output import json_text
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.functions import Function, Verdict, choose, find_functions, judge, passes
from nanochat_tui.evaluate.held_out import HeldOut, open_held_out
from nanochat_tui.evaluate.summary import wilson
from nanochat_tui.files import atomic_write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def measure(
    name: str,
    data: Path,
    count: int,
    max_tokens: int,
    samples: Path | None,
    tokenizer: Path | None,
    threads: int | None,
    *,
    as_json: bool,
) -> None:
    """Complete `count` functions and print how many are ended, parse and are long enough."""
    held_out = open_held_out(data)
    answer, rows = complete_functions(
        open_model(name, tokenizer, threads), held_out, load_tokenizer(tokenizer, held_out), count, max_tokens
    )
    if samples is not None:
        atomic_write_text(samples, "".join(json.dumps(row) + "\n" for row in rows))
    print(json_text(answer) if as_json else in_words(answer))


def complete_functions(
    measured: Measured, held_out: HeldOut, named: Tokenizer, count: int, max_tokens: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the summary and a row for each of `count` functions completed. Raises UserError without any."""
    from nanochat_tui.engine.generate.model import Model

    model = measured.model
    if not isinstance(model, Model):
        raise UserError("functions are completed by GGUF files; export the checkpoint first with nanochat-train export")
    found = [
        function
        for document in held_out.documents
        for function in find_functions(
            document_text(document.ids, named, held_out.indentation), document.crate, document.path
        )
    ]
    lengths = {id(f): len(model.tokenizer.encode(f.body).ids) for f in found}
    chosen = choose([f for f in found if lengths[id(f)] <= max_tokens], count)
    if not chosen:
        raise UserError("the held-out documents hold no function with a body of that length")
    rows: list[dict[str, Any]] = []
    with progress("completing", len(chosen)) as tick:
        for done, function in enumerate(chosen, start=1):
            verdict, tokens = _complete(model, function, max_tokens, held_out.end)
            ok = passes(verdict, tokens, lengths[id(function)])
            rows.append(
                {
                    "crate": function.crate,
                    "path": function.path,
                    "header": function.header,
                    "completion": verdict.text,
                    "reference": function.body,
                    "closed": verdict.closed,
                    "parses": verdict.valid,
                    "statements": verdict.statements,
                    "passed": ok,
                }
            )
            tick(done)
    total = len(rows)
    passed = sum(row["passed"] for row in rows)
    answer = {
        "functions": total,
        "closed": sum(row["closed"] for row in rows),
        "parses": sum(row["parses"] for row in rows),
        "passed": passed,
        "rate": passed / total,
        "interval_95": list(wilson(passed, total)),
        "max_tokens": max_tokens,
    }
    return answer, rows


def in_words(answer: dict[str, Any]) -> str:
    """Say what came of it."""
    low, high = answer["interval_95"]
    return (
        f"{answer['functions']} held-out functions, greedy, at most {answer['max_tokens']} tokens: {answer['closed']} "
        f"ended by the model, {answer['parses']} of them parse, {answer['passed']} are long enough too: "
        f"{answer['rate']:.1%} (95 % interval {low:.1%} to {high:.1%})"
    )


def _complete(model: Any, function: Function, max_tokens: int, end: int) -> tuple[Verdict, int]:
    ids = [end, *model.encode(function.before)]
    room = model.config.context_length - max_tokens
    ids = ids[-max(room, 1) :]
    text, tokens = "", 0
    verdict = judge(function.header, text)
    for token in model.generate(ids, max_tokens=max_tokens, temperature=0.0, logprobs=False):
        text += token.text
        tokens += 1
        if "}" in token.text:
            verdict = judge(function.header, text)
            if verdict.closed:
                return verdict, tokens
    return judge(function.header, text), tokens
