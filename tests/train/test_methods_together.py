"""All training methods in one run: trained, resumed, exported, run by the engine."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained import losses, on_data, train, write_data

from nanochat_tui.engine.generate.model import load
from nanochat_tui.errors import UserError
from nanochat_tui.export import compare_logits, export_model, load_checkpoint, reference_logits
from nanochat_tui.model.config import PRESETS
from nanochat_tui.runs.config import parse_config
from nanochat_tui.train import trainer


def test_everything_at_once_resumes_bit_for_bit_and_runs(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    settings: dict[str, Any] = on_data(
        data,
        steps=12,
        mtp_depth=3,
        mtp_weight=0.2,
        mhc_analysis=True,
        fire=True,
        fire_step=7,
        collider_ratio=0.4,
        muon_lr=0.02,
        muon_momentum=0.95,
        ns_steps=3,
        warmup_steps=2,
        decay_fraction=0.2,
        decay_shape="cosine",
        head_frequent=64,
        head_sampled=32,
    )
    rows = train(tmp_path / "whole", **settings)
    assert [row["step"] for row in rows if "fire_sfe" in row] == [8]
    keys = {"mtp_loss_2", "mtp_loss_3", "mtp_loss_4", "collider_loss", "collider_excess", "mhc"}
    assert all(keys <= row.keys() and np.isfinite(row["loss"]) for row in rows)
    resumed = train(tmp_path / "part", resume=tmp_path / "whole" / "step_5", **settings)
    late = {row["step"] for row in rows if row["step"] > 5}
    assert {s: v for s, v in losses(resumed).items() if s in late} == {s: losses(rows)[s] for s in late}
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "whole/final" / name).read_bytes() == (tmp_path / "part/final" / name).read_bytes()
    final, gguf = tmp_path / "part" / "final", tmp_path / "m.gguf"
    report = export_model(final, gguf, tmp_path / "m.mhc", data / "tokenizer.json")
    assert report.parameters == PRESETS["tiny"].with_(vocab_size=300).parameters
    engine = load(gguf, mhc=tmp_path / "m.mhc", threads=1, activations="float", kv="f32")
    config, weights = load_checkpoint(final)
    ids = list(range(5, 25))
    agreement = compare_logits(reference_logits(config, weights, ids, int8=False), engine.logits(ids))
    assert agreement.max_difference < 1e-3


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of the micro-batches, from 1, in which the embedding is no number; all losses and gradients with it."""
    calls: set[int] = set()
    inner, count = trainer.backward, 0

    def poisoned(model: Any, *rest: Any) -> Any:
        nonlocal count
        count += 1
        if count not in calls:
            return inner(model, *rest)
        kept = model.token_embd.weight.detach().clone()
        with torch.no_grad():
            model.token_embd.weight.fill_(math.nan)
        try:
            return inner(model, *rest)
        finally:
            with torch.no_grad():
                model.token_embd.weight.copy_(kept)

    monkeypatch.setattr(trainer, "backward", poisoned)
    return calls


ALL: dict[str, Any] = {"mtp_depth": 2, "collider_ratio": 0.4, "mhc_analysis": True, "fire": True, "fire_step": 4}


def test_a_skipped_step_leaves_nothing_in_the_methods_figures(tmp_path: Path, broken: set[int]) -> None:
    broken |= {3, 5}
    rows = train(tmp_path, steps=8, log_interval=2, **ALL)
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8]
    assert rows[-1]["skipped"] == 2
    assert all(math.isfinite(row[key]) for row in rows for key in ("mtp_loss_2", "mtp_loss_3", "collider_loss"))


def test_a_run_goes_back_with_all_methods(tmp_path: Path, broken: set[int]) -> None:
    broken.add(8)
    rows = train(tmp_path, steps=12, skip_steps=0, rollbacks=1, **ALL)
    assert rows[-1]["step"] == 12 and math.isfinite(rows[-1]["mtp_loss_2"])


def test_a_checkpoint_before_the_first_update_resumes(tmp_path: Path, broken: set[int]) -> None:
    broken.add(1)
    train(tmp_path / "whole", steps=4, checkpoint_interval=1)
    rows = train(tmp_path / "part", resume=tmp_path / "whole" / "step_1", steps=4, checkpoint_interval=1)
    assert rows[-1]["step"] == 4
    a, b = ((tmp_path / part / "final" / "model.safetensors").read_bytes() for part in ("whole", "part"))
    assert a == b


def test_fire_is_not_applied_twice_at_one_step(tmp_path: Path, broken: set[int]) -> None:
    """The step after it was skipped, and a checkpoint written."""
    broken.add(5)
    settings = {**ALL, "steps": 8, "checkpoint_interval": 1}
    rows = train(tmp_path / "whole", **settings)
    assert [row["step"] for row in rows if "fire_sfe" in row] == [5]
    for step, times in ((4, 1), (5, 0)):
        part = tmp_path / f"from {step}"
        train(part, resume=tmp_path / "whole" / f"step_{step}", **settings)
        assert (part / "log.txt").read_text().count("FIRE: ") == times


@pytest.mark.parametrize("short", [0, 2])
def test_mtp_looks_no_further_than_a_sequence(short: int) -> None:
    length = {"seq_len": 8, "short_seq_len": short}
    with pytest.raises(UserError, match=r"mtp_depth 8 must be less than the [28] tokens of a sequence"):
        parse_config({"config": "tiny", "dataset": "synthetic", "mtp_depth": 8, **length})
