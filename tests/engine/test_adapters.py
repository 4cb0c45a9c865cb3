"""Adapters at run time: the same as a model whose matrices have them merged in, in float and next to int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support_architectures import DIM, HIDDEN, VOCAB, draft, finish, write_architecture

from nanochat_tui.engine.generate.model import load
from nanochat_tui.engine.weights.adapters import MATRICES, LoraFile
from nanochat_tui.errors import UserError
from nanochat_tui.formats.adapters import Adapter, write_adapter
from nanochat_tui.formats.gguf import read_gguf, tensor_from_array
from nanochat_tui.formats.tensor_types import TENSOR_TYPES

IDS = [int(i) for i in np.random.default_rng(5).integers(0, VOCAB, 40)]


def make_adapter(
    model: Path, path: Path, *, rank: int = 3, alpha: float = 6.0, names=MATRICES, seed: int = 1
) -> Adapter:
    """Write an adapter for matrices of all blocks of a file; what it adds is about as large as what is there."""
    rng = np.random.default_rng(seed)
    with read_gguf(model) as file:
        architecture = str(file.metadata["general.architecture"].value)
        shapes = {n: t.shape for n, t in file.tensors.items() if n.split(".")[-2] in names and n.startswith("blk.")}
    pairs = {
        name: (
            rng.normal(0, columns**-0.5, (rank, columns)).astype(np.float32),
            rng.normal(0, 0.3, (rows, rank)).astype(np.float32),
        )
        for name, (rows, columns) in shapes.items()
    }
    made = Adapter(architecture, alpha, pairs, "test")
    write_adapter(path, made)
    return made


def merged(name: str, path: Path, adapters: list[tuple[Adapter, float]], **options) -> Path:
    """Write the float twin of a model with adapters added to its matrices, in float64."""
    made = draft(name, twin=True, **options)
    for place, tensor in enumerate(made.tensors):
        values = tensor.data.view("<f4").reshape(tensor.shape).astype(np.float64)
        for adapter, scale in adapters:
            if tensor.name in adapter.pairs:
                down, up = adapter.pairs[tensor.name]
                factor = scale * (adapter.alpha / len(down) if adapter.alpha else 1.0)
                values = values + factor * (up.astype(np.float64) @ down)
        made.tensors[place] = tensor_from_array(tensor.name, values.astype(np.float32), TENSOR_TYPES["F32"])
    return finish(made, path)


@pytest.mark.parametrize(("name", "kind"), [("llama", "I2_S"), ("qwen3", "Q2_0")])
def test_adapters_equal_merged_matrices(name, kind, tmp_path):
    model = write_architecture(tmp_path / "model.gguf", name, kind=kind)
    first = make_adapter(model, tmp_path / "a.gguf")
    second = make_adapter(model, tmp_path / "b.gguf", rank=20, alpha=0.0, names=("attn_q", "ffn_down"), seed=2)
    lora = [LoraFile(tmp_path / "a.gguf"), LoraFile(tmp_path / "b.gguf", -0.25)]
    with load(merged(name, tmp_path / "merged.gguf", [(first, 1.0), (second, -0.25)], kind=kind), kv="f32") as twin:
        wanted = twin.logits(IDS)
    with load(model, activations="float", kv="f32", lora=lora) as exact:
        found = exact.logits(IDS)
        np.testing.assert_allclose(found, wanted, atol=2e-4)
        assert np.abs(found - load(model, activations="float", kv="f32").logits(IDS)).max() > 0.5
    with load(model, lora=lora, threads=2) as rounded:
        near = rounded.logits(IDS)
        assert np.sqrt(np.mean((near - wanted) ** 2)) < 0.1 * wanted.std()
        # decoding and prefill, one thread and two: the same bits
        tokens = [token.id for token in rounded.generate(IDS[:20], max_tokens=12, temperature=0.0)]
    with load(model, lora=lora, threads=1) as alone:
        np.testing.assert_array_equal(alone.logits(IDS), near)
        assert [token.id for token in alone.generate(IDS[:20], max_tokens=12, temperature=0.0)] == tokens
        again = alone.logits(IDS[:20] + tokens)
        assert [int(row.argmax()) for row in again[19:-1]] == tokens


def test_scale_zero_changes_nothing(tmp_path):
    model = write_architecture(tmp_path / "model.gguf", "llama", kind="TQ2_0")
    make_adapter(model, tmp_path / "a.gguf")
    with load(model) as plain, load(model, lora=[LoraFile(tmp_path / "a.gguf", 0.0)]) as idle:
        np.testing.assert_array_equal(plain.logits(IDS), idle.logits(IDS))


def refused(model: Path, adapter: Path, scale: float = 1.0) -> str:
    with pytest.raises(UserError) as error:
        load(model, lora=[LoraFile(adapter, scale)])
    return str(error.value)


def test_adapters_that_do_not_fit_are_refused_in_one_sentence(tmp_path):
    model = write_architecture(tmp_path / "model.gguf", "llama", kind="TQ2_0")
    other = write_architecture(tmp_path / "qwen3.gguf", "qwen3", kind="TQ2_0")
    path = tmp_path / "a.gguf"
    make_adapter(model, path)
    assert "for the architecture llama, and the model is qwen3" in refused(other, path)
    assert "is a model and no adapter" in refused(model, other)
    assert "there is no adapter file" in refused(model, tmp_path / "missing.gguf")
    assert "is no number" in refused(model, path, float("nan"))
    half = np.zeros((2, DIM), np.float32)

    def write(name: str, down: np.ndarray, rows: int) -> None:
        write_adapter(path, Adapter("llama", 1.0, {name: (down, np.zeros((rows, 2), np.float32))}))

    write("token_embd.weight", half, VOCAB)
    assert "changes token_embd.weight" in refused(model, path)
    write("blk.9.attn_q.weight", half, DIM)
    assert "changes blk.9.attn_q.weight" in refused(model, path)
    write("blk.0.ffn_up.weight", half, HIDDEN + 1)
    assert f"is for blk.0.ffn_up.weight of {HIDDEN + 1} x {DIM}" in refused(model, path)
    write_adapter(
        path, Adapter("llama", 1.0, {"blk.0.ffn_up.weight": (half * np.nan, np.zeros((HIDDEN, 2), np.float32))})
    )
    assert "NaN or infinity" in refused(model, path)
    with pytest.raises(UserError, match="is an adapter and no model; open its model, and give this with --lora"):
        load(path)


def test_rotated_models_take_no_adapters(tmp_path):
    from support_architectures import add_rotation

    made = draft("qwen3", kind="Q2_0")
    add_rotation(made)
    model = finish(made, tmp_path / "model.gguf")
    make_adapter(model, tmp_path / "a.gguf")
    assert "whose activations are rotated" in refused(model, tmp_path / "a.gguf")
