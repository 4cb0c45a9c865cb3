"""Between text as people see it and token ids as the model saw them.

A model's conventions are its BOS token and its indentation (see `text`). Decoding works on bytes, because a
byte-level token may end in the middle of a character.
"""

from __future__ import annotations

import codecs
import copy
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from tokenizers import Tokenizer, decoders

from nanochat_tui.model.text import TabExpander, spaces_to_tabs
from nanochat_tui.model.tokenizer.errors import TokenizerError
from nanochat_tui.model.tokenizer.from_gguf import END_NAMES
from nanochat_tui.model.tokenizer.infill import FileMarks, InfillMarks
from nanochat_tui.model.tokenizer.sentencepiece import SPACE


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other 68 follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + index): b for index, b in enumerate(others)}


_BYTE_OF = byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


MOST_REMEMBERED = 1 << 13
"""Tokens whose bytes are remembered: those of a whole vocabulary would take a server that runs for long 6 to 30 MB."""
_LONG = 1 << 13
"""Characters from which a text is encoded without holding up other threads; it takes milliseconds by then."""


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    if len(text) < _LONG:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    # only whole batches are encoded with Python's lock released
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return list(encoding.ids)


def _spells_bytes(tokenizer: Tokenizer) -> bool:
    """Whether tokens are spelled in GPT-2's alphabet; False for SentencePiece's. Raises TokenizerError for others."""
    state = "" if tokenizer.decoder is None else tokenizer.decoder.__getstate__().decode()
    if isinstance(tokenizer.decoder, decoders.ByteLevel) or '"ByteLevel"' in state:
        return True
    if '"ByteFallback"' in state or '"Metaspace"' in state:
        return False
    raise TokenizerError("only tokenizers that spell bytes, like GPT-2's, or SentencePiece's are supported")


class TextCodec:
    """Encodes and decodes text by a model's own conventions. May be used from several threads.

    `bos` and `eos` are token ids or None; `add_bos` says whether a text begins with `bos`; `indentation` is the
    number of spaces that a leading tab stood for in training, 0 for none; `ends` are the ids that end a reply, found
    by name if None; `unused` are ids that stand for nothing; `infill` are the marks for filling in the middle, if the
    model knows any; `notes` say what was assumed about a file.
    Raises TokenizerError if the tokenizer is neither byte-level nor SentencePiece.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        bos: int | None,
        eos: int | None,
        add_bos: bool,
        indentation: int = 0,
        *,
        ends: frozenset[int] | None = None,
        unused: tuple[int, ...] = (),
        infill: InfillMarks | None = None,
        file_marks: FileMarks | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._byte_level = _spells_bytes(tokenizer)
        self.tokenizer = tokenizer
        self.bos = bos
        self.eos = eos
        self.add_bos = add_bos and bos is not None
        self.indentation = indentation
        self.unused_ids = unused
        """Ids of padding rows, which a model should never write."""
        self.file_marks = file_marks
        """Marks in front of other files of the project; None for a model that knows none."""
        self.infill = infill
        """Marks around what stands before and after a gap; None for a model that cannot fill one in."""
        self.notes = notes
        """What was assumed or corrected when the file was read, a sentence each."""
        self._ends = ends
        self._bytes: dict[int, bytes] = {}

    @cached_property
    def _added(self) -> dict[int, tuple[bytes, bool]]:
        """Tokens that are matched whole: their own text, and whether they are special."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {index: (token.content.encode(), token.special) for index, token in added.items()}

    @cached_property
    def _markless(self) -> Tokenizer:
        """The tokenizer with marks read as text.

        That is a switch of the whole tokenizer, and other threads encode with it meanwhile; so it is set on a second
        one, which shares the vocabulary and merges of the first and costs nothing.
        """
        first = self.tokenizer
        added = sorted(first.get_added_tokens_decoder().items())
        second = Tokenizer(first.model)
        if first.normalizer is not None:
            second.normalizer = first.normalizer
        if first.pre_tokenizer is not None:
            second.pre_tokenizer = first.pre_tokenizer
        second.add_tokens([token for _, token in added])
        if any(second.token_to_id(token.content) != index for index, token in added):
            second = copy.deepcopy(first)  # a tokenizer.json may number its added tokens with gaps
        second.encode_special_tokens = True
        return second

    @cached_property
    def has_space_prefix(self) -> bool:
        """Whether encoding puts a space in front of a text, which decoding must take away."""
        first = [] if self._byte_level else self._encode("a")[:1]
        return any(self.token_bytes(token).startswith(b" ") for token in first)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a reply: the model's own and those known by name."""
        if self._ends is not None:
            return self._ends
        found = {self.eos, *(self.tokenizer.token_to_id(name) for name in END_NAMES)}
        return frozenset(token for token in found if token is not None)

    def named_rows(self, rows: int) -> int:
        """Return how many of a table's rows are left when those behind the last token are taken away."""
        unused = set(self.unused_ids)
        named = rows
        while named and (named - 1 in unused or self.tokenizer.id_to_token(named - 1) is None):
            named -= 1
        return named or rows

    def mark(self, token: int | None) -> str:
        """Return the name of a token as chat templates write it; '' for None and for an id that stands for nothing."""
        return "" if token is None else self.tokenizer.id_to_token(token) or ""

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """Spellings of the special tokens, the longest first."""
        found = (text.decode() for text, special in self._added.values() if special)
        return tuple(sorted(found, key=lambda mark: (-len(mark), mark)))

    def encode(self, text: str, bos: bool = True, special: bool = True) -> list[int]:
        """Return the ids of a text, with BOS first where the model wants it and `bos` allows it.

        Special tokens written out in the text become those tokens, as chat templates and hand-written prompts need;
        with `special` False they are text like any other.
        Raises TokenizerError if the text holds half a surrogate pair.
        """
        text = spaces_to_tabs(text, self.indentation)
        try:
            ids = self._encode(text) if special else self._encode_plain(text)
        except (UnicodeEncodeError, TypeError) as error:
            raise TokenizerError("the text is not valid Unicode (half a surrogate pair); remove it") from error
        return [self.bos, *ids] if bos and self.add_bos and self.bos is not None else ids

    def encode_raw(self, text: str) -> list[int]:
        """Return the ids of a text as the model saw it: its indentation is written as it was in training.

        Marks are text, and there is no BOS.
        """
        return self._encode_plain(text)

    def all_bytes(self, rows: int) -> list[bytes]:
        """Return the bytes of each of `rows` ids, as `token_bytes` with special tokens; empty where there is no name.

        Many times faster than one by one.
        """
        found = [b""] * rows
        for name, token in self.tokenizer.get_vocab(with_added_tokens=True).items():
            if token < rows:
                found[token] = self._added[token][0] if token in self._added else self._spelled(name)
        return found

    def _encode(self, text: str) -> list[int]:
        return _ids(self.tokenizer, text)

    def _encode_plain(self, text: str) -> list[int]:
        if not any(mark in text for mark in self.marks):
            return self._encode(text)
        return _ids(self._markless, text)

    def encode_guarded(self, text: str, guard: str, bos: bool = True) -> list[int]:
        """Return the ids of a text in which `guard`, a character, stands inside marks that are not to be taken for one.

        The guards are removed; see `chat.prompt`. Raises as `encode`.
        """
        if guard not in text:
            return self.encode(text, bos=bos)
        ids = [self.bos] if bos and self.add_bos and self.bos is not None else []
        text = spaces_to_tabs(text, self.indentation)
        pattern = "|".join(re.escape(mark) for mark in self.marks)
        for index, piece in enumerate(re.split(f"({pattern})", text) if pattern else [text]):
            if index % 2:
                ids += self._encode(piece)
            elif piece:
                try:
                    ids += self._encode_plain(piece.replace(guard, ""))
                except (UnicodeEncodeError, TypeError) as error:
                    raise TokenizerError("the text is not valid Unicode (half a surrogate pair); remove it") from error
        return ids

    def encode_files(self, files: Sequence[tuple[str, str]], current: str = "filename") -> list[int]:
        """Return the ids of other files (name, text) that a model is shown in front of a gap, and of the name of the
        file with the gap: behind the model's marks for that, or as pieces of text.

        The form is llama.cpp's, which is Qwen's where there are marks. Marks in the texts are text.
        """
        if self.file_marks is None:
            parts = "".join(f"\n\n--- snippet ---\n\n{text}" for _, text in files)
            return self.encode(parts, bos=False, special=False) if files else []
        ids: list[int] = []
        if files and self.file_marks.project is not None:
            ids += [self.file_marks.project, *self.encode("project\n", bos=False, special=False)]
        for name, text in [*files, (current, "")] if files else ():
            ids += [self.file_marks.file, *self.encode(f"{name}\n{text}", bos=False, special=False)]
        return ids

    def encode_infill(
        self, prefix: str, suffix: str, *, room: int | None = None, suffix_first: bool = False
    ) -> tuple[list[int], int]:
        """Return the ids after which the model writes what stands between two texts, and how many were left out.

        Marks in the texts are text. `room` is the most ids there may be: then the suffix keeps its beginning, a
        quarter of the room at least, and the prefix its end. `suffix_first` is the order in which the middle follows
        the prefix directly; most models were trained on the other one, or on both.
        Raises TokenizerError if the model has no marks for it.
        """
        if self.infill is None:
            raise TokenizerError(
                "this model cannot fill in between two texts, for its file names no fim_pre, fim_suf and fim_mid "
                "tokens; leave the suffix out"
            )
        before, after = (self.encode(text, bos=False, special=False) for text in (prefix, suffix))
        first = [self.bos] if self.add_bos and self.bos is not None else []
        dropped = 0
        if room is not None:
            left = max(0, room - len(first) - len(self.infill.ids))
            kept = min(len(after), max(left // 4, left - len(before)))
            dropped = len(after) - kept + max(0, len(before) - (left - kept))
            after, before = after[:kept], before[len(before) - min(len(before), left - kept) :]
        return [*first, *self.infill.arrange(before, after, suffix_first=suffix_first)], dropped

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """Return the bytes that a token stands for; none for special tokens, unless asked, and unnamed ids."""
        found = self._bytes.get(token)
        if found is None:
            if token in self._added:
                found = self._added[token][0]
            else:
                found = self._spelled(self.tokenizer.id_to_token(token) if token >= 0 else None)
            if len(self._bytes) >= MOST_REMEMBERED:
                self._bytes.clear()  # the common ones are back at once
            self._bytes[token] = found
        return b"" if not special and self.is_special(token) else found

    def _spelled(self, name: str | None) -> bytes:
        if self._byte_level:
            return bytes(_BYTE_OF.get(c, 0x3F) for c in name or "")
        byte = _BYTE_TOKEN.fullmatch(name or "")
        return bytes([int(byte[1], 16)]) if byte else (name or "").replace(SPACE, " ").encode()

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
        begins = not after or self.is_special(after[-1])
        return StreamDecoder(self, self._in_indentation(after), special, strip_space=begins and self.has_space_prefix)

    def _in_indentation(self, ids: Sequence[int]) -> bool:
        """Whether text that follows `ids` begins a line, or continues its indentation."""
        if self.infill is not None:
            ids = self.infill.before_gap(ids)
        for token in reversed(ids):
            _, newline, tail = self.token_bytes(token).rpartition(b"\n")
            if tail.strip(b"\t"):
                return False
            if newline or self.is_special(token):
                return True
        return True


class StreamDecoder:
    """Decodes ids one by one into text whose characters are always whole."""

    def __init__(
        self, codec: TextCodec, at_line_start: bool = True, special: bool = False, strip_space: bool = False
    ) -> None:
        self._codec = codec
        self._special = special
        self._strip = strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tabs = TabExpander(codec.indentation)
        self._tabs.at_line_start = at_line_start

    def feed(self, token: int) -> str:
        """Return the text that has become complete with this token; '' while a character is still open."""
        data = self._codec.token_bytes(token, self._special)
        if self._strip and data and not self._codec.is_special(token):
            data = data.removeprefix(b" ")  # it was put in front of the text, not written in it
            self._strip = False
        return self._tabs.feed(self._utf8.decode(data))

    @property
    def at_line_start(self) -> bool:
        """Whether what comes next begins a line, or continues its indentation."""
        return self._tabs.at_line_start

    @property
    def strips_space(self) -> bool:
        """Whether the next token loses the space it begins with."""
        return self._strip

    @property
    def open_bytes(self) -> int:
        """How many bytes of a character have come that is not complete yet."""
        return len(self._utf8.getstate()[0])

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an unfinished character, else ''."""
        return self._tabs.feed(self._utf8.decode(b"", final=True))
