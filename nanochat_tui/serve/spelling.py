"""How tokens are written in the probabilities of a reply: their bytes as they stand in its text."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat_tui.engine.replies import Token
from nanochat_tui.model.text import TabExpander
from nanochat_tui.model.tokenizer import TextCodec
from nanochat_tui.serve.replies import TokenLogprob, TopLogprob

LEAST = -9999.0
"""Stands for the logarithm of nothing, which JSON has no number for."""
_TAIL = 64
"""Tokens of the prompt that are looked at to find out whether its last line has begun."""


class Spelling:
    """Follows a reply, because a leading tab of the model is several spaces of the text (see `model.text`)."""

    def __init__(self, codec: TextCodec, prompt: Sequence[int]) -> None:
        self._codec = codec
        self._tabs = TabExpander(codec.indentation)
        line = codec.decode(prompt[-_TAIL:]).rpartition("\n")[2]
        self._tabs.at_line_start = not line.strip(" ")

    def _bytes(self, token: int, tabs: TabExpander) -> bytes:
        # tabs, spaces and line ends are the same bytes in Latin-1 and in UTF-8, and a character may not be whole here
        return tabs.feed(self._codec.token_bytes(token, special=True).decode("latin-1")).encode("latin-1")

    def spell(self, token: Token) -> TokenLogprob:
        """Return the entry of the next token of the reply, with its alternatives."""
        others = []
        for index, _, logprob in token.top:
            tabs = TabExpander(self._tabs.width)
            tabs.at_line_start = self._tabs.at_line_start
            others.append(_entry(self._bytes(index, tabs), logprob))
        chosen = _entry(self._bytes(token.id, self._tabs), token.logprob)
        return TokenLogprob(token=chosen.token, logprob=chosen.logprob, bytes=chosen.bytes, top_logprobs=others)


def _entry(raw: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(token=raw.decode("utf-8", "replace"), logprob=max(LEAST, logprob), bytes=list(raw))


def legacy_name(entry: TopLogprob) -> str:
    """Return a token as the older API names it: bytes that are no text are written out, so that names stay apart."""
    raw = bytes(entry.bytes)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
