"""Damaged and foreign checkpoints are refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from checkpoints import random_weights, small_config, write_checkpoint
from safetensors.numpy import save_file

from nanochat_tui.export import CheckpointError, load_checkpoint

State = dict[str, object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.pop("dim"), "dim"),
        (lambda model: model.update(experts=8), "“experts”"),
        (lambda model: model.update(dim="256"), "'256'"),
        (lambda model: model.update(dim=True), "True"),
        (lambda model: model.update(tied=1), "tied"),
        (lambda model: model.update(n_streams=3), "impossible"),
        (lambda model: model.update(dim=-256), "impossible"),
        (lambda model: model.update(rope_theta=None), "rope_theta"),
    ],
)
def test_bad_shapes(tmp_path: Path, change: Callable[[State], object], message: str) -> None:
    model = asdict(small_config())
    change(model)
    (tmp_path / "state.json").write_text(json.dumps({"model": model}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": 3}', "[" * 100_000, "\xff"])
def test_bad_state(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "nowhere")


def _drop(weights: dict[str, np.ndarray]) -> None:
    del weights["blk.1.attn_q.weight"]


def _add(weights: dict[str, np.ndarray]) -> None:
    weights["blk.2.attn_q.weight"] = np.zeros(3, np.float32)


def _reshape(weights: dict[str, np.ndarray]) -> None:
    weights["blk.0.ffn_up.weight"] = np.ascontiguousarray(weights["blk.0.ffn_up.weight"].T)


def _half(weights: dict[str, np.ndarray]) -> None:
    weights["output_norm.weight"] = weights["output_norm.weight"].astype(np.float16)


def _nan(weights: dict[str, np.ndarray]) -> None:
    weights["blk.0.attn_mhc"][4] = np.nan


def _infinite(weights: dict[str, np.ndarray]) -> None:
    weights["token_embd.weight"][7, 7] = -np.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "incomplete"),
        (_add, "no place"),
        (_reshape, "should be"),
        (_half, "F16"),
        (_nan, "diverged"),
        (_infinite, "diverged"),
    ],
)
def test_bad_weights(tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], message: str) -> None:
    config = small_config()
    weights = random_weights(config)
    change(weights)
    write_checkpoint(tmp_path, config, weights)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_cut_and_overwritten_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config())
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    for bad in (data[:1000], data[:-8], b"\xff" * 64, b""):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    save_file({}, path)
    with pytest.raises(CheckpointError, match="incomplete"):
        load_checkpoint(tmp_path)
