"""`nanochat-tui eval requests`: does a model write the Rust function that it is asked for?"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from nanochat_tui.cli.evaluation import open_model, progress
from nanochat_tui.cli.json_output import json_text
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate import requests as asked
from nanochat_tui.evaluate.rustc import compile_errors
from nanochat_tui.evaluate.sandbox.isolation import Isolation, isolation
from nanochat_tui.evaluate.toolchains import rustc
from nanochat_tui.files import atomic_write_text

WORDS = {
    "parses": "parse without error",
    "asked_for": "have the asked name and parameters too",
    "compiles": "compile alone",
    "constant": "only return a constant",
}


def measure(
    name: str,
    file: Path,
    *,
    count: int,
    max_tokens: int,
    temperature: float,
    seed: int,
    samples: Path | None,
    threads: int | None,
    unsafe: bool,
    as_json: bool,
) -> None:
    """Ask a model for the first `count` functions of a file and print what its answers are worth. Raises UserError."""
    compiler, kind = rustc().version, isolation(unsafe)
    requests = asked.read_requests(file)[:count]
    answers = answer_all(name, requests, max_tokens, temperature, seed, threads)
    judged = asked.with_compiled(answers, partial(compile_errors, kind=kind))
    found = asked.summarise(judged) | {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "rustc": compiler,
        "isolation": kind.value,
    }
    if samples is not None:
        atomic_write_text(samples, "".join(json.dumps(answer.to_json()) + "\n" for answer in judged))
    print(json_text(found) if as_json else in_words(found))


def answer_all(
    name: str, requests: list[asked.Request], max_tokens: int, temperature: float, seed: int, threads: int | None
) -> list[asked.Answer]:
    """The answers of a GGUF file, asked by its chat template, each judged but for compiling. Raises UserError."""
    from nanochat_tui.engine.generate.model import Model

    model = open_model(name, None, threads).model
    if not isinstance(model, Model):
        raise UserError("requests are answered by GGUF files; export the checkpoint first with nanochat-train export")
    found = []
    with progress("answering", len(requests)) as tick:
        for done, request in enumerate(requests, 1):
            ids = model.prompts.messages_ids([{"role": "user", "content": request.prompt}])
            room = min(max_tokens, model.config.context_length - len(ids))
            text = "".join(
                token.text
                for token in model.generate(
                    ids, max_tokens=max(1, room), temperature=temperature, seed=seed + done, logprobs=False
                )
            )
            found.append(asked.judge(request, text))
            tick(done)
    return found


def in_words(found: dict[str, Any]) -> str:
    """Say what came of it, a line each."""
    how = "greedy" if found["temperature"] == 0 else f"temperature {found['temperature']:g}"
    lines = [f"{found['requests']} requests, {how}, at most {found['max_tokens']} tokens, {found['rustc']}"]
    if found["isolation"] == Isolation.NONE.value:
        lines.append("warning: the compiler ran without isolation")
    for key, words in WORDS.items():
        low, high = found["intervals_95"][key]
        goal = found["goals_met"].get(key)
        said = "" if goal is None else (", goal met" if goal else ", goal missed")
        lines.append(
            f"{found[key]:>5} {words}: {found['shares'][key]:.0%} (95 % interval {low:.0%} to {high:.0%}){said}"
        )
    return "\n".join(lines)
