"""Everything that can be known to go wrong before a run is started: what `--dry-run` prints and the form shows.

Needs no PyTorch and reads no token. What a run will cost in memory and time is in `estimate`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.formats.checksums import STATE_FILE
from nanochat_tui.paths import expanded
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.dataset_check import check_dataset
from nanochat_tui.runs.directory import RunDirectory, read_json
from nanochat_tui.runs.estimate import checkpoint_bytes, memory_bytes
from nanochat_tui.runs.identity import choose_tokenizer, fitted
from nanochat_tui.runs.lock import lock_refusal
from nanochat_tui.system import memory_size
from nanochat_tui.text import display_safe

State = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: an error keeps the run from starting or would end it, a warning may."""

    name: str
    state: State
    text: str


def preflight(
    config: TrainConfig,
    directory: Path | None = None,
    *,
    continues: bool = False,
    prefix: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> list[Check]:
    """Look at PyTorch, model, processes, device, data, tokenizer, directory, disk and memory of a run to be started.

    Parameters: `directory` is where the run goes (None: not decided, not looked at); `continues` whether a run that
    lies there is resumed; `prefix` what the command runs behind; `environment` (default: this process's) is what the
    trainer would see. Never raises for what is found; the order of the checks is fixed.
    """
    checks = [
        _torch(),
        *_processes(prefix, os.environ if environment is None else environment),
        *_device(config),
    ]
    checks += _data(config)
    with contextlib.suppress(UserError, OSError):  # said with the data
        config = fitted(config)
    checks += _reference(config)
    if directory is not None:
        checks.append(_directory(directory, continues=continues))
        checks.append(_disk(config, directory))
    checks.append(_memory(config))
    return checks


def ready(checks: Sequence[Check]) -> bool:
    """Whether nothing found keeps the run from starting."""
    return all(check.state != "error" for check in checks)


def _torch() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("PyTorch", "error", "not installed; install it with: pip install 'nanochat-tui[train]'")
    version = ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("torch")
    return Check("PyTorch", "ok", version or "present")


def _processes(prefix: Sequence[str], environment: Mapping[str, str]) -> list[Check]:
    """What several processes mean for a run: they are started by torchrun, and each has the batch for itself."""
    size = environment.get("WORLD_SIZE", "1")
    found = re.search(r"--n(?:proc[-_]per[-_]node|nodes)[= ](\S+)", " ".join(prefix))
    if size.isdigit() and int(size) > 1:
        if not environment.get("RANK", "").isdigit():
            return [Check("processes", "error", f"WORLD_SIZE is {size} but RANK is not set; start with torchrun")]
        return [Check("processes", "note", f"{size} processes, each with batch_size sequences a micro-batch")]
    if found and found[1] != "1":
        return [Check("processes", "note", f"several ({found[0].strip('-')}), each with batch_size sequences")]
    return []


def _device(config: TrainConfig) -> list[Check]:
    if not config.device.startswith("cuda"):
        return []
    from nanochat_tui.runs.hardware import GpuMonitor

    if GpuMonitor().available or any(Path("/dev").glob("nvidia[0-9]*")):
        return [Check("device", "ok", config.device)]
    return [Check("device", "warning", "no NVIDIA GPU was found on this machine; device cpu trains without one")]


def _data(config: TrainConfig) -> list[Check]:
    report = check_dataset(config)
    if report.problems:
        return [Check("data", "error", "; ".join(report.problems))]
    tokens = f"{report.train_tokens:,} training tokens" if report.train_tokens is not None else "training tokens"
    held = f", {report.val_tokens:,} for validation" if report.val_tokens else ""
    checks = [Check("data", "ok", tokens + held)]
    checks += [Check("data", "note", note) for note in report.notes if not note.startswith("tokenizer:")]
    if config.dataset == "tokens":
        choice = choose_tokenizer(fitted(config))
        if choice.path is not None:
            known = choice.identity.sha256 or ""
            checks.append(Check("tokenizer", "ok", f"{display_safe(choice.path.name)}, sha256 {known[:12]}…"))
        else:
            checks.append(Check("tokenizer", "warning", "not found; no samples are written"))
    return checks


def _reference(config: TrainConfig) -> list[Check]:
    """The checkpoint that Collider compares losses with: there, and of a model that can score the run's tokens."""
    path, name = config.collider_reference, "reference"
    if path is None:
        return []
    if not config.collider_ratio:
        return [Check(name, "note", "collider_reference has no effect without collider_ratio")]
    path = expanded(path)
    shown = display_safe(str(path))
    if not (path / STATE_FILE).is_file() or not (path / "model.safetensors").is_file():
        return [
            Check(name, "error", f"{shown} is not a checkpoint; name a folder with model.safetensors and state.json")
        ]
    try:
        model = read_json(path / STATE_FILE)["model"]
        vocabulary, context = int(model["vocab_size"]), int(model["context_length"])
    except UserError as error:
        return [Check(name, "error", str(error))]
    except (KeyError, TypeError, ValueError):
        return [Check(name, "error", f"{shown} is not a checkpoint of this trainer; name another")]
    shape = config.model_shape()
    if vocabulary != shape.vocab_size or context < shape.context_length:
        found = f"{shown} has {vocabulary:,} token ids and a context of {context}"
        wanted = f"the run {shape.vocab_size:,} and {shape.context_length}; name a checkpoint trained on its data"
        return [Check(name, "error", f"{found}, {wanted}")]
    return [Check(name, "ok", shown)]


def _directory(directory: Path, *, continues: bool) -> Check:
    refusal = lock_refusal(directory) if directory.is_dir() else None
    if refusal is not None:
        return Check("directory", "error", refusal)
    problem = unwritable(directory)
    if problem is not None:
        return Check("directory", "error", problem)
    if not continues and directory.is_dir() and RunDirectory(directory).checkpoints():
        shown = display_safe(str(directory))
        return Check("directory", "error", f"{shown} holds a run with checkpoints; resume it or name another directory")
    return Check("directory", "ok", display_safe(str(directory)))


def unwritable(directory: Path) -> str | None:
    """Why nothing can be written in a folder that may not exist yet; None when it can. Leaves no trace."""
    place = _existing_parent(directory)
    shown = display_safe(str(directory))
    if not place.is_dir():
        return f"{shown} cannot be made: {display_safe(str(place))} is a file; name another directory"
    if os.access(place, os.W_OK | os.X_OK):
        return None
    try:
        probe = place / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"{shown} cannot be written: {plain_reason(error)}; name another directory"
    return None


def _existing_parent(path: Path) -> Path:
    path = expanded(path).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _disk(config: TrainConfig, directory: Path) -> Check:
    one = checkpoint_bytes(config)
    try:
        free = shutil.disk_usage(_existing_parent(directory)).free
    except OSError as error:
        return Check("disk", "warning", f"the free space cannot be told: {plain_reason(error)}")
    kept = config.keep_last + 2 if config.keep_last else None  # the final one, and the one being written
    words = f"a checkpoint has {_size(one)}, {_size(free)} are free"
    if free < one:
        return Check("disk", "error", f"{words}: not one fits; free space or name another directory")
    if kept is not None and free < kept * one:
        return Check("disk", "warning", f"{words}: fewer than the {kept} that may lie there at once")
    return Check("disk", "ok", words)


def _memory(config: TrainConfig) -> Check:
    need = memory_bytes(config)
    total, available = memory_size()
    words = f"about {_size(need)} needed, {_size(available)} of {_size(total)} available"
    if config.device.startswith("cuda"):
        return Check("memory", "note", f"about {_size(need)} needed on the GPU")
    if need > total:
        return Check("memory", "error", f"{words}; lower batch_size or seq_len")
    if need > available:
        return Check("memory", "warning", f"{words}; close other programs, or lower batch_size or seq_len")
    return Check("memory", "ok", words)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
