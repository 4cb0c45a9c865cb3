"""A model's tokens as the grammar library sees them: the bytes that each one adds to the text that people see.

What a token adds may depend on where it stands: a leading tab becomes spaces where a line begins (see `model.text`),
and a SentencePiece token loses its space where a text begins. So such tokens are there twice: once with what they add
usually, and once more, under an alias behind the vocabulary, with what they add at such a beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.model.text import TabExpander, spaces_to_tabs

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from nanochat_tui.model.tokenizer import TextCodec

SPECIAL = b"\xff"
"""Begins the library's name of a token that is no text; no UTF-8 text holds this byte."""
PROBE = "\x02"
"""Stands in front of a text that is not to get a space in front."""


class Vocabulary:
    """All tokens of a codec. rows: ids that the model has logits for."""

    def __init__(self, codec: TextCodec, rows: int) -> None:
        self.codec, self.rows = codec, rows
        self.words = -(-rows // 32)
        plain = codec.all_bytes(rows)
        self._expands = codec.indentation > 0
        special = [index for index in range(rows) if codec.is_special(index) or not plain[index]]
        self.ends = sorted(end for end in codec.end_ids if end < rows)
        skipped = {*special, *self.ends}
        self.special = np.array(sorted(skipped), np.int64)
        usual, beginning = list(plain), list(plain)
        for index in skipped:
            usual[index] = beginning[index] = SPECIAL + (plain[index] or b"<%d>" % index)
        if self._expands:
            width = codec.indentation
            usual = [text if b"\t" not in text else _expanded(text, width, False) for text in usual]
            beginning = [text if b"\t" not in text else _expanded(text, width, True) for text in beginning]
        elif codec.has_space_prefix:
            beginning = [text.removeprefix(b" ") for text in beginning]
        changed = [i for i in range(rows) if usual[i] != beginning[i] and beginning[i]]
        self._gone = [i for i in range(rows) if usual[i] and not beginning[i]]
        """Tokens that add nothing at a beginning: a grammar has no use for them."""
        self.changed = np.array(changed, np.int64)
        self.aliases = {token: rows + place for place, token in enumerate(changed)}
        """Ids behind the vocabulary that stand for tokens at a beginning, by token."""
        self._plain = plain
        tokens = [*usual, *(beginning[i] for i in changed)]
        ends = self.ends
        if not ends:  # the library wants one; it is behind every mask
            ends = [len(tokens)]
            tokens.append(SPECIAL + b"<end>")
        self.tokenizer: LLTokenizer = self._made(tokens, ends)

    def _made(self, tokens: list[bytes], ends: list[int]) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        wrapped = TokenizerWrapper(_Wrapped(self, tokens, ends))
        return LLTokenizer(wrapped, n_vocab=len(tokens), eos_token=ends)

    def state_after(self, prompt: list[int]) -> State:
        """Return the state in which a reply to a prompt begins."""
        stream = self.codec.stream(after=prompt)
        return State(self, stream.at_line_start if self._expands else stream.strips_space)

    def ids_of(self, text: str) -> list[int]:
        """Return the ids, aliases where they stand at the beginning of a line, of a text in the middle of one."""
        if self.codec.has_space_prefix:
            before = len(self.codec.encode(PROBE, bos=False, special=False))
            return self.codec.encode(PROBE + text, bos=False, special=False)[before:]
        if not self._expands:
            return self.codec.encode(text, bos=False, special=False)
        first, newline, rest = text.partition("\n")
        ids = self.codec.encode_raw(first + newline + spaces_to_tabs(rest, self.codec.indentation))
        state = State(self, False)
        return [state.take(token) for token in ids]

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token that is text, none of others."""
        return b"" if self.codec.is_special(token) else self._plain[token]

    def after(self, token: int, beginning: bool) -> bool:
        """Return whether a beginning follows a token."""
        raw = self._plain[token]
        if not raw or self.codec.is_special(token):
            return beginning
        if not self._expands:
            return False
        _, newline, tail = raw.rpartition(b"\n")
        return (bool(newline) or beginning) and not tail.strip(b"\t")

    def narrow(self, found: NDArray[np.uint32], out: NDArray[np.uint32], beginning: bool) -> None:
        """Write the mask of the vocabulary, uint32 [words or more], from one that has bits for the aliases too.

        beginning: the next token stands at one.
        """
        out[:] = 0
        out[: self.words] = found[: self.words]
        if self.rows % 32:
            out[self.words - 1] &= np.uint32((1 << self.rows % 32) - 1)
        if not beginning:
            return
        bits = np.unpackbits(found.view(np.uint8), bitorder="little")
        allowed = np.zeros(len(out) * 32, np.uint8)
        allowed[: self.rows] = bits[: self.rows]
        allowed[self.changed] = bits[self.rows : self.rows + len(self.changed)]
        allowed[self._gone] = 0
        out[:] = np.packbits(allowed, bitorder="little").view(np.uint32)


class State:
    """Whether the next token stands at a beginning: of a line, or of a text that has a space in front."""

    __slots__ = ("_vocabulary", "beginning")

    def __init__(self, vocabulary: Vocabulary, beginning: bool) -> None:
        self._vocabulary, self.beginning = vocabulary, beginning

    def take(self, token: int) -> int:
        """Go on behind a token; return the id that stands for it here."""
        here = self._vocabulary.aliases.get(token, token) if self.beginning else token
        self.beginning = self._vocabulary.after(token, self.beginning)
        return here

    def copy(self) -> State:
        """Return the same state, to be changed apart."""
        return State(self._vocabulary, self.beginning)


class _Wrapped:
    """What the library's own wrapper asks a tokenizer for."""

    def __init__(self, vocabulary: Vocabulary, tokens: list[bytes], ends: list[int]) -> None:
        self._vocabulary = vocabulary
        self.tokens, self.eos_token_id, self.bos_token_id = tokens, ends[0], None
        self.special_token_ids = [*map(int, vocabulary.special), *(end for end in ends if end >= vocabulary.rows)]

    def __call__(self, text: Any) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._vocabulary.ids_of(text)


def _expanded(text: bytes, width: int, beginning: bool) -> bytes:
    expander = TabExpander(width)
    expander.at_line_start = beginning
    return expander.feed(text.decode("latin-1")).encode("latin-1")


def set_bits(mask: NDArray[np.uint32]) -> Iterator[int]:
    """Yield the places of the bits of a mask that are set, lowest first."""
    yield from map(int, np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")))
