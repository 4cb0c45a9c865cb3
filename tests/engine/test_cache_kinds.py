"""An int8 cache says nearly what a float16 one says, in every shape of attention; I2_S is read in the order asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_architectures import VOCAB, draft, finish, write_architecture

from nanochat_tui.engine.generate.model import load
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import TensorData
from nanochat_tui.formats.i2_s_layouts import Layout
from nanochat_tui.formats.tensor_types import TENSOR_TYPES

IDS = [int(i) for i in np.random.default_rng(1).integers(0, VOCAB, 90)]
"""More than a page, and more than five windows of the model that has some."""


@pytest.mark.parametrize(
    ("name", "options"),
    [("qwen35", {}), ("maple", {}), ("qwen3", {"width": 256}), ("qwen35", {"width": 256, "gdn_width": 128})],
)
def test_an_int8_cache_is_close_to_float16(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "m.gguf", name, **options)
    f16, int8 = (load(path, threads=1, activations="float", kv=kind).logits(IDS) for kind in ("f16", "int8"))
    apart = np.sqrt(((f16 - int8) ** 2).mean(axis=1)) / f16.std()
    assert 0 < np.median(apart) < 0.02
    # a router near a tie may choose another expert, which is felt; nothing else has such a step
    assert apart.max() < (0.3 if name == "maple" else 0.02)
    assert (f16.argmax(axis=1) == int8.argmax(axis=1)).mean() > 0.9


def in_layout(x86: np.ndarray, layout: Layout, columns: int) -> np.ndarray:
    """Return blocks of I2_S as another build writes them; codes from microsoft/BitNet, src/ggml-bitnet-mad.cpp."""
    shifts = np.array([6, 4, 2, 0], np.uint8)
    # of an x86 block byte m holds elements m, 32 + m, 64 + m, 96 + m
    codes = ((x86.reshape(-1, 1, 32) >> shifts[:, None]) & 3).reshape(-1, columns)
    parts = codes.reshape(-1, 4, 16) if layout == "arm" else codes.reshape(-1, 4, columns)
    packed: np.ndarray = (parts << shifts[:, None]).sum(axis=1).astype(np.uint8)
    return packed.reshape(-1)


@pytest.mark.parametrize("layout", ["arm", "1x4"])
@pytest.mark.parametrize(("name", "table"), [("bitnet", "F16"), ("maple", "Q8_0"), ("llama", "I2_S")])
def test_i2_s_of_other_builds_is_read_when_told(name: str, table: str, layout: Layout, tmp_path: Path) -> None:
    d = draft(name, kind="I2_S", table=table)
    usual = load(finish(d, tmp_path / "x86.gguf"), threads=1).logits(IDS[:10])
    for index, tensor in enumerate(d.tensors):
        if tensor.type.name == "I2_S":
            flat = tensor.data.reshape(-1)
            end = len(flat) - TENSOR_TYPES["I2_S"].tail_bytes
            moved = np.concatenate([in_layout(flat[:end], layout, tensor.shape[-1]), flat[end:]])
            d.tensors[index] = TensorData(tensor.name, tensor.shape, tensor.type, moved)
    path = finish(d, tmp_path / "other.gguf")
    for activations in ("int8", "float"):
        wanted = usual if activations == "int8" else load(tmp_path / "x86.gguf", activations="float").logits(IDS[:10])
        got = load(path, threads=1, activations=activations, i2s_layout=layout).logits(IDS[:10])
        np.testing.assert_array_equal(got, wanted)
    assert np.abs(load(path, threads=1).logits(IDS[:10]) - usual).max() > 0.1 * usual.std()  # nobody told


def test_a_layout_has_no_place_without_i2_s(tmp_path: Path) -> None:
    path = write_architecture(tmp_path / "m.gguf", "llama")
    with pytest.raises(UserError, match="has no I2_S tensors"):
        load(path, i2s_layout="arm")
    with pytest.raises(UserError, match="layout 'mips' is unknown"):
        load(path, i2s_layout="mips")  # type: ignore[arg-type]
