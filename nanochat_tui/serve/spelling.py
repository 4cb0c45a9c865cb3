"""How tokens are written in the probabilities of a reply: their bytes as they stand in its text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_tui.engine.generate.reading import Scores
from nanochat_tui.model.text import TabExpander
from nanochat_tui.model.tokenizer import TextCodec
from nanochat_tui.request import Token
from nanochat_tui.serve.replies import CompletionLogprobs, TokenLogprob, TopLogprob

LEAST = -9999.0
"""Stands for the logarithm of nothing, which JSON has no number for."""
_TAIL = 64
"""Tokens of the prompt that are looked at to find out whether its last line has begun."""


@dataclass(slots=True)
class _Held:
    """An entry on its way: the text that came with its token, where that begins, and bytes of an open character."""

    entry: TokenLogprob
    begin: int
    text: str
    open_bytes: int

    @property
    def end(self) -> int:
        return self.begin + len(self.text) + bool(self.open_bytes)


class Spelling:
    """Follows a reply, because a leading tab of the model is several spaces of the text (see `model.text`).

    Entries are handed out when their text is: what turns out to be a stop string, or part of one, has none, so that the
    bytes of all entries together are the reply's. Special tokens but those that end a reply have entries as well.
    """

    def __init__(self, codec: TextCodec, prompt: Sequence[int]) -> None:
        self._codec = codec
        self._decoder = codec.stream(after=list(prompt))
        self._decoded = self._certain = 0
        self._held: deque[_Held] = deque()
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
        identity, logprob = _told(token)
        chosen = _entry(self._bytes(identity, self._tabs), logprob)
        return TokenLogprob(token=chosen.token, logprob=chosen.logprob, bytes=chosen.bytes, top_logprobs=others)

    def take(self, tokens: Sequence[Token]) -> list[tuple[TokenLogprob, int]]:
        """Take the next tokens; return the entries whose text is certain by now, and the characters before each."""
        for token in tokens:
            self._certain += len(token.text)
            identity, _ = _told(token)
            if identity in self._codec.end_ids:
                continue
            text = self._decoder.feed(identity)
            self._held.append(_Held(self.spell(token), self._decoded, text, self._decoder.open_bytes))
            self._decoded += len(text)
        ready = []
        while self._held and self._held[0].end <= self._certain:
            held = self._held.popleft()
            ready.append((held.entry, held.begin))
        return ready

    def rest(self) -> list[tuple[TokenLogprob, int]]:
        """Return the last entries of a reply that is over; a token in which a stop string begins is cut there."""
        last = []
        for held in self._held:
            if held.begin >= self._certain:
                break
            beyond = len(held.text[self._certain - held.begin :].encode()) + held.open_bytes
            raw = bytes(held.entry.bytes)
            cut = _entry(raw[: max(0, len(raw) - beyond)], held.entry.logprob)
            last.append((held.entry.model_copy(update={"token": cut.token, "bytes": cut.bytes}), held.begin))
        self._held.clear()
        return last


class PromptScores:
    """How likely the tokens of a prompt were, as the older API tells it: in parallel lists, the first without.

    reading: takes the probabilities; complete when `listed` is called. Each token has an entry, a begin-of-text token
    too, so that entries can be counted against the ids of the prompt.
    """

    def __init__(self, codec: TextCodec, ids: Sequence[int], top: int) -> None:
        self.reading = Scores(ids, top=top)
        self._codec, self._ids = codec, list(ids)
        self._made: CompletionLogprobs | None = None

    def listed(self) -> CompletionLogprobs:
        """Return the lists; made once, which takes a while for a long prompt."""
        if self._made is None:
            spelling, decoder, decoded = Spelling(self._codec, ()), self._codec.stream(after=[]), 0
            made = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
            for token in (None, *self.reading.scored):
                identity = self._ids[0] if token is None else token.id
                top = () if token is None else tuple((i, "", logprob) for i, logprob in token.top)
                entry = spelling.spell(Token("", identity, 0.0 if token is None else token.logprob, top))
                made.tokens.append(legacy_name(entry))
                made.token_logprobs.append(None if token is None else entry.logprob)
                made.top_logprobs.append(None if token is None else named_logprobs(entry))
                made.text_offset.append(decoded)
                decoded += len(decoder.feed(identity))
            self._made = made
        return self._made


def named_logprobs(entry: TokenLogprob) -> dict[str, float]:
    """Return a token's alternatives by name, itself among them."""
    return {legacy_name(each): each.logprob for each in (*entry.top_logprobs, entry)}


def _told(token: Token) -> tuple[int, float]:
    if token.id is None or token.logprob is None:
        raise ValueError("a token of the engine has an id and a log-probability")
    return token.id, token.logprob


def _entry(raw: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(token=raw.decode("utf-8", "replace"), logprob=max(LEAST, logprob), bytes=list(raw))


def legacy_name(entry: TopLogprob) -> str:
    """Return a token as the older API names it: bytes that are no text are written out, so that names stay apart."""
    raw = bytes(entry.bytes)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
