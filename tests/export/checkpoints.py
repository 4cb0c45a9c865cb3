"""Small random checkpoints, and a tokenizer of 320 tokens that fits them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import pre_tokenizers

from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.tokenizer import END_OF_TEXT, byte_level_bpe

VOCAB = 320


def small_config(**changes: object) -> ModelConfig:
    config = ModelConfig(
        dim=256,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        hidden_dim=512,
        vocab_size=VOCAB,
        context_length=64,
        indentation=4,
    )
    return config.with_(**changes)


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {}
    for part in nanochat.parts(config).values():
        values = rng.standard_normal(part.shape).astype(np.float32)
        if part.role == "norm":
            values = 1 + 0.1 * values
        elif part.role != "mhc":
            values *= np.float32(0.05)
        weights[part.name] = values.astype(np.float32)
    return weights


def write_checkpoint(
    folder: Path, config: ModelConfig, weights: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    weights = random_weights(config) if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "state.json").write_text(json.dumps({"model": asdict(config), "step": 3}))
    return weights


def write_tokenizer(path: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in alphabet[65:90] for b in alphabet[65:90]][: VOCAB - 257]
    tokens = [*alphabet, *(a + b for a, b in pairs), END_OF_TEXT]
    byte_level_bpe({token: i for i, token in enumerate(tokens)}, pairs).save(str(path))
    return path
