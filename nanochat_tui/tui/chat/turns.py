"""How a turn looks: as a block of code that a base model continues, or as a message and its answer."""

from __future__ import annotations

import time
from collections.abc import Iterator

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.selection import Selection
from textual.widget import Widget
from textual.widgets import Static

from nanochat_tui.chat.backend import FinishReason
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.text import counted, printable
from nanochat_tui.tui.chat.call_row import CallRow
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.language import guess_language
from nanochat_tui.tui.keys import key_names
from nanochat_tui.tui.widgets.highlighting import TAB, highlight_code
from nanochat_tui.tui.widgets.markdown_text import MarkdownText
from nanochat_tui.tui.widgets.selecting import SelectingStatic
from nanochat_tui.tui.widgets.status import speed

CURSOR = "▌"
REASONS: dict[FinishReason, str] = {
    "stop": "end of text",
    "length": "length limit",
    "cancelled": "stopped",
}
BROKEN = "broken off"
"""How a reply ended that was interrupted: the application was killed, or the server died."""


class TurnClicked(Message):
    """The mouse is over a turn."""

    def __init__(self, view: AnyTurn) -> None:
        super().__init__()
        self.view = view


class CompletionTurn(SelectingStatic):
    """Prompt and continuation as one highlighted block; what the person wrote has a tinted ground."""

    def __init__(self, turn: Turn, model_name: str, *, finished: bool = False, continues: bool = True) -> None:
        super().__init__(classes="turn completion", markup=False)
        self.turn = turn
        self._model_name = model_name
        self._finished = finished
        self._continues = continues
        """Whether the reply can be continued, as the last one may."""
        self._drawn = 0.0
        self._cost = 0.0

    def on_mount(self) -> None:
        """Show the prompt before there is a reply."""
        self._draw(writing=not self._finished)

    def on_click(self, event: Click) -> None:
        """Tell the transcript; a second click selects text."""
        if event.chain == 1:
            self.post_message(TurnClicked(self))

    async def restart(self) -> None:
        """The last part of the reply is about to be written, for the first time or again."""
        self._draw(writing=True)

    async def write(self, text: str, *, thinking: bool = False) -> None:
        """Show more; the turn holds it already. Long texts are coloured less often: an eighth of the time at most."""
        if time.perf_counter() - self._drawn >= 7 * self._cost:
            self._draw(writing=True)

    async def finish(self) -> None:
        """The reply is over; `turn.reason` says why."""
        self._draw(writing=False)

    def settle(self) -> None:
        """Another turn follows: this one cannot be continued."""
        self.offer(continues=False)

    def offer(self, *, continues: bool) -> None:
        """Say whether the reply can be continued, unless it is being written."""
        self._continues = continues
        if self.border_subtitle:
            self.border_subtitle = Content(self._summary())

    def toggle_thinking(self) -> bool:
        """A base model does not think."""
        return False

    def _summary(self) -> str:
        turn = self.turn
        parts = summary(turn)
        if turn.mark:
            parts.append(turn.mark)
        if self._continues and turn.reason != "stop":
            parts.append(key_names(self)("{prompt.send|Enter} continues"))
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


class Thought(SelectingStatic):
    """What a model thought, under a line of the application's own."""

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the selected text without the first line."""
        found = super().get_selection(selection)
        if found is None or (selection.start is not None and selection.start.y > 0):
            return found
        return found[0].partition("\n")[2], found[1]


class DialogueTurn(Vertical):
    """A message and its answer, which looks the same while it is written and afterwards: text, and calls of tools."""

    def __init__(self, turn: Turn, *, finished: bool = False, unfolded: bool = False) -> None:
        super().__init__(classes="turn dialogue")
        self.turn = turn
        self._finished = finished
        self._unfolded = unfolded
        self._live: MarkdownText | None = None
        """The last text of the answer, while it is written."""
        self._unseen: list[str] = []
        """What came since it was drawn."""
        self._drawn = 0.0
        self._cost = 0.0

    def compose(self) -> ComposeResult:
        """Lay out the message, and the answer of a turn that is over."""
        yield SelectingStatic(Content(printable(self.turn.prompt)), classes="message", markup=False)
        if self.turn.thinking:
            yield Thought(self._thought(), classes="thinking", markup=False)
        if self._finished:
            yield from self._settled()
            text = printable(self.turn.segments[-1].text)
            yield MarkdownText(text, ending=self._ending(), classes="answer")

    def _settled(self) -> Iterator[Widget]:
        """Yield the widgets of all of the answer but its last text."""
        for segment in self.turn.segments[:-1]:
            if segment.text.strip():
                yield MarkdownText(printable(segment.text), classes="answer before")
            yield from (CallRow(call) for call in segment.calls)

    def on_click(self, event: Click) -> None:
        """Tell the transcript; a second click selects text."""
        if event.chain == 1:
            self.post_message(TurnClicked(self))

    def settle(self) -> None:
        """Another turn follows; nothing about this one changes."""

    async def restart(self) -> None:
        """The last part of the reply is about to be written, for the first time or again."""
        await self.query(".answer, .call").remove()
        if not self.turn.thinking:
            await self.query(".thinking").remove()
        self._finished = False
        await self.mount_all(self._settled())
        await self._begin(printable(self.turn.segments[-1].text))

    async def _begin(self, text: str) -> None:
        self._unseen.clear()
        self._live = MarkdownText(text, classes="answer")
        await self.mount(self._live)

    async def write(self, text: str, *, thinking: bool = False) -> None:
        """Show more; the turn holds it already. A long block is laid out less often: an eighth of the time at most."""
        if thinking:
            await self._show_thought()
        elif self._live is not None:
            self._unseen.append(printable(text))
            if time.perf_counter() - self._drawn >= 7 * self._cost:
                self._show_unseen(self._live)

    async def show_call(self, record: CallRecord) -> None:
        """Show a call behind the text so far, or its new state; the turn holds it already."""
        rows = (row for row in self.query(CallRow) if (row.record.id, row.record.round) == (record.id, record.round))
        if (row := next(rows, None)) is not None:
            row.show(record)
            return
        segment = next((one for one in self.turn.segments if record in one.calls), None)
        if self._live is not None:
            if segment is not None and segment.text.strip() and segment.calls[0] == record:
                self._live.end(printable(segment.text), None)
                self._live.add_class("before")
            else:
                await self._live.remove()
        await self.mount(CallRow(record))
        await self._begin("")

    def toggle_calls(self) -> bool:
        """Fold or unfold all calls of tools; returns whether there are any."""
        rows = list(self.query(CallRow))
        unfold = not any(row.unfolded for row in rows)
        for row in rows:
            row.fold(unfolded=unfold)
        return bool(rows)

    def _show_unseen(self, live: MarkdownText) -> None:
        began = time.perf_counter()
        live.write("".join(self._unseen))
        self._unseen.clear()
        live.rows(live.size.width or 80)  # what the next paint needs anyway
        self._drawn = time.perf_counter()
        self._cost = self._drawn - began

    async def finish(self) -> None:
        """The reply is over; `turn.reason` says why."""
        self._finished = True
        if self.turn.thinking:
            await self._show_thought()
        live, self._live = self._live, None
        whole = printable(self.turn.segments[-1].text)
        if live is not None and live.is_attached:
            self._show_unseen(live)
            live.end(whole, self._ending())
        else:
            await self.query(".answer, .call").remove()
            await self.mount_all(self._settled())
            await self.mount(MarkdownText(whole, ending=self._ending(), classes="answer"))

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
            await self.mount(Thought(self._thought(), classes="thinking", markup=False), after=".message")

    def _thought(self) -> Content:
        words = len(self.turn.thinking.split())
        verb = "Thought" if self._finished or self.turn.reply else "Thinking"
        head = f"{'▾' if self._unfolded else '▸'} {verb}: {counted(words, 'word')}"
        if not self._unfolded:
            key = key_names(self)("{turn.thoughts|t}")
            return Content.styled(f"{head}  ({key} unfolds)", "$text 60% italic")
        return Content.styled(f"{head}\n{printable(self.turn.thinking.strip())}", "$text 60% italic")

    def _ending(self) -> Content | None:
        """How the reply ended, where that is worth a word, and which version it is."""
        turn = self.turn
        pieces = []
        if turn.reason is None and (turn.reply or turn.calls or turn.error is None):
            pieces.append(f"[{BROKEN}]")
        elif turn.reason in ("length", "cancelled"):
            pieces.append(f"[{REASONS[turn.reason]}]")
        if turn.mark:
            pieces.append(f"‹ {turn.mark} ›")
        return Content.styled(" ".join(pieces), "$text 60% italic") if pieces else None


AnyTurn = CompletionTurn | DialogueTurn
