"""A file's tokenizer, looked into: text to tokens and back, and the vocabulary searched.

Works on the arrays of the file, so that a vocabulary can be searched even if this program cannot encode with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFValue
from nanochat_tui.model.tokenizer import TextCodec, codec_from_gguf, load_tokenizer
from nanochat_tui.model.tokenizer.codec import byte_alphabet

TYPE_NAMES = {1: "normal", 2: "unknown", 3: "control", 4: "user-defined", 5: "unused", 6: "byte"}
"""llama.cpp's kinds of tokens."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """One token. `text` is as the file spells it; escape it before showing it."""

    id: int
    text: str
    bytes: bytes
    """What it stands for in a text; a special token's own name."""
    kind: str
    score: float | None = None


class Vocabulary:
    """The tokens of a file, and its codec if there is one (`problem` says why not)."""

    def __init__(self, metadata: Mapping[str, GGUFValue], tokenizer: Path | None = None) -> None:
        """Build it from a file's keys, or with a given `tokenizer.json` in place of the one inside. Never raises."""

        def content(key: str) -> object:
            found = metadata.get(f"tokenizer.ggml.{key}")
            return None if found is None else found.value

        tokens, types, scores, kind = (content(key) for key in ("tokens", "token_type", "scores", "model"))
        self.codec: TextCodec | None = None
        self.problem: str | None = None
        try:
            self.codec = codec_from_gguf(metadata, None if tokenizer is None else load_tokenizer(tokenizer))
        except UserError as error:
            self.problem = str(error)
        self.kind = kind if isinstance(kind, str) else "none"
        self.tokens: Sequence[str] = tokens if isinstance(tokens, list) else ()
        if not self.tokens and self.codec is not None:
            made = self.codec.tokenizer
            named = made.get_vocab(with_added_tokens=True)
            self.kind = "tokenizer.json"
            self.tokens = sorted(named, key=named.__getitem__)
        fits = isinstance(types, np.ndarray) and len(types) == len(self.tokens)
        self._types = types if fits and isinstance(types, np.ndarray) else None
        fits = isinstance(scores, np.ndarray) and len(scores) == len(self.tokens)
        self._scores = scores if fits and isinstance(scores, np.ndarray) else None
        self._alphabet = byte_alphabet()

    def __len__(self) -> int:
        return len(self.tokens)

    def token(self, token: int) -> TokenInfo | None:
        """Return what is known of an id, or None if it is outside the vocabulary."""
        if not 0 <= token < len(self.tokens):
            return None
        text = self.tokens[token]
        number = 1 if self._types is None else int(self._types[token])
        score = None if self._scores is None else float(self._scores[token])
        return TokenInfo(token, text, self._meaning(token, text, number), TYPE_NAMES.get(number, str(number)), score)

    def _meaning(self, token: int, text: str, kind: int) -> bytes:
        if self.codec is not None:
            return self.codec.token_bytes(token, special=True)
        if kind in (3, 4):
            return text.encode("utf-8", "replace")
        if kind == 6 and len(text) == 6 and text.startswith("<0x"):
            return bytes.fromhex(text[3:5]) if all(c in "0123456789abcdefABCDEF" for c in text[3:5]) else text.encode()
        if self.kind == "gpt2" and all(c in self._alphabet for c in text):
            return bytes(self._alphabet[c] for c in text)
        return text.replace("▁", " ").encode("utf-8", "replace")

    def encode(self, text: str) -> list[TokenInfo]:
        """Return a text's tokens, with BOS where the model wants it. Raises UserError if the file has no codec."""
        if self.codec is None:
            raise UserError(self.problem or "the file has no tokenizer inside")
        found = (self.token(token) or TokenInfo(token, "", b"", "unnamed") for token in self.codec.encode(text))
        return list(found)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included; unknown ids are left out."""
        if self.codec is not None:
            return self.codec.decode([i for i in ids if 0 <= i < len(self.tokens)], special=True)
        return b"".join(found.bytes for i in ids if (found := self.token(i))).decode("utf-8", "replace")

    @cached_property
    def _searched(self) -> list[str]:
        return [
            self._meaning(i, text, 1 if self._types is None else int(self._types[i])).decode("utf-8", "replace")
            for i, text in enumerate(self.tokens)
        ]

    def search(self, query: str, limit: int = 200) -> tuple[list[TokenInfo], int]:
        """Return tokens whose text holds `query`, and how many there are in all.

        Spaces count. Tokens that are the query come first, then those that begin with it, then short ones; without
        regard to case only where nothing has it as typed.
        """
        if not query:
            return [], 0
        texts = self._searched
        hits = [i for i, text in enumerate(texts) if query in text]
        if not hits:
            low = query.lower()
            hits = [i for i, text in enumerate(texts) if low in text.lower()]

        def rank(token: int) -> tuple[int, int, int]:
            text = texts[token]
            bare = text.strip()
            order = 0 if text == query else 1 if bare == query.strip() else 2 if text.startswith(query) else 3
            return order, len(text), token

        hits.sort(key=rank)
        shown = [found for i in hits[:limit] if (found := self.token(i))]
        return shown, len(hits)


def parse_ids(text: str) -> list[int] | None:
    """Return the numbers of a text such as `17, 300 5`, or None if it holds anything else."""
    parts = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    if not parts or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        return None
    return [int(part) for part in parts]
