"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat_tui.errors import UserError
from nanochat_tui.runs.directory import read_json, write_json


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(
    target: Path, weights: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Write model.safetensors, optimizer.safetensors and state.json under a temporary name, then rename."""
    temporary = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in (("model", weights), ("optimizer", optimizer)):
            file = temporary / f"{name}.safetensors"
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)
            _sync(file)
        write_json(temporary / "state.json", state)
        _sync(temporary)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        _sync(target.parent)
    except OSError as error:
        raise UserError(f"cannot write the checkpoint {target}: {error.strerror or error}") from None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Read back (weights, optimiser moments, state); raises UserError when something is missing or damaged."""
    state = read_json(path / "state.json")
    try:
        return load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), state
    except (OSError, SafetensorError) as error:
        raise UserError(f"the checkpoint {path} is damaged or incomplete: {error}") from None


def prune(checkpoints: list[Path], keep: int) -> None:
    """Remove all but the newest `keep` checkpoints (0 = keep all)."""
    if keep:
        for old in [c for c in checkpoints if c.name != "final"][:-keep]:
            shutil.rmtree(old, ignore_errors=True)
