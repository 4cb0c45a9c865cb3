"""Two files compared, against counting by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from samples import matrix, random_trits
from support import TINY, write_model

from nanochat_tui.formats.gguf import TensorData, array, read_gguf, string, tensor_from_array, u32, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.inspection import Comparison, compare
from nanochat_tui.inspection.text import comparison_lines


def compared(a: Path, b: Path) -> Comparison:
    with read_gguf(a) as before, read_gguf(b) as after:
        found = compare(before, after)
    json.dumps(found.to_json(), allow_nan=False)
    return found


@pytest.mark.parametrize(
    ("old", "new"), [("Q2_0", "Q2_0"), ("Q2_0", "PQ2_0"), ("TQ2_0", "TQ2_0"), ("TQ1_0", "Q2_0"), ("PTQ1_0", "I2_S")]
)
def test_flips_by_counting(tmp_path: Path, old: str, new: str) -> None:
    rng = np.random.default_rng(1)
    a = random_trits(rng, "Q2_0", 8, 512)
    b = np.where(rng.random(a.shape) < 0.1, random_trits(rng, "Q2_0", 8, 512), a)
    first = rng.uniform(0.1, 0.2, (8, 2)).astype(np.float16)
    second = (first * np.float16(1.5)).astype(np.float16)
    write_gguf(tmp_path / "a.gguf", {}, [matrix("blk.1.w", old, a, first)])
    write_gguf(tmp_path / "b.gguf", {}, [matrix("blk.1.w", new, b, second)])
    found = compared(tmp_path / "a.gguf", tmp_path / "b.gguf")
    (change,) = found.tensors
    flips = change.flips
    assert change.status == "changed" and flips is not None
    for i in range(3):
        for j in range(3):
            assert flips.table[i][j] == int(((a == i - 1) & (b == j - 1)).sum())
    assert flips.flipped == int((a != b).sum()) == found.flipped
    assert flips.to_zero == int(((a != 0) & (b == 0)).sum())
    assert flips.from_zero == int(((a == 0) & (b != 0)).sum())
    assert flips.sign_flips == int((a * b == -1).sum())
    assert found.layers == {1: (flips.flipped, a.size)}
    x, y = first.astype(np.float64), second.astype(np.float64)
    if new == "I2_S":
        y = np.full_like(y, y.flat[0])
    assert flips.scale_change == pytest.approx(np.sqrt(((y - x) ** 2).sum() / (x**2).sum()))
    assert f"{flips.share:.2%} of trits flipped" in "\n".join(comparison_lines(found))


def test_a_file_is_equal_to_itself(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    found = compared(path, path)
    assert found.same and found.count("equal") == len(found.tensors) and found.flipped == 0
    assert found.trits == TINY.ternary_parameters
    assert comparison_lines(found)[-1] == "keys and tensors are all equal"


def test_the_same_weights_in_another_type_have_no_flips(tmp_path: Path) -> None:
    config = TINY.with_(group_size=128)
    a, b = write_model(tmp_path / "a.gguf", config), write_model(tmp_path / "b.gguf", config, ternary="PQ2_0")
    found = compared(a, b)
    assert found.flipped == 0 and found.count("changed") == 14
    assert all(t.flips is not None and t.flips.scale_change == 0 for t in found.tensors if t.status == "changed")


def test_two_seeds_by_layer(tmp_path: Path) -> None:
    a, b = write_model(tmp_path / "a.gguf", seed=1), write_model(tmp_path / "b.gguf", seed=2)
    found = compared(a, b)
    assert list(found.layers) == [0, 1]
    for flipped, trits in found.layers.values():
        assert flipped / trits == pytest.approx(2 / 3, abs=0.01)
    with read_gguf(a) as one, read_gguf(b) as two:
        old, new = one.array("token_embd.weight").astype(np.float64), two.array("token_embd.weight").astype(np.float64)
    (table,) = [t for t in found.tensors if t.name == "token_embd.weight"]
    assert table.rms == pytest.approx(np.sqrt(((old - new) ** 2).mean()))
    assert table.relative == pytest.approx(np.sqrt(((old - new) ** 2).sum() / (old**2).sum()))


def test_keys_and_tensors_that_come_and_go(tmp_path: Path) -> None:
    f32 = TENSOR_TYPES["F32"]
    words = [f"w{i}" for i in range(20)]
    write_gguf(
        tmp_path / "a.gguf",
        {"x": u32(1), "gone": u32(2), "same": string("s"), "list": array(words)},
        [tensor_from_array("n", np.ones(32), f32), tensor_from_array("old", np.ones(32), f32),
         tensor_from_array("bent", np.ones((2, 32)), f32)],
    )  # fmt: skip
    words[13] = "evil\x1b[2J"
    write_gguf(
        tmp_path / "b.gguf",
        {"x": u32(7), "same": string("s"), "list": array(words), "new\x1b": u32(3)},
        [tensor_from_array("n", np.ones(32), f32), tensor_from_array("fresh", np.ones(32), f32),
         tensor_from_array("bent", np.ones((1, 64)), f32)],
    )  # fmt: skip
    found = compared(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert not found.same
    assert found.metadata_added == {"new\x1b": 3} and found.metadata_removed == {"gone": 2}
    assert found.metadata_changed["x"] == (1, 7)
    assert found.metadata_changed["list"][0]["first_difference"] == 13
    assert {t.name: t.status for t in found.tensors} == {
        "n": "equal",
        "old": "removed",
        "bent": "reshaped",
        "fresh": "added",
    }
    text = "\n".join(comparison_lines(found))
    assert "\x1b" not in text and "[2, 32] -> [1, 64]" in text


def test_a_type_that_cannot_be_decoded_is_compared_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, {}, [TensorData("w", (2, 64), TENSOR_TYPES["Q2_0"], np.zeros((2, 18), np.uint8))])
    data = bytearray(path.read_bytes())
    data[data.index(b"w") + 1 + 4 + 16] = 200  # an id that nobody has
    (tmp_path / "b.gguf").write_bytes(data)
    data[-1] ^= 1
    (tmp_path / "c.gguf").write_bytes(data)
    assert compared(tmp_path / "b.gguf", tmp_path / "b.gguf").same
    assert compared(tmp_path / "b.gguf", tmp_path / "c.gguf").tensors[0].status == "unknown"
    assert compared(path, tmp_path / "b.gguf").tensors[0].status == "unknown"
