"""Between text as people see it and token ids as the model saw them.

A model's conventions are its BOS token and its indentation (see `text`). Decoding works on bytes, because a
byte-level token may end in the middle of a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from functools import cached_property

from tokenizers import Tokenizer, decoders

from nanochat_tui.model.text import TabExpander, spaces_to_tabs
from nanochat_tui.model.tokenizer_errors import TokenizerError

END_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "</s>",
)
"""Tokens that end a reply wherever a vocabulary has them, beside the one that its file names."""


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other 68 follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + index): b for index, b in enumerate(others)}


_BYTE_OF = byte_alphabet()


class TextCodec:
    """Encodes and decodes text by a model's own conventions.

    `bos` and `eos` are token ids or None; `add_bos` says whether a text begins with `bos`; `indentation` is the
    number of spaces that a leading tab stood for in training, 0 for none.
    Raises TokenizerError if the tokenizer does not decode byte by byte.
    """

    def __init__(
        self, tokenizer: Tokenizer, bos: int | None, eos: int | None, add_bos: bool, indentation: int = 0
    ) -> None:
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise TokenizerError("only tokenizers that spell bytes, like GPT-2's, are supported so far")
        self.tokenizer = tokenizer
        self.bos = bos
        self.eos = eos
        self.add_bos = add_bos and bos is not None
        self.indentation = indentation
        self._bytes: dict[int, bytes] = {}

    @cached_property
    def _added(self) -> dict[int, tuple[bytes, bool]]:
        """Tokens that are matched whole: their own text, and whether they are special."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {index: (token.content.encode(), token.special) for index, token in added.items()}

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a reply: the model's own and those known by name."""
        found = {self.eos, *(self.tokenizer.token_to_id(name) for name in END_NAMES)}
        return frozenset(token for token in found if token is not None)

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Return the ids of a text, with BOS first where the model wants it and `bos` allows it.

        Special tokens written out in the text become those tokens, as chat templates need.
        Raises TokenizerError if the text holds half a surrogate pair.
        """
        try:
            ids = self.tokenizer.encode(spaces_to_tabs(text, self.indentation), add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise TokenizerError("the text is not valid Unicode (half a surrogate pair); remove it") from error
        return [self.bos, *ids] if bos and self.add_bos and self.bos is not None else list(ids)

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """Return the bytes that a token stands for; none for special tokens, unless asked, and unnamed ids."""
        found = self._bytes.get(token)
        if found is None:
            if token in self._added:
                found = self._added[token][0]
            else:
                name = self.tokenizer.id_to_token(token) if token >= 0 else None
                found = bytes(_BYTE_OF.get(c, 0x3F) for c in name or "")
            self._bytes[token] = found
        return b"" if not special and self.is_special(token) else found

    def is_special(self, token: int) -> bool:
        """Whether a token is a mark that is not part of the text."""
        return self._added.get(token, (b"", False))[1]

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Return the text of a whole sequence; special tokens are left out unless asked for.

        Bytes that are not UTF-8 become U+FFFD.
        """
        stream = self.stream(special=special)
        return "".join([*(stream.feed(token) for token in ids), stream.flush()])

    def stream(self, after: Sequence[int] = (), special: bool = False) -> StreamDecoder:
        """Return a decoder for a reply that continues the ids of `after`, its prompt."""
        return StreamDecoder(self, self._in_indentation(after), special)

    def _in_indentation(self, ids: Sequence[int]) -> bool:
        """Whether text that follows `ids` begins a line, or goes on with its indentation."""
        for token in reversed(ids):
            _, newline, tail = self.token_bytes(token).rpartition(b"\n")
            if tail.strip(b"\t"):
                return False
            if newline or self.is_special(token):
                return True
        return True


class StreamDecoder:
    """Decodes ids one by one into text whose characters are always whole."""

    def __init__(self, codec: TextCodec, at_line_start: bool = True, special: bool = False) -> None:
        self._codec = codec
        self._special = special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tabs = TabExpander(codec.indentation)
        self._tabs.at_line_start = at_line_start

    def feed(self, token: int) -> str:
        """Return the text that has become complete with this token; '' while a character is still open."""
        return self._tabs.feed(self._utf8.decode(self._codec.token_bytes(token, self._special)))

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished character, else ''."""
        return self._tabs.feed(self._utf8.decode(b"", final=True))
