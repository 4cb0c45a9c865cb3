"""Asks the model and shows what is answered: one reply at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from textual.timer import Timer

from nanochat_tui.chat.backend import Stats
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.generation import Generation
from nanochat_tui.tui.chat.model_slot import ModelSlot
from nanochat_tui.tui.chat.session import ChatSession
from nanochat_tui.tui.chat.tool_slot import ToolSlot, answer_from, question
from nanochat_tui.tui.chat.view import ChatView, Desk
from nanochat_tui.tui.log import logger

LOOK_SECONDS = 0.25
"""Time between two looks at how far a long prompt was read."""
SPEEDS = 240
"""Moments of speed remembered: a minute at four a second."""


class ReplyRunner:
    """Runs generations. Their messages reach the screen, which hands them to `take`.

    `wants_alternatives` says whether the lens wants to see each token's alternatives.
    """

    def __init__(
        self,
        session: ChatSession,
        model: ModelSlot,
        view: ChatView,
        desk: Desk,
        wants_alternatives: Callable[[], bool],
        tools: ToolSlot,
    ) -> None:
        self._session, self._model, self._view, self._desk = session, model, view, desk
        self._tools = tools
        self._wants_alternatives = wants_alternatives
        self.generation: Generation | None = None
        self.send_when_ready = False
        """Whether Enter was pressed before the model was there."""
        self.runs = 0
        """Replies asked for so far."""
        self._moment = (0.0, 0)
        self.reading: Timer | None = None
        """Looks at how far the prompt was read, while it is."""

    @property
    def is_writing(self) -> bool:
        """Whether a reply is being written."""
        return self.generation is not None

    def writes(self, turn: Turn) -> bool:
        """Whether the reply of this turn is being written."""
        return self.generation is not None and turn is self._session.conversation.last

    # Asking

    async def send(self, text: str) -> None:
        """Send a prompt, or let the last reply go on if it is empty."""
        if not self._model.ready:
            self._send_later(text)
            return
        self.send_when_ready = False
        if self.is_writing:
            self._desk.bell()
        elif text.strip():
            if text == self._view.prompt.full_text:  # a file's beginning leaves the input alone
                self._view.prompt.sent()
            await self.say(text)
        elif self.may_go_on:
            await self.go_on()
        elif self._session.conversation.last is not None:
            self._desk.notify("This model cannot continue a reply; write it again instead.", timeout=4)

    def _send_later(self, text: str) -> None:
        status = self._desk.status
        self.send_when_ready = bool(text.strip()) and status.state in ("loading", "waiting")
        if self.send_when_ready:
            self._desk.set_status(replace(status, state="waiting"))
        elif text.strip():
            self._view.say_error(
                self._desk.keys("No model is loaded; choose one with {chat.model|Ctrl+G} or /attach a server.")
            )

    async def say(self, text: str, replaced: Turn | None = None) -> None:
        """Begin a turn and ask for its reply."""
        self.send_when_ready = False
        turn = self._session.say(text, draft=self._view.prompt.full_text, replaced=replaced)
        conversation = self._session.conversation
        await self._view.transcript.begin(
            turn, conversation.turns, is_chat=conversation.is_chat, model_name=self._session.model
        )
        self.generate()

    @property
    def may_go_on(self) -> bool:
        """Whether the last reply can be continued."""
        conversation = self._session.conversation
        last = conversation.last
        if last is None or not self._model.can_continue(chat=conversation.is_chat):
            return False
        return not conversation.is_chat or bool(last.reply or last.thinking or last.calls)

    async def go_on(self) -> None:
        """Let the last reply continue."""
        if not self.is_writing and self._model.ready and self._session.conversation.go_on() is not None:
            await self.write_again()

    async def write_again(self) -> None:
        """Ask for the last part of the last reply, which is empty now."""
        await self._view.transcript.restart()
        self.generate()

    def generate(self) -> None:
        """Ask for the last turn's reply."""
        self.runs += 1
        self._moment = (0.0, 0)
        wanted = self._session.preferences.chat.alternatives if self._wants_alternatives() else 0
        conversation = self._session.conversation
        request = conversation.request(self._session.settings, top_logprobs=wanted)
        calls = conversation.last.calls if conversation.last is not None else []
        self.generation = Generation(
            self.runs,
            self._model.backend,
            request,
            self._desk.post_message,
            self._tools.toolbox if conversation.is_chat else None,
            calls[-1].round + 1 if calls else 0,
        )
        self._desk.set_status(replace(self._desk.status, state="reading", speeds=()))
        self.generation.start()
        if self.reading is None:
            self.reading = self._desk.set_interval(LOOK_SECONDS, self._look)

    # Ending

    def stop(self) -> None:
        """End the reply at the next token."""
        if self.generation is not None:
            self.generation.stop()
            self._desk.set_status(replace(self._desk.status, state="stopping"))

    def abandon(self, seconds: float = 0.0) -> None:
        """End the reply and take nothing more from it; waits up to `seconds` for its thread."""
        if self.generation is not None:
            self.generation.stop()
            self.generation.join(seconds)
            self.generation = None
            self._session.drop_if_empty()
            self._session.keep_turn()

    @property
    def is_working(self) -> bool:
        """Whether the thread still computes."""
        return self.generation is not None and not self.generation.join(0)

    # What comes

    async def take(self, event: messages.ReplyMessage) -> bool:
        """Show what a generation says; returns whether it is the one of now."""
        if self.generation is None or self.generation.run != event.run:
            return False
        match event:
            case messages.ReplyStarted():
                await self._started(event)
            case messages.ReplyText():
                await self._wrote(event)
            case messages.ReplyStats():
                self._measured(event)
            case messages.ReplyCall():
                if (placed := self._session.take_call(event.record)) is not None:
                    await self._view.transcript.show_call(placed)
            case messages.ReplyAsks():
                self._ask(event)
            case messages.ReplyNote():
                self._desk.notify(event.text, severity="warning", timeout=12)
                logger.warning("%s", event.text)
            case messages.ReplyEnded():
                await self._ended(event)
        return True

    def _look(self) -> None:
        """Show how far a long prompt was read; the timer ends with the reading."""
        if self.generation is None or self._desk.status.state != "reading":
            if self.reading is not None:
                self.reading.stop()
            self.reading = None
            return
        found = self._model.backend.reading()
        if found is not None:
            self._desk.set_status(replace(self._desk.status, stats=found))

    def _ask(self, event: messages.ReplyAsks) -> None:
        """Ask whether a call may be made; the reply waits in its thread."""

        def answered(value: str | None) -> None:
            event.answer.set_result(answer_from(value))

        toolbox = self._tools.toolbox
        servers = toolbox.servers.all if toolbox is not None else []
        place = next((server.entry.place for server in servers if server.name == event.tool.server), "")
        self._desk.bell()
        self._desk.ask(question(event.record, event.tool, place), answered)

    async def _started(self, event: messages.ReplyStarted) -> None:
        if event.note is not None:
            await self._view.transcript.context_note(event.note)
        status = self._desk.status
        self._desk.set_status(replace(status, stats=Stats(None, None, event.prompt_tokens, status.context_size)))

    async def _wrote(self, event: messages.ReplyText) -> None:
        status = self._desk.status
        if status.state in ("reading", "thinking", "writing"):
            state = "thinking" if event.thinking else "writing"
            if status.state != state:
                self._desk.set_status(replace(status, state=state))
        self._session.write(event.text, event.tokens, thinking=event.thinking)
        await self._view.transcript.write(event.text, thinking=event.thinking)

    def _measured(self, event: messages.ReplyStats) -> None:
        now, (before, count) = time.monotonic(), self._moment
        speeds = self._desk.status.speeds
        if before and now > before and event.stats.generated > count:
            speeds = (*speeds, (event.stats.generated - count) / (now - before))[-SPEEDS:]
        self._moment = (now, event.stats.generated)
        self._desk.set_status(replace(self._desk.status, stats=event.stats, speeds=speeds))
        self._view.side.live.show_speeds(event.stats, speeds)
        if self._session.conversation.last is not None:
            self._session.conversation.last.stats = event.stats

    async def _ended(self, event: messages.ReplyEnded) -> None:
        self.generation = None
        last = self._session.conversation.last
        if event.error is None and event.reason != "cancelled":
            self._session.accept_empty()
        if not self._session.drop_if_empty() and last is not None:
            last.reason = event.reason
            last.error = event.error
        self._session.keep_turn()
        await self._view.transcript.finish()
        if event.error is not None:
            logger.error("%s", event.error)
            went_on = last is not None and last.reply and self.may_go_on
            again = "{chat.again|Ctrl+R} to retry, {prompt.send|Enter} to continue from here."
            text = self._desk.keys(again if went_on else "{chat.again|Ctrl+R} to retry.")
            await self._view.transcript.note(f"{event.error}\n{text}", error=True)
        self._desk.set_status(replace(self._desk.status, state="ready"))
