"""The part of the chat that acts on one turn: edit, delete, copy, write anew."""

from __future__ import annotations

from textual import on

from nanochat_tui.chat.printable import counted
from nanochat_tui.tui.chat.code_blocks import code_blocks
from nanochat_tui.tui.chat.commands import suggestions
from nanochat_tui.tui.chat.prompt import Prompt
from nanochat_tui.tui.chat.sessions_flow import SessionPart
from nanochat_tui.tui.widgets.dialogs import Choose


class TurnPart(SessionPart):
    """What can be done with what was said."""

    def action_edit_turn(self) -> None:
        """Put a message back into the input; sending it replaces the turn and all after it."""
        index = self.chosen_index
        if index is None or self.generation is not None:
            self.app.bell()
            return
        self.editing = index
        self.prompt.fill(self.conversation.turns[index].prompt)
        later = len(self.conversation.turns) - index - 1
        lost = f", {counted(later, 'later turn')} {'goes' if later == 1 else 'go'}" if later else ""
        self.prompt.border_subtitle = f"editing turn {index + 1}{lost} · Enter sends · Esc leaves it"
        self.prompt.focus()

    async def action_delete_turn(self) -> None:
        """Remove a message and its reply."""
        index = self.chosen_index
        if index is None or self.generation is not None:
            self.app.bell()
            return
        self.conversation.delete(index)
        self.keep_all(index)
        await self.show_conversation()
        if not self.conversation.turns:
            await self.transcript.welcome(self.backend.name, self.welcome_lines())
        self.refresh_bindings()
        self.notify(f"Turn {index + 1} was deleted.", timeout=3)

    async def action_regenerate(self) -> None:
        """Write a reply anew. For an earlier turn that means a fork: what followed it stays in the old session."""
        index = self.chosen_index
        if self.generation is not None or not self.ready or index is None:
            self.app.bell()
            return
        if index < len(self.conversation.turns) - 1:
            await self.action_fork_turn()
            turn = self.conversation.last
            if turn is not None:
                turn.parts[:] = [""]
        if self.conversation.retry() is not None:
            self.keep_turn()
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
