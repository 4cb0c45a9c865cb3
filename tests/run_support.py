"""Run directories for tests: a recorded run of d20, and states put together as wanted."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

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
