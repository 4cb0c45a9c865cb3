"""Inspection and engine give one answer about numbers that are not finite, whatever tensor holds them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support_architectures import draft, finish, write_architecture

import nanochat_tui as nc
from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.entry import run
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import TensorData, read_gguf, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.inspection import inspect_file

HALF_NAN, HALF_INFINITY = b"\x00\x7e", b"\x00\xfc"
FLOAT_NAN = b"\x00\x00\xc0\x7f"

PLACES = [
    *((kind, HALF_NAN, at) for kind, at in (
        ("TQ1_0", 52), ("TQ2_0", 64), ("Q2_0", 0), ("Q2_0_g128", 0), ("PQ2_0", 0), ("PTQ1_0", 26), ("STQ1_0", 40),
        ("Q1_0", 0), ("Q8_0", 0), ("Q4_0", 0), ("Q4_1", 0), ("Q4_1", 2), ("Q5_0", 0), ("Q5_1", 2), ("Q4_K", 0),
        ("Q4_K", 2), ("Q5_K", 2), ("Q6_K", 208), ("F16", 0),
    )),
    ("F32", FLOAT_NAN, 0),
    ("BF16", b"\xc0\x7f", 0),
    ("F16", HALF_INFINITY, 0),
]  # fmt: skip


def damaged(path: Path, name: str, bytes_there: bytes, at: int) -> Path:
    """Put bytes into the last block of a tensor."""
    with read_gguf(path) as file:
        metadata = dict(file.metadata)
        tensors = [TensorData(n, i.shape, i.type, file.raw(n).copy()) for n, i in file.tensors.items()]
    for tensor in tensors:
        if tensor.name == name:
            start = len(tensor.data) - tensor.type.tail_bytes - tensor.type.block_bytes + at
            if tensor.type.tail_bytes:
                start = len(tensor.data) - tensor.type.tail_bytes + at
            tensor.data[start : start + len(bytes_there)] = np.frombuffer(bytes_there, np.uint8)
    write_gguf(path, metadata, tensors)
    return path


def both_refuse(path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = inspect_file(path)
    with pytest.raises(UserError) as caught:
        nc.load(path, threads=1)
    assert summary.reason == str(caught.value)
    assert name in summary.reason
    assert run(dispatch, ["inspect", str(path), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["reason"]) == (False, summary.reason)


@pytest.mark.parametrize(("table", "number", "at"), PLACES)
def test_a_damaged_table(
    table: str, number: bytes, at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = table if table == "Q2_0_g128" else "Q2_0"  # a file has either groups of 64 or of 128 under their id
    path = write_architecture(tmp_path / "m.gguf", "llama", kind=kind, table=table)
    assert inspect_file(path).runs
    both_refuse(damaged(path, "token_embd.weight", number, at), "token_embd.weight", capsys)


@pytest.mark.parametrize(("kind", "at"), [("TQ2_0", 64), ("PQ2_0", 0), ("PTQ1_0", 26), ("Q4_K", 2)])
def test_a_damaged_matrix(kind: str, at: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_architecture(tmp_path / "m.gguf", "qwen3", kind=kind)
    both_refuse(damaged(path, "blk.1.ffn_down.weight", HALF_NAN, at), "blk.1.ffn_down.weight", capsys)


def test_a_damaged_scale_of_a_whole_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_architecture(tmp_path / "m.gguf", "bitnet-b1.58", kind="I2_S", table="F16")
    both_refuse(damaged(path, "blk.0.attn_q.weight", FLOAT_NAN, 0), "blk.0.attn_q.weight", capsys)


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.0.attn_norm.weight", "blk.1.attn_k_norm.weight"])
def test_a_damaged_norm(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_architecture(tmp_path / "m.gguf", "qwen3")
    both_refuse(damaged(path, name, FLOAT_NAN, 0), name, capsys)


@pytest.mark.parametrize("value", [0.0, np.nan, -1.0])
def test_damaged_rotation_factors(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = draft("llama")
    factors = np.ones(64, np.float32)
    factors[3] = value
    made.floats("rope_freqs.weight", factors)
    both_refuse(finish(made, tmp_path / "m.gguf"), "rope_freqs.weight", capsys)


@pytest.mark.parametrize("name", sorted(TENSOR_TYPES))
def test_a_type_says_where_its_scales_are(name: str) -> None:
    """Infinity at the places of a type's scales, and only there, makes numbers that are not finite."""
    kind = TENSOR_TYPES[name]
    if not kind.scales_at:
        return
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (4, kind.block_bytes), dtype=np.uint8)
    for at in kind.scales_at:
        blocks[:, at : at + 2] = np.array([0.01], "<f2").view(np.uint8)
    assert kind.is_finite(blocks) and np.isfinite(kind.decode(blocks)).all()
    for at in kind.scales_at:
        spoiled = blocks.copy()
        spoiled[2, at : at + 2] = np.frombuffer(HALF_INFINITY, np.uint8)
        assert not kind.is_finite(spoiled)
        with np.errstate(invalid="ignore"):
            assert not np.isfinite(kind.decode(spoiled)).all()
