"""Whether a run's data is what its configuration takes it for, before hours are spent on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.formats.tokens import DTYPES
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import read_json
from nanochat_tui.runs.identity import choose_tokenizer, fitted
from nanochat_tui.text import display_safe


@dataclass(slots=True)
class DatasetReport:
    """What was found: `problems` would spoil the run, `notes` are good to know."""

    train_tokens: int | None = None
    val_tokens: int | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing stands against the data."""
        return not self.problems


def check_dataset(config: TrainConfig, tokenizer: Path | None = None) -> DatasetReport:
    """Compare the data's own description, the sizes of its files and its tokenizer with the configuration.

    `tokenizer` is tried, too, where the configuration names none and the data has no copy. The token files themselves
    are not read: the trainer does that when it starts.
    """
    if config.dataset == "synthetic":
        return DatasetReport(2000 * (config.sequence_length + 1), 40 * (config.sequence_length + 1), notes=["made up"])
    path = config.data_path
    report = DatasetReport()
    if path is None or not path.exists():
        shown = display_safe(str(path))
        report.problems.append(f"there is no data at {shown}; make it with: nanochat-train prepare-data")
        return report
    for folder, _ in config.mixed_data():
        if not (folder / "dataset.json").is_file():
            report.problems.append(f"there is no prepared data at {display_safe(str(folder))} (data_mix)")
    try:
        if path.is_dir():
            _check_folder(path, config, report)
        else:
            _check_bare(path, config, report)
        config = fitted(config)
        choice = choose_tokenizer(config, tokenizer)
        report.problems += choice.problems
        report.notes += choice.notes
        if choice.path is not None and choice.identity.sha256 is not None and not choice.problems:
            report.notes.append(f"tokenizer: {display_safe(choice.path.name)}")
    except UserError as error:
        report.problems.append(str(error))
    except OSError as error:
        report.problems.append(f"{display_safe(str(path))} cannot be read: {plain_reason(error)}")
    if report.train_tokens is not None and report.train_tokens <= config.sequence_length:
        report.problems.append(f"{report.train_tokens} tokens are fewer than one sequence of {config.sequence_length}")
    return report


def _check_folder(path: Path, config: TrainConfig, report: DatasetReport) -> None:
    info = read_json(path / "dataset.json")
    dtype = info.get("dtype")
    if dtype not in DTYPES:
        report.problems.append(f"dataset.json names the type {display_safe(str(dtype))}; it must be u16 or u32")
        return
    if config.token_dtype is not None and config.token_dtype != dtype:
        report.notes.append(f"token_dtype is ignored: the data says {dtype}")
    vocabulary = info.get("vocab_size")
    if isinstance(vocabulary, int) and config.vocab_size is None and vocabulary != config.model_shape().vocab_size:
        report.notes.append(f"the vocabulary follows the data: {vocabulary:,} ids")
    if not isinstance(info.get("tokenizer_sha256"), str):
        report.notes.append("the data does not say which tokenizer made it")
    report.train_tokens = _split(path, "train", info, DTYPES[dtype].itemsize, report)
    report.val_tokens = _split(path, "val", info, DTYPES[dtype].itemsize, report)
    if not report.val_tokens:
        report.notes.append("there is no validation part: no validation loss")


def _split(path: Path, name: str, info: dict[str, Any], size: int, report: DatasetReport) -> int | None:
    splits = info.get("splits")
    split = splits.get(name) if isinstance(splits, dict) else None
    promised = split.get("tokens") if isinstance(split, dict) else None
    if not isinstance(promised, int):
        report.problems.append(f"dataset.json does not say how many tokens {name}.bin has; run prepare-data again")
        return None
    if not promised and name == "val":
        return 0
    file = path / f"{name}.bin"
    if not file.is_file():
        report.problems.append(f"{name}.bin is missing; run prepare-data again")
        return None
    found = file.stat().st_size
    if found != promised * size:
        report.problems.append(f"{name}.bin has {found:,} bytes where dataset.json promises {promised * size:,}")
        return found // size
    return promised


def _check_bare(path: Path, config: TrainConfig, report: DatasetReport) -> None:
    dtype = config.token_dtype or "u32"
    if config.token_dtype is None:
        report.notes.append("a bare file is read as u32; choose token_dtype u16 if it is not")
    size, item = path.stat().st_size, DTYPES[dtype].itemsize
    if size % item:
        report.problems.append(f"{display_safe(path.name)} has {size:,} bytes, no whole number of {dtype} tokens")
    report.train_tokens = size // item
    if config.val_path is None:
        report.notes.append("no val_path: no validation loss")
    elif not config.val_path.is_file():
        report.problems.append(f"there is no validation file at {display_safe(str(config.val_path))}")
    else:
        report.val_tokens = config.val_path.stat().st_size // item
