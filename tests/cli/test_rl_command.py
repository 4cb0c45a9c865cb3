"""`nanochat-train rl` from a tiny file: engine, compiler and trainer together, killed and continued, and refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import TINY, write_model
from typer.testing import CliRunner

from nanochat_tui.cli.train_app import app
from nanochat_tui.errors import UserError
from nanochat_tui.evaluate.sandbox.isolation import isolation
from nanochat_tui.model.chat.families import INSTRUCT
from nanochat_tui.runs.directory import RunDirectory

torch = pytest.importorskip("torch")
pytest.importorskip("tree_sitter_rust")

from nanochat_tui.train.environment import MALLOC_SETTINGS  # noqa: E402 - needs torch

SHAPE = TINY.with_(indentation=4, group_size=128, n_layers=1, n_heads=2, n_kv_heads=2, context_length=256)
WORDS = [
    *("--threads", "1", "--device", "cpu", "--dtype", "float32", "--batch-size", "4", "--checkpoint-interval", "1"),
    *("--prompts-per-step", "2", "--num-generations", "4", "--max-completion-length", "6", "--keep-last", "0"),
    *("--eval-interval", "0", "--muon-lr", "0.02"),
]


def _sandbox() -> bool:
    try:
        isolation()
    except UserError:
        return False
    return shutil.which("rustc") is not None


needs_rustc = pytest.mark.skipif(not _sandbox(), reason="there is no rustc, or no sandbox")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base.gguf", SHAPE, chat_template=INSTRUCT)


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    rows = [{"prompt": f"f{i}", "completion": f"fn f{i}(a: u8) -> u8 {{ a + {i} }}"} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["rl", *arguments], env={**MALLOC_SETTINGS, "COLUMNS": "200", "NO_COLOR": "1"})
    if isinstance(done.exception, UserError):
        return done.exception.exit_code, done.output + str(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row.get(key) for key in ("step", "loss", "grad_norm", "tokens", "reward", "entropy", "kl")}


@needs_rustc
def test_a_run_is_killed_and_continued_as_if_nothing_had_been(model: Path, requests: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "rl", str(requests), "--from", str(model), *WORDS]
    command += ["--steps", "6", "--beta", "0.05", "--num-iterations", "2"]
    environment = {**os.environ, "MALLOC_TOP_PAD_": "0"}
    whole, part = tmp_path / "whole", tmp_path / "part"
    done = subprocess.run(
        [*command, "--checkpoint-dir", str(whole)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "prompts to practise, 8 completions a step" in done.stderr
    rows = RunDirectory(whole).metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # the engine rounds and adds in another order than PyTorch, and no more than that
    assert all(row["engine_log_prob_difference"] < 0.1 for row in rows)
    assert {"weights_to_engine_s", "rollout_s", "reward_parses", "val_loss"} <= set().union(*rows)

    process = subprocess.Popen(
        [*command, "--checkpoint-dir", str(part)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 240
    while not (part / "step_3").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=120)
    # what the dashboard and batch systems say: the run itself knows what it is
    again = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "train", "--checkpoint-dir", str(part)]
    again += ["--resume", "auto"]
    done = subprocess.run(again, check=False, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [_figures(row) for row in RunDirectory(part).metrics()] == [_figures(row) for row in rows]
    ends = [(run / "final" / "model.safetensors").read_bytes() for run in (whole, part)]
    assert ends[0] == ends[1]
    assert RunDirectory(part).status()["state"] == "finished"

    code, said = _invoke("--resume", str(whole), str(requests))
    assert code == 2 and "DATA has no place with --resume" in said
    code, said = _invoke("--resume", str(whole), "--reward-parses", "2")
    assert code == 2 and "the reward of a run stays as it is" in said
    requests.write_text(requests.read_text() + "\n")
    code, said = _invoke("--resume", str(whole), "--steps", "8")
    assert code == 2 and "is another file than the one" in said


@needs_rustc
def test_settings_come_from_a_file_and_held_out_requests_are_not_practised(
    model: Path, requests: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("".join(line + "\n" for line in requests.read_text().splitlines()[:5]))
    settings = tmp_path / "rl.toml"
    settings.write_text(
        'steps = 1\nmuon_lr = 0.01\nbatch_size = 4\n[reinforce]\nalgorithm = "maxrl"\nmax_completion_length = 5\n'
        "prompts_per_step = 1\nnum_generations = 2\n[reward]\nparses = 0.25\n"
    )
    run = tmp_path / "run"
    arguments = [str(requests), "--from", str(model), "--checkpoint-dir", str(run), "--hold-out", str(held)]
    code, said = _invoke(*arguments, "--config", str(settings), "--num-generations", "3", "--threads", "1")
    assert code == 0, said
    assert "3 prompts to practise, 3 completions a step; 1 tasks kept" in said
    practised = (run / "practised.jsonl").read_text() + (run / "kept.jsonl").read_text()
    assert all(f"fn f{i}(" not in practised for i in range(5)) and all(f"fn f{i}(" in practised for i in range(5, 9))
    about = json.loads((run / "config.json").read_text())
    assert about["reinforce"]["settings"]["algorithm"] == "maxrl"
    assert about["reinforce"]["settings"]["num_generations"] == 3
    assert about["reinforce"]["tasks"]["reward"]["parses"] == 0.25 and about["config"]["muon_lr"] == 0.01


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "say which model to start from with --from"),
        (["--from", "BASE"], "give a file with requests, --problems or --environment"),
        (["--from", "BASE", "none.jsonl"], "there is no file none.jsonl"),
        (["--from", "BASE", "--environment", "nothing"], "there is no environment nothing"),
        (["--from", "BASE", "REQUESTS", "--loss-type", "cispo"], "loss_type cispo needs epsilon_high"),
        (["--from", "BASE", "REQUESTS", "--reward-passes", "-1"], "the reward for passes must be 0 to 1000"),
        (["--from", "BASE", "REQUESTS", "--config", "BAD"], "there is no setting epsilom"),
        (["--from", "BASE", "REQUESTS", "--config", "WORSE"], "seq_len has no place in a reinforcement run"),
        (["--from", "BASE", "REQUESTS", "--config", "PART"], "the reward has no part style"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    model: Path, requests: Path, tmp_path: Path, more: list[str], words: str
) -> None:
    files = {"BAD": "[reinforce]\nepsilom = 1\n", "WORSE": "seq_len = 64\n", "PART": "[reward]\nstyle = 1\n"}
    known = {"BASE": str(model), "REQUESTS": str(requests)}
    for name, text in files.items():
        (tmp_path / f"{name}.toml").write_text(text)
        known[name] = str(tmp_path / f"{name}.toml")
    code, said = _invoke("--checkpoint-dir", str(tmp_path / "run"), *(known.get(word, word) for word in more))
    assert code == 2 and words in said, said
    code, said = _invoke(*(known.get(word, word) for word in more[:2]))
    assert code == 2 and "say where the run goes" in said


def test_another_run_is_not_continued_as_a_reinforcement(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "step_1"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 1}))
    code, said = _invoke("--resume", str(folder))
    assert code == 2 and "is not of a reinforcement run" in said
