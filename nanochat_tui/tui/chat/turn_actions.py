"""The part of the chat that acts on one turn: edit, delete, copy, write anew."""

from __future__ import annotations

from textual import on

from nanochat_tui.chat.printable import counted
from nanochat_tui.tui.chat.code_blocks import code_blocks
from nanochat_tui.tui.chat.commands import suggestions
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.prompt import Prompt
from nanochat_tui.tui.chat.sessions_flow import SessionPart
from nanochat_tui.tui.widgets.dialogs import Choose


class TurnPart(SessionPart):
    """What can be done with what was said."""

    _deleted: tuple[tuple[str, int, Turn], ...] = ()
    """What was deleted in this run of the program, the newest last: the session, the turn's number, the turn."""

    def action_edit_turn(self) -> None:
        """Put a message back into the input; sending it replaces the last turn. An earlier one is sent in a fork."""
        index = self.chosen_index
        if index is None or self.generation is not None:
            self.app.bell()
            return
        self.editing = index
        self.prompt.fill(self.conversation.turns[index].prompt)
        later = len(self.conversation.turns) - index - 1
        sends = "sends"
        if later:
            sends += f" in a fork ({counted(later, 'later turn')} {'stays' if later == 1 else 'stay'} here)"
        self.prompt.border_subtitle = f"editing turn {index + 1} · Enter {sends} · Esc leaves it"
        self.prompt.focus()

    async def resend(self, index: int, text: str) -> None:
        """See `ReplyPart`. What followed the turn stays in the old session."""
        before = self.info
        if before is not None and index < len(self.conversation.turns) - 1:
            await self._fork(before.id, index)
            if self.info is before:
                return  # the message stays in the input
            self.prompt.past.add(text)
        await super().resend(index, text)

    async def action_delete_turn(self) -> None:
        """Remove a message and its reply; they can be brought back."""
        index = self.chosen_index
        if index is None or self.generation is not None:
            self.app.bell()
            return
        removed = self.conversation.delete(index)
        if self.info is not None:
            self._deleted = (*self._deleted[-9:], (self.info.id, index, removed))
        self.keep_all(index)
        await self.show_conversation()
        if not self.conversation.turns:
            await self.transcript.welcome(self.backend.name, self.welcome_lines())
        self.refresh_bindings()
        self.notify(f"Turn {index + 1} was deleted; u (in the transcript) or /undo brings it back.", timeout=8)

    @property
    def undoable(self) -> bool:
        """Whether the newest deletion was in this session."""
        return bool(self._deleted) and self.info is not None and self._deleted[-1][0] == self.info.id

    async def action_undo_delete(self) -> None:
        """Bring the turn back that was deleted last."""
        if not self.undoable or self.generation is not None:
            self.app.bell()
            return
        *rest, (_, index, turn) = self._deleted
        self._deleted = tuple(rest)
        index = min(index, len(self.conversation.turns))
        self.conversation.turns.insert(index, turn)
        self.keep_all(index)
        await self.show_conversation()
        await self.transcript.reveal(index)
        self.refresh_bindings()

    async def action_regenerate(self) -> None:
        """Write a reply anew. For an earlier turn that means a fork: what followed it stays in the old session."""
        index = self.chosen_index
        if self.generation is not None or not self.ready or index is None:
            self.app.bell()
            return
        fork = index < len(self.conversation.turns) - 1
        if fork:
            before = self.info
            await self.action_fork_turn()
            if self.info is before:
                return  # there is no fork, and the newest reply here is not meant
        last = self.conversation.last
        if last is not None:
            self._replaced = (last, last.copy())
            if fork:
                last.parts[:] = [""]
            self.conversation.retry()
            await self.transcript.restart()
            self.generate()

    async def action_continue_reply(self) -> None:
        """Let the last reply go on."""
        if self.ready and self.generation is None and self.may_go_on():
            await self.go_on()
        else:
            self.app.bell()

    def action_copy_reply(self) -> None:
        """Copy the reply of the chosen or last turn."""
        turn = self.chosen_turn
        if turn is not None:
            self.copy(turn.reply, "reply")

    def action_copy_turn(self) -> None:
        """Copy the message and the reply of the chosen or last turn."""
        turn = self.chosen_turn
        if turn is None:
            return
        if self.conversation.is_chat:
            self.copy(turn.reply, "reply")
        else:
            self.copy(turn.prompt + turn.reply, "text")

    def action_copy_all(self) -> None:
        """Copy everything: the document, or the conversation."""
        if self.conversation.is_chat:
            turns = self.conversation.turns
            self.copy("\n\n".join(f"> {turn.prompt}\n\n{turn.reply}" for turn in turns), "conversation")
        else:
            self.copy(self.conversation.document, "document")

    def action_copy_code(self) -> None:
        """Copy one block of code; with several, ask which."""
        turn = self.chosen_turn
        if turn is None:
            self.app.bell()
            return
        if not self.conversation.is_chat:
            self.copy(turn.prompt + turn.reply, "code")
            return
        blocks = code_blocks(turn.reply)
        if not blocks:
            self.notify("There is no block of code in this reply.", timeout=3)
        elif len(blocks) == 1:
            self.copy(blocks[0].code, "code")
        else:

            def answered(index: int | None) -> None:
                if index is not None:
                    self.copy(blocks[index].code, "code")

            options = [
                (block.code.strip().splitlines()[0] if block.code.strip() else "", block.summary) for block in blocks
            ]
            self.app.push_screen(Choose("Which block of code?", options), answered)

    @on(Prompt.Complete)
    def _complete(self, event: Prompt.Complete) -> None:
        found = suggestions(event.text)
        if found and event.text != f"/{found[0].name}":
            self.prompt.fill(f"/{found[0].name}" + (" " if found[0].argument else ""))
        else:
            self.focus_next()
