"""How a turn looks: as a block of code that a base model continues, or as a message and its answer."""

from __future__ import annotations

import time
from typing import Protocol

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from nanochat_tui.chat.backend import FinishReason
from nanochat_tui.chat.printable import printable
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.language import guess_language
from nanochat_tui.tui.widgets.highlighting import TAB, highlight_code
from nanochat_tui.tui.widgets.markdown_content import markdown_content
from nanochat_tui.tui.widgets.status import speed

CURSOR = "▌"
REASONS: dict[FinishReason, str] = {
    "stop": "end of text",
    "length": "length limit",
    "cancelled": "stopped",
}


class TurnView(Protocol):
    """What the transcript asks of a turn's widget."""

    async def restart(self) -> None:
        """The last part of the reply is about to be written, for the first time or anew."""

    async def write(self, text: str) -> None:
        """More text arrived; the turn holds it already."""

    async def finish(self) -> None:
        """The reply is over; `turn.reason` says why."""


class CompletionTurn(Static):
    """Prompt and continuation as one highlighted block; what the person wrote has a tinted ground."""

    def __init__(self, turn: Turn, model_name: str) -> None:
        super().__init__(classes="turn completion", markup=False)
        self.turn = turn
        self._model_name = model_name
        self._drawn = 0.0
        self._cost = 0.0

    def on_mount(self) -> None:
        """Show the prompt before there is a reply."""
        self._draw(writing=True)

    async def restart(self) -> None:
        """See `TurnView`."""
        self._draw(writing=True)

    async def write(self, text: str) -> None:
        """See `TurnView`. Long texts are coloured less often, so that it takes an eighth of the time at most."""
        if time.perf_counter() - self._drawn >= 7 * self._cost:
            self._draw(writing=True)

    async def finish(self) -> None:
        """See `TurnView`."""
        self._draw(writing=False)

    def settle(self) -> None:
        """Another turn follows: this one cannot go on."""
        self.border_subtitle = Content(self._summary(last=False))

    def _summary(self, *, last: bool = True) -> str:
        turn, parts = self.turn, []
        if turn.stats is not None:
            count = turn.stats.generated
            parts.append("1 token" if count == 1 else f"{count} tokens")
            if turn.stats.decode_tps is not None:
                parts.append(f"{speed(turn.stats.decode_tps).strip()} tok/s")
        if turn.reason is not None:
            parts.append(REASONS[turn.reason])
            if last and turn.reason != "stop":
                parts.append("Enter goes on")
        return " · ".join(parts)

    def _draw(self, *, writing: bool) -> None:
        began = time.perf_counter()
        prompt, reply = printable(self.turn.prompt), printable(self.turn.reply)
        language = guess_language(self._model_name, prompt + reply)
        content = highlight_code(prompt + reply, language)
        content = content.stylize("on $primary-muted 60%", 0, len(prompt.expandtabs(TAB).rstrip("\n")))
        if writing:
            if reply.endswith("\n"):
                content += Content("\n")
            content += Content.styled(CURSOR, "$text-primary")
        self.update(content)
        self.border_title = Content(language)
        self.border_subtitle = Content("" if writing else self._summary())
        self._drawn = time.perf_counter()
        self._cost = self._drawn - began


class DialogueTurn(Vertical):
    """A message and its answer. The answer is a live `Markdown` while it is written, and one `Static` afterwards."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(classes="turn dialogue")
        self.turn = turn
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        """Lay out the message."""
        yield Static(Content(printable(self.turn.prompt)), classes="message", markup=False)

    async def restart(self) -> None:
        """See `TurnView`."""
        await self.query(".answer").remove()
        live = Markdown(classes="answer live", open_links=False)
        await self.mount(live)
        self._stream = Markdown.get_stream(live)

    async def write(self, text: str) -> None:
        """See `TurnView`."""
        if self._stream is not None:
            await self._stream.write(printable(text))

    async def finish(self) -> None:
        """See `TurnView`."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        content = markdown_content(printable(self.turn.reply))
        if self.turn.reason not in (None, "stop"):
            ending = REASONS[self.turn.reason]
            content += Content.styled(("\n" if content else "") + f"[{ending}]", "$text 60% italic")
        answer = Static(content, classes="answer", markup=False)
        await self.query(".answer").remove()
        await self.mount(answer)
