"""A backend that computes here, on the engine.

Nothing is imported or read before `load`: constructing one costs nothing, so that the application can paint first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from threading import Event as CancelEvent
from threading import Lock
from typing import TYPE_CHECKING, Any

from nanochat_tui.chat.backend import (
    BackendError,
    Event,
    Finished,
    Message,
    Progress,
    Request,
    Started,
    Stats,
    Token,
    ToolCall,
    with_single_calls,
    without_calls,
)
from nanochat_tui.chat.context import Fitted, fit_messages, fit_text, reply_room
from nanochat_tui.errors import UserError
from nanochat_tui.model.chat.thinking import ThinkingSplitter
from nanochat_tui.model.chat.tools.calls import CallSplitter, template_messages
from nanochat_tui.model.chat.tools.formats import NoToolsError, ToolFormat
from nanochat_tui.model.chat.tools.grammar import call_grammar
from nanochat_tui.text import display_safe

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Activations, Model
    from nanochat_tui.engine.generate.session import Session
    from nanochat_tui.engine.generate.speculation import Mode
    from nanochat_tui.engine.run.paging import CacheType
    from nanochat_tui.engine.weights.adapters import LoraFile
    from nanochat_tui.formats.i2_s_layouts import Layout

_ENDLESS = 1 << 62
EMPTIED = "(left out: the context is full)"
STATS_INTERVAL = 0.25
"""Seconds between two `Stats` while a reply is being written; no user reads faster."""


def threads_next_to(others: int) -> int:
    """Threads for a model that shares the machine with programs computing on `others` threads: what those leave, but
    half of the usual number at least, and one. Threads that wait for each other are worst where all are in use: on two
    cores, a training next to a chat of two threads is 19 times slower, next to one of one thread 4 times.
    """
    from nanochat_tui.system import default_threads

    usual = default_threads()
    return max(1, usual // 2, usual - others)


def _reply_ids(prompt: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Return the tokens of `whole`, a prompt and its reply, that belong to the reply: those beyond its common beginning
    with `prompt`, for the prompt's last token may be another one with the reply behind it.
    """
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    return list(whole[common:])


class LocalBackend:
    """One model file in this process, with its key-value cache kept from request to request."""

    def __init__(
        self,
        path: Path,
        *,
        mhc: Path | None = None,
        tokenizer: Path | None = None,
        threads: int | None = None,
        context: int | None = None,
        kv: CacheType = "f16",
        i2s_layout: Layout = "x86",
        speculation: Mode = "auto",
        activations: Activations = "int8",
        lora: Sequence[LoraFile] = (),
    ) -> None:
        self.path = path
        self._kv: CacheType = kv
        self._i2s_layout: Layout = i2s_layout
        self._context = context
        self._speculation: Mode = speculation
        self._activations: Activations = activations
        self._lora = lora
        self._mhc = mhc
        self._tokenizer = tokenizer
        self._threads = threads
        self._loaded: tuple[Model, Session] | None = None
        self._lock = Lock()
        self.trail: list[int] = []
        """The tokens of the last request and of its reply, as far as they came."""

    @property
    def mhc(self) -> Path | None:
        """The mHC sidecar that was given."""
        return self._mhc

    @property
    def model(self) -> Model:
        """The engine's model. Raises `BackendError` before `load`."""
        return self._ready()[0]

    def _ready(self) -> tuple[Model, Session]:
        if self._loaded is None:
            raise BackendError("The model is not loaded yet; load it first.")
        return self._loaded

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def kernel(self) -> str:
        """Name of the kernel chosen for this processor."""
        return self.model.kernel

    @property
    def threads(self) -> int:
        """Threads the engine computes with."""
        return self.model.threads

    @property
    def context_size(self) -> int:
        """Tokens that a conversation may have, prompt and reply together: what was asked for, or the model's own."""
        return self.model.context_length

    @property
    def is_chat(self) -> bool:
        """Whether the file brings a chat template."""
        return self.model.chat_template is not None

    @property
    def scorer(self) -> LocalBackend:
        """The engine computes probabilities of any text."""
        return self

    def close(self) -> None:
        """Nothing is connected; the model's memory is freed with its last user, which may be a thread."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for, which may be a part of a character. Raises `BackendError` before
        `load`.
        """
        return self.model.codec.token_bytes(token)

    def can_continue(self, *, chat: bool) -> bool:
        """Every reply can go on from any of its tokens."""
        return True

    def load(self, progress: Progress | None = None) -> None:
        """Map the file and make the kernels ready; the second call does nothing. Raises `UserError`."""
        with self._lock:
            if self._loaded is not None:
                return
            from nanochat_tui.engine.generate.model import load
            from nanochat_tui.engine.generate.session import Session

            try:
                model = load(
                    self.path,
                    mhc=self._mhc,
                    tokenizer=self._tokenizer,
                    threads=self._threads,
                    context=self._context,
                    kv=self._kv,
                    i2s_layout=self._i2s_layout,
                    speculation=self._speculation,
                    activations=self._activations,
                    lora=self._lora,
                    progress=progress,
                )
                self._loaded = model, Session(model)
            except MemoryError as exc:
                raise BackendError(
                    f"There is not enough memory to load {display_safe(self.path.name)}; use a smaller model."
                ) from exc
            except OSError as exc:
                raise BackendError(f"Cannot read {display_safe(str(self.path))}: {exc.strerror or exc}.") from exc

    def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        """Answer a request; see `Backend.chat`. A second request waits until the first is over."""
        self.load()
        model, session = self._ready()
        with self._lock:
            form, request, reason = _with_form(model, request)
            emptied = 0
            try:
                fitted = self._fit(model, request)
            except BackendError:
                if any(message.role == "tool" for message in request.messages):
                    request, emptied = _without_results(request)
                elif form is not None:
                    form, request = None, replace(request, tools=())
                    reason = f"their definitions do not fit into the context of {self.context_size} tokens"
                else:
                    raise
                fitted = self._fit(model, request)
            yield Started(len(fitted.ids), fitted.dropped_messages + emptied, fitted.dropped_tokens, reason)
            events = self._generate(session, fitted.ids, request, cancel, form)
            yield from events if form is None else _with_calls(events, form, request)

    def count(self, text: str) -> int:
        """Return how many tokens a text has. Raises `BackendError` before `load`."""
        return len(self.model.codec.encode(text, bos=False, special=False))

    def reading(self) -> Stats | None:
        """See `Backend.reading`."""
        if self._loaded is None:
            return None
        session = self._loaded[1]
        done = session.stats
        seconds = done.prompt_seconds  # written last, and read first
        if not seconds or done.generated_tokens:
            return None
        return Stats(done.prompt_tokens / seconds, None, session.position, self.context_size)

    def score(self, request: Request, top: int) -> list[Token]:
        """Return the tokens of a reply that exists, `request.prefix`, with probabilities and `top` alternatives.

        They follow what the model had read when it wrote them, as far as the context holds both.
        """
        self.load()
        model, _ = self._ready()
        with self._lock:
            _, request, _ = _with_form(model, request)
            bare = replace(request, prefix="", prefix_ids=())
            # what is the reply is seen in the whole texts: two that were fitted have lost different beginnings
            prompt, whole = (self._fit(model, r, size=_ENDLESS).ids for r in (bare, request))
            reply = _reply_ids(prompt, whole)
            before = self._fit(model, bare).ids
            ids = [*before[: len(before) + len(whole) - len(reply) - len(prompt)], *reply]
            if len(ids) > self.context_size:  # a reply that was continued
                ids = self._fit(model, request, room=0).ids
            return model.score(ids, start=max(1, len(ids) - len(reply)), top=top)

    def _fit(self, model: Model, request: Request, *, size: int | None = None, room: int | None = None) -> Fitted:
        size = self.context_size if size is None else size
        room = reply_room(size, request.max_tokens) if room is None else room
        if request.suffix is not None:
            before = (request.prompt or "") + request.prefix
            infill, dropped = model.codec.encode_infill(before, request.suffix, room=max(1, size - room))
            return Fitted(infill, dropped_tokens=dropped)
        options: dict[str, Any] = {"prefix": request.prefix, "prefix_ids": request.prefix_ids}
        from nanochat_tui.model.chat.template import ChatTemplateError  # a base model needs no Jinja

        prompts = model.prompts
        tools = [tool.plain for tool in request.tools] or None

        def encode(messages: Sequence[Message]) -> list[int]:
            try:
                return prompts.messages_ids(template_messages([m.plain for m in messages]), tools=tools, **options)
            except ChatTemplateError:
                single = with_single_calls(messages)
                if len(single) == len(messages):
                    raise
                return prompts.messages_ids(template_messages([m.plain for m in single]), tools=tools, **options)

        if request.messages and prompts.template is not None:
            return fit_messages(request.messages, encode, size, room)
        ids = encode(request.messages) if request.prompt is None else prompts.text_ids(request.prompt, **options)
        if not ids:
            raise UserError("The prompt is empty and this model has no begin-of-text token; write something.")
        codec = model.codec
        keep_first = codec.bos is not None and ids[0] == codec.bos
        return fit_text(ids, size, room, keep_first=keep_first, ends_line=lambda i: codec.decode([i]).endswith("\n"))

    def _generate(
        self, session: Session, ids: list[int], request: Request, cancel: CancelEvent, form: ToolFormat | None
    ) -> Iterator[Event]:
        started = time.perf_counter()
        first: float | None = None
        shown = started
        count = 0

        def stats() -> Stats:
            s = session.stats
            return Stats(
                prompt_tps=s.prompt_tps,
                decode_tps=s.decode_tps,
                context_used=session.position,
                context_size=self.context_size,
                generated=count,
                seconds_to_first_token=None if first is None else first - started,
                drafted=s.drafted_tokens,
                accepted=s.accepted_tokens,
            )

        most = max(1, min(self.context_size - len(ids), request.max_tokens or self.context_size))
        grammar = request.grammar
        if form is not None and request.tool_choice == "required":
            grammar = call_grammar(form, _schemas(request), choice="required", parallel=True)
        if request.messages and not request.prefix:
            grammar = self.model.prompts.constrained(grammar, ids)
        stream = session.generate(ids, replace(request, max_tokens=most, grammar=grammar, tools=()), cancel=cancel)
        split = self._splitter(request, ids)
        self.trail = trail = list(ids)
        for token in stream:
            now = time.perf_counter()
            count += 1
            if token.id is not None:
                trail.append(token.id)
            if first is None:
                first = now
            yield from split.token(token if request.wants_logprobs else replace(token, logprob=None))
            if now - shown >= STATS_INTERVAL:
                shown = now
                yield stats()
        yield from split.rest()
        yield stats()
        yield Finished(session.finish_reason)

    def _splitter(self, request: Request, ids: list[int]) -> ThinkingSplitter:
        if not request.messages:
            return ThinkingSplitter(None)
        prompts = self.model.prompts
        return prompts.continued(inside=request.prefix_thinking) if request.prefix else prompts.splitter(ids)


def _with_form(model: Model, request: Request) -> tuple[ToolFormat | None, Request, str]:
    """Return how calls of the request's tools are written, None without tools; the request as the model can take it;
    and why the tools were left out, '' if they were not.
    """
    talks = any(message.role == "tool" for message in request.messages)
    if not request.tools and not talks:
        return None, request, ""
    try:
        form = model.prompts.tool_format()
    except NoToolsError as error:
        reason = str(error) if request.tools else ""
        return None, replace(request, tools=(), messages=without_calls(request.messages)), reason
    return form if request.tools else None, request, ""


def _without_results(request: Request) -> tuple[Request, int]:
    """Return the request without what tools answered but for the last of them, and how many results were emptied."""
    old = [place for place, message in enumerate(request.messages) if message.role == "tool"][:-1]
    messages = list(request.messages)
    for place in old:
        messages[place] = replace(messages[place], content=EMPTIED)
    return replace(request, messages=tuple(messages)), len(old)


def _schemas(request: Request) -> dict[str, Any]:
    return {tool.name: tool.parameters for tool in request.tools}


def _with_calls(events: Iterator[Event], form: ToolFormat, request: Request) -> Iterator[Event]:
    """Find the calls of tools in the answer; a token whose text is a part of one keeps its place, without text."""
    split = CallSplitter(form, _schemas(request))

    def parted(found: Iterator[str | ToolCall], token: Token) -> Iterator[Event]:
        pieces = list(found)
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        if text or token.id is not None:
            yield replace(token, text=text)
        yield from (piece for piece in pieces if isinstance(piece, ToolCall))

    for event in events:
        if isinstance(event, Token) and not event.thinking:
            yield from parted(split.feed(event.text), event)
            continue
        if isinstance(event, Finished):
            yield from parted(split.rest(), Token(""))
        yield event
