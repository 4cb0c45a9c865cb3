"""LoRA: what is trained, what stays, and the adapter file that comes out of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import write_model
from test_finetune import SHAPE, WORDS, _invoke, _pairs

from nanochat_tui.engine.generate.model import load
from nanochat_tui.engine.weights.adapters import LoraFile
from nanochat_tui.errors import UserError
from nanochat_tui.export import load_checkpoint
from nanochat_tui.export.checkpoint import load_adapter
from nanochat_tui.export.start import starting_weights
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.train.model import NanochatModel


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base.gguf", SHAPE)


def _lora_run(tmp_path: Path, model: Path, *extra: str, steps: int = 4) -> Path:
    pairs = _pairs(tmp_path / "pairs.jsonl")
    run = tmp_path / "run"
    words = ["--lora-rank", "4", "--lora-lr", "0.01", "--steps", str(steps), *WORDS, *extra]
    code, said = _invoke("finetune", str(pairs), "--from", str(model), "--checkpoint-dir", str(run), *words)
    assert code == 0, said
    return run


def test_lora_trains_adapters_and_nothing_else_and_its_file_runs(tmp_path: Path, model: Path) -> None:
    run = _lora_run(tmp_path, model, steps=30)
    found, config, weights = load_adapter(run / "final")
    _, before = starting_weights(model)
    for name, values in weights.items():
        np.testing.assert_array_equal(values, before[name], err_msg=name)
    assert len(found.pairs) == 7 * config.n_layers
    assert all(up.any() for _, up in found.pairs.values())
    seen = [row["loss"] for row in RunDirectory(run).metrics() if "loss" in row]
    assert seen[-1] < seen[0] - 0.5
    assert RunDirectory(run).config()["parameters"] == found.parameters
    code, said = _invoke("export", "--checkpoint", str(run / "final"), "--gguf", str(tmp_path / "lora.gguf"))
    assert code == 0, said
    assert "rank 4" in said and f"--lora {tmp_path / 'lora.gguf'}" in said
    # PyTorch on the checkpoint, the engine on the two files
    torch_model = NanochatModel(config, activations="float")
    torch_model.add_lora(4, 32.0)
    torch_model.load_state_dict(load_file(run / "final" / "model.safetensors"))
    ids = [int(i) for i in np.random.default_rng(0).integers(0, config.vocab_size, 40)]
    with torch.no_grad():
        wanted = torch_model.logits(torch.tensor([ids]))[0].numpy()
    with load(model, kv="f32", activations="float", lora=[LoraFile(tmp_path / "lora.gguf")]) as engine:
        np.testing.assert_allclose(engine.logits(ids), wanted, atol=2e-4)
    with pytest.raises(UserError, match="is that of an adapter"):
        load_checkpoint(run / "final")
    code, said = _invoke("export", "--checkpoint", str(run / "final"), "--gguf", str(tmp_path / "lora.gguf"))
    assert code != 0 and "already" in said


def test_lora_resumes_to_the_same_losses(tmp_path: Path, model: Path) -> None:
    whole, again = _lora_run(tmp_path, model, "--checkpoint-interval", "3", steps=6), tmp_path / "again"
    shutil.copytree(whole, again)
    for name in ("final", "step_6"):
        shutil.rmtree(again / name, ignore_errors=True)
    code, said = _invoke("train", "--resume", str(again / "step_3"), "--checkpoint-dir", str(again))
    assert code == 0, said
    first, second = (load_file(run / "final" / "model.safetensors") for run in (whole, again))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mtp-depth", "1"], "mtp_depth changes weights that lora_rank keeps"),
        (["--fire"], "fire changes weights that lora_rank keeps"),
        (["--parallel", "fsdp"], "lora_rank goes neither with parallel fsdp"),
    ],
)
def test_what_lora_does_not_go_with_is_refused(tmp_path: Path, model: Path, words: list[str], said: str) -> None:
    pairs = _pairs(tmp_path / "pairs.jsonl")
    options = ["--from", str(model), "--checkpoint-dir", str(tmp_path / "run"), "--lora-rank", "4", *words]
    code, found = _invoke("finetune", str(pairs), *options)
    assert code == 2 and said in found
    code, found = _invoke(
        "train", "--dataset", "synthetic", "--lora-rank", "4", "--checkpoint-dir", str(tmp_path / "b")
    )
    assert code == 2 and "lora_rank needs a model to start from" in found
