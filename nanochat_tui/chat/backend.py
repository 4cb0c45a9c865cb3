"""What a conversation is made of, and the protocol every backend speaks.

A backend knows how to turn a `Request` into a stream of events. It does not know who is listening: the
terminal, a script or a test. Cancelling is cooperative, through a `threading.Event` looked at before every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as CancelEvent  # `Event` is what a backend sends
from typing import Any, Literal, Protocol

from nanochat_tui.errors import UserError
from nanochat_tui.model.chat.tools.calls import ToolCall
from nanochat_tui.request import FinishReason, GenerationRequest, Token

__all__ = [
    "Backend",
    "BackendError",
    "CancelEvent",
    "Event",
    "FinishReason",
    "Finished",
    "Message",
    "Progress",
    "Request",
    "Role",
    "Started",
    "Stats",
    "Token",
    "TooLongError",
    "ToolCall",
    "ToolSpec",
    "estimated_tokens",
    "with_single_calls",
    "without_calls",
]

Role = Literal["system", "user", "assistant", "tool"]
Progress = Callable[[str], None]
"""Receives one short line about what is being done, such as "compiling kernels"; called from the loading thread."""
NOTE, WARNING = "note: ", "warning: "
"""How such a line begins that has to be seen after the next one too: what was assumed, and what is a danger."""


class BackendError(UserError):
    """A backend could not answer; the text says why and what to do."""

    exit_code = 1


class TooLongError(BackendError):
    """This message does not fit into the context; others may."""


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has, rather too many: three bytes each, where text has four or more."""
    return len(text.encode("utf-8", "replace")) // 3


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. The assistant's may hold calls of tools; a tool's answers the call `call_id`."""

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""
    """The tool that answers."""

    @property
    def plain(self) -> dict[str, Any]:
        """The message as OpenAI's protocol and chat templates have it."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            made["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.calls
            ]
        if self.role == "tool":
            made |= {"tool_call_id": self.call_id, "name": self.name}
        return made


def without_calls(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return a conversation without calls and answers of tools, for models that have no place for them."""
    made: list[Message] = []
    for message in messages:
        if message.role == "tool" or (message.calls and not message.content):
            continue
        if made and made[-1].role == message.role == "assistant":
            made[-1] = Message("assistant", f"{made[-1].content}\n\n{message.content}")
        else:
            made.append(Message(message.role, message.content))
    return tuple(made)


def with_single_calls(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return a conversation in which calls that were made together follow each other, each with its answer.

    For chat templates that take one call in a message, such as Llama 3's.
    """
    answers = {message.call_id: message for message in messages if message.role == "tool"}
    made: list[Message] = []
    for message in messages:
        if len(message.calls) > 1:
            for place, call in enumerate(message.calls):
                made.append(Message("assistant", "" if place else message.content, (call,)))
                made += [answers[call.id]] if call.id in answers else []
        elif message.role != "tool" or not _together(messages, message.call_id):
            made.append(message)
    return tuple(made)


def _together(messages: Sequence[Message], call_id: str) -> bool:
    return any(len(m.calls) > 1 and any(call.id == call_id for call in m.calls) for m in messages)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model may ask for; `parameters` is a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})

    @property
    def plain(self) -> dict[str, Any]:
        """The tool as OpenAI's protocol and chat templates have it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(GenerationRequest):
    """What a backend is asked to continue: a conversation, or a text as it stands.

    Exactly one of `messages` and `prompt` is given. `prompt` is continued raw, without a chat template.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    suffix: str | None = None
    """Text that follows what is to be written, with a prompt: for models that can fill in the middle."""
    prefix: str = ""
    """Beginning of the reply, already written, that the answer goes on from."""
    prefix_ids: tuple[int, ...] = ()
    """The tokens of `prefix` where they are known exactly; a backend that cannot use them goes by the text."""
    prefix_thinking: bool = False
    """Whether `prefix` ends inside the model's thinking."""
    logprobs: bool = False
    tools: tuple[ToolSpec, ...] = ()
    """What the model may call; its calls come as events. Left out, with a note, where the model has no place for it."""
    tool_choice: Literal["auto", "required"] = "auto"
    """Whether the reply may be text, or is at least one call."""

    def __post_init__(self) -> None:
        GenerationRequest.__post_init__(self)
        if (self.prompt is None) == (not self.messages):
            raise UserError("A request needs either messages or a prompt to continue, and not both.")
        if self.suffix is not None and self.prompt is None:
            raise UserError("A suffix goes with a text to continue, and not with a conversation; leave it out.")
        if self.tools and self.grammar is not None:
            raise UserError("Tools and a grammar of the reply exclude each other; leave one of them out.")
        if self.max_tokens == 0:
            raise UserError("max_tokens must be 1 or more, not 0.")
        if not all(self.stop):
            raise UserError("A stop string must not be empty; leave the option out instead.")


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt was accepted. Sent before the model reads it, so that a listener can say so."""

    prompt_tokens: int | None
    """None where a server does not tell before its reply is over."""
    dropped_messages: int = 0
    """Oldest messages left out because the context could not hold them."""
    dropped_tokens: int = 0
    """Tokens cut from the beginning of a raw prompt for the same reason."""
    no_tools: str = ""
    """Why the model was not told of the tools; '' if it was, or if there are none."""

    @property
    def note(self) -> str | None:
        """What was left out, in words; None when nothing was."""
        said = [
            text for text in (self._dropped, f"Tools are left out: {self.no_tools}." if self.no_tools else "") if text
        ]
        return " ".join(said) or None

    @property
    def _dropped(self) -> str:
        if self.dropped_messages:
            messages = "message no longer reaches" if self.dropped_messages == 1 else "messages no longer reach"
            return f"The context is full: the oldest {self.dropped_messages} {messages} the model."
        if self.dropped_tokens:
            tokens = "token no longer reaches" if self.dropped_tokens == 1 else "tokens no longer reach"
            return f"The context is full: the oldest {self.dropped_tokens} {tokens} the model."
        return ""


@dataclass(frozen=True, slots=True)
class Stats:
    """Speeds so far, in tokens per second; None before there is anything to measure."""

    prompt_tps: float | None
    decode_tps: float | None
    context_used: int
    context_size: int
    generated: int = 0
    seconds_to_first_token: float | None = None
    """From the request to the first token, loading excluded."""
    drafted: int = 0
    """Draft tokens; of them, `accepted` cost no pass of their own."""
    accepted: int = 0
    prompt_tokens: int | None = None
    """As a server tells it at the end of a reply; else `Started` has it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The reply is over: the model or a stop string ended it, a limit did, or the listener."""

    reason: FinishReason


Event = Started | Token | ToolCall | Stats | Finished


class Scorer(Protocol):
    """Computes the probabilities of a reply that is already there."""

    def score(self, request: Request, top: int) -> list[Token]:
        """Return the tokens of `request.prefix`, each with its log-probability and `top` alternatives. Raises
        `UserError`.
        """

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for, which may be a part of a character."""


class Backend(Protocol):
    """Anything that answers requests. The properties hold once `load` has returned, `path` and `scorer` before."""

    @property
    def name(self) -> str:
        """The model's name, for people."""

    @property
    def kernel(self) -> str:
        """What computes: a kernel's name, or the server's address."""

    @property
    def threads(self) -> int:
        """Threads that compute here; 0 when a server does."""

    @property
    def context_size(self) -> int:
        """Tokens of prompt and reply together; 0 when unknown."""

    @property
    def is_chat(self) -> bool:
        """Whether the model has a chat template; without one it continues text."""

    @property
    def path(self) -> Path | None:
        """The model's file; None where a server has it."""

    @property
    def scorer(self) -> Scorer | None:
        """What computes probabilities afterwards; None where they must be asked for with the reply."""

    def can_continue(self, *, chat: bool) -> bool:
        """Whether a reply (of a conversation, or of a raw text) can go on from a `Request.prefix`."""

    def reading(self) -> Stats | None:
        """How far the prompt of the running request was read, and how fast; None where that is not known, before its
        first part and after its last. May be called from any thread.
        """

    def count(self, text: str) -> int:
        """Return about how many tokens a text has; exact where the model is here."""

    def load(self, progress: Progress | None = None) -> None:
        """Make ready to answer; idempotent. Raises `UserError`."""

    def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        """Answer: `Started`, tokens with `Stats` and calls of tools among them, a last `Stats`, `Finished`.

        Raises `UserError`.
        """

    def close(self) -> None:
        """Close connections; nothing is asked afterwards."""
