"""--kv, --i2s-layout and --activations reach the engine from every command that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TINY, write_model
from support_architectures import write_architecture

from nanochat_tui.chat.local import LocalBackend
from nanochat_tui.cli.app import dispatch
from nanochat_tui.cli.serve import serve
from nanochat_tui.engine.generate.model import load as load_model
from nanochat_tui.errors import UserError
from nanochat_tui.serve.loading import ModelFiles, load_one
from nanochat_tui.tui.app import NanochatApp


def test_cache_and_layout_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From each command's options; the words that the application gives on to its backend are the same."""
    path = write_architecture(tmp_path / "m.gguf", "bitnet", kind="I2_S")
    made: list[LocalBackend] = []
    load = LocalBackend.load

    def noted(backend: LocalBackend, *rest: Any) -> None:
        load(backend, *rest)
        made.append(backend)

    def run(app: NanochatApp) -> None:
        app.chat.model.backend.load(lambda line: None)

    monkeypatch.setattr(LocalBackend, "load", noted)
    monkeypatch.setattr(NanochatApp, "run", run)
    monkeypatch.setenv("TEXTUAL_DRIVER", "textual.drivers.headless_driver:HeadlessDriver")
    for variable in ("NANOCHAT_CONFIG_DIR", "NANOCHAT_DATA_DIR", "NANOCHAT_STATE_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    words = [str(path), "--threads", "1", "--kv", "int8", "--i2s-layout", "arm"]
    dispatch(["chat", *words, "-p", "hi", "-n", "2"])
    dispatch(words)
    told, usual = (load_model(path, threads=1, kv="int8", i2s_layout=layout) for layout in ("arm", "x86"))
    wanted = told.logits([1, 2, 3])
    assert np.abs(wanted - usual.logits([1, 2, 3])).max() > 0.1
    assert len({id(backend) for backend in made}) == 2
    for backend in made:
        assert backend.model.kv == "int8"
        np.testing.assert_array_equal(backend.model.logits([1, 2, 3]), wanted)
    with pytest.raises(UserError, match="--kv, --i2s-layout"):
        dispatch(["chat", "--attach", "http://127.0.0.1:9", "--kv", "int8", "-p", "hi"])


def test_float_activations_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    asked: list[object] = []

    def noted(*_: object, activations: str = "int8", **__: object) -> None:
        asked.append(activations)
        raise UserError("noted")

    monkeypatch.setattr("nanochat_tui.engine.generate.model.load", noted)
    words = [str(path), "--activations", "float"]
    with pytest.raises(UserError, match="noted"):
        dispatch(["chat", *words, "-p", "hi"])
    with pytest.raises(UserError, match="noted"):
        dispatch(["bench", *words, "--quality"])
    with pytest.raises(UserError, match="noted"):
        load_one(ModelFiles(path, activations="float"), str)
    assert asked == ["float"] * 3
    with pytest.raises(UserError, match="--activations and --lora are for files"):
        dispatch(["chat", "--attach", "http://127.0.0.1:9", "--activations", "float", "-p", "hi"])


def test_bench_counts_the_cache_it_was_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.gguf", TINY)
    moved = {}
    for kind in ("f16", "int8", "f32"):
        words = ["--threads", "1", "-n", "4", "--repeats", "1", "--prompt", "4", "--context", "64", "--kv", kind]
        assert dispatch(["bench", str(path), *words, "--json"]) == 0
        moved[kind] = json.loads(capsys.readouterr().out)["rows"][1]["bytes_per_token"]
    assert moved["int8"] < moved["f16"] < moved["f32"]


def test_serve_has_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server itself is not started: only what it would load is loaded."""
    from nanochat_tui.serve import runner

    path = write_architecture(tmp_path / "m.gguf", "bitnet", kind="I2_S")
    found: list[Any] = []
    monkeypatch.setattr(runner, "run", lambda make, *rest: found.extend(make(lambda line: None)) or 0)
    serve(model=[str(path)], threads=1, kv="int8", i2s_layout="arm", kv_tokens=64)
    (batcher,) = found
    assert batcher.model.kv == "int8"
    told = load_model(path, threads=1, kv="int8", i2s_layout="arm")
    np.testing.assert_array_equal(batcher.model.logits([1, 2, 3]), told.logits([1, 2, 3]))
    batcher.close()
