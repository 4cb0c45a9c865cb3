"""Write the model card of an exported run: every figure read from the run, the data set and the files.

    python scripts/model_card.py RUN exported_models/d20-rust.gguf > exported_models/README.md

Samples are the first ones drawn, seed 1, one per prompt; none is picked.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import nanochat_tui
from nanochat_tui.runs.directory import RunDirectory, read_json

PROMPTS = [
    "fn main() {\n",
    "/// Returns the sum of all even numbers.\npub fn sum_even(values: &[u64]) -> u64 {\n",
    "impl Iterator for Counter {\n    type Item = u32;\n\n    fn next(&mut self) -> Option<Self::Item> {\n",
    "use std::collections::HashMap;\n\n#[derive(Debug, Clone)]\npub struct Cache {\n",
    "#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn parses_empty_input() {\n",
]


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _licences(info: dict[str, Any]) -> str:
    lines = ["| licence | files | MB |", "|---|---:|---:|"]
    ranked = sorted(info["licences"].items(), key=lambda item: -item[1]["bytes"])
    for name, count in ranked[:15]:
        lines.append(f"| {name} | {count['documents']:,} | {count['bytes'] / 1e6:.1f} |")
    rest = ranked[15:]
    if rest:
        files, size = sum(c["documents"] for _, c in rest), sum(c["bytes"] for _, c in rest)
        lines.append(f"| {len(rest)} other permissive terms | {files:,} | {size / 1e6:.1f} |")
    return "\n".join(lines)


def main(run_path: Path, model_path: Path) -> None:
    run = RunDirectory(run_path)
    record = run.config()
    state = read_json(run.checkpoints()[-1] / "state.json")
    data = Path(record["data"]["path"])
    info = read_json(data / "dataset.json")
    rows = run.metrics()
    last = next(r for r in reversed(rows) if "val_loss" in r)
    tail = [r["loss"] for r in rows if r["step"] > last["step"] - 200]
    environment, config = record["environment"], record["config"]
    model = nanochat_tui.load(model_path)
    head = (
        f"exact over the {config['head_frequent']:,} most frequent ids and the batch's rare targets, estimated over the "
        f"rest with {config['head_sampled']:,} samples a step; validation is exact"
        if config["head_frequent"]
        else "exact"
    )
    splits = info["splits"]
    files = [model_path, model_path.with_suffix(".mhc"), model_path.parent / "gpt2-tokenizer.json"]
    print(
        f"""# d20-rust

A small ternary (1.58-bit) base model that continues Rust code. It is the reference model of nanochat-tui: it exists to
show the whole path from source files to a running model, not to write programs for you.

{_table([
    ("parameters", f"{model.config.parameters:,}"),
    ("shape", "6 blocks of width 256, 4 heads, SwiGLU 768, GPT-2 vocabulary of 50,257, tied head"),
    ("weights", "ternary in groups of 128 with a float16 scale; embedding and head Q8_0; activations int8"),
    ("residual", "mHC-lite, 2 streams, 12 records of 9 floats"),
    ("context", f"{model.config.context_length} tokens"),
    ("text", "leading groups of four spaces are tabs inside the model; the tokenizer layer converts both ways"),
])}

## Files

{_table([(f.name, f"{f.stat().st_size:,} bytes") for f in files])}

## Training

{_table([
    ("optimiser steps", f"{state['step']:,} of {config['batch_size'] * config['grad_accum']} × {record['model']['context_length']} tokens"),
    ("tokens", f"{state['tokens']:,} ({state['tokens'] / splits['train']['tokens']:.2f} passes over {splits['train']['tokens']:,})"),
    ("time", f"{state['seconds'] / 3600:.2f} h, {state['tokens'] / state['seconds']:,.0f} tokens/s on average"),
    ("hardware", f"{environment['device_name']}, {environment['threads']} threads, {environment['dtype']}, PyTorch {environment['torch']}"),
    ("optimisers", f"Muon {config['muon_lr']} (hidden matrices), AdamW {config['embed_lr']} (table) and {config['scalar_lr']} (norms, mHC)"),
    ("schedule", f"{config['warmup_steps']} steps of warm-up, stable, linear decay over the last {config['decay_fraction']:.0%}"),
    ("softmax", head),
    ("training loss", f"{sum(tail) / len(tail):.4f} nats per token (mean of the last 200 steps)"),
])}

## Held-out files

Whole files the model never saw, split by file and de-duplicated against the training files; windows of
{record['model']['context_length']} tokens without overlap, {last['val_tokens']:,} tokens.

{_table([
    ("loss", f"{last['val_loss']:.4f} nats per token"),
    ("perplexity", f"{math.exp(last['val_loss']):.3f} per token"),
    ("bits per byte", f"**{last['val_bits_per_byte']:.4f}** of the original text"),
    ("next-token accuracy", f"{last['val_accuracy']:.4f}"),
    ("without whitespace-only targets", f"{last['val_accuracy_no_indent']:.4f}"),
])}

## Corpus

{splits['train']['documents']:,} training and {splits['val']['documents']:,} held-out Rust files
({splits['train']['bytes'] / 1e6:.1f} and {splits['val']['bytes'] / 1e6:.1f} MB) from the Debian packages `rust-web-src`, `rust-src`
and about seventy `librust-*-dev`, permissive licences only. `python scripts/build_rust_corpus.py` rebuilds it.

{_licences(info)}

## Samples

Temperature 0.8, top-k 40, top-p 0.95, seed 1, the first draw for each prompt.
"""
    )
    for prompt in PROMPTS:
        text = "".join(t.text for t in model.generate(prompt, max_tokens=96, seed=1))
        print(f"```rust\n{prompt}{text}\n```\n")
    print(
        """## Limits

- It has learnt the look of Rust, little of its meaning: expect plausible syntax, invented names, and code that does not
  compile. It knows no language but Rust and the English of its comments, and it does not follow instructions.
- Greedy decoding falls into loops; sample.
- Its training text is public code; a well-known line may come back as it was written. Check licences before using output.

## Licence

The weights and this card: MIT, like the project. The corpus's files keep their own licences, listed above."""
    )
    print(json.dumps({"run": record["config"]["config"], "step": state["step"]}), file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
