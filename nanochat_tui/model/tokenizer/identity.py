"""Which tokenizer something belongs to: vocabulary size, hash of its file, end-of-text id.

Ids of one vocabulary mean nothing in another, so data, run, checkpoint and export carry this and compare it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nanochat_tui.formats.checksums import file_sha256
from nanochat_tui.model.tokenizer import load_tokenizer
from nanochat_tui.model.tokenizer.from_gguf import END_NAMES
from nanochat_tui.text import display_safe

TOKENIZER_FILE = "tokenizer.json"
"""Copy of the tokenizer in a data folder and in a run directory."""
INFILL = "infill"
"""Key of a checkpoint's state.json: the marks for filling in the middle, where the model was trained with them."""


@dataclass(frozen=True, slots=True)
class TokenizerIdentity:
    """What tells a tokenizer from others; None where it is not known."""

    vocab_size: int | None
    sha256: str | None = None
    """Of the bytes of tokenizer.json."""
    end_of_text: int | None = None
    """Id of the token that separates documents."""

    def to_json(self) -> dict[str, Any]:
        """Fields for state.json and config.json."""
        return {"vocab_size": self.vocab_size, "sha256": self.sha256, "end_of_text": self.end_of_text}

    @staticmethod
    def from_json(value: object) -> TokenizerIdentity | None:
        """Read back what `to_json` gave; None for anything else, as checkpoints of earlier versions hold none."""
        if not isinstance(value, dict):
            return None
        size, sha, end = value.get("vocab_size"), value.get("sha256"), value.get("end_of_text")
        return TokenizerIdentity(
            size if isinstance(size, int) else None,
            sha if isinstance(sha, str) else None,
            end if isinstance(end, int) and not isinstance(end, bool) else None,
        )


def end_of_text(tokenizer: Tokenizer) -> int | None:
    """Return the id of a tokenizer's end-of-text token, by the names in use; None if it has none of them."""
    ids = (tokenizer.token_to_id(name) for name in END_NAMES)
    return next((i for i in ids if i is not None), None)


def identity_of(path: Path) -> TokenizerIdentity:
    """Identity of a tokenizer.json. Raises UserError when it cannot be read."""
    tokenizer = load_tokenizer(path)
    return TokenizerIdentity(
        tokenizer.get_vocab_size(with_added_tokens=True), file_sha256(path), end_of_text(tokenizer)
    )


def difference(wanted: TokenizerIdentity, found: TokenizerIdentity, path: Path) -> str | None:
    """Say in a sentence how a tokenizer is not the wanted one; None when nothing known differs."""
    shown = display_safe(path.name)
    if wanted.sha256 is not None and wanted.sha256 != found.sha256:
        return (
            f"{shown} is not the tokenizer the data was made with (its sha256 is {str(found.sha256)[:12]}…, "
            f"not {wanted.sha256[:12]}…); give that one"
        )
    if None not in (wanted.vocab_size, found.vocab_size) and wanted.vocab_size != found.vocab_size:
        return f"{shown} has {found.vocab_size:,} tokens, not {wanted.vocab_size:,}; give the tokenizer of the data"
    return None


def merged(wanted: TokenizerIdentity, found: TokenizerIdentity) -> TokenizerIdentity:
    """What `wanted` says, with what `found` knows where it says nothing."""
    return TokenizerIdentity(
        wanted.vocab_size if wanted.vocab_size is not None else found.vocab_size,
        wanted.sha256 or found.sha256,
        wanted.end_of_text if wanted.end_of_text is not None else found.end_of_text,
    )
