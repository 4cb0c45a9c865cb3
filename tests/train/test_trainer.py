"""Whole runs on synthetic data: the run directory, exact resume, control."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig, parse_config
from nanochat_tui.runs.directory import RunDirectory
from nanochat_tui.runs.state import read_state
from nanochat_tui.train import budget
from nanochat_tui.train.trainer import Trainer

OPTIONS: dict[str, Any] = {
    "config": "tiny",
    "vocab_size": 256,
    "dataset": "synthetic",
    "seq_len": 32,
    "batch_size": 4,
    "threads": 1,
    "compile": False,
    "warmup_steps": 3,
    "log_interval": 1,
    "eval_interval": 0,
    "checkpoint_interval": 5,
    "keep_last": 0,
    "device": "cpu",
    "dtype": "float32",
}


def _train(directory: Path, resume: Path | None = None, **changes: Any) -> list[dict[str, Any]]:
    Trainer(parse_config({**OPTIONS, **changes}), directory, resume=resume).run()
    return RunDirectory(directory).metrics()


def _losses(rows: list[dict[str, Any]]) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows}


def _command(directory: Path, **changes: Any) -> list[str]:
    words = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "train", "--checkpoint-dir", str(directory)]
    for key, value in {**OPTIONS, **changes}.items():
        flag = key.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


def test_a_run_learns_and_leaves_a_complete_directory(tmp_path: Path) -> None:
    rows = _train(tmp_path, steps=30)
    assert [r["step"] for r in rows] == list(range(1, 31))
    assert rows[0]["loss"] == pytest.approx(5.55, abs=0.15)  # ln 256, one batch
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert rows[-1]["val_loss"] < rows[0]["loss"] - 1
    for key in ("tokens", "seconds", "lr", "grad_norm", "tok_per_s", "perplexity"):
        assert key in rows[3]
    assert len(rows[-1]["mhc"]) == 4
    run = RunDirectory(tmp_path)
    assert run.status()["state"] == "finished"
    assert not read_state(run.path).alive
    assert [c.name for c in run.checkpoints()] == ["step_5", "step_10", "step_15", "step_20", "step_25", "final"]
    assert run.config()["parameters"] == parse_config({**OPTIONS}).model_shape().parameters
    assert {p.name for p in (tmp_path / "final").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "model.mhc",
    }


@pytest.mark.parametrize("changes", [{}, {"grad_accum": 2, "n_streams": 4}, {"head_frequent": 100, "head_sampled": 50}])
def test_resume_repeats_an_unbroken_run_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = _losses(_train(tmp_path / "whole", steps=14, **changes))
    _train(tmp_path / "part", steps=14, **changes)
    for late in ("step_10", "final"):
        # as if the first run had been cut off after its checkpoint at step 5
        for file in (tmp_path / "part" / late).iterdir():
            file.unlink()
        (tmp_path / "part" / late).rmdir()
    resumed = _losses(_train(tmp_path / "part", resume=tmp_path / "part" / "step_5", steps=14, **changes))
    assert resumed == whole
    a = (tmp_path / "whole" / "final" / "model.safetensors").read_bytes()
    assert a == (tmp_path / "part" / "final" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_resume_is_exact_after_kill_9_also_compiled(tmp_path: Path) -> None:
    compiled = {"compile": True, "steps": 24}
    subprocess.run(_command(tmp_path / "whole", **compiled), check=True, capture_output=True, timeout=400)
    process = subprocess.Popen(_command(tmp_path / "killed", **compiled), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "step_10").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = RunDirectory(tmp_path / "killed")
    assert not read_state(run.path).alive
    last = run.checkpoints()[-1]
    assert last.name != "final"
    resume = [*_command(tmp_path / "killed", **compiled), "--resume", str(last)]
    subprocess.run(resume, check=True, capture_output=True, timeout=400)
    assert _losses(run.metrics()) == _losses(RunDirectory(tmp_path / "whole").metrics())


def test_control_checkpoints_and_stops(tmp_path: Path) -> None:
    trainer = Trainer(parse_config({**OPTIONS, "steps": 100_000, "checkpoint_interval": 0}), tmp_path)
    run = RunDirectory(tmp_path)
    answers: list[int] = []

    def ask(command: str) -> None:
        request = run.send(command)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if run.status().get("control_done") == request:
                    answers.append(request)
                    return
            except UserError:
                pass
            time.sleep(0.05)

    def watch() -> None:
        while not (tmp_path / "status.json").exists():
            time.sleep(0.05)
        ask("checkpoint")
        assert read_state(run.path).alive
        ask("stop")

    watcher = threading.Thread(target=watch)
    watcher.start()
    trainer.run()
    watcher.join()
    assert len(answers) == 2
    assert run.status()["state"] == "stopped"
    assert len(run.checkpoints()) >= 1


def test_a_command_of_before_the_start_is_not_obeyed(tmp_path: Path) -> None:
    _train(tmp_path, steps=5)
    RunDirectory(tmp_path).send("stop")
    rows = _train(tmp_path, resume=tmp_path / "final", steps=12)
    assert rows[-1]["step"] == 12


def test_minutes_end_the_run_and_its_decay_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    clock = types.SimpleNamespace(monotonic=lambda: 0.01 * next(ticks))
    monkeypatch.setattr(budget, "time", clock)  # a machine that is busy would run too few steps for a decay
    rows = _train(tmp_path, minutes=0.05, decay_fraction=0.5)
    assert 3 < rows[-1]["step"] < 300, "the clock was read at least once a step"
    assert RunDirectory(tmp_path).status()["state"] == "finished"
    assert rows[-1]["lr"] < 0.5 * max(r["lr"] for r in rows)


def test_longer_horizon_continues_a_finished_run(tmp_path: Path) -> None:
    _train(tmp_path, steps=10)
    rows = _train(tmp_path, resume=tmp_path / "final", steps=20)
    assert rows[-1]["step"] == 20
    by_step = {r["step"]: r["lr"] for r in rows}
    assert by_step[10] < by_step[13]
    assert by_step[20] < by_step[14]


def test_resume_refuses_another_model(tmp_path: Path) -> None:
    _train(tmp_path / "a", steps=5)
    with pytest.raises(UserError, match="n_streams differ"):
        Trainer(parse_config({**OPTIONS, "steps": 9, "n_streams": 1}), tmp_path / "b", resume=tmp_path / "a" / "final")


def test_damaged_checkpoint_is_refused_in_words(tmp_path: Path) -> None:
    _train(tmp_path, steps=5)
    weights = tmp_path / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"is damaged: model\.safetensors"):
        Trainer(parse_config({**OPTIONS, "steps": 9}), tmp_path, resume=tmp_path / "final")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "d99"], "d99"),
        (["--data-path", "/nowhere"], "no data at /nowhere"),
        (["--dataset", "synthetic", "--seq-len", "4000"], "longer than the model's context"),
        (["--dataset", "synthetic", "--resume", "/nowhere"], "not a checkpoint"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path, words: list[str], expected: str) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "nanochat_tui.cli.train_entry",
            "train",
            "--checkpoint-dir",
            str(tmp_path / "r"),
            *words,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_init_config_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    command = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "init-config", "--output", str(path)]
    subprocess.run(command, check=True)
    values = tomllib.loads(path.read_text())
    assert parse_config({**values, "dataset": "synthetic"}) == TrainConfig(dataset="synthetic")
