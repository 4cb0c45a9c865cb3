"""A backend that asks a server: anything that speaks OpenAI's protocol, streaming.

Nothing is sent before `load`. Speeds are measured here, at the client, unless the server tells its own.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event as CancelEvent
from typing import Any

import httpx

from nanochat_tui.chat.backend import (
    WARNING,
    BackendError,
    Event,
    Finished,
    Progress,
    Request,
    Started,
    Stats,
    Token,
    estimated_tokens,
    without_calls,
)
from nanochat_tui.chat.remote.events import ServerEvent
from nanochat_tui.chat.remote.http import (
    CONNECT_TRIES,
    RefusedError,
    Stream,
    base_url,
    client,
    explain_failure,
    get_json,
    hidden,
    shown_url,
)
from nanochat_tui.chat.remote.http import RETRY_SECONDS as CONNECT_PAUSE
from nanochat_tui.chat.remote.keys import api_key, key_warning
from nanochat_tui.chat.remote.stream import Reply, without_halves
from nanochat_tui.errors import UserError
from nanochat_tui.model.chat.families import THINKING
from nanochat_tui.model.chat.thinking import ThinkingSplitter
from nanochat_tui.request import SAMPLING, Grammar, SamplingParams
from nanochat_tui.text import display_safe

STATS_INTERVAL = 0.25
PREFILLING = ("nanochat", "llamacpp", "vllm")
"""Servers that go on from the last message when it is the assistant's, by what they call themselves."""
_MISSING = (404, 405, 501)
_REFUSED = (400, 422)
_FORBIDDEN = (403, 501)
"""How some servers refuse probabilities of certain models."""
_LOOK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """One entry of a server's list. `context` is 0 and `is_chat` None where the server does not tell."""

    id: str
    owner: str = ""
    context: int = 0
    is_chat: bool | None = None
    kernel: str = ""
    status: str = ""
    """Of servers with several models: loaded, unloaded and the like; such a server loads what is asked for."""


class RemoteBackend:
    """One model of one server. Raises `UserError` if `url` is no address."""

    threads = 0
    path = None
    scorer = None

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 120.0,
        connect_timeout: float = 10.0,
    ) -> None:
        self.url = base_url(url)
        self._wanted = model
        self._key = api_key
        self._timeouts = (timeout, connect_timeout)
        self._http: httpx.Client | None = None
        self._model: RemoteModel | None = None
        self._completes: bool | None = None
        self._plain = False
        """Whether the server refused fields that are not OpenAI's own."""
        self._no_logprobs = False
        """Whether it refused to tell probabilities."""
        self._no_tools = ""
        """Why it refused tools, '' if it did not."""
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name, or the server's address before it is known; of a file's path, which some servers give
        as the name, the file's own.
        """
        if self._model is not None:
            return _last_part(self._model.id)
        return self._wanted or self.kernel.partition("://")[2]

    @property
    def model_id(self) -> str:
        """What the server itself calls the model."""
        return self._ready().id

    @property
    def kernel(self) -> str:
        """The server's address, without a password in it."""
        return shown_url(self.url)

    @property
    def context_size(self) -> int:
        """The context as the server tells it; 0 if it does not."""
        return self._ready().context

    @property
    def is_chat(self) -> bool:
        """Whether the model answers messages; believed unless the server says otherwise."""
        return self._ready().is_chat is not False

    def can_continue(self, *, chat: bool) -> bool:
        """Whether a reply can go on: conversations where the server is known for it, texts by /v1/completions.

        What `load` found; asks nothing.
        """
        return self._ready().owner in PREFILLING if chat else self._completes is True

    def _ready(self) -> RemoteModel:
        if self._model is None:
            raise BackendError("The server was not asked yet; load it first.")
        return self._model

    def load(self, progress: Progress | None = None) -> None:
        """Ask the server for its models and take the one wanted, or the first. Raises `UserError`."""
        with self._lock:
            if self._model is not None:
                return
            if progress is not None and (warning := key_warning(self.url, self._api_key())):
                progress(WARNING + warning)
            self._model = self._chosen(progress)
            self._look_for_completions()

    def _chosen(self, progress: Progress | None) -> RemoteModel:
        """Return the model wanted, or the first. A server that lists none is believed to have the one that is named."""
        unlisted = RemoteModel(self._wanted or "")
        try:
            models = self._models(progress)
        except RefusedError as exc:
            if exc.status not in _MISSING:
                raise
            if self._wanted:
                return unlisted
            raise BackendError(
                f"The server at {self.kernel} has no list of models (status {exc.status}); name one as MODEL, and "
                "check the address."
            ) from None
        if not models and not self._wanted:
            raise BackendError(f"The server at {self.kernel} offers no model; start it with one, or name it as MODEL.")
        ready = next((m for m in models if m.status == "loaded"), None) if self._wanted is None else None
        found = ready or next((m for m in models if self._wanted in (None, m.id)), None if models else unlisted)
        if found is None:
            offered = ", ".join(display_safe(m.id, 60) for m in models[:8])
            raise UserError(f"The server has no model {display_safe(self._wanted or '')}; it offers {offered}.")
        return found

    def list_models(self) -> list[RemoteModel]:
        """Return the models the server offers. Raises `BackendError`."""
        return self._models(None)

    def count(self, text: str) -> int:
        """Return an estimate: not every server tells."""
        return estimated_tokens(text)

    def reading(self) -> Stats | None:
        """Servers do not tell how far they have read."""
        return None

    def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            self._http.close()

    # Asking

    def _client(self) -> httpx.Client:
        if self._http is None:
            timeout, connect = self._timeouts
            self._http = client(self.url, self._api_key(), timeout=timeout, connect_timeout=connect)
        return self._http

    def _api_key(self) -> str | None:
        return self._key or api_key(self.url)

    def _models(self, progress: Progress | None) -> list[RemoteModel]:
        http = self._client()
        for attempt in range(CONNECT_TRIES):
            if progress is not None:
                progress(f"asking {self.kernel}" + (f", attempt {attempt + 1} of {CONNECT_TRIES}" if attempt else ""))
            try:
                data, moved = get_json(http, "/v1/models")
                break
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                if attempt == CONNECT_TRIES - 1:
                    raise explain_failure(exc, self.url, begun=False) from exc
                time.sleep(CONNECT_PAUSE * (attempt + 1))
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise explain_failure(exc, self.url, begun=False) from exc
        if moved is not None:
            self.url = moved
            http.base_url = httpx.URL(moved)
        cards = next((data[key] for key in ("data", "models") if key in data), ...) if isinstance(data, dict) else data
        if cards is ... or not isinstance(cards, list | None):
            raise BackendError(f"{self.kernel} is no OpenAI-compatible server; check the address.")
        found = [_model(card if isinstance(card, dict) else {"id": card}) for card in cards or ()]
        return [model for model in found if model.id]

    def _look_for_completions(self) -> None:
        """See whether /v1/completions exists: an empty request is refused by one that does, and unknown to others."""
        with contextlib.suppress(httpx.HTTPError):
            status = self._client().post("/v1/completions", json={}, timeout=_LOOK_SECONDS).status_code
            self._completes = status not in _MISSING

    def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        """Answer a request; see `Backend.chat`."""
        self.load()
        if request.messages and request.prefix and not self.can_continue(chat=True):
            raise UserError("This server cannot go on from the middle of a reply; write it again instead.")
        before, refusal = (self._plain, self._no_logprobs, self._no_tools), None
        while True:
            try:
                yield from self._ask(request, cancel)
                return
            except RefusedError as exc:
                refusal = refusal or exc
                if not self._ask_for_less(request, exc):
                    self._plain, self._no_logprobs, self._no_tools = before
                    raise refusal from None

    def _ask_for_less(self, request: Request, exc: RefusedError) -> bool:
        """Leave out what a server may have refused: fields that are not OpenAI's, probabilities last.
        Returns whether there was anything.
        """
        tells = bool(request.top_logprobs) and not self._no_logprobs
        minds = "logprob" in str(exc).lower() or exc.status in _FORBIDDEN or self._plain
        calls = any(message.role == "tool" for message in request.messages) or bool(request.tools)
        if exc.status in (*_REFUSED, *_FORBIDDEN) and tells and minds:
            self._no_logprobs = True
        elif exc.status in (*_REFUSED, *_MISSING, 500) and calls and not self._no_tools and "tool" in str(exc).lower():
            self._no_tools = f"the server refuses them ({display_safe(str(exc), 160).rstrip('.')})"
        elif exc.status in _REFUSED and not self._plain:
            self._plain = True
        else:
            return False
        return True

    def _ask(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        stream = Stream(self._client(), *self._body(request), cancel)
        reply = Reply(alternatives=request.top_logprobs, offered=bool(request.tools) and not self._no_tools)
        meter = _Meter(reply, self.context_size)
        split = ThinkingSplitter(THINKING[0] if request.messages else None, begun=bool(request.prefix))
        split.inside = split.inside or (request.prefix_thinking and bool(request.messages))

        def shown(tokens: Iterator[Token]) -> Iterator[Event]:
            for token in tokens:
                stream.begun = True
                due = meter.count()
                yield from (token,) if token.thinking else split.token(token)
                if due:
                    yield meter.stats()

        started = False
        for event in stream.events():
            if not started:
                started = True
                yield Started(None, no_tools=self._no_tools if request.tools else "")
            yield from shown(self._tokens(reply, event))
            if reply.done:
                break
        if not started:
            yield Started(None)
        yield from shown(reply.end())
        yield from split.rest()
        if cancel.is_set():
            yield meter.stats()
            yield Finished("cancelled")
            return
        if not reply.done and reply.reason is None:
            raise BackendError(
                f"The server at {self.kernel} broke off in mid-reply; what had come is kept."
                if meter.tokens
                else f"The server at {self.kernel} ended without a word; its log may say why."
            )
        if reply.complaint:
            raise BackendError(self._hidden(reply.complaint))
        yield from reply.made_calls()
        yield meter.stats()
        yield Finished(reply.reason or "stop")

    def _tokens(self, reply: Reply, event: ServerEvent) -> Iterator[Token]:
        try:
            yield from reply.feed(event)
        except BackendError as exc:
            raise BackendError(self._hidden(str(exc))) from exc

    def _hidden(self, said: str) -> str:
        """Return what a server said, without the key."""
        return hidden(said, self._client().headers)

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of a request."""
        alternatives = 0 if self._no_logprobs else min(20, request.top_logprobs)
        body: dict[str, Any] = {"model": self.model_id, "stream": True} | self._sampling(request.sampling)
        if not self._plain:
            body["stream_options"] = {"include_usage": True}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.stop:
            body["stop"] = list(request.stop)
        if request.grammar is not None:
            body |= _constraint(request.grammar)
        if request.messages:
            said = without_calls(request.messages) if self._no_tools else request.messages
            messages = [{**m.plain, "content": without_halves(m.content)} for m in said]
            if self._plain:  # OpenAI's own messages of tools have no name
                messages = [{key: value for key, value in m.items() if key != "name"} for m in messages]
            if request.prefix:
                messages.append({"role": "assistant", "content": without_halves(request.prefix)})
                body |= {"continue_final_message": True, "add_generation_prompt": False}
            body["messages"] = messages
            if request.tools and not self._no_tools:
                body["tools"] = [tool.plain for tool in request.tools]
                if request.tool_choice != "auto":
                    body["tool_choice"] = request.tool_choice
            if alternatives:
                body |= {"logprobs": True, "top_logprobs": alternatives}
            return "/v1/chat/completions", body
        body["prompt"] = without_halves((request.prompt or "") + request.prefix)
        if request.suffix is not None:
            body["suffix"] = without_halves(request.suffix)
        if alternatives:
            body["logprobs"] = alternatives
        return "/v1/completions", body

    def _sampling(self, sampling: SamplingParams) -> dict[str, Any]:
        """Return OpenAI's fields, and those that others add as far as they say anything."""
        values = {name: getattr(sampling, name) for name, one in SAMPLING.items() if one.openai or not self._plain}
        return {name: value for name, value in values.items() if value != SAMPLING[name].unsent}


class _Meter:
    """Measures a reply as it comes; what the server tells itself goes before."""

    def __init__(self, reply: Reply, context_size: int) -> None:
        self._reply, self._context_size = reply, context_size
        self._began = self._shown = time.perf_counter()
        self._first: float | None = None
        self.tokens = 0
        """Tokens that came, as far as the server sends them one by one."""

    def count(self) -> bool:
        """Count a token; return whether it is time to show the figures again."""
        now = time.perf_counter()
        self._first = now if self._first is None else self._first
        self.tokens += 1
        due = now - self._shown >= STATS_INTERVAL
        self._shown = now if due else self._shown
        return due

    def stats(self) -> Stats:
        """Return the figures so far."""
        reply, first = self._reply, self._first
        generated = max(self.tokens, reply.completion_tokens or 0)
        since = time.perf_counter() - first if first is not None else 0.0
        waited = first - self._began if first is not None else 0.0
        prompt = reply.prompt_tokens
        return Stats(
            prompt_tps=reply.prompt_tps or (prompt / waited if prompt and waited > 0 else None),
            decode_tps=reply.decode_tps or ((generated - 1) / since if generated > 1 and since > 0 else None),
            context_used=(prompt or 0) + generated,
            context_size=self._context_size,
            generated=generated,
            seconds_to_first_token=waited if first is not None else None,
            drafted=reply.drafted,
            accepted=reply.accepted,
            prompt_tokens=prompt,
        )


def _last_part(name: str) -> str:
    path = name.startswith(("/", "./", "~/")) or name[1:3] == ":\\"
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if path else name


def _status(told: object) -> str:
    if not isinstance(told, dict):
        return ""
    return "failed" if told.get("failed") else display_safe(str(told.get("value") or ""), 40)


def _model(entry: dict[str, Any]) -> RemoteModel:
    meta = entry.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    sizes = (meta.get("n_ctx"), entry.get("max_model_len"), entry.get("context_length"), meta.get("n_ctx_train"))
    context = next((size for size in sizes if isinstance(size, int) and size > 0), 0)
    template = meta.get("chat_template")
    return RemoteModel(
        str(entry.get("id") or entry.get("name") or ""),
        str(entry.get("owned_by") or ""),
        context,
        template if isinstance(template, bool) else None,
        str(meta.get("kernel") or ""),
        _status(entry.get("status")),
    )


def _constraint(grammar: Grammar) -> dict[str, Any]:
    """Return the fields by which servers take a grammar: OpenAI's for schemas, llama-server's and vLLM's else."""
    match grammar.kind:
        case "json_schema":
            schema = {"name": "reply", "schema": json.loads(grammar.text), "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case "grammar":
            return {"grammar": grammar.text}
        case "regex":
            return {"structured_outputs": {"regex": grammar.text}}
        case "choices":
            return {"structured_outputs": {"choice": json.loads(grammar.text)}}
    return {}
