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


def new_model(config: TrainConfig, shape: ModelConfig, dtype: torch.dtype, *, fresh: bool) -> NanochatModel:
    """The model of a run; with `fresh` and `init_from` it has that one's weights. Raises UserError if they do not fit.

    A resume reads its own weights over them.
    """
    model = NanochatModel(shape, init_std=config.init_std, dtype=dtype)
    if not fresh or config.init_from is None:
        return model
    found, weights = starting_weights(config.init_from)
    shown = display_safe(str(config.init_from))
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
    return model


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
