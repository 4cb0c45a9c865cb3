"""Loading: every tensor type, stacked and reordered by rows, holds what the type's own decoder says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support_architectures import DIM, HEADS, HIDDEN, KV_HEADS, WIDTH, draft, finish, write_architecture

from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.weights import matrices as plan_matrices
from nanochat_tui.engine.weights.load import load_weights
from nanochat_tui.engine.weights.matrices import Matrix
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import f32, read_gguf, tensor_from_array
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.model.architectures import describe
from nanochat_tui.model.shards import open_model

TERNARY = ["Q2_0", "Q2_0_g128", "PQ2_0", "PTQ1_0", "TQ1_0", "TQ2_0", "Q1_0", "STQ1_0", "I2_S"]


def unpacked(matrix: Matrix, group: int) -> np.ndarray:
    """Read a packed matrix back by the layout's definition: float64 [rows, columns]."""
    w, rows, columns = matrix.weights, matrix.packed.rows, matrix.packed.columns
    if matrix.kind in k.DENSE:
        if matrix.kind == k.BF16:
            w = (w.astype(np.uint32) << 16).view(np.float32)
        dense = w.astype(np.float64).transpose(0, 2, 1).reshape(-1, columns)
    elif matrix.kind == k.Q8:
        raw = np.ascontiguousarray(w).view(np.int8).reshape(len(w), columns // 4, 16, 4)
        values = raw.transpose(0, 2, 1, 3).reshape(len(w) * 16, columns).astype(np.float64)
        scales = matrix.scales.reshape(len(w), columns // 32, 16).transpose(0, 2, 1).reshape(len(w) * 16, -1)
        dense = values * np.repeat(scales.astype(np.float64), 32, axis=1)
    else:
        raw = np.ascontiguousarray(w).view(np.uint8).reshape(len(w), -1, 16, 4)  # block, step, row, byte
        codes = np.stack([(raw >> (2 * i)) & 3 for i in range(4)], axis=3).reshape(len(w), -1, 16, 16)
        values = codes.transpose(0, 2, 1, 3).reshape(len(w) * 16, -1).astype(np.float64) - 1
        scales = matrix.scales.astype(np.float64)
        if matrix.kind == k.TERNARY_ROW:
            dense = (values * scales[:, None])[:, :columns]
        else:
            by_group = scales.transpose(0, 2, 1).reshape(len(w) * 16, -1)
            dense = (values * np.repeat(by_group, group, axis=1))[:, :columns]
    if matrix.factor is not None:
        dense = dense * matrix.factor[: len(dense), None]
    return dense[:rows]


def load(path: Path, as_float: bool = False):
    with read_gguf(path) as file:
        shape = describe(file)
        return shape, load_weights(file, shape, as_float=as_float, bias=0, mhc=None)


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("kind", [*TERNARY, "F32", "F16", "BF16", "Q8_0"])
def test_every_type_is_held_exactly(kind: str, as_float: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_matrices, "CHUNK_WEIGHTS", 7 * DIM)  # pieces that end within a block of rows
    path = write_architecture(tmp_path / "m.gguf", "qwen3", kind=kind)
    _, weights = load(path, as_float)
    layer = weights.layers[1]
    with read_gguf(path) as file:
        wanted = np.concatenate([file.array(f"blk.1.attn_{part}.weight") for part in "qkv"])
        down = file.array("blk.1.ffn_down.weight")
    rtol = 1e-7 if kind in ("I2_S", "Q8_0") else 0.0  # products in float64 here, in float32 there
    np.testing.assert_allclose(unpacked(layer.qkv, weights.group), wanted, rtol=rtol, atol=0)
    np.testing.assert_allclose(unpacked(layer.down, weights.group), down, rtol=rtol, atol=0)
    assert layer.qkv.packed.rows == (HEADS + 2 * KV_HEADS) * WIDTH
    kinds = {"F32": k.F32, "BF16": k.BF16, "F16": k.F16, "Q8_0": k.Q8, "I2_S": k.TERNARY_ROW}
    assert layer.qkv.kind == (k.F32 if as_float else kinds.get(kind, k.TERNARY_FINE))
    assert weights.group == (64 if kind == "Q2_0" else 128)


def test_ternary_tables_are_filled_up_to_whole_statistics_blocks(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "m.gguf", "qwen3", kind="PQ2_0", table="PTQ1_0")
    shape, weights = load(path)
    assert weights.embedding.kind == k.TERNARY_FINE and weights.head is weights.embedding
    assert len(weights.head.weights) * 16 % s.STATISTICS_BLOCK == 0
    with read_gguf(path) as file:
        np.testing.assert_array_equal(unpacked(weights.head, 128), file.array("token_embd.weight"))
    assert shape.vocab_size == 300


def test_pairs_of_neighbours_become_pairs_of_halves(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "m.gguf", "llama", kind="PQ2_0")
    _, weights = load(path)
    with read_gguf(path) as file:
        q, v = file.array("blk.0.attn_q.weight"), file.array("blk.0.attn_v.weight")
    got = unpacked(weights.layers[0].qkv, 128)
    head = got[WIDTH : 2 * WIDTH]
    np.testing.assert_array_equal(head[: WIDTH // 2], q[WIDTH : 2 * WIDTH : 2])
    np.testing.assert_array_equal(head[WIDTH // 2 :], q[WIDTH + 1 : 2 * WIDTH : 2])
    np.testing.assert_array_equal(got[-KV_HEADS * WIDTH :], v)


def test_gates_come_behind_the_values_and_experts_one_after_another(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "a.gguf", "qwen35", kind="PQ2_0")
    _, weights = load(path)
    with read_gguf(path) as file:
        both = file.array("blk.3.attn_q.weight").reshape(HEADS, 2, WIDTH, DIM)
    got = unpacked(weights.layers[3].qkv, 128)
    np.testing.assert_array_equal(got[: HEADS * WIDTH], both[:, 0].reshape(-1, DIM))
    np.testing.assert_array_equal(got[-HEADS * WIDTH :], both[:, 1].reshape(-1, DIM))
    path = write_architecture(tmp_path / "b.gguf", "maple", kind="TQ2_0")
    _, weights = load(path)
    with read_gguf(path) as file:
        gate, up = file.array("blk.0.ffn_gate_exps.weight"), file.array("blk.0.ffn_up_exps.weight")
    wanted = np.concatenate([gate, up], axis=1).reshape(-1, DIM)
    np.testing.assert_array_equal(unpacked(weights.layers[0].gate_up, 128), wanted)
    assert weights.used_experts == 3 / 8 and weights.bytes_per_token < weights.nbytes


def test_scales_and_biases_of_matrices_become_factors_of_rows(tmp_path: Path) -> None:
    d = draft("bitnet", kind="I2_S")
    d.floats("blk.0.ffn_up.scale", [2.5])
    d.floats("blk.0.ffn_up.bias", np.arange(HIDDEN))
    path = finish(d, tmp_path / "m.gguf")
    _, weights = load(path)
    matrix = weights.layers[0].gate_up
    with read_gguf(path) as file:
        gate, up = file.array("blk.0.ffn_gate.weight"), file.array("blk.0.ffn_up.weight")
    np.testing.assert_allclose(unpacked(matrix, 128), np.concatenate([gate, 2.5 * up]), rtol=1e-6)
    assert matrix.bias is not None and not matrix.bias[:HIDDEN].any()
    np.testing.assert_array_equal(matrix.bias[HIDDEN:], np.arange(HIDDEN))
    _, floats = load(path, as_float=True)
    np.testing.assert_allclose(unpacked(floats.layers[0].gate_up, 128), np.concatenate([gate, 2.5 * up]), rtol=1e-6)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    d = draft("llama", kind="PQ2_0")
    index = next(i for i, t in enumerate(d.tensors) if t.name == "blk.1.ffn_up.weight")
    d.tensors[index].data.reshape(-1, 34)[3, :2] = (0xFF, 0x7F)
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up"):
        load(finish(d, tmp_path / "a.gguf"))
    d = draft("llama", kind="I2_S")
    index = next(i for i, t in enumerate(d.tensors) if t.name == "blk.0.attn_v.weight")
    d.tensors[index].data.reshape(-1)[-32:-28] = np.array([np.nan], "<f4").view(np.uint8)
    with pytest.raises(UserError, match=r"tensor blk\.0\.attn_v"):
        load(finish(d, tmp_path / "b.gguf"))


def test_frequencies_by_the_file(tmp_path: Path) -> None:
    d = draft("llama")
    factors = np.linspace(1, 8, WIDTH // 2)
    d.tensors.append(tensor_from_array("rope_freqs.weight", factors.astype(np.float32), TENSOR_TYPES["F32"]))
    d.keys["rope.freq_base"] = f32(10_000.0)
    _, weights = load(finish(d, tmp_path / "m.gguf"))
    wanted = 10_000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH) / factors.astype(np.float32)
    np.testing.assert_allclose(weights.frequencies, wanted, rtol=1e-12)


def split(path: Path, count: int) -> list[Path]:
    """Write a model's tensors over several files, as llama-gguf-split does."""
    from nanochat_tui.formats.gguf import TensorData, i32, write_gguf
    from nanochat_tui.formats.gguf.values import GGUFValue, ValueType

    with read_gguf(path) as file:
        tensors = [TensorData(i.name, i.shape, i.type, file.raw(i.name).copy()) for i in file.tensors.values()]
        metadata = dict(file.metadata)
    paths = []
    for number in range(count):
        part = path.with_name(f"{path.stem}-{number + 1:05d}-of-{count:05d}.gguf")
        about = {
            "split.no": GGUFValue(ValueType.U16, number),
            "split.count": GGUFValue(ValueType.U16, count),
            "split.tensors.count": i32(len(tensors)),
        }
        write_gguf(part, (metadata if number == 0 else {}) | about, tensors[number::count])
        paths.append(part)
    return paths


def test_split_files_are_read_as_one(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "m.gguf", "llama")
    parts = split(path, 3)
    with read_gguf(path) as whole, open_model(parts[1]) as joined:
        assert joined.metadata == whole.metadata
        assert set(joined.tensors) == set(whole.tensors)
        for name in whole.tensors:
            np.testing.assert_array_equal(joined.raw(name), whole.raw(name))
        np.testing.assert_array_equal(joined.array("blk.1.attn_q.weight"), whole.array("blk.1.attn_q.weight"))


def test_split_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    parts = split(write_architecture(tmp_path / "m.gguf", "llama"), 3)
    kept = parts[2].read_bytes()
    parts[2].unlink()
    with pytest.raises(UserError, match=r"m-00003-of-00003\.gguf is missing"):
        open_model(parts[0])
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(UserError, match="says it is another"):
        open_model(parts[0])
    parts[2].write_bytes(kept[: len(kept) // 2])
    with pytest.raises(UserError, match=r"cut short|takes"):
        open_model(parts[0])
