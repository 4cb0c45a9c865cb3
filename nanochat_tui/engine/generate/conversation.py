"""A reply as an iterator, and a conversation that keeps its messages: the library's two ways of receiving text."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from nanochat_tui.arguments import ArgumentError, described
from nanochat_tui.engine.generate.session import Session
from nanochat_tui.errors import UserError
from nanochat_tui.model.chat.prompt import Message
from nanochat_tui.request import FinishReason, GenerationRequest, SamplingParams, Stats, Token, shows_settings

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

ROLES = ("system", "user", "assistant", "tool")


class Generation(Iterator[Token], AsyncIterator[Token]):
    """A reply's tokens, one by one, in a `for` or an `async for`; knows afterwards why it ended (`finish_reason`).

    `cancel` may be called from any thread; `close`, or leaving a `with` block, ends the reply at once.
    """

    def __init__(self, session: Session, tokens: Iterator[Token], cancel: threading.Event) -> None:
        self._session = session
        self._tokens = tokens
        self._cancel = cancel
        self._parts: list[str] = []
        self._over = False

    def __next__(self) -> Token:
        try:
            token = next(self._tokens)
        except BaseException:
            self._over = True
            raise
        self._parts.append(token.text)
        return token

    async def __anext__(self) -> Token:
        import asyncio  # 20 ms that a first token in a `for` does not wait for

        token = await asyncio.to_thread(next, self, None)
        if token is None:
            raise StopAsyncIteration
        return token

    def __aiter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = self._session.finish_reason if self._over else "unfinished"
        return f"<Generation: {len(self._parts)} tokens, {state}>"

    @property
    def text(self) -> str:
        """The text received so far."""
        return "".join(self._parts)

    def read(self) -> str:
        """Wait for the end of the reply and return its whole text."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """Ask for the end of the reply before its next token, which gives the finish reason "cancelled"."""
        self._cancel.set()

    def close(self) -> None:
        """End the reply; iterating it further gives no token."""
        self._cancel.set()
        for _ in self._tokens:
            pass
        self._over = True

    @property
    def finish_reason(self) -> FinishReason:
        """Why the reply ended: "stop", "length" or "cancelled"."""
        return self._session.finish_reason

    @property
    def stats(self) -> Stats:
        """Token counts and seconds of this reply."""
        return self._session.stats


class Chat:
    """A conversation with a model: `send` a message, iterate the reply, and both are in `messages`.

    The key-value cache is kept, so that each turn only reads what is new. One thread at a time.
    """

    @shows_settings
    def __init__(
        self,
        model: Model,
        system: str | None = None,
        messages: Sequence[Message] = (),
        params: GenerationRequest | SamplingParams | None = None,
        *,
        enable_thinking: bool | None = None,
        **settings: Any,
    ) -> None:
        """Begin with a system message, or with messages of an earlier conversation.

        enable_thinking: for templates that ask; None is the template's own default. params, settings: those of
        `Model.generate`, for every reply. Raises UserError if the model has no chat template, or for impossible
        settings.
        """
        require_template(model)
        self.model = model
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages += checked_messages(messages) if messages else []
        self.enable_thinking = enable_thinking
        self.request = GenerationRequest.of(params, **settings)
        self._session = Session(model)

    def __repr__(self) -> str:
        return f"<Chat with {self.model.name}: {len(self.messages)} messages, {self._session.position} tokens>"

    @shows_settings
    def send(self, text: str, *, cancel: threading.Event | None = None, **settings: Any) -> Generation:
        """Add a user's message and return the reply; its text joins `messages` as it arrives.

        settings: over those of the conversation, for this reply alone. A reply that is cancelled or closed stays in
        `messages` as far as it came. Raises UserError, and adds nothing, if the conversation does not fit the context.
        """
        if not isinstance(text, str):
            raise ArgumentError(f"the message is {described(text)} and must be text")
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = prompt_ids(self.model, messages, enable_thinking=self.enable_thinking)
        reply: dict[str, Any] = {"role": "assistant", "content": ""}
        request = answering(self.model, GenerationRequest.of(self.request, **settings), ids)
        generation = begin_reply(self._session, ids, request, cancel, reply)
        self.messages = [*messages, reply]
        return generation


class _Recorded(Generation):
    """A reply whose text goes into a message too."""

    def __init__(
        self, session: Session, tokens: Iterator[Token], cancel: threading.Event, message: dict[str, Any]
    ) -> None:
        super().__init__(session, tokens, cancel)
        self._message = message

    def __next__(self) -> Token:
        token = super().__next__()
        self._message["content"] += token.text
        return token


def begin_reply(
    session: Session,
    ids: Sequence[int],
    request: GenerationRequest,
    cancel: threading.Event | None = None,
    into: dict[str, Any] | None = None,
) -> Generation:
    """Begin a reply of a session; `into` is a message that receives its text. Raises as `Session.generate`."""
    cancel = cancel or threading.Event()
    tokens = session.generate(ids, request, cancel=cancel)
    if into is None:
        return Generation(session, tokens, cancel)
    return _Recorded(session, tokens, cancel, into)


def answering(model: Model, request: GenerationRequest, ids: Sequence[int]) -> GenerationRequest:
    """Return the request for an answer to a conversation's prompt: its grammar begins behind what the model thinks."""
    if request.grammar is None:
        return request
    return replace(request, grammar=model.prompts.constrained(request.grammar, ids))


def require_template(model: Model) -> None:
    """Raise UserError if the model has no template that turns messages into a prompt."""
    if model.chat_template is None:
        raise UserError(
            f"{model.name} has no chat template, so it only continues text; use Model.generate with a text instead"
        )


def checked_messages(messages: Sequence[Message]) -> list[Message]:
    """Return messages after looking at their form. Raises ArgumentError or UserError, naming what is wrong."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ArgumentError('messages is a list such as [{"role": "user", "content": "Hello"}]')
    if not messages:
        raise UserError("there is no message to answer; give at least one")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ArgumentError(f"message {number} must be a dictionary with a role and content, both text")
        if message.get("role") not in ROLES:
            raise UserError(f"message {number} has no role that is known; it is one of {', '.join(ROLES)}")
    return list(messages)


def prompt_ids(model: Model, messages: Sequence[Message], *, enable_thinking: bool | None = None) -> list[int]:
    """Return the ids of the prompt for the next reply. Raises UserError as `checked_messages` and `render`."""
    checked = checked_messages(messages)
    require_template(model)
    return model.prompts.messages_ids(checked, enable_thinking=enable_thinking)
