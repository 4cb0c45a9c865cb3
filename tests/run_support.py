"""Run directories for tests: a recorded run of d20, and states put together as wanted."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import TINY, tiny_tokenizer

from nanochat_tui.model.architectures import nanochat
from nanochat_tui.runs import launcher

RECORDED = Path(__file__).parent / "data" / "run"
"""Metrics, samples and log of a real d20 run, thinned out."""

SETTINGS: dict[str, Any] = {
    "config": "d20",
    "dataset": "tokens",
    "data_path": "data",
    "short_seq_len": 256,
    "short_fraction": 0.75,
    "batch_size": 8,
    "steps": 3528,
    "ns_steps": 4,
    "head_frequent": 6144,
}


def write_status(path: Path, **fields: Any) -> None:
    """Replace status.json; a heartbeat of now and this host unless said otherwise."""
    status = {"state": "running", "host": socket.gethostname(), "heartbeat": time.time(), "step": 1, "total": 10}
    (path / "status.json").write_text(json.dumps({**status, **fields}))


def write_checkpoint_mark(path: Path, step: int) -> Path:
    """A folder that passes for a complete checkpoint as long as nobody opens its arrays."""
    folder = path / f"step_{step}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    return folder


def recorded_run(path: Path, **status: Any) -> Path:
    """Copy the recorded run to `path` and give it a status (default: finished) and two checkpoints."""
    path.mkdir(parents=True)
    for file in RECORDED.iterdir():
        shutil.copy(file, path / file.name)
    (path / "config.json").write_text(
        json.dumps(
            {
                "config": SETTINGS,
                "parameters": 17_981_036,
                "environment": {
                    "device": "cpu",
                    "device_name": "a processor",
                    "dtype": "float32",
                    "host": socket.gethostname(),
                },
            }
        )
    )
    write_status(path, **{"state": "finished", "step": 3528, "total": 3528, "seconds": 5471.2, **status})
    for step in (3000, 3500):
        write_checkpoint_mark(path, step)
    return path


def grow(path: Path, **row: Any) -> None:
    """Append a row to metrics.jsonl."""
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def write_checkpoint(folder: Path, step: int, seed: int) -> Path:
    """A complete, tiny checkpoint of random weights, such as the trainer writes, without optimiser moments."""
    config = TINY.with_(group_size=128)
    rng = np.random.default_rng(seed)
    weights = {}
    for part in nanochat.parts(config).values():
        values = rng.standard_normal(part.shape).astype(np.float32)
        if part.role == "norm":
            values = 1 + 0.1 * values
        elif part.role != "mhc":
            values *= np.float32(0.05)
        weights[part.name] = values.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "state.json").write_text(json.dumps({"model": asdict(config), "step": step}))
    return folder


def run_with_checkpoints(path: Path, steps: tuple[int, ...]) -> Path:
    """A finished run with real checkpoints and a tokenizer that fits them."""
    path.mkdir(parents=True)
    tokenizer = path / "tokenizer.json"
    tiny_tokenizer(TINY.vocab_size).save(str(tokenizer))
    (path / "config.json").write_text(json.dumps({"config": {"config": "tiny", "tokenizer": str(tokenizer)}}))
    write_status(path, state="finished", step=steps[-1], total=steps[-1])
    for step in steps:
        grow(path, step=step, loss=3.0 - step / 100, val_loss=3.5 - step / 100, tokens=step * 100)
        write_checkpoint(path / f"step_{step}", step, seed=step)
    return path


TRAINER = """
import json, os, psutil, socket, sys, time
path, hold = sys.argv[1], float(sys.argv[2])
me = psutil.Process()
done = None
end = time.time() + hold
print("a word on the console", flush=True)
while time.time() < end:
    try:
        command = json.load(open(path + "/control"))
        done, word = command["id"], command["command"]
    except (OSError, ValueError):
        word = ""
    state = {"state": "stopped" if word == "stop" else "running", "pid": me.pid, "process_started": me.create_time(),
             "host": socket.gethostname(), "heartbeat": time.time(), "step": 1, "total": 9, "control_done": done}
    with open(path + "/status.tmp", "w") as file:
        json.dump(state, file)
    os.replace(path + "/status.tmp", path + "/status.json")
    if word == "stop":
        break
    time.sleep(0.02)
"""
"""Keeps the contract of the run directory and does nothing else: a trainer's outside without its hours."""


def until(predicate: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def stand_in(directory: Path, seconds: float = 30.0, **options: bool) -> launcher.Launched:
    command = [sys.executable, "-c", TRAINER, str(directory), str(seconds)]
    return launcher.start(command, directory, **options)  # type: ignore[arg-type]


RECORDER = """#!{python}
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
answer = json.load(open(os.environ["ANSWERS"])).get(name, ["", "", 0])
sys.stdout.write(answer[0]); sys.stderr.write(answer[1]); sys.exit(answer[2])
"""


class Recorder:
    """Stands on PATH for the clusters' commands, notes how they are called and answers as told."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.record, self.answers = folder / "record", folder / "answers"
        programs = folder / "bin"
        programs.mkdir()
        for name in ("sbatch", "squeue", "scancel", "scontrol", "sky"):
            (programs / name).write_text(RECORDER.format(python=sys.executable))
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setenv("RECORD", str(self.record))
        monkeypatch.setenv("ANSWERS", str(self.answers))
        self.answer()

    def answer(self, **answers: tuple[str, str, int]) -> None:
        self.answers.write_text(json.dumps(answers))

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()] if self.record.exists() else []
