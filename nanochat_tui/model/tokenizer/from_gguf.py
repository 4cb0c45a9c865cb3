"""Moving a tokenizer in and out of GGUF metadata (`tokenizer.ggml.*`).

A file carries its vocabulary as plain arrays. Two kinds occur in ternary models: `gpt2`, byte-level BPE with merges,
whose words are cut by the rules that `tokenizer.ggml.pre` names; and `llama`, SentencePiece with scores. BOS is never
added by the tokenizer: that is a text convention, see `TextCodec`.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from nanochat_tui.formats.gguf.values import (
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
from nanochat_tui.model.tokenizer.errors import TokenizerError
from nanochat_tui.model.tokenizer.infill import KEYS, InfillMarks
from nanochat_tui.model.tokenizer.patterns import WORD_RULES, WordRules, repaired_names, word_rules
from nanochat_tui.model.tokenizer.sentencepiece import spm_tokenizer
from nanochat_tui.text import display_safe

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's only special token: it separates documents, so it both begins and ends a text."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types: text; no token; marks; added, but ordinary text; padding; a byte of its own."""

END_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "</s>",
    "<eos>",
    "<EOT>",
)
"""Marks that end a reply wherever a vocabulary has them, in addition to those that its file names."""

MARKS = (
    "<|im_start|>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
)
"""Marks that begin a text or a message; none of them comes about by merging words."""

VISIBLE_MARKS = frozenset(
    {"<think>", "</think>", "[THINK]", "[/THINK]", "<thought>", "</thought>", "<tool_call>", "</tool_call>"}
)
"""Marks that people and programs want to see, whatever type a file gives them."""

_PADDING = re.compile(r"\[PAD\d+\]")
"""The names that converters give to rows of the embedding behind the last token."""
_MARK = re.compile(r"<.+>|\[.+\]")
"""How marks are spelled; a file that calls an ordinary word its end of text is not believed."""

_KINDS = {"bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV", "plamo2": "PLaMo-2", "none": "none at all"}
"""Names of the kinds of `tokenizer.ggml.model` that are met and not supported."""


@dataclass(frozen=True, slots=True)
class FileTokenizer:
    """The tokenizer of a file with what the file implies about texts."""

    tokenizer: Tokenizer
    add_bos: bool
    """Whether a text begins with BOS where the file does not say."""
    default_bos: int | None = None
    default_eos: int | None = None
    """Ids of the marks where the file does not say; only SentencePiece has such."""
    unused: tuple[int, ...] = ()
    """Ids that stand for nothing, and that a model should not write."""
    notes: tuple[str, ...] = ()
    """What was assumed or corrected, a sentence each."""


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special: Sequence[str] = (END_OF_TEXT,),
    user_defined: Sequence[str] = (),
    rules: WordRules = WORD_RULES["gpt-2"],
) -> Tokenizer:
    """Build a tokenizer like GPT-2's: cut text into words, spell bytes as printable characters, merge by rank.

    Parameters: vocabulary from token to id; merges in order of rank; the special and the otherwise added tokens,
    which are matched whole and must be in the vocabulary; how words are cut.
    Returns a tokenizer that adds nothing (no BOS) and decodes losslessly.
    Raises TokenizerError if a merge or an added token is not in the vocabulary.
    Source: Radford et al. 2019 (GPT-2), `encoder.py` of its release.
    """
    for token in (*special, *user_defined):
        if token not in vocabulary:
            raise TokenizerError(f"the added token “{display_safe(token)}” is not in the tokenizer's vocabulary")
    try:
        ids = vocabulary if isinstance(vocabulary, dict) else dict(vocabulary)
        pairs = merges if isinstance(merges, list) else list(merges)
        model = BPE(ids, pairs, fuse_unk=False, byte_fallback=False, ignore_merges=rules.ignore_merges)
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(
            f"the tokenizer's merges do not fit its vocabulary ({display_safe(str(error))}); it is damaged"
        ) from error
    tokenizer = Tokenizer(model)
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    if rules == WORD_RULES["gpt-2"]:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    else:
        cuts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
        spell = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, spell])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])
    return tokenizer


_KEPT = 2
"""Tokenizers that are kept for the next file with the same one: building one takes half the time of a small model."""
_built: dict[bytes, FileTokenizer] = {}


def _fingerprint(metadata: Mapping[str, GGUFValue]) -> bytes:
    """Return a hash of all that a file says of its tokenizer."""
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(name for name in metadata if name.startswith("tokenizer.")):
        given = metadata[name]
        value = given.value
        if isinstance(value, np.ndarray):
            data = value.tobytes()
        elif isinstance(value, list):
            text = "\0".join(value)
            if text.count("\0") != len(value) - 1:  # a token holds what is to part them
                text += f"\0{[len(each) for each in value]}"
            data = text.encode("utf-8", "surrogatepass")
        else:
            data = repr(value).encode("utf-8", "surrogatepass")
        head = f"{name}\0{int(given.type)}\0{given.element}\0{len(data)}\0"
        digest.update(head.encode())
        digest.update(data)
    return digest.digest()


def read_tokenizer(metadata: Mapping[str, GGUFValue]) -> FileTokenizer:
    """Return the tokenizer inside a GGUF file, rebuilt unless this process did so lately; do not change it.

    Raises as `build_tokenizer`.
    """
    # every step is atomic, so that threads need no lock, which a forked child might find held
    key = _fingerprint(metadata)
    found = _built.pop(key, None) or build_tokenizer(metadata)
    _built[key] = found  # the last used is the last to go
    for old in list(_built)[:-_KEPT]:
        _built.pop(old, None)
    return found


def build_tokenizer(metadata: Mapping[str, GGUFValue]) -> FileTokenizer:
    """Rebuild the tokenizer inside a GGUF file.

    Raises TokenizerError if there is none, it is of a kind that is not supported, or it is damaged (an array of
    the wrong length, a repeated token, a merge of unknown tokens).
    """
    kind = metadata_string(metadata, "tokenizer.ggml.model", "")
    if not kind:
        raise TokenizerError("the file has no tokenizer inside; give one with --tokenizer FILE")
    if kind not in ("gpt2", "llama"):
        name = _KINDS.get(kind, display_safe(kind))
        raise TokenizerError(
            f"the file's tokenizer is of the kind {name}, and only byte-level BPE (gpt2) and SentencePiece (llama) "
            "are supported; give the model's tokenizer.json with --tokenizer"
        )
    with _collection_paused():
        tokens, note = repaired_names(metadata_strings(metadata, "tokenizer.ggml.tokens"))
        ids = dict(zip(tokens, range(len(tokens)), strict=True))
        if len(ids) != len(tokens):
            raise TokenizerError("the file's vocabulary holds the same token twice; it is damaged")
        types = _types(metadata, tokens, ids)
        if kind == "gpt2":
            found = _byte_level(metadata, tokens, ids, types)
            return replace(found, notes=(note, *found.notes)) if note else found
        return _sentencepiece(metadata, tokens, types)


@contextlib.contextmanager
def _collection_paused() -> Iterator[None]:
    """Have Python not look for garbage while 100,000 objects are made to keep: it would look through all there are,
    dozens of times. Threads that overlap here leave it on in the end if it was on before the first."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def from_gguf_metadata(metadata: Mapping[str, GGUFValue]) -> Tokenizer:
    """Return the bare tokenizer of `build_tokenizer`. Raises as that does."""
    return build_tokenizer(metadata).tokenizer


def _types(metadata: Mapping[str, GGUFValue], tokens: Sequence[str], ids: Mapping[str, int]) -> NDArray[np.int64]:
    """Return the type of every token, with corrections: some converters write none, or marks and padding as text."""
    if "tokenizer.ggml.token_type" in metadata:
        types = metadata_integers(metadata, "tokenizer.ggml.token_type").astype(np.int64)
    else:
        types = np.full(len(ids), NORMAL, np.int64)
    if len(types) != len(ids):
        raise TokenizerError(f"the file has {len(ids)} tokens but {len(types)} token types; it is damaged")
    if "[PAD" in "\n".join(tokens):
        padding = [i for i, name in enumerate(tokens) if name.startswith("[PAD") and _PADDING.fullmatch(name)]
        types[padding] = UNUSED
    marks = {name for name in (*END_NAMES, *MARKS) if name.startswith("<|")}
    if metadata_string(metadata, "tokenizer.ggml.model") == "llama":
        marks |= {"<s>", "</s>"}  # elsewhere people strike text out with them
    for which in ("bos", "eos", "eot", "eom", *KEYS):
        given = metadata_int(metadata, f"tokenizer.ggml.{which}_token_id", -1, maximum=2**32 - 1)
        if 0 <= given < len(tokens) and _MARK.fullmatch(tokens[given]):
            marks.add(tokens[given])
    for name in marks & ids.keys():
        if types[ids[name]] == NORMAL:
            types[ids[name]] = CONTROL
    for name in VISIBLE_MARKS & ids.keys():
        if types[ids[name]] in (NORMAL, CONTROL):
            types[ids[name]] = USER_DEFINED
    return types


def _named(tokens: Sequence[str], types: NDArray[np.int64], *wanted: int) -> list[str]:
    return [tokens[int(index)] for index in np.flatnonzero(np.isin(types, wanted))]


def _unused(types: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(index) for index in np.flatnonzero(types == UNUSED))


def _byte_level(
    metadata: Mapping[str, GGUFValue], tokens: Sequence[str], ids: Mapping[str, int], types: NDArray[np.int64]
) -> FileTokenizer:
    rules, note = word_rules(metadata_string(metadata, "tokenizer.ggml.pre", ""), tokens)
    tokenizer = byte_level_bpe(
        ids,
        _merges(metadata_strings(metadata, "tokenizer.ggml.merges")),
        _named(tokens, types, CONTROL),
        _named(tokens, types, USER_DEFINED),
        rules,
    )
    return FileTokenizer(tokenizer, rules.add_bos, unused=_unused(types), notes=(note,) if note else ())


def _merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return the two tokens of every merge, which stand with a space between. Raises TokenizerError."""
    # all at once where each holds one space, as they do unless a token holds more
    joined = "\0".join(texts)
    units = np.frombuffer(joined.encode("utf-16-le", "surrogatepass"), np.uint16)
    marks = units[(units == ord(" ")) | (units == 0)]
    parts = joined.replace(" ", "\0").split("\0")
    if len(marks) == 2 * len(texts) - 1 and not marks[1::2].any() and marks[::2].all() and all(parts):
        return list(zip(parts[::2], parts[1::2], strict=True))
    pairs = [tuple(text.split(" ", 1)) for text in texts]
    if not all(map(all, pairs)) or any(length != 2 for length in set(map(len, pairs))):
        wrong = next(text for text, pair in zip(texts, pairs, strict=True) if len(pair) != 2 or not all(pair))
        raise TokenizerError(f"the file's tokenizer holds the impossible merge “{display_safe(wrong)}”")
    return cast("list[tuple[str, str]]", pairs)


def _sentencepiece(metadata: Mapping[str, GGUFValue], tokens: Sequence[str], types: NDArray[np.int64]) -> FileTokenizer:
    scores = _scores(metadata, len(tokens))
    unknown = _unknown(metadata, tokens, types)
    tokenizer = spm_tokenizer(
        tokens,
        scores,
        (types == NORMAL).tolist(),
        unknown=unknown,
        special=_named(tokens, types, CONTROL, UNKNOWN),
        user_defined=_named(tokens, types, USER_DEFINED),
        space_prefix=metadata_bool(metadata, "tokenizer.ggml.add_space_prefix", True),
    )
    size = len(tokens)
    return FileTokenizer(
        tokenizer,
        True,
        default_bos=1 if size > 1 else None,
        default_eos=2 if size > 2 else None,
        unused=_unused(types),
    )


def _scores(metadata: Mapping[str, GGUFValue], count: int) -> list[float]:
    found = metadata.get("tokenizer.ggml.scores")
    if found is None or not isinstance(found.value, np.ndarray) or found.value.dtype.kind != "f":
        raise TokenizerError("the file's SentencePiece vocabulary has no scores; it is damaged, fetch the file again")
    if len(found.value) != count:
        raise TokenizerError(f"the file has {count} tokens but {len(found.value)} scores; it is damaged")
    if not np.isfinite(found.value).all():
        raise TokenizerError("a score in the file's vocabulary is not a number; it is damaged")
    scores: list[float] = found.value.astype(np.float64).tolist()
    return scores


def _unknown(metadata: Mapping[str, GGUFValue], tokens: Sequence[str], types: NDArray[np.int64]) -> str | None:
    given = metadata_int(metadata, "tokenizer.ggml.unknown_token_id", -1)
    if 0 <= given < len(tokens):
        return tokens[given]
    found = np.flatnonzero(types == UNKNOWN)
    return tokens[int(found[0])] if len(found) else None


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
    tokenizer: Tokenizer,
    *,
    bos: int,
    eos: int,
    add_bos: bool = True,
    infill: InfillMarks | None = None,
    chat_template: str | None = None,
) -> dict[str, GGUFValue]:
    """Return the `tokenizer.*` keys from which `read_tokenizer` rebuilds this tokenizer.

    Parameters: a byte-level BPE like GPT-2's; ids of the tokens that begin and end a text; whether a prompt begins
    with BOS; the marks for filling in the middle, if the model knows them. Raises TokenizerError if the tokenizer is
    of another kind, its ids have gaps or a mark is not special.
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
    merges: Iterable[str] = [pair if isinstance(pair, str) else " ".join(pair) for pair in parts["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array(tokens, ValueType.STRING),
        "tokenizer.ggml.token_type": array([types[i] for i in range(len(tokens))], ValueType.I32),
        "tokenizer.ggml.merges": array(list(merges), ValueType.STRING),
        "tokenizer.ggml.bos_token_id": u32(bos),
        "tokenizer.ggml.eos_token_id": u32(eos),
        "tokenizer.ggml.add_bos_token": boolean(add_bos),
    }
    if infill is not None:
        for key, token in zip(KEYS, infill.ids, strict=True):
            if types.get(token) != CONTROL:
                raise TokenizerError(f"the token {token} is to be a mark for filling in, and is no special token")
            metadata[f"tokenizer.ggml.{key}_token_id"] = u32(token)
    if chat_template is not None:
        metadata["tokenizer.chat_template"] = string(chat_template)
    return metadata
