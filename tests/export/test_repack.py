"""The same weights in another tensor type: exactly, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_architectures import add_rotation, draft, finish, write_architecture

from nanochat_tui.cli.app import dispatch
from nanochat_tui.errors import UserError
from nanochat_tui.export.repack import TARGETS, LossError, convert
from nanochat_tui.formats.gguf import TensorData, read_gguf, string, u32, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, encode_ternary

ROWS, COLUMNS = 6, 512


def one_tensor(path: Path, kind: str, codes: np.ndarray, scales: np.ndarray) -> Path:
    made = TENSOR_TYPES[kind]
    data = encode_ternary(made, codes.reshape(-1, made.block_elements), scales.astype(np.float16))
    shape = tuple(codes.shape)
    write_gguf(path, {"general.architecture": string("llama")}, [TensorData("w", shape, made, data)])
    return path


def values(path: Path, name: str = "w") -> np.ndarray:
    with read_gguf(path) as file:
        return file.array(name)


def random_codes(seed: int = 0, most: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, (ROWS, COLUMNS)).astype(np.uint8)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("source", ["TQ2_0", "I2_S"])
def test_every_type_holds_what_it_can(tmp_path: Path, source: str, kind: str) -> None:
    """One scale for the whole tensor, codes that every type has: no zero for Q1_0, one in four for STQ1_0."""
    codes = random_codes() // 2 * 2
    if kind == "STQ1_0":  # lanes are 16 apart
        codes = codes.reshape(-1, 4, 16)
        codes[:, 1] = 1
        codes = codes.reshape(ROWS, COLUMNS)
    elif kind != "Q1_0":
        codes = random_codes()
    path = one_tensor(tmp_path / "a.gguf", "TQ2_0", codes, np.full(codes.size // 256, 0.375))
    if source == "I2_S":
        path, _ = tmp_path / "i.gguf", convert(path, tmp_path / "i.gguf", "I2_S")
    done = convert(path, tmp_path / "b.gguf", kind)
    assert any("already" in note for note in done.notes) is (kind == source)
    assert done.types == {source: 1}
    assert done.scale_error == 0
    with read_gguf(tmp_path / "b.gguf") as file:
        assert file.tensors["w"].type.name == kind
    np.testing.assert_array_equal(values(tmp_path / "b.gguf"), (codes.astype(np.float32) - 1) * np.float32(0.375))


@settings(max_examples=40)
@given(data=st.data())
def test_there_and_back_is_the_same(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Groups of 128 go through every type that repeats their scale and come back byte for byte."""
    folder = tmp_path_factory.mktemp("repack")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes, scales = random_codes(int(rng.integers(1000))), rng.uniform(0.01, 2, ROWS * COLUMNS // 128)
    kinds = data.draw(st.lists(st.sampled_from(["Q2_0", "PQ2_0", "PTQ1_0"]), min_size=1, max_size=4))
    path = one_tensor(folder / "0.gguf", "Q2_0_g128", codes, scales)
    before = values(path)
    held = "Q2_0_g128"
    for number, kind in enumerate(kinds, 1):
        if kind != held:
            convert(path, folder / f"{number}.gguf", kind)
            path, held = folder / f"{number}.gguf", kind
    np.testing.assert_array_equal(values(path), before)


def test_zeros_go_with_any_scale(tmp_path: Path) -> None:
    codes = random_codes()
    codes[:, 128:256] = 1
    scales = np.tile([0.5, 7.0, 0.25, 0.25], ROWS)
    path = one_tensor(tmp_path / "a.gguf", "PQ2_0", codes, scales)
    convert(path, tmp_path / "b.gguf", "TQ1_0")
    np.testing.assert_array_equal(values(tmp_path / "b.gguf"), values(path))


@pytest.mark.parametrize(
    ("kind", "most", "spread", "message"),
    [
        ("TQ2_0", 3, True, r"w cannot become TQ2_0 without loss: in 12 of 12 blocks .* different scales"),
        ("I2_S", 3, True, "one for the whole tensor"),
        ("Q1_0", 3, False, "a weight is 0"),
        ("STQ1_0", 3, False, "exactly one zero"),
        ("TQ1_0", 4, False, "holds codes 0 to 2"),
        ("I2_S", 4, False, r"holds \+2"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, kind: str, most: int, spread: bool, message: str) -> None:
    codes = random_codes(most=most)
    scales = np.linspace(0.1, 1, codes.size // 128) if spread else np.full(codes.size // 128, 0.5)
    path = one_tensor(tmp_path / "a.gguf", "PQ2_0", codes, scales)
    with pytest.raises(LossError, match=message):
        convert(path, tmp_path / "b.gguf", kind)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf"]


def test_rows_too_short_for_a_block_are_refused(tmp_path: Path) -> None:
    codes = np.ones((4, 64), np.uint8)
    path = one_tensor(tmp_path / "a.gguf", "Q2_0", codes, np.full(4, 0.5))
    with pytest.raises(LossError, match="rows of 64 weights"):
        convert(path, tmp_path / "b.gguf", "TQ2_0")


def test_a_scale_is_rounded_only_when_allowed(tmp_path: Path) -> None:
    made, trits = TENSOR_TYPES["I2_S"], random_codes().astype(np.float32) - 1
    data = made.encode((trits * np.float32(0.1)).reshape(-1, 128))
    write_gguf(tmp_path / "a.gguf", {}, [TensorData("w", (ROWS, COLUMNS), made, data)])
    with pytest.raises(LossError, match="--round-scales"):
        convert(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q2_0")
    done = convert(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q2_0", round_scales=True)
    assert 0 < done.scale_error <= 2.0**-11
    assert "rounded" in done.notes[0]
    np.testing.assert_array_equal(values(tmp_path / "b.gguf"), trits * np.float32(np.float16(0.1)))


def test_nothing_else_changes(tmp_path: Path) -> None:
    d = draft("qwen3", kind="Q2_0_g128", table="Q2_0_g128")
    d.plain_keys["general.file_type"] = u32(99)
    path = finish(d, tmp_path / "g128.gguf")
    done = convert(path, tmp_path / "out.gguf")
    assert done.kind == "Q2_0"
    assert done.notes == ()
    with read_gguf(path) as before, read_gguf(tmp_path / "out.gguf") as after:
        assert list(before.tensors) == list(after.tensors)
        for name, info in before.tensors.items():
            np.testing.assert_array_equal(before.array(name), after.array(name))
            if not info.type.is_ternary:
                assert after.tensors[name].type == info.type
        changed = {key for key in before.metadata if before.metadata[key] != after.metadata.get(key)}
        assert changed == {"general.file_type"}
        assert after.metadata["general.file_type"].value == 41


def test_notes_say_what_other_programs_will_do(tmp_path: Path) -> None:
    d = draft("qwen3", kind="PQ2_0")
    add_rotation(d)
    rotated = convert(finish(d, tmp_path / "r.gguf"), tmp_path / "r2.gguf")
    assert "nonsense" in rotated.notes[0]
    path = write_architecture(tmp_path / "b.gguf", "bitnet-25", kind="Q2_0_g128")
    assert convert(path, tmp_path / "b2.gguf", "PQ2_0").notes == ()  # the type is unknown there anyway
    bitnet = convert(tmp_path / "b2.gguf", tmp_path / "b3.gguf", "Q2_0")
    assert "bitnet-25" in bitnet.notes[0]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_architecture(tmp_path / "g128.gguf", "qwen3", kind="Q2_0_g128")
    assert dispatch(["convert", str(path), str(tmp_path / "out" / "m.gguf")]) == 0
    assert "every weight compared and equal" in capsys.readouterr().out
    assert dispatch(["convert", str(path), str(tmp_path / "p.gguf"), "--type", "PQ2_0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["types"] == {"Q2_0_g128": 14}
    for words, message in [
        ([str(path), str(path)], "onto itself"),
        ([str(path), str(path), "--force"], "onto itself"),
        ([str(path), str(tmp_path)], "is a folder"),
        ([str(path), str(path / "x.gguf")], "cannot be made"),
        ([str(path), str(tmp_path / "p.gguf")], "already; give another name, or replace it with --force"),
        ([str(tmp_path / "none.gguf"), "x.gguf"], "no file"),
        ([str(path), str(tmp_path / "x.gguf"), "--tokenizer", str(path)], "leave them out"),
    ]:
        with pytest.raises(UserError, match=message):
            dispatch(["convert", *words])
    assert dispatch(["convert", str(path), str(tmp_path / "p.gguf"), "--force"]) == 0
    with read_gguf(tmp_path / "p.gguf") as file:
        assert file.tensors["blk.0.attn_q.weight"].type.name == "Q2_0"
    write_gguf(tmp_path / "f.gguf", {}, [TensorData("w", (32,), TENSOR_TYPES["F32"], np.zeros(128, np.uint8))])
    with pytest.raises(UserError, match="no ternary tensors"):
        dispatch(["convert", str(tmp_path / "f.gguf"), str(tmp_path / "x.gguf")])


@pytest.mark.peer
def test_llama_cpp_loads_what_it_refused(tmp_path: Path) -> None:
    """A model in groups of 128 under the id 42, as Prism published; converted, it computes what its floats say."""
    pytest.importorskip("llama_cpp")
    from nanochat_tui.bench.peer import PeerRunner

    path = write_architecture(tmp_path / "g128.gguf", "qwen3", kind="Q2_0_g128", table="Q2_0_g128")
    twin = write_architecture(tmp_path / "twin.gguf", "qwen3", kind="Q2_0_g128", table="Q2_0_g128", twin=True)
    with pytest.raises(UserError, match="does not load"):
        PeerRunner(path, 1)
    convert(path, tmp_path / "g64.gguf")
    ids = list(range(40, 72))
    exact, found = (PeerRunner(p, 1, 128).logits(ids) for p in (twin, tmp_path / "g64.gguf"))
    assert np.sqrt(np.mean((exact - found) ** 2)) <= 0.05 * exact.std()
