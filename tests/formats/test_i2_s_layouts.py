"""The three orders of I2_S: the known bytes, and matrices packed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.export.repack import convert
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import TensorData, read_gguf, write_gguf
from nanochat_tui.formats.i2_s_layouts import LAYOUTS, Layout, to_x86
from nanochat_tui.formats.tensor_types import TENSOR_TYPES


def test_known_bytes() -> None:
    """The same 128 weights by an x86 and by an ARM build."""
    x86, arm = np.full((1, 32), 0x55, np.uint8), np.full((1, 32), 0x55, np.uint8)
    x86[0, [0, 1, 31]] = 0x86, 0x15, 0x54
    arm[0, [0, 1, 16, 31]] = 0x91, 0x15, 0x59, 0x54
    np.testing.assert_array_equal(to_x86(arm, "arm", 128), x86)
    np.testing.assert_array_equal(to_x86(x86, "x86", 128), x86)


def packed(trits: np.ndarray, layout: str) -> np.ndarray:
    """Pack a matrix of trits weight by weight."""
    rows, columns = trits.shape
    out = np.zeros(trits.size // 4, np.uint8)
    for r in range(rows):
        for c in range(columns):
            flat = r * columns + c
            if layout == "x86":
                place, slot = flat // 128 * 32 + flat % 32, flat % 128 // 32
            elif layout == "arm":
                place, slot = flat // 64 * 16 + flat % 16, flat % 64 // 16
            else:
                place, slot = r // 4 * columns + c, r % 4
            out[place] |= (int(trits[r, c]) + 1) << (6 - 2 * slot)
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["Q2_0", "I2_S"])
def test_convert_reads_every_layout(tmp_path: Path, layout: Layout, kind: str) -> None:
    trits = np.random.default_rng(3).integers(-1, 2, (8, 256))
    tail = np.zeros(32, np.uint8)
    tail[:4] = np.array([0.75], "<f4").view(np.uint8)
    data = np.concatenate([packed(trits, layout), tail])
    write_gguf(tmp_path / "a.gguf", {}, [TensorData("w", (8, 256), TENSOR_TYPES["I2_S"], data)])
    done = convert(tmp_path / "a.gguf", tmp_path / "b.gguf", kind, i2_s=layout)
    assert any("already" in note for note in done.notes) is (layout == "x86" and kind == "I2_S")
    with read_gguf(tmp_path / "b.gguf") as file:
        np.testing.assert_array_equal(file.array("w"), trits * np.float32(0.75))


def test_a_layout_without_i2_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="6 rows"):
        to_x86(np.zeros((6, 32), np.uint8), "1x4", 128)
    kind = TENSOR_TYPES["TQ2_0"]
    write_gguf(tmp_path / "a.gguf", {}, [TensorData("w", (1, 256), kind, np.zeros(66, np.uint8))])
    with pytest.raises(UserError, match="no I2_S tensors"):
        convert(tmp_path / "a.gguf", tmp_path / "b.gguf", i2_s="arm")
