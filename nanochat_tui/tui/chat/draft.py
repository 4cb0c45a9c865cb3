"""What is typed and not sent yet, also while the message of an earlier turn stands in the input to be changed."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat_tui.tui.chat.conversation import Conversation


@dataclass
class Draft:
    """The state of the input that is not in the input itself."""

    saved: str = ""
    """The draft as the store has it."""
    editing: int | None = None
    """The turn whose message stands in the input to be changed."""
    set_aside: str = ""
    """What the input held before that."""
    resending: bool = False
    """Whether the changed message is being sent at this moment."""

    def text(self, typed: str, conversation: Conversation) -> str:
        """Return what is not sent: `typed`, or during an edit what was set aside and what was changed."""
        if self.editing is None or self.editing >= len(conversation.turns):
            return typed
        unchanged = self.resending or typed == conversation.turns[self.editing].prompt
        changed = "" if unchanged else typed
        return "\n\n".join(part for part in (self.set_aside, changed) if part.strip())

    def begin_edit(self, index: int, typed: str) -> bool:
        """Edit the message of turn `index`; returns whether `typed` was set aside, which it is not when it is an edit
        itself.
        """
        first = self.editing is None
        if first:
            self.set_aside = typed
        self.editing = index
        return first

    def end_edit(self) -> str:
        """Stop editing; returns what was set aside."""
        aside, self.set_aside, self.editing = self.set_aside, "", None
        return aside
