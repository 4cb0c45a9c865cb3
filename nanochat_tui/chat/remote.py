"""A backend that asks a server: anything that speaks OpenAI's protocol, streaming.

Nothing is sent before `load`. Speeds are measured here, at the client, unless the server tells its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event as CancelEvent
from typing import Any

import httpx

from nanochat_tui.chat.backend import (
    BackendError,
    Event,
    Finished,
    Progress,
    Request,
    SamplingSettings,
    Started,
    Stats,
)
from nanochat_tui.chat.remote_http import (
    CONNECT_TRIES,
    RefusedError,
    Stream,
    api_key,
    base_url,
    client,
    explain_failure,
)
from nanochat_tui.chat.remote_http import RETRY_SECONDS as CONNECT_PAUSE
from nanochat_tui.chat.remote_stream import Reply
from nanochat_tui.chat.thinking import ThinkingSplitter
from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.model.chat_families import THINKING

STATS_INTERVAL = 0.25
PREFILLING = ("nanochat", "llamacpp", "vllm")
"""Servers that go on from the last message when it is the assistant's, by what they call themselves."""
_MISSING = (404, 405, 501)
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


class RemoteBackend:
    """One model of one server. Raises `UserError` if `url` is no address."""

    threads = 0

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
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name, or the server's address before it is known."""
        if self._model is not None:
            return self._model.id
        return self._wanted or self.url.partition("://")[2]

    @property
    def kernel(self) -> str:
        """The server's address."""
        return self.url

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
            models = self._models(progress)
            if not models:
                raise BackendError(f"The server at {display_safe(self.url)} offers no model; start it with one.")
            found = next((m for m in models if m.id == self._wanted), None if self._wanted else models[0])
            if found is None:
                offered = ", ".join(display_safe(m.id, 60) for m in models[:8])
                raise UserError(f"The server has no model {display_safe(self._wanted or '')}; it offers {offered}.")
            self._look_for_completions()
            self._model = found

    def list_models(self) -> list[RemoteModel]:
        """Return the models the server offers. Raises `BackendError`."""
        return self._models(None)

    def close(self) -> None:
        """Let go of the connections."""
        if self._http is not None:
            self._http.close()

    # Asking

    def _client(self) -> httpx.Client:
        if self._http is None:
            timeout, connect = self._timeouts
            self._http = client(self.url, self._key or api_key(self.url), timeout=timeout, connect_timeout=connect)
        return self._http

    def _models(self, progress: Progress | None) -> list[RemoteModel]:
        http = self._client()
        for attempt in range(CONNECT_TRIES):
            if progress is not None:
                progress(f"asking {self.url}" + (f", attempt {attempt + 1} of {CONNECT_TRIES}" if attempt else ""))
            try:
                response = http.get("/v1/models")
                break
            except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
                if attempt == CONNECT_TRIES - 1:
                    raise explain_failure(exc, self.url, begun=False) from exc
                time.sleep(CONNECT_PAUSE * (attempt + 1))
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                raise explain_failure(exc, self.url, begun=False) from exc
        if response.status_code != 200:
            raise RefusedError(response, response.content)
        try:
            data = response.json()["data"]
        except (ValueError, KeyError, TypeError) as exc:
            raise BackendError(f"{display_safe(self.url)} is no OpenAI-compatible server; check the address.") from exc
        return [_model(entry) for entry in data if isinstance(entry, dict) and entry.get("id")]

    def _look_for_completions(self) -> None:
        """See whether /v1/completions exists: an empty request is refused by one that does, and unknown to others."""
        with contextlib.suppress(httpx.HTTPError):
            status = self._client().post("/v1/completions", json={}, timeout=_LOOK_SECONDS).status_code
            self._completes = status not in _MISSING

    def chat(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        """Answer a request; see `Backend.chat`."""
        self.load()
        if request.messages and request.prefix and not self.can_continue(chat=True):
            raise UserError("This server cannot go on from the middle of a reply; write it anew instead.")
        before, refusal = (self._plain, self._no_logprobs), None
        while True:
            try:
                yield from self._ask(request, cancel)
                return
            except RefusedError as exc:
                refusal = refusal or exc
                if not self._ask_for_less(request, exc):
                    self._plain, self._no_logprobs = before
                    raise refusal from None

    def _ask_for_less(self, request: Request, exc: RefusedError) -> bool:
        """Leave out what a server perhaps minded: fields that others have beside OpenAI's, probabilities at last.
        Returns whether there was anything.
        """
        tells = bool(request.top_logprobs) and not self._no_logprobs
        minds = "logprob" in str(exc).lower() or exc.status in _FORBIDDEN or self._plain
        if exc.status in (400, 422, *_FORBIDDEN) and tells and minds:
            self._no_logprobs = True
        elif exc.status in (400, 422) and not self._plain:
            self._plain = True
        else:
            return False
        return True

    def _ask(self, request: Request, cancel: CancelEvent) -> Iterator[Event]:
        began = time.perf_counter()
        stream = Stream(self._client(), *self._body(request), cancel)
        reply = Reply()
        split = ThinkingSplitter(THINKING[0] if request.messages else None, begun=bool(request.prefix))
        split.inside = split.inside or (request.prefix_thinking and bool(request.messages))
        first: float | None = None
        shown = began
        count = 0

        def stats() -> Stats:
            generated = max(count, reply.completion_tokens or 0)
            since = time.perf_counter() - first if first is not None else 0.0
            prompt = reply.prompt_tokens
            waited = first - began if first is not None else 0.0
            return Stats(
                prompt_tps=reply.prompt_tps or (prompt / waited if prompt and waited > 0 else None),
                decode_tps=reply.decode_tps or ((generated - 1) / since if generated > 1 and since > 0 else None),
                context_used=(prompt or 0) + generated,
                context_size=self.context_size,
                generated=generated,
                seconds_to_first_token=waited if first is not None else None,
                drafted=reply.drafted,
                accepted=reply.accepted,
            )

        started = False
        for line in stream.lines():
            if not started:
                started = True
                yield Started(0)
            for token in reply.feed(line):
                now = time.perf_counter()
                stream.begun = True
                first = now if first is None else first
                count += 1
                yield from (token,) if token.thinking else split.token(token)
                if now - shown >= STATS_INTERVAL:
                    shown = now
                    yield stats()
            if reply.done:
                break
        if not started:
            yield Started(0)
        yield from split.rest()
        if cancel.is_set():
            yield stats()
            yield Finished("cancelled")
            return
        if not reply.done and reply.reason is None:
            raise BackendError(
                f"The server at {display_safe(self.url)} broke off in mid-reply; what had come is kept."
                if count
                else f"The server at {display_safe(self.url)} ended without a word; its log may say why."
            )
        yield stats()
        yield Finished(reply.reason or "stop")

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Return the path and the body of a request."""
        alternatives = 0 if self._no_logprobs else min(20, request.top_logprobs)
        body: dict[str, Any] = {"model": self._ready().id, "stream": True} | self._sampling(request.sampling)
        if not self._plain:
            body["stream_options"] = {"include_usage": True}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.stop:
            body["stop"] = list(request.stop)
        if request.messages:
            messages = [{"role": m.role, "content": m.content} for m in request.messages]
            if request.prefix:
                messages.append({"role": "assistant", "content": request.prefix})
                body |= {"continue_final_message": True, "add_generation_prompt": False}
            body["messages"] = messages
            if alternatives:
                body |= {"logprobs": True, "top_logprobs": alternatives}
            return "/v1/chat/completions", body
        body["prompt"] = (request.prompt or "") + request.prefix
        if alternatives:
            body["logprobs"] = alternatives
        return "/v1/completions", body

    def _sampling(self, sampling: SamplingSettings) -> dict[str, Any]:
        """Return OpenAI's fields, and those that others add as far as they say anything."""
        body: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if not self._plain:
            body["top_k"] = sampling.top_k
            if sampling.min_p:
                body["min_p"] = sampling.min_p
            if sampling.repeat_penalty != 1.0:
                body["repeat_penalty"] = sampling.repeat_penalty
        return body


def _model(entry: dict[str, Any]) -> RemoteModel:
    meta = entry.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    sizes = (meta.get("n_ctx"), entry.get("max_model_len"), entry.get("context_length"), meta.get("n_ctx_train"))
    context = next((size for size in sizes if isinstance(size, int) and size > 0), 0)
    template = meta.get("chat_template")
    return RemoteModel(
        str(entry["id"]),
        str(entry.get("owned_by") or ""),
        context,
        template if isinstance(template, bool) else None,
        str(meta.get("kernel") or ""),
    )
