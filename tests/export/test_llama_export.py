"""A plain-residual checkpoint as a `llama` file: the same numbers by other programs' rules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import small_config, write_checkpoint, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from references.dense import dense

from nanochat_tui.errors import UserError
from nanochat_tui.export import ExportError, export_llama, llama_export, load_checkpoint, reference_logits
from nanochat_tui.export.llama_export import halved, interleaved
from nanochat_tui.formats.gguf import read_gguf, tensor_from_array, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES

PLAIN = small_config(n_streams=1)
IDS = [1, 70, 65, 12, 250, 3, 99, 120, 64, 64, 7, 201]


def export(folder: Path, **options: str) -> Path:
    write_checkpoint(folder / "final", PLAIN)
    export_llama(folder / "final", folder / "m.gguf", write_tokenizer(folder / "tokens.json"), **options)  # type: ignore[arg-type]
    return folder / "m.gguf"


def test_pairs_side_by_side() -> None:
    rows = np.arange(12)[:, None]
    assert interleaved(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@given(heads=st.integers(1, 4), half=st.integers(1, 8), columns=st.integers(1, 3))
def test_order_of_rows_is_undone(heads: int, half: int, columns: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(heads * 2 * half, columns))
    np.testing.assert_array_equal(halved(interleaved(matrix, heads), heads), matrix)


@pytest.mark.parametrize("embedding", ["Q8_0", "F16"])
def test_it_computes_what_the_checkpoint_does(tmp_path: Path, embedding: str) -> None:
    path = export(tmp_path, embedding=embedding)
    config, weights = load_checkpoint(tmp_path / "final")
    expected = reference_logits(config, weights, IDS, embedding, int8=False)
    with read_gguf(path) as file:
        np.testing.assert_allclose(dense(file, IDS), expected, atol=1e-3 * float(expected.std()))
        assert file.metadata["general.architecture"].value == "llama"


def test_a_wrong_row_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_export, "halved", lambda matrix, heads: matrix)
    with pytest.raises(ExportError, match=r"blk\.0\.attn_q"):
        export(tmp_path)


def test_a_model_with_streams_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "final", small_config(n_streams=2))
    with pytest.raises(UserError, match="2 residual streams"):
        export_llama(tmp_path / "final", tmp_path / "m.gguf", write_tokenizer(tmp_path / "tokens.json"))
    assert not (tmp_path / "m.gguf").exists()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nanochat_tui.cli.train_app import app

    write_checkpoint(tmp_path / "final", PLAIN)
    words = ["export", "--checkpoint", str(tmp_path / "final"), "--gguf", str(tmp_path / "m.gguf"), "--arch", "llama"]
    words += ["--tokenizer", str(write_tokenizer(tmp_path / "tokens.json"))]
    app(words, standalone_mode=False)
    assert "architecture llama" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"already.*--force"):
        app(words, standalone_mode=False)
    app([*words, "--force", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["architecture"] == "llama"
    assert 0 < found["logits_max_difference"] < 1e-3
    for more, message in [(["--mhc", "x.mhc"], "no mHC"), (["--ternary", "PQ2_0"], "does not know PQ2_0")]:
        with pytest.raises(UserError, match=message):
            app([*words, "--force", *more], standalone_mode=False)


@pytest.mark.peer
def test_llama_cpp_agrees(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from nanochat_tui.bench.peer import PeerRunner

    path = export(tmp_path)
    config, weights = load_checkpoint(tmp_path / "final")
    expected = reference_logits(config, weights, IDS, int8=False)
    found = PeerRunner(path, 1, 64).logits(IDS)
    assert np.sqrt(np.mean((expected - found) ** 2)) <= 0.05 * expected.std()
    with read_gguf(path) as file:
        tensors = [tensor_from_array(name, file.array(name), TENSOR_TYPES["F32"]) for name in file.tensors]
        write_gguf(tmp_path / "twin.gguf", file.metadata, tensors)
    twin = PeerRunner(tmp_path / "twin.gguf", 1, 64).logits(IDS)
    assert np.abs(twin - expected).max() <= 1e-3 * max(1.0, float(np.abs(expected).max()))
