"""`POST /v1/chat/completions` and `POST /v1/completions`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from nanochat_tui.serve.answering import Answer, fingerprint, respond
from nanochat_tui.serve.bodies import ChatBody, CompletionBody, Sampled
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.prompts import chat_ids, check_length, prompt_ids, splitter
from nanochat_tui.serve.replies import ChatCompletion, Completion
from nanochat_tui.serve.service import Service
from nanochat_tui.serve.spelling import Spelling
from nanochat_tui.serve.writers import ChatWriter, TextWriter

if TYPE_CHECKING:
    from nanochat_tui.engine.model import Model

SEEDS = 2**63
LEAST_TOP_P = 1e-6
"""Stands for a top_p of 0, which OpenAI's interface allows: nothing but the likeliest token."""
SSE = {"text/event-stream": {"schema": {"description": "Events with a chunk each, when stream is true."}}}
"""Without a type: some readers take the schema for that of the text, others for that of each event."""


def settings(body: Sampled, max_tokens: int | None, context: int, top_logprobs: int | None) -> dict[str, Any]:
    """Return the engine's settings for a request; null means the default, as everywhere in OpenAI's interface.

    top_logprobs: alternatives per token, None without log-probabilities.
    """

    def given(name: str) -> Any:
        value = getattr(body, name)
        return type(body).model_fields[name].default if value is None else value

    return {
        "max_tokens": context if max_tokens is None or max_tokens < 0 else max_tokens,
        "temperature": given("temperature"),
        "top_k": max(0, given("top_k")),
        "top_p": max(LEAST_TOP_P, given("top_p")),
        "min_p": given("min_p"),
        "repeat_penalty": given("repeat_penalty"),
        "presence_penalty": given("presence_penalty"),
        "frequency_penalty": given("frequency_penalty"),
        "seed": None if body.seed is None else body.seed % SEEDS,
        "stop": body.stops,
        "top_logprobs": top_logprobs or 0,
        "logprobs": top_logprobs is not None,
    }


def _replicate(base: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """Return the settings of n replies: the same, but for their seeds."""
    seed = base["seed"]
    return [{**base, "seed": None if seed is None else (seed + i) % SEEDS} for i in range(n)]


def _check_choices(service: Service, n: int, prompts: int = 1) -> None:
    limit = service.settings.limits.choices
    if prompts > limit:
        raise ApiError(400, f"a request may have {limit} prompts at most, not {prompts}", param="prompt")
    if n * prompts > limit:
        raise ApiError(400, f"a request may ask for {limit} replies at most, not {n * prompts}", param="n")


def check_model(service: Service, name: str | None) -> str:
    """Return the id to answer under. Raises ApiError (404) for a model that is not served."""
    known = (service.settings.name, *service.settings.aliases)
    if not name:
        return known[0]
    if name not in known:
        raise ApiError(
            404,
            f"there is no such model here; this server has {known[0]} (--alias gives it further names)",
            param="model",
            code="model_not_found",
        )
    return name


def _spelling(model: Model, wanted: bool, ids: Sequence[int]) -> Spelling | None:
    return Spelling(model.codec, ids) if wanted else None


def completion_router(service: Service) -> APIRouter:
    """Return the two routes."""
    router = APIRouter(tags=["completions"])

    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": SSE}},
        summary="Answer a conversation",
    )
    async def chat(body: ChatBody, request: Request) -> Response:
        arrived = time.monotonic()
        model, name, context = service.model, check_model(service, body.model), service.context
        n = body.n or 1
        _check_choices(service, n)
        ids = await asyncio.to_thread(chat_ids, model, body, context)
        check_length(ids, context, "messages")
        most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        if most == 0:
            raise ApiError(400, "max_tokens must be 1 or more", param="max_tokens")
        base = settings(body, most, context, (body.top_logprobs or 0) if body.logprobs else None)
        answer = Answer(
            "chat.completion",
            prompts=[ids] * n,
            settings=_replicate(base, n),
            writers=[ChatWriter(i, splitter(model, ids), _spelling(model, bool(body.logprobs), ids)) for i in range(n)],
            model=name,
            fingerprint=fingerprint(model.kernel),
            usage_wanted=body.usage_wanted,
        )
        return await respond(request, service, answer, stream=bool(body.stream), arrived=arrived)

    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: {"content": SSE}},
        summary="Continue a text",
    )
    async def complete(body: CompletionBody, request: Request) -> Response:
        arrived = time.monotonic()
        model, name, context = service.model, check_model(service, body.model), service.context
        n = body.n or 1
        _check_choices(service, n, len(body.prompts))
        prompts = [await asyncio.to_thread(prompt_ids, model, prompt, context) for prompt in body.prompts]
        for ids in prompts:
            check_length(ids, context, "prompt")
        most = body.max_tokens if "max_tokens" not in body.model_fields_set or body.max_tokens is not None else 16
        base = settings(body, most, context, body.logprobs)
        writers = [
            TextWriter(
                place * n + i,
                _echo(model, prompt) if body.echo else "",
                _spelling(model, body.logprobs is not None, ids),
            )
            for place, (prompt, ids) in enumerate(zip(body.prompts, prompts, strict=True))
            for i in range(n)
        ]
        answer = Answer(
            "text_completion",
            prompts=[ids for ids in prompts for _ in range(n)],
            settings=[each for _ in prompts for each in _replicate(base, n)],
            writers=writers,
            model=name,
            fingerprint=fingerprint(model.kernel),
            usage_wanted=body.usage_wanted,
            distinct_prompts=len(prompts),
        )
        return await respond(request, service, answer, stream=bool(body.stream), arrived=arrived)

    return router


def _echo(model: Model, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else model.decode(prompt)
