"""What a run's start writes into its directory, and a return to a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import torch

from nanochat_tui.errors import UserError
from nanochat_tui.export.start import starting_weights
from nanochat_tui.model.config import ModelConfig
from nanochat_tui.model.tokenizer.identity import TOKENIZER_FILE
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import RESUMED, RunDirectory
from nanochat_tui.runs.identity import TokenizerChoice, choose_tokenizer
from nanochat_tui.text import display_safe
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.reporter import Reporter
from nanochat_tui.train.resuming import set_aside


def chosen_tokenizer(config: TrainConfig, fallback: Path | None, log: Callable[[str], None]) -> TokenizerChoice:
    """The tokenizer of a run's data, with what is to be noted about it. Raises UserError for one that does not fit."""
    choice = choose_tokenizer(config, fallback)
    if choice.problems:
        raise UserError(choice.problems[0])
    for note in choice.notes:
        log(f"note: {note}")
    return choice


def begin_from(model: NanochatModel, path: Path, shape: ModelConfig) -> None:
    """Give a model the weights of a checkpoint or file. Raises UserError if they do not fit its shape."""
    found, weights = starting_weights(path)
    shown = display_safe(str(path))
    if found.indentation != shape.indentation:
        raise UserError(
            f"{shown} reads text with --indentation {found.indentation} and the data were prepared with "
            f"{shape.indentation}; prepare them again with the model's"
        )
    found = found.with_(nextn=shape.nextn)
    different = [f.name for f in fields(ModelConfig) if getattr(found, f.name) != getattr(shape, f.name)]
    if different:
        raise UserError(f"{shown} is of another shape: {', '.join(different)} differ; leave these options out")
    model.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, strict=not shape.nextn)


def copy_tokenizer(path: Path | None, run: RunDirectory) -> None:
    """Put a copy of the tokenizer into the run's directory, if the system lets it."""
    if path is not None and path.resolve() != (run.path / TOKENIZER_FILE).resolve():
        with suppress(OSError):  # the export finds the tokenizer elsewhere, or says that it does not
            shutil.copyfile(path, run.path / TOKENIZER_FILE)


def go_back(run: RunDirectory, report: Reporter, step: int | None, later: Sequence[Path]) -> None:
    """Set aside `later` checkpoints, and say in the files that the run is at `step` again (None: it is a new run)."""
    if later:
        set_aside(run, list(later))
        report.log(f"note: set aside {', '.join(c.name for c in later)}, which are of later steps")
    if step is not None:
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (run.path / name).exists():
                report.append(name, {RESUMED: step})
