"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all, with checksums."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat_tui.errors import UserError, WriteError, plain_reason
from nanochat_tui.formats.checksums import STATE_FILE, sealed, verify_sealed
from nanochat_tui.runs.directory import read_json, write_json
from nanochat_tui.text import display_safe

KEPT = "kept"
"""Key of state.json that says: a person asked for this checkpoint, it is not rotated away."""
MARGIN_BYTES = 1 << 20
"""Of the files next to the arrays."""


class SaveError(UserError):
    """A checkpoint could not be written; the ones before it are as they were."""

    exit_code = 1


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(
    target: Path,
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    extra: Callable[[Path], None] | None = None,
    *,
    arrays: Path | None = None,
) -> None:
    """Write model.safetensors, optimizer.safetensors and state.json under a temporary name, then rename.

    `extra` may write further files into the folder it is given; `arrays` is a folder on the same file system that has
    the two files with arrays already. Raises SaveError, after removing what was begun.
    """
    temporary, old = _partial(target), _old(target)
    try:
        need = sum(t.numel() * t.element_size() for part in (weights, optimizer) for t in part.values()) + MARGIN_BYTES
        free = shutil.disk_usage(target.parent).free
        if free < need:
            raise SaveError(
                f"the checkpoint {display_safe(target.name)} needs {need / 1e6:,.0f} MB and only {free / 1e6:,.0f} MB "
                f"are free in {display_safe(str(target.parent))}; free space, then resume from the checkpoint before it"
            )
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in (("model", weights), ("optimizer", optimizer)):
            file = temporary / f"{name}.safetensors"
            if arrays is not None:
                (arrays / file.name).rename(file)
            else:
                save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file)
            _sync(file)
        if extra is not None:
            extra(temporary)
        write_json(temporary / STATE_FILE, sealed(temporary, state))
        _sync(temporary)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        _sync(target.parent)
    except (OSError, SafetensorError, WriteError) as error:
        raise SaveError(
            f"the checkpoint {display_safe(str(target))} could not be written: {_reason(error)}; "
            "fix that, then resume from the checkpoint before it"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _reason(error: Exception) -> str:
    """Why the system refused; safetensors puts the system's number into its text."""
    cause = error.__cause__ if isinstance(error, WriteError) else error
    if isinstance(cause, OSError):
        return plain_reason(cause)
    number = re.search(r"(?:os error|code:) (\d+)", str(error))
    if number:
        return plain_reason(OSError(int(number[1]), os.strerror(int(number[1]))))
    return "the system refused"


def clean_up(directory: Path) -> None:
    """Remove what a crash left of unfinished checkpoints, and put back one that was being replaced."""
    for entry in list(directory.glob(".*.partial")):
        shutil.rmtree(entry, ignore_errors=True)
    for entry in list(directory.glob(".*.old")):
        target = directory / entry.name[1 : -len(".old")]
        if target.exists():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                entry.rename(target)


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's state.json, once its files are what it says; raises UserError when they are not."""
    state = read_json(path / STATE_FILE)
    verify_sealed(path, state)
    return state


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Read back (weights, optimiser moments, state); raises UserError when something is missing or damaged."""
    state = load_state(path)
    try:
        return load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), state
    except (OSError, SafetensorError) as error:
        reason = plain_reason(error) if isinstance(error, OSError) else "a file is cut short or not of its format"
        raise UserError(
            f"the checkpoint {display_safe(str(path))} is damaged or incomplete: {reason}; use another one"
        ) from None


def prune(checkpoints: list[Path], keep: int, best: str = "") -> None:
    """Remove all but the newest `keep` checkpoints (0 = keep all); the final one, `best` and those asked for stay."""
    if keep:
        for old in [c for c in checkpoints if c.name not in ("final", best) and not _is_kept(c)][:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def _is_kept(path: Path) -> bool:
    with contextlib.suppress(UserError):
        return read_json(path / STATE_FILE).get(KEPT) is True
    return True  # what cannot be read is not this program's to remove
