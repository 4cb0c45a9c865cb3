"""Write the model card of an exported run: every figure read from the run, the data set and the files.

    python scripts/model_card.py RUN exported_models/d20-rust.gguf > exported_models/README.md

Samples are the first ones drawn, seed 1, one per prompt; none is picked.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import jinja2

import nanochat_tui
from nanochat_tui.runs.directory import RunDirectory, read_json

SAMPLE_TOKENS = 96
PROMPTS = [
    "fn main() {\n",
    "/// Returns the sum of all even numbers.\npub fn sum_even(values: &[u64]) -> u64 {\n",
    "impl Iterator for Counter {\n    type Item = u32;\n\n    fn next(&mut self) -> Option<Self::Item> {\n",
    "use std::collections::HashMap;\n\n#[derive(Debug, Clone)]\npub struct Cache {\n",
    "#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn parses_empty_input() {\n",
]


def _licences(info: dict[str, Any], most: int = 12) -> list[tuple[str, dict[str, int]]]:
    ranked = sorted(info["licences"].items(), key=lambda item: -item[1]["bytes"])
    rest = ranked[most:]
    if not rest:
        return ranked
    total = {key: sum(count[key] for _, count in rest) for key in ("documents", "bytes")}
    return [*ranked[:most], (f"{len(rest)} other permissive terms", total)]


def main(run_path: Path, model_path: Path) -> None:
    run = RunDirectory(run_path)
    record, rows = run.config(), run.metrics()
    config = record["config"]
    info = read_json(Path(record["data"]["path"]) / "dataset.json")
    last = next(row for row in reversed(rows) if "val_loss" in row)
    losses = [row["loss"] for row in rows if row["step"] > last["step"] - 200]
    model = nanochat_tui.load(model_path)
    samples = [p + "".join(t.text for t in model.generate(p, max_tokens=SAMPLE_TOKENS, seed=1)) for p in PROMPTS]
    files = [model_path, model_path.with_suffix(".mhc"), model_path.parent / "gpt2-tokenizer.json"]
    head = "exact"
    if config["head_frequent"]:
        head = (
            f"exact over the {config['head_frequent']:,} most frequent ids and the batch's rare targets, "
            f"{config['head_sampled']:,} samples a step for the rest; evaluation is exact"
        )
    sequences = f"{record['model']['context_length']} tokens"
    if config["short_seq_len"]:
        sequences = f"{config['short_seq_len']} tokens, {sequences} in the last {1 - config['short_fraction']:.0%}"
    template = jinja2.Template(
        (Path(__file__).parent / "model_card.md.j2").read_text(), undefined=jinja2.StrictUndefined, autoescape=False
    )
    print(
        template.render(
            parameters=model.config.parameters,
            model=record["model"],
            files=[(file.name, file.stat().st_size) for file in files],
            state=read_json(run.checkpoints()[-1] / "state.json"),
            splits=info["splits"],
            sequences=sequences,
            environment=record["environment"],
            config=config,
            head=head,
            train_loss=sum(losses) / len(losses),
            last=last,
            perplexity=math.exp(last["val_loss"]),
            licences=_licences(info),
            sample_tokens=SAMPLE_TOKENS,
            samples=samples,
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
