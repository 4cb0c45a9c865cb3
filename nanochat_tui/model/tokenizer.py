"""Tokenizers: loading a `tokenizer.json`, and moving one in and out of GGUF metadata.

A GGUF file carries its tokenizer as plain arrays (`tokenizer.ggml.tokens`, `.merges`, ...), from which
`from_gguf_metadata` builds the same `tokenizers.Tokenizer` that `to_gguf_metadata` took apart. Only GPT-2's
kind (byte-level BPE with GPT-2's pattern) is understood; other kinds are refused by name.
BOS is never added here: that is a text convention, see `TextCodec`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from nanochat_tui.errors import display_safe
from nanochat_tui.formats.gguf_values import (
    GGUFValue,
    ValueType,
    array,
    boolean,
    metadata_bool,
    metadata_int,
    metadata_integers,
    metadata_string,
    metadata_strings,
    string,
    u32,
)
from nanochat_tui.model.tokenizer_codec import StreamDecoder, TextCodec
from nanochat_tui.model.tokenizer_errors import TokenizerError

__all__ = [
    "END_OF_TEXT",
    "StreamDecoder",
    "TextCodec",
    "TokenizerError",
    "byte_level_bpe",
    "codec_from_gguf",
    "from_gguf_metadata",
    "load_tokenizer",
    "to_gguf_metadata",
]

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's only special token: it separates documents, so it both begins and ends a text."""

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""llama.cpp's token types that occur here: spelled in bytes; special; added, but ordinary text."""

_KINDS = {"llama": "SentencePiece", "bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV"}
"""Names of the kinds of `tokenizer.ggml.model` that are met and not supported."""


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special: Sequence[str] = (END_OF_TEXT,),
    user_defined: Sequence[str] = (),
) -> Tokenizer:
    """Build GPT-2's tokenizer: split by GPT-2's pattern, spell bytes as printable characters, merge by rank.

    Parameters: vocabulary from token to id; merges in order of rank; the special and the otherwise added tokens,
    which are matched whole and must be in the vocabulary.
    Returns a tokenizer that adds nothing (no BOS) and decodes losslessly.
    Raises TokenizerError if a merge or an added token is not in the vocabulary.
    Source: Radford et al. 2019 (GPT-2), `encoder.py` of its release.
    """
    for token in (*special, *user_defined):
        if token not in vocabulary:
            raise TokenizerError(f"the added token {display_safe(token)!r} is not in the tokenizer's vocabulary")
    try:
        model = BPE(dict(vocabulary), list(merges), fuse_unk=False, byte_fallback=False)
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(
            f"the tokenizer's merges do not fit its vocabulary ({display_safe(str(error))}); it is damaged"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])
    return tokenizer


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises TokenizerError if the file is missing, unreadable or not a tokenizer.
    """
    name = display_safe(str(path))
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"the tokenizer {name} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is not a tokenizer.json: it is not UTF-8 text") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"{name} is not a tokenizer.json ({display_safe(str(error))})") from error


def _require_gpt2(parts: dict[str, Any]) -> None:
    """Raise TokenizerError unless the parts of a tokenizer.json are exactly what `byte_level_bpe` makes."""
    model, before = parts["model"], parts["pre_tokenizer"] or {}
    plain = all(
        not model.get(option)
        for option in (
            "dropout",
            "unk_token",
            "continuing_subword_prefix",
            "end_of_word_suffix",
            "byte_fallback",
            "ignore_merges",
        )
    )
    if model.get("type") != "BPE" or not plain or (parts["decoder"] or {}).get("type") != "ByteLevel":
        raise TokenizerError("this tokenizer is not a byte-level BPE like GPT-2's, and no other kind can be exported")
    if before.get("type") != "ByteLevel" or before.get("add_prefix_space") or not before.get("use_regex", True):
        raise TokenizerError("this tokenizer does not split text by GPT-2's pattern, and no other can be exported")
    if parts["normalizer"] is not None:
        raise TokenizerError("this tokenizer changes text before splitting it, which cannot be exported")


def to_gguf_metadata(
    tokenizer: Tokenizer, *, bos: int, eos: int, add_bos: bool = True, chat_template: str | None = None
) -> dict[str, GGUFValue]:
    """Return the `tokenizer.*` keys from which `from_gguf_metadata` rebuilds this tokenizer.

    Parameters: a byte-level BPE like GPT-2's; ids of the tokens that begin and end a text; whether a prompt begins
    with BOS. Raises TokenizerError if the tokenizer is of another kind or its ids have gaps.
    """
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    _require_gpt2(parts)
    ids: dict[str, int] = dict(parts["model"]["vocab"])
    types = dict.fromkeys(ids.values(), NORMAL)
    for added in parts["added_tokens"]:
        ids[added["content"]] = added["id"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise TokenizerError("the tokenizer's ids have gaps or repeat, so they cannot be written as a list")
    for name, token in (("begin", bos), ("end", eos)):
        if not 0 <= token < len(tokens):
            raise TokenizerError(f"the {name}-of-text id {token} is outside the vocabulary of {len(tokens)} tokens")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in parts["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(tokens, ValueType.STRING),
        "tokenizer.ggml.token_type": array([types[i] for i in range(len(tokens))], ValueType.I32),
        "tokenizer.ggml.merges": array(merges, ValueType.STRING),
        "tokenizer.ggml.bos_token_id": u32(bos),
        "tokenizer.ggml.eos_token_id": u32(eos),
        "tokenizer.ggml.add_bos_token": boolean(add_bos),
    }
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = string(chat_template)
    return metadata


def from_gguf_metadata(metadata: Mapping[str, GGUFValue]) -> Tokenizer:
    """Rebuild the tokenizer inside a GGUF file.

    Raises TokenizerError if there is none, it is of a kind that is not supported, or it is damaged (an array of
    the wrong length, a repeated token, a merge of unknown tokens).
    """
    kind = metadata_string(metadata, "tokenizer.ggml.model", "")
    if not kind:
        raise TokenizerError("the file has no tokenizer inside; give one with --tokenizer FILE")
    if kind != "gpt2":
        name = _KINDS.get(kind, display_safe(kind))
        raise TokenizerError(
            f"the file's tokenizer is of the kind {name}, and only byte-level BPE (gpt2) is supported so far"
        )
    pre = metadata_string(metadata, "tokenizer.ggml.pre", "default")
    if pre != "gpt-2":
        raise TokenizerError(
            f"the file's tokenizer splits text by the rules of {display_safe(pre)!r}, and only those of 'gpt-2' "
            "are supported so far"
        )
    tokens = metadata_strings(metadata, "tokenizer.ggml.tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise TokenizerError("the file's vocabulary holds the same token twice; it is damaged")
    types = metadata_integers(metadata, "tokenizer.ggml.token_type")
    if len(types) != len(tokens):
        raise TokenizerError(f"the file has {len(tokens)} tokens but {len(types)} token types; it is damaged")
    merges: list[tuple[str, str]] = []
    for merge in metadata_strings(metadata, "tokenizer.ggml.merges"):
        left, gap, right = merge.partition(" ")
        if not (left and gap and right):
            raise TokenizerError(f"the file's tokenizer holds the impossible merge {display_safe(merge)!r}")
        merges.append((left, right))
    special = [tokens[index] for index in np.flatnonzero(types == CONTROL)]
    user_defined = [tokens[index] for index in np.flatnonzero(types == USER_DEFINED)]
    return byte_level_bpe(vocabulary, merges, special, user_defined)


def codec_from_gguf(metadata: Mapping[str, GGUFValue], tokenizer: Tokenizer | None = None) -> TextCodec:
    """Return the text conventions of a GGUF file, with its own tokenizer or a given one in its place.

    Raises UserError if the tokenizer or a convention is damaged, or the given tokenizer has other ids.
    """
    inside = tokenizer is None
    if tokenizer is None:
        tokenizer = from_gguf_metadata(metadata)
    elif "tokenizer.ggml.tokens" in metadata:
        names = metadata_strings(metadata, "tokenizer.ggml.tokens")
        given = tokenizer.get_vocab(with_added_tokens=True)
        if len(given) != len(names) or any(given.get(name) != index for index, name in enumerate(names)):
            raise TokenizerError(
                "the given tokenizer has other tokens than the model; leave it away to use the one inside the file"
            )
    size = tokenizer.get_vocab_size(with_added_tokens=True)

    def token_id(which: str) -> int | None:
        found = metadata_int(metadata, f"tokenizer.ggml.{which}_token_id", -1, minimum=0)
        if found >= size:
            raise TokenizerError(f"the file's {which} token {found} is outside its vocabulary of {size} tokens")
        if found >= 0:
            return found
        # a file without a tokenizer says nothing, and then the given one's own convention holds
        return None if inside else tokenizer.token_to_id(END_OF_TEXT)

    return TextCodec(
        tokenizer,
        bos=token_id("bos"),
        eos=token_id("eos"),
        add_bos=metadata_bool(metadata, "tokenizer.ggml.add_bos_token", False),
        indentation=metadata_int(metadata, "nanochat.text.indentation", 0, maximum=16),
    )
