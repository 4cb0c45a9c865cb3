"""Speed of replies that follow a grammar, next to free ones, in turns.

    python benchmarks/grammar.py [--model FILE | --shape bonsai-1.7b] [--tokens 128] [--rounds 5] [--threads 2]

Four replies at temperature 0.8 with one seed, without draft tokens: free; free with log-probabilities, where no part of
the output table is left out; after a grammar that allows any text, which must be the same reply token for token; and
JSON after a schema. Tokens per second of decode, the median of the rounds, and each one's share of the free reply's.
Exit code 1 if the reply after any text differs. --shape writes random weights of that shape into --folder first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from models import SHAPES, write_model

from nanochat_tui.engine.generate.model import Model, load
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.model.shipped import shipped_model
from nanochat_tui.request import Grammar

PROMPT = "fn main() {"
SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "size": {"type": "integer"}},
        "required": ["name", "size"],
    },
    "minItems": 100,
}
ANY = Grammar.free()
WAYS: dict[str, dict[str, Any]] = {
    "free": {"logprobs": False},
    "free, log-probabilities": {"logprobs": True},
    "any text": {"logprobs": False, "grammar": ANY},
    "JSON schema": {"logprobs": False, "grammar": Grammar.json_schema(SCHEMA)},
}


def measure(model: Model, tokens: int, settings: dict[str, Any]) -> tuple[list[int | None], float]:
    """Return the ids of a reply, and its tokens per second of decode."""
    session = Session(model, speculation="off")
    ids = [
        token.id
        for token in session.generate(
            model.encode(PROMPT), max_tokens=tokens, temperature=0.8, seed=1, ignore_eos=True, **settings
        )
    ]
    return ids, session.stats.decode_tps or 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--shape", choices=SHAPES, default=None)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    path = options.model or shipped_model()
    if options.shape is not None:
        path = write_model(options.folder / f"{options.shape}.gguf", SHAPES[options.shape])
    model = load(path, threads=options.threads)
    model.grammars.check(ANY)
    speeds: dict[str, list[float]] = {name: [] for name in WAYS}
    replies: dict[str, list[int | None]] = {}
    for turn in range(options.rounds + 1):
        for name, settings in WAYS.items():
            replies[name], speed = measure(model, options.tokens, settings)
            if turn:  # the first one makes what is made once
                speeds[name].append(speed)
        model.settle()
    free = statistics.median(speeds["free"])
    print(f"{model.name}, {model.kernel}, {model.threads} threads, {options.tokens} tokens\n")
    print("| reply | tok/s | of the free one |\n|---|---:|---:|")
    for name, found in speeds.items():
        middle = statistics.median(found)
        print(f"| {name} | {middle:,.1f} | {middle / free:.1%} |")
    same = replies["any text"] == replies["free"]
    print(f"\nany text: {'the same reply' if same else 'ANOTHER REPLY'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
