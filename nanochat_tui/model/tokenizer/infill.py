"""Fill in the middle: marks around what comes before and after a gap, after which the model writes what is between.

Bavarian et al. 2022, "Efficient training of language models to fill in the middle": a text is cut into prefix, middle
and suffix and shown as `PRE prefix SUF suffix MID middle` (prefix first, PSM, the form llama.cpp's /infill and editors
ask in) or as `PRE SUF suffix MID prefix middle` (suffix first, SPM). The end-of-text token ends the middle.

A GGUF names the marks by `tokenizer.ggml.fim_pre_token_id`, `.fim_suf_token_id` and `.fim_mid_token_id`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from nanochat_tui.model.tokenizer.errors import TokenizerError

KEYS = ("fim_pre", "fim_suf", "fim_mid")
"""Parts of the keys' names, in the order of `InfillMarks`."""
OLD_KEYS = ("prefix", "suffix", "middle")
"""What earlier files call them."""
NAMES = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
"""Our spelling, which is StarCoder's and Qwen's but for the bars."""
KNOWN_NAMES = (
    NAMES,
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
"""How vocabularies spell the marks, for files that do not name them; the names llama.cpp goes by."""

NEVER_TEXT = (0xFD, 0xFE, 0xFF)
"""Bytes that no UTF-8 text holds (RFC 3629), so that their tokens in a byte-level vocabulary are free."""


@dataclass(frozen=True, slots=True)
class InfillMarks:
    """Ids of the three marks."""

    prefix: int
    suffix: int
    middle: int

    @property
    def ids(self) -> tuple[int, int, int]:
        """All three, in the order of `KEYS`."""
        return self.prefix, self.suffix, self.middle

    def to_json(self) -> dict[str, int]:
        """Fields for state.json."""
        return {"prefix": self.prefix, "suffix": self.suffix, "middle": self.middle}

    @staticmethod
    def from_json(value: object) -> InfillMarks | None:
        """Read back what `to_json` gave; None for anything else."""
        found = [value.get(name) for name in OLD_KEYS] if isinstance(value, Mapping) else []
        return InfillMarks(*found) if found and all(type(i) is int for i in found) else None  # type: ignore[arg-type]

    def arrange(self, prefix: Sequence[int], suffix: Sequence[int], *, suffix_first: bool = False) -> list[int]:
        """Return what the middle follows: the marks with the ids of prefix and suffix."""
        if suffix_first:
            return [self.prefix, self.suffix, *suffix, self.middle, *prefix]
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle]

    def before_gap(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids whose text stands before what would be written after `ids`: a prefix that its suffix follows, or
        all of them."""
        if not ids or ids[-1] != self.middle:
            return ids
        reverse = list(reversed(ids))
        if self.suffix not in reverse or self.prefix not in reverse:
            return ids
        return ids[len(ids) - reverse.index(self.prefix) : len(ids) - reverse.index(self.suffix) - 1]


@dataclass(frozen=True, slots=True)
class FileMarks:
    """Ids of the marks in front of a file's name, and of a project's if there is one (`fim_sep`, `fim_rep`)."""

    file: int
    project: int | None


def marks_by_name(ids: Mapping[str, int]) -> InfillMarks | None:
    """Find the marks in a vocabulary of special tokens by the spellings in use."""
    for names in KNOWN_NAMES:
        if all(name in ids for name in names):
            return InfillMarks(*(ids[name] for name in names))
    return None


def choose_marks(tokenizer: Tokenizer) -> InfillMarks:
    """Return the ids that a tokenizer has for the marks: those with their names, or three that stand for no text.

    Raises TokenizerError if it has neither.
    """
    added = tokenizer.get_added_tokens_decoder()
    named = marks_by_name({token.content: index for index, token in added.items() if token.special})
    if named is not None:
        return named
    spelled = (tokenizer.token_to_id(chr(byte)) for byte in NEVER_TEXT)  # these bytes are spelled as themselves
    free = [index for index in spelled if index is not None]
    if len(free) < len(NEVER_TEXT):
        raise TokenizerError(
            "the tokenizer has no ids for filling in the middle: neither marks of its own nor tokens of bytes that no "
            "text holds; make the data with a byte-level tokenizer of all 256 bytes"
        )
    return InfillMarks(*free)


def add_marks(tokenizer_json: str, marks: InfillMarks) -> str:
    """Return a tokenizer.json in which the ids of `marks` are special tokens with our names, all others as before.

    Raises TokenizerError if an id has no name, or a merge makes or takes its token.
    """
    parts: dict[str, Any] = json.loads(tokenizer_json)
    vocabulary: dict[str, int] = parts["model"]["vocab"]
    added = {token["id"]: token for token in parts["added_tokens"]}
    if all(i in added and added[i]["special"] for i in marks.ids):
        return tokenizer_json
    old = {index: name for name, index in vocabulary.items() if index in marks.ids}
    merged = {
        part for pair in parts["model"]["merges"] for part in (pair.split(" ") if isinstance(pair, str) else pair)
    }
    if len(old) < len(marks.ids) or any(name in merged for name in old.values()):
        raise TokenizerError("the marks for filling in the middle have no free ids in this tokenizer")
    names = dict(zip(marks.ids, NAMES, strict=True))
    parts["model"]["vocab"] = {names.get(index, name): index for name, index in vocabulary.items()}
    new = [
        {
            "id": index,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, name in names.items()
    ]
    parts["added_tokens"] = sorted([*parts["added_tokens"], *new], key=lambda token: int(token["id"]))
    return json.dumps(parts, ensure_ascii=False)
