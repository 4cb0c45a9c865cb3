"""A checkpoint in PyTorch and the file exported from it, on the engine: `eval` says the same of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trained import on_data, train, write_data

from nanochat_tui.cli.app import dispatch
from nanochat_tui.export import export_model


def test_checkpoint_and_exported_file_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data")
    documents = [
        {"start": 0, "tokens": 300, "bytes": 900, "source": "s", "crate": "a", "path": "a.rs"},
        {"start": 300, "tokens": 400, "bytes": 1200, "source": "s", "crate": "b", "path": "b.rs"},
    ]
    (data / "val_documents.json").write_text(json.dumps(documents), encoding="utf-8")
    train(tmp_path / "run", steps=20, **on_data(data))
    checkpoint, tokenizer = tmp_path / "run/final", data / "tokenizer.json"
    export_model(checkpoint, tmp_path / "m.gguf", tmp_path / "m.mhc", tokenizer)

    def measure(model: Path, *more: str) -> dict[str, Any]:
        capsys.readouterr()
        dispatch(["eval", "perplexity", str(model), str(data), "--json", *more])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    for more in ((), ("--window", "16", "--stride", "8")):
        ours = measure(checkpoint, "--tokenizer", str(tokenizer), *more)
        theirs = measure(tmp_path / "m.gguf", *more)
        for key in ("nats", "bits_per_byte", "accuracy"):
            assert ours[key]["value"] == pytest.approx(theirs[key]["value"], abs=1e-3)
        assert ours["tokens"] == theirs["tokens"] == 698
