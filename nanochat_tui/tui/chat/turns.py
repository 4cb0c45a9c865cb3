"""How a turn looks: as a block of code that a base model continues, or as a message and its answer."""

from __future__ import annotations

import time

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from nanochat_tui.chat.backend import FinishReason
from nanochat_tui.chat.printable import counted, printable
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
BROKEN = "broken off"
"""How a reply ended that nobody ended: the application was killed, or the server died."""


class TurnClicked(Message):
    """Somebody pointed at a turn."""

    def __init__(self, view: AnyTurn) -> None:
        super().__init__()
        self.view = view


class CompletionTurn(Static):
    """Prompt and continuation as one highlighted block; what the person wrote has a tinted ground."""

    def __init__(self, turn: Turn, model_name: str, *, finished: bool = False, last: bool = True) -> None:
        super().__init__(classes="turn completion", markup=False)
        self.turn = turn
        self._model_name = model_name
        self._finished = finished
        self._last = last
        self._drawn = 0.0
        self._cost = 0.0

    def on_mount(self) -> None:
        """Show the prompt before there is a reply."""
        self._draw(writing=not self._finished)

    def on_click(self) -> None:
        """Tell the transcript."""
        self.post_message(TurnClicked(self))

    async def restart(self) -> None:
        """The last part of the reply is about to be written, for the first time or anew."""
        self._draw(writing=True)

    async def write(self, text: str, *, thinking: bool = False) -> None:
        """Show more; the turn holds it already. Long texts are coloured less often: an eighth of the time at most."""
        if time.perf_counter() - self._drawn >= 7 * self._cost:
            self._draw(writing=True)

    async def finish(self) -> None:
        """The reply is over; `turn.reason` says why."""
        self._draw(writing=False)

    def settle(self) -> None:
        """Another turn follows: this one cannot go on."""
        self._last = False
        self.border_subtitle = Content(self._summary())

    def toggle_thinking(self) -> bool:
        """A base model does not think."""
        return False

    def _summary(self) -> str:
        turn = self.turn
        parts = summary(turn)
        if self._last and turn.reason != "stop":
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


def summary(turn: Turn) -> list[str]:
    """How a reply went, in short pieces."""
    parts = []
    if turn.stats is not None:
        parts.append(counted(turn.stats.generated, "token"))
        if turn.stats.decode_tps is not None:
            parts.append(f"{speed(turn.stats.decode_tps).strip()} tok/s")
    parts.append(BROKEN if turn.reason is None else REASONS[turn.reason])
    return parts


class DialogueTurn(Vertical):
    """A message and its answer. The answer is a live `Markdown` while it is written, and one `Static` afterwards."""

    def __init__(self, turn: Turn, *, finished: bool = False, unfolded: bool = False) -> None:
        super().__init__(classes="turn dialogue")
        self.turn = turn
        self._finished = finished
        self._unfolded = unfolded
        self._stream: MarkdownStream | None = None

    def compose(self) -> ComposeResult:
        """Lay out the message, and the answer of a turn that is over."""
        yield Static(Content(printable(self.turn.prompt)), classes="message", markup=False)
        if self.turn.thinking:
            yield Static(self._thought(), classes="thinking", markup=False)
        if self._finished:
            yield Static(self._answer(), classes="answer", markup=False)

    def on_click(self) -> None:
        """Tell the transcript."""
        self.post_message(TurnClicked(self))

    def settle(self) -> None:
        """Another turn follows; nothing about this one changes."""

    async def restart(self) -> None:
        """The last part of the reply is about to be written, for the first time or anew."""
        await self.query(".answer").remove()
        if not self.turn.thinking:
            await self.query(".thinking").remove()
        live = Markdown(printable(self.turn.reply), classes="answer live", open_links=False)
        await self.mount(live)
        self._stream = Markdown.get_stream(live)

    async def write(self, text: str, *, thinking: bool = False) -> None:
        """Show more; the turn holds it already."""
        if thinking:
            await self._show_thought()
        elif self._stream is not None:
            await self._stream.write(printable(text))

    async def finish(self) -> None:
        """The reply is over; `turn.reason` says why."""
        if self._stream is not None:
            await self._stream.stop()
            self._stream = None
        self._finished = True
        if self.turn.thinking:
            await self._show_thought()
        answer = Static(self._answer(), classes="answer", markup=False)
        await self.query(".answer").remove()
        await self.mount(answer)

    def toggle_thinking(self) -> bool:
        """Fold or unfold what the model thought; returns whether there is any."""
        if not self.turn.thinking:
            return False
        self._unfolded = not self._unfolded
        self.query_one(".thinking", Static).update(self._thought())
        return True

    async def _show_thought(self) -> None:
        existing = self.query(".thinking")
        if existing:
            existing.first(Static).update(self._thought())
        else:
            await self.mount(Static(self._thought(), classes="thinking", markup=False), after=".message")

    def _thought(self) -> Content:
        words = len(self.turn.thinking.split())
        verb = "Thought" if self._finished or self.turn.reply else "Thinking"
        head = f"{'▾' if self._unfolded else '▸'} {verb}: {counted(words, 'word')}"
        if not self._unfolded:
            return Content.styled(head + "  (t unfolds)", "$text 60% italic")
        return Content.styled(f"{head}\n{printable(self.turn.thinking.strip())}", "$text 60% italic")

    def _answer(self) -> Content:
        content = markdown_content(printable(self.turn.reply))
        if self.turn.reason != "stop":
            ending = BROKEN if self.turn.reason is None else REASONS[self.turn.reason]
            content += Content.styled(("\n" if content else "") + f"[{ending}]", "$text 60% italic")
        return content


AnyTurn = CompletionTurn | DialogueTurn
