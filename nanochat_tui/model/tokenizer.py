"""Tokenizers: loading a `tokenizer.json`, and moving one in and out of GGUF metadata.

A GGUF file carries its tokenizer as plain arrays (`tokenizer.ggml.tokens`, `.merges`, ...), from which
`from_gguf_metadata` builds the same `tokenizers.Tokenizer` that `to_gguf_metadata` took apart. Only the
GPT-2 kind (byte-level BPE) is understood; other kinds are refused by name.
BOS is never added here: that is a text convention, see `tokenizer_codec`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from nanochat_tui.errors import UserError, display_safe

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's only special token: it separates documents, so it both begins and ends a text."""


class TokenizerError(UserError):
    """The tokenizer is damaged or of a kind that is not supported."""


def byte_level_bpe(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Sequence[str] = (END_OF_TEXT,)
) -> Tokenizer:
    """Build GPT-2's tokenizer: split by GPT-2's pattern, spell bytes as printable characters, merge by rank.

    Parameters: vocabulary from token to id; merges in order of rank; special tokens, each in the vocabulary.
    Returns a tokenizer that adds nothing (no BOS) and decodes losslessly.
    Raises TokenizerError if a merge or a special token is not in the vocabulary.
    Source: Radford et al. 2019 (GPT-2), `encoder.py` of its release.
    """
    missing = [token for token in special if token not in vocabulary]
    if missing:
        raise TokenizerError(f"the special token {display_safe(missing[0])!r} is not in the vocabulary")
    try:
        model = BPE(dict(vocabulary), list(merges), fuse_unk=False, byte_fallback=False)
    except Exception as exc:  # tokenizers raises bare Exception
        raise TokenizerError(
            f"the tokenizer's merges do not fit its vocabulary: {display_safe(str(exc))}"
        ) from exc
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, trim_offsets=True, use_regex=True
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises TokenizerError if the file is missing, unreadable or not a tokenizer.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
        raise TokenizerError(f"Cannot read the tokenizer {display_safe(str(source))}: {reason}.") from exc
    try:
        return Tokenizer.from_str(text)
    except Exception as exc:  # tokenizers raises bare Exception
        raise TokenizerError(
            f"{display_safe(str(source))} is not a tokenizer.json: {display_safe(str(exc))}."
        ) from exc
