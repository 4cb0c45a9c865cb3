"""The part of the chat that asks and shows what is answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from textual import on
from textual.timer import Timer

from nanochat_tui.chat.backend import Stats
from nanochat_tui.errors import UserError
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat import commands
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.generation import Generation
from nanochat_tui.tui.chat.loading import LoadingPart
from nanochat_tui.tui.log import logger

LOOK_SECONDS = 0.25
"""Time between two looks at how far a long prompt was read."""
SPEEDS = 240
"""Moments of speed remembered: a minute at four a second."""


class ReplyPart(LoadingPart):
    """Sends prompts and takes replies."""

    _moment = (0.0, 0)
    _reading: Timer | None = None
    _replaced: tuple[Turn, Turn] | None = None
    """The turn that is written anew, and what it was before, until something comes in its place."""

    @on(messages.PromptSubmitted)
    async def _submitted(self, event: messages.PromptSubmitted) -> None:
        try:
            command = commands.parse(event.text)
        except UserError as exc:
            self.say_error(str(exc))
            return
        if command is not None:
            self.prompt.sent()
            await self.run_command(*command)
        else:
            await self.send(event.text)

    async def run_command(self, command: commands.Command, argument: str) -> None:
        """Do what a slash command or a line of the palette says; the screen knows how."""
        raise UserError(f"/{command.name} is not possible here.")

    async def send(self, text: str) -> None:
        """Send a prompt, or let the last reply go on if it is empty."""
        if not self.ready:
            self._send_when_ready = bool(text.strip()) and self.status.state in ("loading", "waiting")
            if self._send_when_ready:
                self.set_status(replace(self.status, state="waiting"))
            elif text.strip():
                self.say_error("No model is loaded; choose one with Ctrl+G or /attach a server.")
            return
        self._send_when_ready = False
        if self.generation is not None:
            self.app.bell()
            return
        if self.editing is not None:
            if not text.strip():
                return
            await self.resend(self.editing, text)
            return
        if text.strip():
            self.prompt.sent()
            await self._say(text)
        elif self.may_go_on():
            await self.go_on()

    def may_go_on(self) -> bool:
        """Whether the last reply can be continued."""
        last = self.conversation.last
        if last is None:
            return False
        if not self.conversation.is_chat:
            return True
        return self.backend.can_continue(chat=True) and bool(last.reply or last.thinking)

    async def _say(self, text: str) -> None:
        turn = self.conversation.say(text)
        self.keep_info(draft="")
        if len(self.conversation.turns) > 1:
            self.keep_turn(-2)  # a document's last line may have been ended
        self.keep_turn()
        await self.transcript.begin(
            turn, self.conversation.turns, is_chat=self.conversation.is_chat, model_name=self.backend.name
        )
        self.generate()

    async def resend(self, index: int, text: str) -> None:
        """Send another message in the place of turn `index` and all after it."""
        self.prompt.sent()
        self.end_editing()
        self.conversation.cut(index)
        self.keep_all(index)
        await self.show_conversation()
        await self._say(text)

    def end_editing(self) -> None:
        """The input holds a new message again."""
        self.editing = None
        self.prompt.border_subtitle = ""

    async def go_on(self) -> None:
        """Let the last reply continue."""
        if self.generation is None and self.ready and self.conversation.go_on() is not None:
            await self.transcript.restart()
            self.generate()

    def generate(self) -> None:
        """Ask for the last turn's reply."""
        self._runs += 1
        self._moment = (0.0, 0)
        wanted = self.preferences.chat.alternatives if self.wants_alternatives() else 0
        request = self.conversation.request(self.settings, top_logprobs=wanted)
        self.generation = Generation(self._runs, self.backend, request, self.post_message)
        self.set_status(replace(self.status, state="reading", speeds=()))
        self.generation.start()
        if self._reading is None and hasattr(self.backend, "reading"):
            self._reading = self.set_interval(LOOK_SECONDS, self._show_reading)

    def _show_reading(self) -> None:
        """Show how far a long prompt was read; the timer ends with the reading."""
        if self.generation is None or self.status.state != "reading":
            if self._reading is not None:
                self._reading.stop()
            self._reading = None
            return
        look: Callable[[], Stats | None] | None = getattr(self.backend, "reading", None)
        found = look() if look is not None else None
        if found is not None:
            self.set_status(replace(self.status, stats=found))

    def wants_alternatives(self) -> bool:
        """Whether the lens is open, or could not be filled later; alternatives are computed only then."""
        return False

    def _is_current(self, run: int) -> bool:
        return self.generation is not None and self.generation.run == run

    @on(messages.ReplyStarted)
    async def _reply_started(self, event: messages.ReplyStarted) -> None:
        if not self._is_current(event.run):
            return
        if event.note is not None:
            await self.transcript.context_note(event.note)
        size = self.status.context_size
        self.set_status(replace(self.status, stats=Stats(None, None, event.prompt_tokens, size)))

    @on(messages.ReplyText)
    async def _reply_text(self, event: messages.ReplyText) -> None:
        if not self._is_current(event.run):
            return
        if self.status.state in ("reading", "thinking", "writing"):
            state = "thinking" if event.thinking else "writing"
            if self.status.state != state:
                self.set_status(replace(self.status, state=state))
        self._replaced = None
        self.conversation.write(event.text, event.tokens, thinking=event.thinking)
        self.keep_turn()
        await self.transcript.write(event.text, thinking=event.thinking)
        self.reply_grew()

    def reply_grew(self) -> None:
        """More of the last reply is there; the lens and the live panel want to know."""

    @on(messages.ReplyStats)
    def _reply_stats(self, event: messages.ReplyStats) -> None:
        if not self._is_current(event.run):
            return
        now, (before, count) = time.monotonic(), self._moment
        speeds = self.status.speeds
        if before and now > before and event.stats.generated > count:
            speeds = (*speeds, (event.stats.generated - count) / (now - before))[-SPEEDS:]
        self._moment = (now, event.stats.generated)
        self.set_status(replace(self.status, stats=event.stats, speeds=speeds))
        self.side.live.show_speeds(event.stats, speeds)
        if self.conversation.last is not None:
            self.conversation.last.stats = event.stats

    @on(messages.ReplyEnded)
    async def _reply_ended(self, event: messages.ReplyEnded) -> None:
        if not self._is_current(event.run):
            return
        self.generation = None
        last = self.conversation.last
        if last is not None and event.error is not None and self._replaced is not None and self._replaced[0] is last:
            last.take(self._replaced[1])  # a server that is gone must not cost what had come before
        self._replaced = None
        if last is not None:
            last.reason = event.reason
            last.error = event.error
        self.keep_turn()
        await self.transcript.finish()
        if event.error is not None:
            logger.error("%s", event.error)
            await self.transcript.note(
                f"{event.error}\nCtrl+R tries again; an empty Enter goes on from what came.", error=True
            )
        self.set_status(replace(self.status, state="ready"))
        self.reply_grew()
        self.side.live.look_inside(at_once=True)
        await self.list_changed()

    async def list_changed(self) -> None:
        """A session of the list is not what it was; the list wants to know."""
