"""Which tokenizer a run belongs to: the data say it, the configuration follows, samples and exports are compared."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.formats.checksums import file_sha256
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.tokenizer.identity import (
    TOKENIZER_FILE,
    TokenizerIdentity,
    difference,
    identity_of,
    merged,
)
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.directory import read_json
from nanochat_tui.text import display_safe


def data_identity(config: TrainConfig) -> TokenizerIdentity | None:
    """What a prepared data folder says of its tokenizer; None for bare files and made-up data. Raises UserError."""
    if config.dataset != "tokens" or config.data_path is None or not config.data_path.is_dir():
        return None
    info = read_json(config.data_path / "dataset.json")
    return TokenizerIdentity.from_json(
        {
            "vocab_size": info.get("vocab_size"),
            "sha256": info.get("tokenizer_sha256"),
            "end_of_text": info.get("eot_id"),
        }
    )


def fitted(config: TrainConfig) -> TrainConfig:
    """Return the configuration with the vocabulary of its data, where it names none itself.

    Raises UserError when it names another: rows without a token cannot be exported, and missing ones cannot be trained.
    """
    identity = data_identity(config)
    if identity is None and config.dataset == "tokens" and config.tokenizer is not None and config.vocab_size is None:
        identity = identity_of(_existing(config.tokenizer))
    if identity is None or identity.vocab_size is None or identity.vocab_size == config.model_shape().vocab_size:
        return config
    if config.vocab_size is not None:
        raise UserError(
            f"the data has {identity.vocab_size:,} token ids but vocab_size says {config.vocab_size:,}; "
            "leave vocab_size out, so that it follows the data"
        )
    return config.model_copy(update={"vocab_size": identity.vocab_size})


@dataclass(slots=True)
class TokenizerChoice:
    """The tokenizer a run writes its samples with, and whether it is the right one."""

    path: Path | None
    identity: TokenizerIdentity
    """Of the run: from the data where it says so, else from the file."""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def choose_tokenizer(config: TrainConfig, fallback: Path | None = None) -> TokenizerChoice:
    """Find the tokenizer of a run's data and compare it with what the data says.

    Looks at the one the configuration names, the copy in the data folder, `fallback`, and the shipped one. Raises
    UserError when `dataset.json` or a named tokenizer cannot be read; what does not fit is in `problems`.
    """
    vocabulary = config.model_shape().vocab_size
    if config.dataset == "synthetic":
        return TokenizerChoice(None, TokenizerIdentity(vocabulary))
    wanted = data_identity(config) or TokenizerIdentity(vocabulary)
    if config.tokenizer is not None:
        found = _found(_existing(config.tokenizer), wanted)
        problem = difference(wanted, found, config.tokenizer)
        return TokenizerChoice(config.tokenizer, merged(wanted, found), problems=[problem] if problem else [])
    folder = config.data_path if config.data_path is not None and config.data_path.is_dir() else None
    for path in (folder and folder / TOKENIZER_FILE, fallback, shipped_tokenizer()):
        if path is None or not path.is_file():
            continue
        with contextlib.suppress(UserError, OSError):  # not asked for, so that it need not be readable
            found = _found(path, wanted)
            if difference(wanted, found, path) is None:
                return TokenizerChoice(path, merged(wanted, found))
    known = f"with sha256 {wanted.sha256[:12]}…" if wanted.sha256 else f"of {vocabulary:,} ids"
    note = f"the data's tokenizer ({known}) was not found; no samples are written: give it with --tokenizer"
    return TokenizerChoice(None, wanted, notes=[note])


def _found(path: Path, wanted: TokenizerIdentity) -> TokenizerIdentity:
    """Identity of a tokenizer as far as it must be compared: where the hash is known, the file need not be parsed."""
    return identity_of(path) if wanted.sha256 is None else TokenizerIdentity(None, file_sha256(path))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"there is no tokenizer at {display_safe(str(path))}; check the path")
    return path
