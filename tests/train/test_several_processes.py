"""Several processes: two equal one with twice the batch, checkpoints load on any number, a dead one ends the others."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from several import ENVIRONMENT, run_several, several
from trained import settings, train

from nanochat_tui.export.checkpoint import load_checkpoint as read_exported
from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.state import read_state
from nanochat_tui.train.checkpoint import load_checkpoint
from nanochat_tui.train.trainer import Trainer

pytestmark = pytest.mark.slow
EXACT = 1e-5
"""Relative difference of losses that the order of additions explains; rounding to trits would make more of it."""
UNTIED = {"config": "nano-560m", "dim": 128, "n_layers": 3, "n_heads": 2, "hidden_dim": 256, "context_length": 64}
UNTIED |= {"grad_accum": 1, "decay_fraction": 0.25}  # the command takes the named configuration's own for these


def losses(directory: Path) -> list[float]:
    return [row["loss"] for row in RunDirectory(directory).metrics()]


def after(directory: Path, step: int) -> list[float]:
    return [row["loss"] for row in RunDirectory(directory).metrics() if row["step"] > step]


def apart(one: list[float], two: list[float]) -> float:
    """The largest relative difference of two runs' losses."""
    return max(abs(a - b) / a for a, b in zip(one, two, strict=True))


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    """With the estimated softmax, whose columns must be those of the whole batch, and micro-batches."""
    options: dict[str, Any] = {"steps": 20, "grad_accum": 2, "head_frequent": 100, "head_sampled": 20, "mtp_depth": 1}
    options |= {"full_precision": True, "eval_interval": 10, "vocab_size": 2000}
    one = train(tmp_path / "one", batch_size=4, **options)
    run_several(several(tmp_path / "two", batch_size=2, **options))
    two = RunDirectory(tmp_path / "two").metrics()
    assert apart([row["loss"] for row in one], [row["loss"] for row in two]) < EXACT
    for key in ("tokens", "lr", "val_tokens"):
        assert [row.get(key) for row in one] == [row.get(key) for row in two]
    for key in ("val_loss", "mtp_loss_2", "grad_norm"):
        assert two[-1][key] == pytest.approx(one[-1][key], rel=1e-4)
    # one process wrote the directory
    lines = (tmp_path / "two" / "log.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 22
    assert json.loads((tmp_path / "two" / "final" / "state.json").read_text())["config"]["processes"] == 2


def test_shares_equal_the_whole_and_load_on_another_number(tmp_path: Path) -> None:
    """FSDP2 on an untied model with multi-token prediction, NorMuon and activation checkpointing."""
    options: dict[str, Any] = {**UNTIED, "steps": 20, "mtp_depth": 1, "normuon": True, "cautious_decay": True}
    options |= {"weight_decay": 0.1, "full_precision": True, "checkpoint_interval": 10}
    one = train(tmp_path / "one", batch_size=4, **options)
    sharded = {"batch_size": 2, "parallel": "fsdp", "activation_checkpointing": True}
    run_several(several(tmp_path / "two", **options, **sharded))
    assert apart([row["loss"] for row in one], losses(tmp_path / "two")) < EXACT
    # saved by two, loaded by one: weights and moments, and the run from there on
    saved, other = (load_checkpoint(tmp_path / name / "step_10") for name in ("one", "two"))
    for part in (0, 1):
        assert saved[part].keys() == other[part].keys()
        assert all(
            torch.allclose(saved[part][k], other[part][k].view_as(saved[part][k]), atol=1e-3) for k in saved[part]
        )
    train(tmp_path / "alone", resume=tmp_path / "two" / "step_10", batch_size=4, **options)
    assert apart(after(tmp_path / "two", 10), after(tmp_path / "alone", 10)) < EXACT
    # saved by one, loaded by two
    run_several(several(tmp_path / "again", 2, "--resume", str(tmp_path / "one" / "step_10"), **options, **sharded))
    assert apart(after(tmp_path / "one", 10), after(tmp_path / "again", 10)) < EXACT


def test_a_mixture_of_experts_in_shares(tmp_path: Path) -> None:
    """Without the balance loss, which is another one for each part of a batch."""
    options: dict[str, Any] = {"steps": 6, "n_experts": 4, "n_active_experts": 2, "normuon": True}
    options |= {"full_precision": True, "balance_weight": 0.0}
    one = train(tmp_path / "one", batch_size=4, **options)
    run_several(several(tmp_path / "two", batch_size=2, parallel="fsdp", **options))
    assert apart([row["loss"] for row in one], losses(tmp_path / "two")) < EXACT


def test_a_ternary_checkpoint_in_shares_is_what_the_export_reads(tmp_path: Path) -> None:
    run_several(several(tmp_path / "run", batch_size=2, parallel="fsdp", steps=3, mtp_depth=1))
    config, weights = read_exported(tmp_path / "run" / "final")
    assert config.nextn == 1 and sum(values.size for values in weights.values()) == config.parameters


def ranks(launcher: int) -> dict[int, psutil.Process]:
    """The training processes of a torchrun, by rank."""
    found = {}
    for child in psutil.Process(launcher).children(recursive=True):
        rank = child.environ().get("RANK")
        if rank is not None:
            found[int(rank)] = child
    return found


def until_step(directory: Path, step: int) -> None:
    end = time.monotonic() + 120
    while (read_state(directory).step or 0) < step:
        assert time.monotonic() < end, "the run does not get there"
        time.sleep(0.05)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_killed_process_ends_the_other_in_clear_words_and_the_run_resumes(tmp_path: Path, parallel: str) -> None:
    options: dict[str, Any] = {"batch_size": 2, "parallel": parallel, "checkpoint_interval": 2, "keep_last": 2}
    command = several(tmp_path / "run", **options, steps=5000)
    launched = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    until_step(tmp_path / "run", 4)
    ranks(launched.pid)[1].send_signal(signal.SIGKILL)
    printed, _ = launched.communicate(timeout=120)
    assert launched.returncode == 1
    assert "error: another process of the training exited unexpectedly" in printed
    assert "--resume auto" in printed
    state = read_state(tmp_path / "run")
    assert state.life == "failed" and "another process" in state.error
    done = max(losses_by_step(tmp_path / "run"))
    run_several(several(tmp_path / "run", 2, "--resume", "auto", **options, steps=done + 4))
    assert read_state(tmp_path / "run").life == "finished"
    assert [*losses_by_step(tmp_path / "run")] == list(range(1, done + 5))


def losses_by_step(directory: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in RunDirectory(directory).metrics()}


def test_all_processes_stop_at_the_step_the_control_file_asks_for(tmp_path: Path) -> None:
    command = several(tmp_path, batch_size=2, steps=5000, checkpoint_interval=0)
    launched = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
    until_step(tmp_path, 3)
    (tmp_path / "control").write_text("stop")
    printed, _ = launched.communicate(timeout=120)
    assert launched.returncode == 0, printed
    state = read_state(tmp_path)
    assert state.life == "stopped" and (tmp_path / f"step_{state.step}" / "optimizer.safetensors").is_file()


def test_a_refusal_of_the_first_process_is_said_and_ends_all(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=6)
    printed = run_several(several(tmp_path / "run", 2, "--resume", str(tmp_path / "run" / "step_5")), expect=1)
    assert "holds final, which step_5 does not lead to" in printed


def test_activation_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    """In one process, ternary: the same products in the same order."""
    plain = train(tmp_path / "plain", steps=6)
    again = train(tmp_path / "again", steps=6, activation_checkpointing=True)
    assert [row["loss"] for row in plain] == [row["loss"] for row in again]


def test_checkpointed_activations_are_not_kept(tmp_path: Path) -> None:
    kept = {}
    for name in (False, True):
        trainer = Trainer(parse_config(settings(steps=1, activation_checkpointing=name)), tmp_path / str(name))
        sizes: list[int] = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t)
        with hooks:
            trainer._optimise(0.1)
        trainer.loader.close()
        trainer._lock.release()
        kept[name] = sum(sizes)
    assert kept[True] < kept[False]
