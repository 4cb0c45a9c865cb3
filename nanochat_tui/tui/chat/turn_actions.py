"""What is done to one turn: edit, delete, undo, write again, continue, copy, show another version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nanochat_tui.chat.backend import Token
from nanochat_tui.chat.store.records import title_of
from nanochat_tui.text import counted
from nanochat_tui.tui.chat.act import Act, plain
from nanochat_tui.tui.chat.actions import Actions, ChatParts
from nanochat_tui.tui.chat.code_blocks import code_blocks
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.widgets.dialogs import Choose


class TurnActions(Actions):
    """Acts on the chosen turn, or on the last one. `close_lens` hides the tokens of a version that is replaced."""

    def __init__(self, parts: ChatParts, close_lens: Callable[[], Awaitable[object]]) -> None:
        super().__init__(parts)
        self._close_lens = close_lens

    def acts(self) -> dict[str, Act]:
        """Commands by their names."""
        return {
            "retry": Act(plain(self.regenerate), lambda: True if self._model.ready and self._any() else None),
            "continue": Act(plain(self.continue_reply), self._may_continue),
            "edit": Act(plain(self.edit), self._any),
            "remove": Act(plain(self.delete), self._any),
            "undo": Act(plain(self.undo), lambda: self._session.undoable),
            "versions": Act(plain(self.choose_version), self._has_versions),
            "earlier": Act(plain(lambda: self.step_version(-1)), self._has_versions),
            "later": Act(plain(lambda: self.step_version(1)), self._has_versions),
            "copy": Act(plain(self.copy_reply), self._any),
            "copy_turn": Act(plain(self.copy_turn), self._any),
            "code": Act(plain(self.copy_code), self._any),
            "all": Act(plain(self.copy_all), self._any),
            "thoughts": Act(plain(self._view.transcript.action_toggle_thinking), self._has_thoughts),
        }

    def _any(self) -> bool | None:
        return True if self._session.conversation.last is not None else None

    def _may_continue(self) -> bool | None:
        return True if self._replies.may_go_on else None

    def _has_versions(self) -> bool:
        turn = self._view.chosen_turn
        return turn is not None and bool(turn.versions)

    def _has_thoughts(self) -> bool:
        turn = self._view.chosen_turn
        return turn is not None and bool(turn.thinking)

    # Messages

    def edit(self) -> None:
        """Put a message back into the input; sending it replaces the last turn. An earlier one is sent in a fork."""
        index = self._view.chosen_index
        if index is None or self._replies.is_writing:
            self._desk.bell()
            return
        prompt, conversation = self._view.prompt, self._session.conversation
        if not self._session.draft.begin_edit(index, prompt.full_text):
            prompt.past.add(prompt.full_text)
        prompt.fill(conversation.turns[index].prompt)
        later = len(conversation.turns) - index - 1
        sends = "sends"
        if later:
            sends += f" in a fork ({counted(later, 'later turn')} {'stays' if later == 1 else 'stay'} here)"
        keys = self._desk.keys
        prompt.border_subtitle = (
            f"editing turn {index + 1} · {keys('{prompt.send|Enter}')} {sends} · {keys('{chat.back|Esc}')} leaves it"
        )
        prompt.focus()

    async def resend(self, index: int, text: str) -> None:
        """Send another message in the place of turn `index`, which becomes an earlier version of it. What followed the
        turn stays in the old session.
        """
        prompt, session = self._view.prompt, self._session
        if session.id is not None and index < len(session.conversation.turns) - 1:
            session.draft.resending = True
            forked = await self._flow.fork(session.id, index)
            session.draft.resending = False
            if not forked:
                return  # the message stays in the input
            prompt.past.add(text)
        if text == prompt.full_text:
            prompt.sent()
        self._view.end_editing()
        replaced = session.cut(index)
        await self._view.show_conversation()
        await self._replies.say(text, replaced)

    async def delete(self) -> None:
        """Remove a message and its reply; they can be brought back."""
        index = self._view.chosen_index
        if index is None or self._replies.is_writing:
            self._desk.bell()
            return
        await self._close_lens()
        self._session.delete(index)
        await self._view.show_conversation()
        if not self._session.conversation.turns:
            await self._view.show_welcome()
        self._desk.refresh_bindings()
        key = self._desk.keys("{turn.undo|u}")
        self._desk.notify(
            f"Turn {index + 1} was deleted; {key} (in the transcript) or /undo brings it back.", timeout=8
        )

    async def undo(self) -> None:
        """Bring back what was deleted or replaced last; what is there now is kept as a version."""
        if not self._session.undoable or self._replies.is_writing:
            self._desk.bell()
            return
        found = self._session.undo()
        if isinstance(found, Turn):
            await self._redraw(found)
        elif found is not None:
            await self._close_lens()
            await self._view.show_conversation()
            await self._view.transcript.reveal(found)
            self._desk.refresh_bindings()

    # Versions

    async def step_version(self, step: int) -> None:
        """Show the next or previous version of the chosen or last turn."""
        turn = self._view.chosen_turn
        place = -1 if turn is None else turn.place + step
        if turn is None or not 0 <= place <= len(turn.versions) or self._replies.writes(turn):
            self._desk.bell()
            return
        await self._show_version(turn, place)

    async def _show_version(self, turn: Turn, place: int) -> None:
        self._session.show_version(turn, place)
        await self._redraw(turn)

    async def _redraw(self, turn: Turn) -> None:
        await self._close_lens()
        await self._view.transcript.redraw(turn)
        self._desk.refresh_bindings()

    def choose_version(self) -> None:
        """Choose one of the versions of the chosen or last turn."""
        turn = self._view.chosen_turn
        if turn is None or not turn.versions or self._replies.writes(turn):
            self._desk.notify("There is only one version of this reply.", timeout=3)
            return

        async def chosen(place: int | None) -> None:
            if place is not None and place != turn.place and turn in self._session.conversation.turns:
                await self._show_version(turn, place)

        lines = [
            (title_of(version.reply or version.prompt), f"{place + 1}{' · shown' if place == turn.place else ''}")
            for place, version in enumerate(turn.all_versions())
        ]
        self._desk.ask(Choose("Versions of this reply", lines), chosen)

    # Replies

    async def regenerate(self) -> None:
        """Write a reply again. For an earlier turn that means a fork: what followed it stays in the old session."""
        index = self._view.chosen_index
        if self._replies.is_writing or not self._model.ready or index is None:
            self._desk.bell()
            return
        fork = index < len(self._session.conversation.turns) - 1
        if fork and not await self._flow.fork_chosen():
            return  # there is no fork, and the newest reply here is not meant
        if self._session.retry(whole=fork):
            await self._replies.write_again()

    async def continue_reply(self) -> None:
        """Let the last reply continue."""
        if not self._replies.is_writing and self._replies.may_go_on:
            await self._replies.go_on()
        else:
            self._desk.bell()

    async def branch(self, index: int, at: int, token: Token) -> Turn | None:
        """Continue in a new session from another token of a reply; returns the turn, None if that is not possible."""
        conversation = self._session.conversation
        if self._replies.is_writing or not self._model.ready or index >= len(conversation.turns):
            self._desk.bell()
            return None
        problem = ""
        if not self._model.can_continue(chat=conversation.is_chat):
            problem = "This server cannot continue from the middle of a reply, so there is no branching here."
        elif not conversation.turns[index].all_tokens:
            problem = self._desk.keys(
                "The tokens of this reply are not known exactly; write it again ({chat.again|Ctrl+R}) and branch then."
            )
        elif not token.text:
            problem = "This token ends the reply or is part of a character; choose another one."
        if problem:
            self._view.say_error(problem)
            return None
        await self._close_lens()
        self._flow.leave()
        turn = self._session.branch(index, at, token)
        await self._view.show_conversation()
        key = self._desk.keys("{chat.sessions|Ctrl+O}")
        self._desk.notify(f"A branch: the old session stays as it was ({key}).", timeout=4)
        await self._replies.go_on()
        return turn

    # The clipboard

    def copy_reply(self) -> None:
        """Copy the reply of the chosen or last turn."""
        turn = self._view.chosen_turn
        if turn is not None:
            self._desk.copy(turn.reply, "reply")

    def copy_turn(self) -> None:
        """Copy the reply of the chosen or last turn, of a document its text."""
        turn = self._view.chosen_turn
        if turn is None:
            return
        if self._session.conversation.is_chat:
            self._desk.copy(turn.reply, "reply")
        else:
            self._desk.copy(turn.prompt + turn.reply, "text")

    def copy_all(self) -> None:
        """Copy everything: the document, or the conversation."""
        conversation = self._session.conversation
        if conversation.is_chat:
            self._desk.copy("\n\n".join(f"> {t.prompt}\n\n{t.reply}" for t in conversation.turns), "conversation")
        else:
            self._desk.copy(conversation.document, "document")

    def copy_code(self) -> None:
        """Copy one block of code; with several, ask which."""
        turn = self._view.chosen_turn
        if turn is None:
            self._desk.bell()
            return
        if not self._session.conversation.is_chat:
            self._desk.copy(turn.prompt + turn.reply, "code")
            return
        blocks = code_blocks(turn.reply)
        if not blocks:
            self._desk.notify("There is no block of code in this reply.", timeout=3)
        elif len(blocks) == 1:
            self._desk.copy(blocks[0].code, "code")
        else:

            def answered(index: int | None) -> None:
                if index is not None:
                    self._desk.copy(blocks[index].code, "code")

            options = [
                (block.code.strip().splitlines()[0] if block.code.strip() else "", block.summary) for block in blocks
            ]
            self._desk.ask(Choose("Which block of code?", options), answered)
