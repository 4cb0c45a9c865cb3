"""What a conversation is made of, and the protocol every backend speaks.

A backend knows how to turn a `Request` into a stream of events. It does not know who is listening: the
terminal, a script or a test. Cancelling is cooperative, through a `threading.Event` looked at before every token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Event as CancelEvent  # `Event` is what a backend sends
from typing import Literal, Protocol

from nanochat_tui.errors import UserError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]
Progress = Callable[[str], None]
"""Receives one short line about what is being done, such as "compiling kernels"; called from the loading thread."""


class BackendError(UserError):
    """A backend could not answer; the text says why and what to do."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is chosen. Temperature 0 is greedy; the other defaults keep small models from looping.

    Raises `UserError` naming the first value that makes no sense.
    """

    temperature: float = 0.8
    top_k: int = 40
    """Keep this many of the likeliest tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the likeliest tokens that together hold this much probability; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one; 0 drops none."""
    repeat_penalty: float = 1.0
    """Divide (or, below zero, multiply) the logits of recent tokens by this; 1 changes nothing."""
    seed: int | None = None
    """Same seed, prompt and settings give the same text; None draws one."""

    def __post_init__(self) -> None:
        _demand("temperature", self.temperature, 0.0, 100.0)
        _demand("top-k", self.top_k, 0, 10_000_000)
        _demand("top-p", self.top_p, 0.0, 1.0, open_low=True)
        _demand("min-p", self.min_p, 0.0, 1.0)
        _demand("repeat-penalty", self.repeat_penalty, 0.0, 100.0, open_low=True)
        if self.seed is not None:
            _demand("seed", self.seed, 0, 2**63 - 1)


def _demand(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    inside = math.isfinite(value) and low <= value <= high and not (open_low and value == low)
    if not inside:
        least = f"above {low:g}" if open_low else f"{low:g} or more"
        most = f" and at most {high:g}" if high <= 100 else ""
        raise UserError(f"{name} must be {least}{most}, not {value}.")


@dataclass(frozen=True, slots=True)
class Request:
    """What a backend is asked to continue: a conversation, or a text as it stands.

    Exactly one of `messages` and `prompt` is given. `prompt` is continued raw, without a chat template.
    `max_tokens` None means as many as the context holds.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    max_tokens: int | None = 256
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    prefix: str = ""
    """Beginning of the reply, already written, that the answer goes on from."""
    prefix_ids: tuple[int, ...] = ()
    """The tokens of `prefix` where they are known exactly; a backend that cannot use them goes by the text."""
    prefix_thinking: bool = False
    """Whether `prefix` ends inside the model's thinking."""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise UserError("A request needs either messages or a prompt to continue, and not both.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max-tokens must be 1 or more, not {self.max_tokens}.")
        if any(not text for text in self.stop):
            raise UserError("A stop string must not be empty; leave the option out instead.")
        if self.top_logprobs < 0:
            raise UserError(f"top-logprobs must be 0 or more, not {self.top_logprobs}.")


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt was accepted. Sent before the model reads it, so that a listener can say so."""

    prompt_tokens: int
    dropped_messages: int = 0
    """Oldest messages left out because the context could not hold them."""
    dropped_tokens: int = 0
    """Tokens cut from the beginning of a raw prompt for the same reason."""

    @property
    def note(self) -> str | None:
        """What was left out, in words; None when nothing was."""
        if self.dropped_messages:
            messages = "message no longer reaches" if self.dropped_messages == 1 else "messages no longer reach"
            return f"The context is full: the oldest {self.dropped_messages} {messages} the model."
        if self.dropped_tokens:
            tokens = "token no longer reaches" if self.dropped_tokens == 1 else "tokens no longer reach"
            return f"The context is full: the oldest {self.dropped_tokens} {tokens} the model."
        return None


@dataclass(frozen=True, slots=True)
class Token:
    """One more token of the reply. `text` may be empty while a character is still incomplete."""

    text: str
    id: int | None = None
    logprob: float | None = None
    """Natural logarithm of the probability before temperature and truncation."""
    top: tuple[tuple[int, str, float], ...] = ()
    """Alternatives as (id, text, logprob), likeliest first; empty unless asked for. A server's have id -1."""
    thinking: bool = False
    """Whether the model is thinking aloud and not yet answering."""


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
    """Tokens guessed ahead; of them, `accepted` were right and so cost no pass of their own."""
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The reply is over: the model or a stop string ended it, a limit did, or the listener."""

    reason: FinishReason


Event = Started | Token | Stats | Finished


class Backend(Protocol):
    """Anything that answers requests. The properties hold once `load` has returned."""

    @property
    def name(self) -> str:
        """The model's name, for people."""

    @property
    def kernel(self) -> str:
        """What computes: a kernel's name, or the server's address."""

    @property
    def threads(self) -> int:
        """Threads that compute here; 0 when somebody else does."""

    @property
    def context_size(self) -> int:
        """Tokens of prompt and reply together; 0 when unknown."""

    @property
    def is_chat(self) -> bool:
        """Whether the model has a chat template; without one it continues text."""

    def can_continue(self, *, chat: bool) -> bool:
        """Whether a reply (of a conversation, or of a raw text) can go on from a `Request.prefix`."""

    def load(self, progress: Progress | None = None) -> None:
        """Make ready to answer; idempotent. Raises `UserError`."""

    def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        """Answer: `Started`, tokens with `Stats` among them, a last `Stats`, `Finished`. Raises `UserError`."""
