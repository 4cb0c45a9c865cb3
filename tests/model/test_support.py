"""Which files run: the shape goes through metadata and back, and every refusal is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import TINY, random_tensors, tiny_tokenizer, write_model

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFValue, f32, read_gguf, string, tensor_from_array, u32, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.model.support import refusal, require_described
from nanochat_tui.model.tokenizer import to_gguf_metadata

CONFIGS = [
    PRESETS["d20"],
    PRESETS["tiny"],
    TINY,
    PRESETS["d20"].with_(
        n_streams=4, mhc_version=1, tied=False, rope_theta=500_000.0, norm_eps=1e-5, n_kv_heads=1, indentation=0
    ),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_shape_goes_through_metadata_unchanged(config: ModelConfig) -> None:
    names = nanochat.parts(config).keys()
    assert nanochat.from_metadata(nanochat.to_metadata(config), names) == config


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_parts_hold_exactly_the_parameters(config: ModelConfig) -> None:
    parts = nanochat.parts(config).values()
    assert sum(int(np.prod(part.shape)) for part in parts) == config.parameters
    assert sum(int(np.prod(p.shape)) for p in parts if p.role == "ternary") == config.ternary_parameters
    assert sum(p.role == "mhc" for p in parts) == config.mhc_records


def test_a_sound_model_runs(tmp_path: Path) -> None:
    with read_gguf(write_model(tmp_path / "m.gguf")) as file:
        assert require_described(file) == nanochat.of_config(TINY)
        assert nanochat.from_metadata(file.metadata, file.tensors) == TINY
        assert refusal(file) is None


def rewritten(path: Path, change: Callable[[dict[str, GGUFValue]], object], drop: str = "", **types: str) -> Path:
    tokenizer = tiny_tokenizer(TINY.vocab_size)
    metadata = nanochat.to_metadata(TINY) | to_gguf_metadata(tokenizer, bos=299, eos=299)
    change(metadata)
    tensors = []
    for tensor in random_tensors(TINY):
        if tensor.name == drop:
            continue
        if tensor.name in types:
            values = np.zeros(tensor.shape, np.float32)
            tensors.append(tensor_from_array(tensor.name, values, TENSOR_TYPES[types[tensor.name]]))
        else:
            tensors.append(tensor)
    write_gguf(path, metadata, tensors)
    return path


PREFIX = "nanochat."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("general.architecture"), "no architecture"),
        (lambda m: m.update({"general.architecture": string("qwen3\x1b")}), r"qwen3\\x1b cannot be run"),
        (lambda m: m.update({"split.count": u32(3)}), "split over 3 files"),
        (lambda m: m.pop(PREFIX + "block_count"), "block_count"),
        (lambda m: m.update({PREFIX + "block_count": u32(2**31 - 1)}), "block_count"),
        (lambda m: m.update({PREFIX + "block_count": u32(3)}), "blk.2.attn_norm"),
        (lambda m: m.update({PREFIX + "embedding_length": u32(192)}), "token_embd"),
        (lambda m: m.update({PREFIX + "embedding_length": string("big")}), "embedding_length"),
        (lambda m: m.update({PREFIX + "attention.head_count": u32(3)}), "impossible model"),
        (lambda m: m.update({PREFIX + "mhc.stream_count": u32(3)}), "impossible model"),
        (lambda m: m.update({PREFIX + "mhc.stream_count": u32(4)}), "attn_mhc"),
        (lambda m: m.update({PREFIX + "rope.freq_base": f32(0.0)}), "freq_base"),
        (lambda m: m.update({PREFIX + "rope.freq_base": f32(float("nan"))}), "freq_base"),
        (lambda m: m.update({PREFIX + "mhc.version": u32(3)}), "mhc.version"),
    ],
)
def test_refusals(tmp_path: Path, change: Callable[[dict[str, GGUFValue]], object], message: str) -> None:
    with read_gguf(rewritten(tmp_path / "m.gguf", change)) as file:
        with pytest.raises(UserError, match=message):
            require_described(file)
        reason = refusal(file)
    assert reason is not None and "\n" not in reason and "\x1b" not in reason


def test_missing_tensors_and_other_types_are_refused(tmp_path: Path) -> None:
    with read_gguf(rewritten(tmp_path / "a.gguf", lambda _: None, drop="output_norm.weight")) as file:
        assert "output_norm.weight" in str(refusal(file))
    with read_gguf(rewritten(tmp_path / "b.gguf", lambda _: None, **{"blk.0.attn_q.weight": "F16"})) as file:
        assert "blk.0.attn_q.weight is of type F16" in str(refusal(file))
