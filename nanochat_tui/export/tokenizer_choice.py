"""Which tokenizer goes into an exported file: the one the checkpoint's data was made with, or none."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from nanochat_tui.export.errors import CheckpointError
from nanochat_tui.formats.checksums import STATE_FILE, file_sha256
from nanochat_tui.model.shipped import shipped_tokenizer
from nanochat_tui.model.tokenizer.identity import INFILL, TOKENIZER_FILE, TokenizerIdentity, difference
from nanochat_tui.model.tokenizer.infill import InfillMarks
from nanochat_tui.text import display_safe


def checkpoint_identity(checkpoint: Path) -> TokenizerIdentity | None:
    """What a checkpoint says of its tokenizer; None for one of a version that did not say it."""
    found = TokenizerIdentity.from_json(_read(checkpoint / STATE_FILE).get("tokenizer"))
    if found is not None:
        return found
    # earlier versions noted the hash in the run's own configuration
    data = _read(checkpoint.parent / "config.json").get("data")
    sha = data.get("tokenizer_sha256") if isinstance(data, dict) else None
    return TokenizerIdentity(None, sha) if isinstance(sha, str) else None


def checkpoint_marks(checkpoint: Path) -> InfillMarks | None:
    """The marks for filling in the middle that a checkpoint was trained with; None without them."""
    return InfillMarks.from_json(_read(checkpoint / STATE_FILE).get(INFILL))


def checkpoint_template(checkpoint: Path) -> str | None:
    """The chat template that a checkpoint was fine-tuned with; None without one."""
    data = _read(checkpoint / STATE_FILE).get("data")
    chat = data.get("chat") if isinstance(data, dict) else None
    template = chat.get("template") if isinstance(chat, dict) else None
    return template if isinstance(template, str) and template else None


def tokenizer_for(checkpoint: Path, given: Path | None = None) -> tuple[Path, bool]:
    """Return the tokenizer of a checkpoint, and whether it is known to be the one of its data.

    `given` is compared; without it the run's folder, the files its configuration names and the shipped tokenizer are
    looked through. Raises CheckpointError when the right one is not there.
    """
    identity = checkpoint_identity(checkpoint)
    if given is not None and not given.is_file():
        raise CheckpointError(f"there is no tokenizer at {display_safe(str(given))}; check the path")
    known = identity is not None and identity.sha256 is not None
    if identity is None or not known:
        chosen = given or next((p for p in (checkpoint.parent / TOKENIZER_FILE,) if p.is_file()), shipped_tokenizer())
        if chosen is None:
            raise CheckpointError("this installation has no tokenizer; give the one of the data with --tokenizer")
        return chosen, False
    if given is not None:
        problem = difference(identity, TokenizerIdentity(None, file_sha256(given)), given)
        if problem is not None:
            raise CheckpointError(problem)
        return given, True
    for path in _candidates(checkpoint):
        with contextlib.suppress(OSError):
            if file_sha256(path) == identity.sha256:
                return path, True
    raise CheckpointError(
        f"the tokenizer the data was made with (sha256 {str(identity.sha256)[:12]}…) was not found; "
        "give it with --tokenizer"
    )


def _candidates(checkpoint: Path) -> list[Path]:
    config = _read(checkpoint / STATE_FILE).get("config")
    settings: dict[str, Any] = config if isinstance(config, dict) else {}
    named = [Path(value) for key in ("tokenizer",) if isinstance(value := settings.get(key), str)]
    data = settings.get("data_path")
    if isinstance(data, str):
        named.append(Path(data) / TOKENIZER_FILE)
    shipped = shipped_tokenizer()
    return [
        checkpoint / TOKENIZER_FILE,
        checkpoint.parent / TOKENIZER_FILE,
        *named,
        *([shipped] if shipped is not None else []),
    ]


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return value
    return {}
