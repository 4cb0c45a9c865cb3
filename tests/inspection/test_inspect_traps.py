"""A file of each known trap, and what is said of it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from samples import matrix, write_matrix
from support import write_model

from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.entry import run
from nanochat_tui.formats.gguf import (
    GGUFValue,
    TensorData,
    ValueType,
    array,
    boolean,
    i32,
    string,
    tensor_from_array,
    u32,
    write_gguf,
)
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.inspection import Summary, inspect_file
from nanochat_tui.inspection.text import summary_lines

BITNET = {"embedding_length": 2560, "feed_forward_length": 6912}
HADAMARD: dict[str, GGUFValue] = {
    "prism.hadamard.version": u32(1),
    "prism.hadamard.block_size": u32(512),
    "prism.hadamard.transform": string("normalized-sylvester-walsh-hadamard"),
    "prism.hadamard.axis": string("input-last-dimension"),
    "prism.hadamard.sign_mode": string("identity"),
    "prism.hadamard.weight_names": array(["blk.0.attn_q.weight"]),
    "prism.hadamard.inverse_weight_names": array([], ValueType.STRING),
}


def rotated(path: Path, kind: str, keys: dict[str, GGUFValue]) -> Summary:
    """Write a file with one matrix of a block and return what is said of it."""
    trits = np.tile(np.array([-1, 0, 1, 0], np.int8), (4, 128))
    rows = matrix("blk.0.attn_q.weight", kind, trits, np.ones((4, 2), np.float16))
    write_gguf(path, keys, [rows])
    return inspect_file(path)


def traps(summary: Summary) -> dict[str, str]:
    """Return what was found, after checking that it can be printed and put into JSON."""
    found = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    text = "\n".join(summary_lines(summary))
    assert "\x1b" not in text
    for trap in found["traps"]:
        assert trap["text"] in text
    return {trap["kind"]: trap["text"] for trap in found["traps"]}


def written(path: Path, kind: str = "Q2_0", **keys: GGUFValue) -> dict[str, str]:
    metadata = {key.replace("__", "."): value for key, value in keys.items()}
    write_matrix(path, kind, metadata=metadata)
    return traps(inspect_file(path))


def test_the_projects_own_file_has_none(tmp_path: Path) -> None:
    assert traps(inspect_file(write_model(tmp_path / "m.gguf"))) == {}


def test_groups_of_128_under_id_42(tmp_path: Path) -> None:
    found = written(tmp_path / "m.gguf", "Q2_0_g128")
    assert "groups of 128" in found["q2_0_group_128"] and "llama.cpp" in found["q2_0_group_128"]
    assert "q2_0_group_128" not in written(tmp_path / "n.gguf", "PQ2_0")


@pytest.mark.parametrize("type_id", [42, 253])
def test_stq1_0_under_another_id(tmp_path: Path, type_id: int) -> None:
    path = tmp_path / "m.gguf"
    write_matrix(path, "STQ1_0", rows=64)
    data = bytearray(path.read_bytes())
    at = data.index(b"w") + 1 + 4 + 16
    assert struct.unpack_from("<I", data, at) == (43,)
    struct.pack_into("<I", data, at, type_id)
    path.write_bytes(data)
    assert f"id {type_id}" in traps(inspect_file(path))["stq1_0_id"]


def test_hadamard_rotation(tmp_path: Path) -> None:
    keys = HADAMARD
    summary = rotated(tmp_path / "m.gguf", "Q2_0", keys)
    assert summary.rotation is not None and summary.rotation.problem is None
    assert summary.to_json()["rotation"]["block_size"] == 512
    assert "print garbage" in traps(summary)["rotated"]
    # a type that other programs refuse cannot be misread by them
    assert "print garbage" not in traps(rotated(tmp_path / "m.gguf", "PQ2_0", keys))["rotated"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": u32(3)}, "version 3"),
        ({"block_size": u32(100)}, "power of two"),
        ({"block_size": u32(1024)}, "do not divide"),
        ({"block_size": string("x")}, "block_size"),
        ({"sign_mode": string("odd\x1b")}, "odd\\x1b"),
        ({"weight_names": u32(1)}, "weight_names"),
        ({"tied_output": u32(1)}, "tied_output"),
    ],
)
def test_rotations_with_something_wrong(tmp_path: Path, change: dict[str, GGUFValue], word: str) -> None:
    keys = HADAMARD | {f"prism.hadamard.{key}": value for key, value in change.items()}
    summary = rotated(tmp_path / "m.gguf", "Q2_0", keys)
    assert summary.rotation is not None and word in str(summary.rotation.problem)
    assert word in traps(summary)["rotated"]


def test_rotation_with_keys_missing_and_another_vendors(tmp_path: Path) -> None:
    summary = rotated(tmp_path / "m.gguf", "Q2_0", {"prism.hadamard.version": u32(1)})
    assert "block_size" in traps(summary)["rotated"]
    assert "vendor" in written(tmp_path / "n.gguf", onebit__hadamard_q4_0=boolean(True))["other_rotation"]


def test_a_model_in_several_files_is_described_whole(tmp_path: Path) -> None:
    f32 = TENSOR_TYPES["F32"]
    for number in range(2):
        keys = {"split.count": i32(2), "split.no": i32(number), "split.tensors.count": i32(2)}
        part = tensor_from_array(f"t{number}", np.ones(32), f32)
        write_gguf(tmp_path / f"m-0000{number + 1}-of-00002.gguf", keys, [part])
    first = tmp_path / "m-00001-of-00002.gguf"
    whole = inspect_file(first)
    assert whole.parameters == 64 and "split" not in traps(whole)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    alone = inspect_file(first)
    assert alone.parameters == 32 and "file 1 of 2" in traps(alone)["split"]


def test_a_missing_pre_tokenizer(tmp_path: Path) -> None:
    keys = {"tokenizer__ggml__model": string("gpt2"), "tokenizer__ggml__tokens": array(["a", "b"])}
    assert "default rules" in written(tmp_path / "m.gguf", **keys)["missing_pre"]
    path = tmp_path / "m.gguf"
    assert "from-the-future" in written(path, tokenizer__ggml__pre=string("from-the-future"), **keys)["unknown_pre"]
    tokens = [str(i) for i in range(128_256)]
    tokens[128_000], tokens[128_009] = "<|begin_of_text|>", "<|eot_id|>"
    keys["tokenizer__ggml__tokens"] = array(tokens)
    assert "llama-bpe" in written(path, **keys)["missing_pre"]
    assert "Llama 3" in written(path, tokenizer__ggml__pre=string("qwen2"), **keys)["wrong_pre"]
    assert not {"missing_pre", "wrong_pre"} & set(written(path, tokenizer__ggml__pre=string("llama-bpe"), **keys))
    assert "falcon_pre" in written(tmp_path / "m.gguf", tokenizer__ggml__pre=string("falcon_e"), **keys)
    assert "no_tokenizer" in written(tmp_path / "m.gguf")


def test_bitnet_with_the_wrong_activation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, **more: GGUFValue) -> dict[str, str]:
        keys = {f"{name}.{key}": u32(value) for key, value in BITNET.items()}
        keys |= {"general.architecture": string(name)} | {f"{name}.{key}": value for key, value in more.items()}
        write_matrix(tmp_path / "m.gguf", "I2_S", metadata=keys)
        return traps(inspect_file(tmp_path / "m.gguf"))

    assert "ReLU²" in found("bitnet")["bitnet_activation"]
    assert "--i2s-layout arm" in found("bitnet")["i2_s_layout"]
    assert "bitnet_activation" not in found("bitnet-b1.58")
    assert "silu" in found("bitnet-b1.58", hidden_activation=string("silu"))["bitnet_activation"]
    assert "bitnet_activation" not in found("bitnet-25", hidden_activation=string("relu2"))
    monkeypatch.setitem(BITNET, "embedding_length", 1536)  # the older model, which needs SiLU
    assert "bitnet_activation" not in found("bitnet")


def test_parts_of_models_that_are_easily_overlooked(tmp_path: Path) -> None:
    f32 = TENSOR_TYPES["F32"]
    tensors = [
        tensor_from_array(name, np.ones((4, 32)), f32) for name in ("blk.0.attn_q_norm_in.weight", "blk.1.nextn.x")
    ]
    tensors.append(tensor_from_array("token_embd.weight", np.ones((8, 32)), f32))
    keys = {
        "general.architecture": string("qwen3"),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("qwen2"),
        "tokenizer.ggml.tokens": array(["a", "b"]),
        "split.count": i32(3),
        "split.no": i32(1),
        "general.file_type": u32(37),
    }
    write_gguf(tmp_path / "m.gguf", keys, tensors)
    found = traps(inspect_file(tmp_path / "m.gguf"))
    assert set(found) == {"norm_in", "mtp", "vocabulary", "split", "file_type", "no_template"}
    assert "file 2 of 3" in found["split"] and "8 rows" in found["vocabulary"] and "TQ2_0" in found["file_type"]


def test_binary_weights_and_types_that_cannot_be_read(tmp_path: Path) -> None:
    assert "binary" in written(tmp_path / "m.gguf", "Q1_0")
    path = tmp_path / "n.gguf"
    write_gguf(path, {}, [TensorData("w", (2, 64), TENSOR_TYPES["Q2_0"], np.zeros((2, 18), np.uint8))])
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"w") + 1 + 4 + 16, 38)
    path.write_bytes(data)
    assert "TL1" in traps(inspect_file(path))["undecodable"]


def original(path: Path, counts: bool) -> None:
    """Write a `GUGF` file with one matrix of Q1_58 by the sheet's layout, byte by byte."""
    rng = np.random.default_rng(0)
    trits = rng.choice(np.array([-1, 0, 1], np.int8), (8, 256))
    codes = np.array([3, 0, 1], np.uint8)[trits + 1].reshape(-1, 4)
    packed = np.bitwise_or.reduce(codes << np.array([0, 2, 4, 6], np.uint8), axis=1).astype(np.uint8)
    groups = np.abs(trits.reshape(-1, 128))
    scales = (groups.mean(axis=1) if counts else rng.uniform(0.1, 0.2, len(groups))).astype("<f4")

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GUGF" + struct.pack("<IQQ", 3, 1, 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text("nanochat-ternary")
    head += text("nanochat.group_size") + struct.pack("<II", 4, 128)
    head += text("blocks.0.attention.wq.weight") + struct.pack("<IQQIQ", 2, 8, 256, 100, 0)
    path.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + packed.tobytes() + scales.tobytes())


@pytest.mark.parametrize("counts", [True, False])
def test_files_of_the_original(tmp_path: Path, counts: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "o.gguf"
    original(path, counts)
    summary = inspect_file(path)
    found = traps(summary)
    assert "GUGF" in found["gugf"] and ("lost_scales" in found) is counts
    assert (summary.parameters, summary.architecture, summary.is_gguf) == (8 * 256, "nanochat-ternary", False)
    assert summary.tensors[0].shape == (8, 256) and summary.types["Q1_58"].bytes == 8 * 256 // 4 + 4 * 16
    assert not summary.runs and "convert" in str(summary.reason)
    assert run(dispatch, ["inspect", str(path), "--ternary", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["runs"] is False


def test_a_damaged_original_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original(tmp_path / "o.gguf", False)
    data = (tmp_path / "o.gguf").read_bytes()
    for cut in (4, 30, 100, len(data) - 64):
        (tmp_path / "c.gguf").write_bytes(data[:cut])
        assert run(dispatch, ["inspect", str(tmp_path / "c.gguf")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_names_reach_the_terminal_escaped(tmp_path: Path) -> None:
    evil = "\x1b]0;x\x07"
    rows = np.ones((2, 256), np.int8), np.ones((2, 1), np.float16)
    write_gguf(
        tmp_path / "m.gguf",
        {"general.architecture": string(f"q{evil}"), "tokenizer.ggml.model": string(evil), f"k{evil}": string(evil)},
        [matrix(f"w{evil}", "TQ2_0", *rows)],
    )
    summary = inspect_file(tmp_path / "m.gguf")
    text = "\n".join(summary_lines(summary, metadata=True))
    assert "\x1b" not in text and "\x07" not in text
