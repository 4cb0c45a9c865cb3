"""The token lens under the transcript: probabilities of a reply, and what else might have been said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from nanochat_tui.chat.backend import Scorer, Token
from nanochat_tui.tui.background import Job
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.lens_view import Alternatives, TokenRibbon
from nanochat_tui.tui.chat.model_slot import ModelSlot
from nanochat_tui.tui.chat.session import ChatSession
from nanochat_tui.tui.chat.transcript import Transcript
from nanochat_tui.tui.keys import key_names


class LensPane(Alternatives):
    """Opens a ribbon of tokens under a turn of `transcript` and shows the alternatives of the token under its cursor.

    `writes` says whether the reply of a turn is being written.
    """

    def __init__(
        self, session: ChatSession, model: ModelSlot, transcript: Transcript, writes: Callable[[Turn], bool]
    ) -> None:
        super().__init__(id="alternatives", markup=False)
        self._session, self._model, self._transcript, self._writes = session, model, transcript, writes
        self.turn: Turn | None = None
        """The turn whose reply is looked at; None while the lens is closed."""
        self.note = ""
        """Why there are no probabilities, if there are none."""

    @property
    def ribbon(self) -> TokenRibbon | None:
        """The ribbon, while the lens is open."""
        found = self._transcript.query("#ribbon")
        return found.first(TokenRibbon) if found else None

    @property
    def wants_alternatives(self) -> bool:
        """Whether each token's alternatives are asked for: while the lens is open, and of a backend that cannot compute
        them afterwards, as a server.
        """
        return self.turn is not None or self._model.backend.scorer is None

    async def close(self) -> bool:
        """Close the lens; returns whether it was open."""
        was_open = self.turn is not None
        self.turn = None
        await self._transcript.query("#ribbon").remove()
        self.display = False
        return was_open

    async def close_without_ribbon(self) -> None:
        """Close the lens if the transcript it looked into shows something else."""
        if self.turn is not None and self.ribbon is None:
            await self.close()

    async def open(self, turn: Turn) -> None:
        """Show the tokens of a turn; what is not known is computed where that is possible."""
        await self.close()
        self.turn = turn
        tokens = turn.all_tokens
        self.note = ""
        model, conversation = self._model, self._session.conversation
        scorer = model.backend.scorer if model.ready else None
        complete = bool(tokens) and all(token.top for token in tokens if token.id is not None or token.top)
        writing = self._writes(turn)
        if not complete and not writing and turn.reply and not turn.calls and scorer is not None:
            self.note = "computing …"
            self._score(turn, scorer)
        elif not any(token.logprob is not None for token in tokens) and not writing:
            self.note = (
                "this server sent no probabilities"
                if tokens
                else key_names(self)(
                    "the probabilities were not kept; {chat.again|Ctrl+R} writes the reply again with them"
                )
            )
        index = conversation.turns.index(turn)
        view = self._transcript.view_of(turn)
        if view is None:
            await self._transcript.reveal(index)
            view = self._transcript.view_of(turn)
        can_branch = model.can_continue(chat=conversation.is_chat)
        bytes_of = scorer.token_bytes if scorer is not None else None
        ribbon = TokenRibbon(index, tokens, can_branch=can_branch, bytes_of=bytes_of, id="ribbon")
        await self._transcript.mount(ribbon, after=view)
        self.display = True
        ribbon.focus()
        ribbon.scroll_visible(animate=False)
        ribbon.reset_choice()

    def _score(self, turn: Turn, scorer: Scorer) -> None:
        """Compute the probabilities of a finished reply in a thread."""
        before = self._session.conversation.up_to(self._session.conversation.turns.index(turn))
        tokens = turn.all_tokens
        ids = tuple(token.id for token in tokens if token.id is not None)
        exact = ids if len(ids) == len(tokens) else ()
        request = replace(before.request(self._session.settings), prefix=turn.reply, prefix_ids=exact)
        wanted = self._session.preferences.chat.alternatives
        Job(
            self,
            lambda _: scorer.score(request, wanted),
            done=partial(self._scored, turn),
            failed=partial(self._not_scored, turn),
            name="lens",
        ).start()

    def _scored(self, turn: Turn, tokens: Sequence[Token]) -> None:
        ribbon = self.ribbon
        if ribbon is None or turn is not self.turn:
            return
        self.note = ""
        # remembered, so that a branch can use them; the parts of the reply become one
        if "".join(token.text for token in tokens) == turn.reply and not turn.thinking:
            turn.parts[:] = [turn.reply]
            turn.tokens = [list(tokens)]
        ribbon.show(tokens)
        ribbon.reset_choice()

    def _not_scored(self, turn: Turn, error: str) -> None:
        if self.ribbon is not None and turn is self.turn:
            self.note = error
            self.ribbon.reset_choice()

    def reply_grew(self) -> None:
        """More of the last reply is there: the ribbon grows with it."""
        ribbon, turn = self.ribbon, self.turn
        if ribbon is not None and turn is not None and turn is self._session.conversation.last:
            ribbon.show(turn.all_tokens)

    def follow(self, ribbon: TokenRibbon) -> None:
        """Show the alternatives of the token under the ribbon's cursor."""
        self.show(ribbon, 8 if self.screen.size.height >= 34 else 5, self.note)
