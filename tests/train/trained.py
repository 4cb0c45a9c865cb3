"""Small runs for the trainer's tests: settings, data with a tokenizer of their own, the command line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from support import tiny_tokenizer

from nanochat_tui.runs.config import parse_config
from nanochat_tui.runs.directory import RunDirectory
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
VOCABULARY = 300


def train(directory: Path, resume: Path | None = None, *, force: bool = False, **changes: Any) -> list[dict[str, Any]]:
    Trainer(parse_config(settings(**changes)), directory, resume=resume, force=force).run()
    return RunDirectory(directory).metrics()


def settings(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**OPTIONS, **changes}.items() if value is not None}


def on_data(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run on `folder`, whose vocabulary it takes over."""
    return {"dataset": "tokens", "data_path": folder, "vocab_size": None, **changes}


def losses(rows: list[dict[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """Everything of a row that must repeat bit for bit."""
    keys = ("loss", "grad_norm", "lr", "tokens", "val_loss", "val_accuracy", "val_tokens", "mhc")
    return {row["step"]: tuple(json.dumps(row.get(key)) for key in keys) for row in rows}


def words(directory: Path, **changes: Any) -> list[str]:
    """The command that trains with these settings."""
    found = [sys.executable, "-m", "nanochat_tui.cli.train_entry", "train", "--checkpoint-dir", str(directory)]
    for key, value in settings(**changes).items():
        flag = key.replace("_", "-")
        found += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return found


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, env={**os.environ, **environment}
    )


def write_data(folder: Path, tokens: int = 4000, *, vocabulary: int = VOCABULARY, copy: bool = True) -> Path:
    """A prepared data folder with a tokenizer of `vocabulary` ids, its end-of-text token the last of them."""
    folder.mkdir(parents=True)
    tokenizer = tiny_tokenizer(vocabulary)
    text = tokenizer.to_str().encode()
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", tokens), ("val", 700)):
        ids = rng.integers(0, vocabulary, count).astype("<u2")
        (folder / f"{name}.bin").write_bytes(ids.tobytes())
        splits[name] = {"tokens": count, "bytes": 3 * count, "sha256": hashlib.sha256(ids.tobytes()).hexdigest()}
    description = {
        "dtype": "u16",
        "vocab_size": vocabulary,
        "eot_id": vocabulary - 1,
        "tokenizer_sha256": hashlib.sha256(text).hexdigest(),
        "transform": {"indentation": 4},
        "splits": splits,
    }
    if copy:
        (folder / "tokenizer.json").write_bytes(text)
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
