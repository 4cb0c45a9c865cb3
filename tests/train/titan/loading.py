"""Prints the first tokens of batches, by one rank and by two that continue it, and the named configurations: DATA."""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import Any

import torch
from torchtitan.config import ConfigManager

from nanochat_tui.errors import UserError
from nanochat_tui.train.titan.data import TokenDataLoader

DATA = sys.argv[1]
LENGTH = 32


def loader(ranks: int, rank: int, batch: int, vocabulary: int = 300) -> Any:
    config = TokenDataLoader.Config(dataset_path=DATA, vocab_size=vocabulary)
    return config.build(dp_world_size=ranks, dp_rank=rank, seq_len=LENGTH, local_batch_size=batch, tokenizer=None)


def batches(source: Any, count: int) -> list[Any]:
    found = []
    for inputs, labels in itertools.islice(source, count):
        assert inputs["input"].shape == labels.shape and torch.equal(inputs["input"][:, 1:], labels[:, :-1])
        found.append(inputs["input"][:, :4].tolist())
    return found


one = loader(1, 0, 4)
whole = batches(one, 1)
state = one.state_dict()
whole += batches(one, 2)
parts = []
for number in range(2):
    part = loader(2, number, 2)
    part.load_state_dict(state)
    parts.append(batches(part, 2))
try:
    loader(1, 0, 4, vocabulary=299)
    vocabulary = "taken"
except UserError:
    vocabulary = "refused"
resumed = [first + second for first, second in zip(*parts, strict=True)]
os.environ["NANOCHAT_DATA"] = DATA
named = {}
for name in ("nanochat_tiny", "nanochat_7b", "nanochat_25b_moe"):
    words = ["--module", "nanochat_tui.train.titan", "--config", name, "--training.steps", "7"]
    config = ConfigManager().parse_args(words)
    named[name] = [config.model_spec.flavor, config.model_spec.model.vocab_size, config.training.steps]
print(json.dumps({"named": named, "whole": whole, "resumed": resumed, "vocabulary": vocabulary}))
