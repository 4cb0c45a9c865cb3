"""Checkpoint -> files -> back: everything equal, bit for bit, by readers of our own and of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import VOCAB, random_weights, small_config, write_checkpoint, write_tokenizer

from nanochat_tui.errors import UserError
from nanochat_tui.export import ExportError, compare_logits, export_model, load_checkpoint, verify_export
from nanochat_tui.export.gguf_export import mhc_records
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.support import require_described
from nanochat_tui.model.ternary import dequantise, ternarise
from nanochat_tui.model.tokenizer import codec_from_gguf, load_tokenizer


def export(folder: Path, config: ModelConfig, weights: dict | None = None, **options: str) -> tuple:
    weights = write_checkpoint(folder / "final", config, weights)
    tokenizer = write_tokenizer(folder / "tokens.json")
    out = folder / "out"
    out.mkdir()
    report = export_model(folder / "final", out / "m.gguf", out / "m.mhc", tokenizer, **options)
    return weights, report


@pytest.mark.parametrize("n_streams", [1, 2, 4])
@pytest.mark.parametrize("ternary", ["Q2_0", "PQ2_0"])
def test_round_trip_is_exact(tmp_path: Path, n_streams: int, ternary: str) -> None:
    config = small_config(n_streams=n_streams)
    weights, report = export(tmp_path, config, ternary=ternary)
    with read_gguf(report.gguf_path) as file:
        require_described(file)
        assert nanochat.from_metadata(file.metadata, file.tensors) == config
        assert sum(info.elements for info in file.tensors.values()) == config.parameters == report.parameters
        for name, values in weights.items():
            stored = file.array(name)
            if values.ndim == 1:
                assert stored.tobytes() == values.tobytes(), name
            elif name == "token_embd.weight":
                # a rounding to 1/127 of the largest of 32, so half a step away at most
                step = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) / 127
                assert (np.abs((stored - values).reshape(-1, 32)) <= 0.502 * step).all()
            else:
                assert stored.tobytes() == dequantise(*ternarise(values, 128)).tobytes(), name
                assert file.tensors[name].type.name == ternary
        codec = codec_from_gguf(file.metadata)
    assert codec.encode("a\n    b")[0] == VOCAB - 1
    assert codec.decode(codec.encode("a\n    bé")) == "a\n    bé"
    assert codec.tokenizer.to_str() == load_tokenizer(tmp_path / "tokens.json").to_str()
    assert (tmp_path / "out" / "tokens.json").read_bytes() == (tmp_path / "tokens.json").read_bytes()
    if n_streams == 1:
        assert report.mhc_path is None and report.mhc is None
        assert not (tmp_path / "out" / "m.mhc").exists()
    else:
        sidecar = read_mhc(report.mhc_path)
        assert (sidecar.version, sidecar.n_streams) == (2, n_streams)
        assert sidecar.records.tobytes() == mhc_records(config, weights).tobytes()
        assert report.mhc_bytes == 16 + 4 * config.mhc_records * {2: 9, 4: 40}[n_streams]
        assert report.mhc.ok
    assert report.ternary_weights == config.ternary_parameters
    assert not list((tmp_path / "out").glob(".*"))


def test_untied_head_and_f16_table(tmp_path: Path) -> None:
    config = small_config(tied=False, norm_eps=1e-5, rope_theta=500_000.0, n_kv_heads=4)
    weights, report = export(tmp_path, config, embedding="F16")
    with read_gguf(report.gguf_path) as file:
        require_described(file)
        assert nanochat.from_metadata(file.metadata, file.tensors) == config
        for name in ("token_embd.weight", "output.weight"):
            assert np.array_equal(file.array(name), weights[name].astype(np.float16).astype(np.float32))
    assert 0 < report.table_relative_rms < 1e-3


def test_same_checkpoint_same_bytes(tmp_path: Path) -> None:
    config = small_config()
    first = export(tmp_path / "a", config)[1].gguf_path.read_bytes()
    assert export(tmp_path / "b", config)[1].gguf_path.read_bytes() == first


def shared_scale_weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """Weights whose groups of 256 have one scale: trits with a fixed count of zeros, times one factor."""
    weights = random_weights(config)
    rng = np.random.default_rng(7)
    for name, values in weights.items():
        if values.ndim == 2 and name != "token_embd.weight":
            group = np.repeat([-1, 0, 1, 1], 32).astype(np.float32)
            rows = rng.permuted(np.tile(group, (values.size // 128, 1)), axis=1)
            weights[name] = (rows * np.float32(0.0625)).reshape(values.shape)
    return weights


@pytest.mark.parametrize("ternary", ["TQ2_0", "TQ1_0"])
def test_twin_is_read_by_the_gguf_package(tmp_path: Path, ternary: str) -> None:
    gguf = pytest.importorskip("gguf")
    config = small_config()
    weights, report = export(tmp_path, config, shared_scale_weights(config), embedding="F16", ternary=ternary)
    reader = gguf.GGUFReader(report.gguf_path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "nanochat"
    assert fields["nanochat.block_count"] == config.n_layers
    assert fields["nanochat.mhc.stream_count"] == 2
    assert fields["tokenizer.ggml.add_bos_token"] is True
    assert len(fields["tokenizer.ggml.tokens"]) == VOCAB
    assert {tensor.name for tensor in reader.tensors} == set(weights)
    for tensor in reader.tensors:
        values = weights[tensor.name]
        assert tuple(reversed(tensor.shape.tolist())) == values.shape
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        if tensor.tensor_type.name == ternary:
            expected = dequantise(*ternarise(values, 128))
        elif tensor.tensor_type.name == "F16":
            expected = values.astype(np.float16).astype(np.float32)
        else:
            expected = values
        assert np.array_equal(decoded, expected), tensor.name


def test_a_type_that_cannot_hold_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TQ2_0"):
        export(tmp_path, small_config(), ternary="TQ2_0")
    assert not (tmp_path / "out" / "m.gguf").exists()


def test_q2_0_holds_groups_of_64_as_well(tmp_path: Path) -> None:
    _, report = export(tmp_path, small_config(group_size=64))
    assert report.ternary_type == "Q2_0"


def test_tokenizer_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="320"):
        export(tmp_path, small_config(vocab_size=VOCAB + 1))


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "blk.0.attn_mhc", "output_norm.weight", "token_embd.weight"])
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    config = small_config()
    weights, report = export(tmp_path, config)
    with read_gguf(report.gguf_path) as file:
        offset = file.tensors[name].offset
    for byte in (0, 5):  # in Q2_0 and Q8_0 the scale's low byte, and a code
        data = bytearray(report.gguf_path.read_bytes())
        data[offset + byte] ^= 1
        (tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(ExportError, match=r"must not be used"):
            verify_export(config, weights, tmp_path / "bad.gguf")


def test_a_foreign_sidecar_is_found(tmp_path: Path) -> None:
    config = small_config()
    weights, report = export(tmp_path, config)
    other = report.mhc_path.read_bytes()
    report.mhc_path.write_bytes(other[:-1] + bytes([other[-1] ^ 1]))
    with pytest.raises(UserError, match="another model"):
        verify_export(config, weights, report.gguf_path, report.mhc_path)


def test_another_shape_is_found(tmp_path: Path) -> None:
    config = small_config()
    weights, report = export(tmp_path, config)
    with pytest.raises(ExportError, match="another shape"):
        verify_export(config.with_(context_length=65), weights, report.gguf_path)


def test_logits_decide(tmp_path: Path) -> None:
    _, report = export(tmp_path, small_config())
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((8, 50)).astype(np.float32)
    near = reference + 0.001 * rng.standard_normal((8, 50)).astype(np.float32)
    exact, rounded = compare_logits(reference, reference + np.float32(1e-4)), compare_logits(reference, near)
    agreed = report.with_logits(exact, rounded)
    assert agreed.logits_int8.relative_rms == pytest.approx(0.001, rel=0.2)
    assert agreed.to_json()["logits"]["tokens"] == 8
    with pytest.raises(ExportError, match="does not compute"):
        report.with_logits(compare_logits(reference, reference * np.float32(1.01)), rounded)
    for bad in (reference[::-1], reference * np.float32(1.2), np.full_like(reference, np.nan)):
        for pair in ((compare_logits(reference, bad), rounded), (exact, compare_logits(reference, bad))):
            with pytest.raises(ExportError, match="does not compute"):
                report.with_logits(*pair)
    with pytest.raises(ValueError, match="shapes"):
        compare_logits(reference, reference[1:])


def test_checkpoint_reads_back(tmp_path: Path) -> None:
    config = small_config(n_streams=4)
    weights = write_checkpoint(tmp_path / "c", config)
    found, loaded = load_checkpoint(tmp_path / "c")
    assert found == config
    assert set(loaded) == set(weights)
    assert all(loaded[name].tobytes() == weights[name].tobytes() for name in weights)


def test_a_refused_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "final", small_config())
    tokenizer = write_tokenizer(tmp_path / "tokens.json")
    out = tmp_path / "out"

    def refuse(place: Path, report: object) -> None:
        assert place.is_file()
        raise ExportError("does not compute what the checkpoint computes")

    with pytest.raises(ExportError):
        export_model(tmp_path / "final", out / "m.gguf", out / "m.mhc", tokenizer, check=refuse)  # type: ignore[arg-type]
    assert list(out.iterdir()) == []


def test_another_models_tokenizer_is_not_overwritten(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "final", small_config())
    tokenizer = write_tokenizer(tmp_path / "tokens.json")
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokens.json").write_text("of another model")
    report = export_model(tmp_path / "final", out / "m.gguf", out / "m.mhc", tokenizer)
    assert (out / "tokens.json").read_text() == "of another model"
    assert report.tokenizer_path == out / "m-tokenizer.json"
    assert report.tokenizer_path.read_bytes() == tokenizer.read_bytes()
