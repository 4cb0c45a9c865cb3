"""What is said of files: our own, those of other architectures, and those with something wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import TINY, random_records, write_model

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import (
    TensorData,
    array,
    f32,
    read_gguf,
    string,
    tensor_from_array,
    u32,
    write_gguf,
)
from nanochat_tui.formats.mhc import HEADER, MAGIC, write_mhc
from nanochat_tui.formats.tensor_types import TENSOR_TYPES, encode_ternary_matrix
from nanochat_tui.inspection import inspect_file, ternary_statistics, ternary_tensors
from nanochat_tui.inspection.ternary_stats import sample, total
from nanochat_tui.inspection.text import mhc_lines, summary_lines, ternary_lines, trits_line
from nanochat_tui.model.architectures import nanochat


@pytest.mark.parametrize("n_streams", [1, 2, 4])
def test_our_own_file(tmp_path: Path, n_streams: int) -> None:
    config = TINY.with_(n_streams=n_streams)
    path = write_model(tmp_path / "m.gguf", config)
    summary = inspect_file(path)
    found = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert found["architecture"] == "nanochat"
    assert found["parameters"] == config.parameters
    assert found["runs"] is True and found["reason"] is None
    assert found["context_length"] == 96
    assert found["bytes"] == path.stat().st_size
    data = sum(use["bytes"] for use in found["types"].values())
    assert found["bits_per_weight"] == pytest.approx(8 * data / config.parameters)
    stored = config.ternary_parameters * 18 // 64
    assert found["types"]["Q2_0"] == {
        "tensors": 14,
        "bytes": stored,
        "parameters": config.ternary_parameters,
        "share": stored / data,
    }
    assert found["f16_bytes"] == 2 * config.parameters
    assert found["rotation"] is None and found["traps"] == []
    assert found["tokenizer"]["tokens"] == 300 and found["tokenizer"]["add_bos"] is True
    assert summary.shape == nanochat.of_config(config)
    if n_streams == 1:
        assert found["mhc"] is None
    else:
        assert found["mhc"]["verified"] is True and found["mhc"]["error"] is None
        assert (found["mhc"]["streams"], found["mhc"]["records"]) == (n_streams, 4)
        assert found["mhc"]["alive"] is True
        assert [d["name"] for d in found["mhc"]["details"]][:2] == ["blk.0.attn_mhc", "blk.0.ffn_mhc"]
    text = "\n".join(summary_lines(summary, metadata=True))
    assert "runs          yes" in text and f"{config.parameters:,}" in text


def test_sidecar_that_agrees(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    write_mhc(tmp_path / "m.mhc", 2, random_records(TINY))
    summary = inspect_file(path, tmp_path / "m.mhc")
    assert summary.mhc is not None and summary.mhc.verified and summary.problem is None
    assert "verified: 4 records over 2 streams" in "\n".join(mhc_lines(summary.mhc))


def test_sidecars_that_do_not(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    records = random_records(TINY)
    side = tmp_path / "m.mhc"

    def error() -> str:
        summary = inspect_file(path, side)
        assert summary.mhc is not None and not summary.mhc.verified
        assert summary.reason == summary.problem == summary.mhc.error
        assert summary.to_json()["mhc"]["verified"] is False
        assert "NOT VERIFIED" in "\n".join(summary_lines(summary))
        return str(summary.problem)

    write_mhc(side, 2, records[:3])
    assert "3 records but the model needs 4" in error()
    write_mhc(side, 2, records + np.float32(0.5))
    assert "another model" in error()
    write_mhc(side, 4, np.zeros((4, 40), np.float32))
    assert "4 streams" in error()
    records[1, 1] = np.nan
    side.write_bytes(HEADER.pack(MAGIC, 2, 4, 2) + records.tobytes())
    assert "NaN" in error()
    side.write_bytes(b"no")
    assert error()
    side.unlink()
    assert "cannot be read" in error()


def test_sidecar_for_a_plain_model(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", TINY.with_(n_streams=1))
    write_mhc(tmp_path / "m.mhc", 2, random_records(TINY))
    assert "plain residual" in str(inspect_file(path, tmp_path / "m.mhc").problem)


def test_damaged_records_inside(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    with read_gguf(path) as file:
        offset = file.tensors["blk.1.attn_mhc"].offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    summary = inspect_file(path)
    assert summary.mhc is not None and not summary.mhc.verified
    assert "record 2" in str(summary.mhc.error)
    assert not summary.runs


def foreign(path: Path) -> Path:
    trits = np.tile(np.array([-1, 0, 0, 1], np.int8), (8, 64))
    scales = np.full((8, 1), 0.5, np.float16)
    kind = TENSOR_TYPES["TQ2_0"]
    write_gguf(
        path,
        {
            "general.architecture": string("bitnet"),
            "general.name": string("evil\x1b[2Jname"),
            "bitnet.context_length": u32(4096),
            "some.value": f32(float("inf")),
            "some.list": array(np.arange(100, dtype=np.int32)),
            "tokenizer.ggml.model": string("llama"),
        },
        [
            TensorData("blk.0.attn_q.weight", (8, 256), kind, encode_ternary_matrix(kind, trits, scales)),
            tensor_from_array("output_norm.weight", np.ones(256), TENSOR_TYPES["F32"]),
        ],
    )
    return path


def test_a_file_of_another_architecture(tmp_path: Path) -> None:
    summary = inspect_file(foreign(tmp_path / "f.gguf"))
    found = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert found["runs"] is False
    assert "bitnet" in found["reason"] and found["reason"].count(". ") == 0
    assert found["parameters"] == 8 * 256 + 256
    assert found["context_length"] == 4096
    assert found["mhc"] is None
    assert found["metadata"]["some.list"] == {"type": "array of i32", "length": 100, "first": [0, 1, 2, 3, 4]}
    assert found["metadata"]["some.value"] == "inf"
    text = "\n".join(summary_lines(summary, metadata=True))
    assert "\x1b" not in text and "evil\\x1b[2Jname" in text


def test_a_foreign_file_takes_no_sidecar(tmp_path: Path) -> None:
    write_mhc(tmp_path / "m.mhc", 2, random_records(TINY))
    assert inspect_file(foreign(tmp_path / "f.gguf"), tmp_path / "m.mhc").problem is not None


def test_a_model_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    with read_gguf(path) as file:
        metadata = {k: v for k, v in file.metadata.items() if not k.startswith("tokenizer.")}
        tensors = [TensorData(n, i.shape, i.type, file.raw(n)) for n, i in file.tensors.items()]
        write_gguf(tmp_path / "bare.gguf", metadata, tensors)
    summary = inspect_file(tmp_path / "bare.gguf")
    assert not summary.runs and "--tokenizer" in str(summary.reason)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello")
    for path in (tmp_path / "x", tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError):
            inspect_file(path)


@pytest.mark.parametrize("name", ["Q2_0", "PQ2_0", "TQ1_0", "TQ2_0"])
def test_ternary_statistics_by_counting(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(3)
    trits = rng.choice(np.array([-1, 0, 1], np.int8), (10, 512), p=[0.2, 0.5, 0.3])
    trits[4] = 0
    scales = rng.uniform(0.5, 1.5, (10, 2)).astype(np.float16)
    scales[7] = 0
    kind = TENSOR_TYPES[name]
    data = encode_ternary_matrix(kind, trits, scales)
    write_gguf(tmp_path / "m.gguf", {}, [TensorData("w", (10, 512), kind, data)])
    with read_gguf(tmp_path / "m.gguf") as file:
        assert ternary_tensors(file) == ["w"]
        (found,) = ternary_statistics(file)
    assert found.counts == (int((trits == -1).sum()), int((trits == 0).sum()), int((trits == 1).sum()), 0)
    assert (found.rows, found.dead_rows, found.bad_scales) == (10, 2, 0)
    p = np.bincount(trits.reshape(-1) + 1) / trits.size
    assert found.entropy == pytest.approx(-(p * np.log2(p)).sum())
    assert found.balance == pytest.approx(trits.sum() / np.abs(trits).sum())
    assert found.scale_quantiles[0] == 0
    assert found.scale_quantiles[-1] == float(scales.max())
    assert total([found, found]).weights == 2 * trits.size
    assert "w" in "\n".join(ternary_lines([found]))
    json.dumps(found.to_json(), allow_nan=False)


def test_a_sample_takes_what_is_small_enough(tmp_path: Path) -> None:
    kind = TENSOR_TYPES["Q2_0"]
    tensors = [
        TensorData(name, (rows, 64), kind, np.full((rows, 18), 0xAA, np.uint8)) for name, rows in (("a", 9), ("b", 3))
    ]
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    with read_gguf(tmp_path / "m.gguf") as file:
        assert [sample(file, nbytes) for nbytes in (11 * 18, 12 * 18, 10)] == [["a"], ["a", "b"], []]
        line = trits_line(ternary_statistics(file, ["b"]), 2)
    assert line.startswith("-1 0.0%, 0 0.0%, +1 100.0%; 0.000 bits") and "1 of 2 ternary tensors" in line


def test_the_fourth_code_and_bad_scales_are_counted(tmp_path: Path) -> None:
    blocks = np.full((2, 18), 0xFF, np.uint8)  # code 3, and a scale that is NaN
    blocks[0, :2] = np.float16(0.5).reshape(1).view(np.uint8)
    kind = TENSOR_TYPES["Q2_0"]
    write_gguf(tmp_path / "m.gguf", {}, [TensorData("w", (1, 128), kind, blocks)])
    with read_gguf(tmp_path / "m.gguf") as file:
        (found,) = ternary_statistics(file)
    assert found.counts == (0, 0, 0, 128)
    assert found.bad_scales == 1
    assert found.scale_quantiles[3] == 0.5
    assert "+2" in ternary_lines([found])[1]


def test_large_tensors_are_counted_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "m.gguf")
    with read_gguf(path) as file:
        whole = ternary_statistics(file)
        monkeypatch.setattr("nanochat_tui.inspection.trits.CHUNK_WEIGHTS", 300)
        assert ternary_statistics(file) == whole
    assert sum(part.weights for part in whole) == TINY.ternary_parameters
