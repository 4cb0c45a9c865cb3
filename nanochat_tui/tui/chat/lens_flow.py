"""The part of the chat that opens the token lens and branches where it points."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from textual import on

from nanochat_tui.chat.backend import Request, Token
from nanochat_tui.chat.records import new_session
from nanochat_tui.tui import messages
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.generation import explain
from nanochat_tui.tui.chat.lens_view import Alternatives, TokenRibbon
from nanochat_tui.tui.chat.turn_actions import TurnPart

Scorer = Callable[[Request, int], list[Token]]


class LensPart(TurnPart):
    """Probabilities of a reply, and what else might have been said."""

    _lens_turn: Turn | None = None
    _scored: Turn | None = None
    _lens_note = ""

    @property
    def ribbon(self) -> TokenRibbon | None:
        """The ribbon, while the lens is open."""
        found = self.query("#ribbon")
        return found.first(TokenRibbon) if found else None

    def wants_alternatives(self) -> bool:
        """See `ReplyPart`. A backend that cannot compute them afterwards, as a server, is asked at once."""
        return self._lens_turn is not None or not hasattr(self.backend, "score")

    async def action_toggle_lens(self) -> None:
        """Open the lens under the chosen or last reply, or close it."""
        if await self.close_lens():
            self.prompt.focus()
        elif self.chosen_turn is not None:
            await self.open_lens(self.chosen_turn)

    async def close_lens(self) -> bool:
        """Close the lens; returns whether it was open."""
        was_open = self._lens_turn is not None
        self._lens_turn = None
        await self.query("#ribbon").remove()
        self.show_widget("#alternatives", False)
        return was_open

    async def open_lens(self, turn: Turn) -> None:
        """Show the tokens of a turn; what is not known is computed where that is possible."""
        await self.close_lens()
        self._lens_turn = turn
        tokens = turn.all_tokens
        self._lens_note = ""
        writing = self.generation is not None and turn is self.conversation.last
        can_branch = self.ready and self.backend.can_continue(chat=self.conversation.is_chat)
        complete = bool(tokens) and all(token.top for token in tokens if token.id is not None or token.top)
        scorer: Scorer | None = getattr(self.backend, "score", None)
        if not complete and not writing and turn.reply and self.ready and scorer is not None:
            self._lens_note = "computing …"
            self._score(turn, scorer)
        elif not any(token.logprob is not None for token in tokens) and not writing:
            self._lens_note = (
                "this server sent no probabilities"
                if tokens
                else "the probabilities were not kept; Ctrl+R writes the reply anew with them"
            )
        view = self.transcript.view_of(turn)
        if view is None:
            await self.transcript.reveal(self.conversation.turns.index(turn))
            view = self.transcript.view_of(turn)
        ribbon = TokenRibbon(self.conversation.turns.index(turn), tokens, can_branch=can_branch, id="ribbon")
        await self.transcript.mount(ribbon, after=view)
        self.show_widget("#alternatives", True)
        ribbon.focus()
        ribbon.scroll_visible(animate=False)
        ribbon.reset_choice()

    def _score(self, turn: Turn, scorer: Scorer) -> None:
        """Compute the probabilities of a finished reply in a thread."""
        index = self.conversation.turns.index(turn)
        before = self.conversation.up_to(index)
        tokens = turn.all_tokens
        ids = tuple(token.id for token in tokens if token.id is not None)
        exact = ids if len(ids) == len(tokens) else ()
        request = replace(before.request(self.settings), prefix=turn.reply, prefix_ids=exact)
        wanted = self.preferences.chat.alternatives

        def work() -> None:
            try:
                scored = scorer(request, wanted)
            except Exception as exc:
                self.post_message(messages.LensScored(turn, (), explain(exc)))
            else:
                self.post_message(messages.LensScored(turn, tuple(scored)))

        threading.Thread(target=work, name="lens", daemon=True).start()

    @on(messages.LensScored)
    def _lens_scored(self, event: messages.LensScored) -> None:
        ribbon = self.ribbon
        turn = self._lens_turn
        if ribbon is None or turn is None or event.turn is not turn:
            return
        if event.error is not None:
            self._lens_note = event.error
        else:
            self._lens_note = ""
            self._take(turn, event.tokens)
            ribbon.show(event.tokens)
        ribbon.reset_choice()

    @staticmethod
    def _take(turn: Turn, tokens: Sequence[Token]) -> None:
        """Remember scored tokens, so that a branch can use them; the parts of the reply become one."""
        if "".join(token.text for token in tokens) == turn.reply and not turn.thinking:
            turn.parts[:] = [turn.reply]
            turn.tokens = [list(tokens)]

    def reply_grew(self) -> None:
        """See `ReplyPart`: the ribbon grows with the reply."""
        ribbon, turn = self.ribbon, self._lens_turn
        if ribbon is not None and turn is not None and turn is self.conversation.last:
            ribbon.show(turn.all_tokens)

    @on(TokenRibbon.Moved)
    def _moved(self, event: TokenRibbon.Moved) -> None:
        rows = 8 if self.size.height >= 34 else 5
        self.query_one("#alternatives", Alternatives).show(event.ribbon, rows, self._lens_note)

    @on(messages.BranchChosen)
    async def _branch(self, event: messages.BranchChosen) -> None:
        chat = self.conversation.is_chat
        turns = self.conversation.turns
        if self.generation is not None or not self.ready or event.turn >= len(turns):
            self.app.bell()
            return
        if not self.backend.can_continue(chat=chat):
            self.say_error("This server cannot go on from the middle of a reply, so there is no branching here.")
            return
        if not turns[event.turn].all_tokens:
            self.say_error("The tokens of this reply are not known exactly; write it anew (Ctrl+R) and branch then.")
            return
        if not event.token.text:
            self.say_error("This token ends the reply or is part of a character; choose another one.")
            return
        old = self.info
        await self.close_lens()
        self.leave_session()
        turn = self.conversation.branch(event.turn, event.at, event.token)
        self.info = new_session(
            self.backend.name, is_chat=chat, settings=self.settings, parent=old.id if old is not None else None
        )
        self.store.hold(self.info.id)
        if old is not None:
            self.info = replace(self.info, title=f"{old.title} (branch)"[:200], titled=True)
        self.keep_all()
        await self.show_conversation()
        self.notify("A branch: the old session stays as it was (Ctrl+O).", timeout=4)
        await self.go_on()
        await self.open_lens(turn)
