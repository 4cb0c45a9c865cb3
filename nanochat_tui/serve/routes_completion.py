"""`POST /v1/chat/completions` and `POST /v1/completions`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from nanochat_tui.errors import UserError
from nanochat_tui.request import GenerationRequest, with_settings
from nanochat_tui.serve.answering import Answer, Extras, fingerprint, respond
from nanochat_tui.serve.bodies import SEEDS, ChatBody, CompletionBody, Sampled
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.middleware import KEY
from nanochat_tui.serve.models import Models
from nanochat_tui.serve.prompts import chat_ids, check_length, infill_ids, prompt_ids
from nanochat_tui.serve.replies import ChatCompletion, Completion
from nanochat_tui.serve.service import Service
from nanochat_tui.serve.spelling import PromptScores, Spelling
from nanochat_tui.serve.tools import Tools, tools_of
from nanochat_tui.serve.writers import ChatWriter, TextWriter

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

SSE = {"text/event-stream": {"schema": {"description": "Events with a chunk each, when stream is true."}}}
"""Without a type: some readers take the schema for that of the text, others for that of each event."""


def generation_request(body: Sampled, top_logprobs: int | None) -> GenerationRequest:
    """Return what a body asks for. top_logprobs: alternatives per token, None without log-probabilities."""
    limit = body.limit
    return GenerationRequest(
        sampling=body.sampling,
        max_tokens=None if limit is None or limit < 0 else limit,
        stop=tuple(body.stops),
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        top_logprobs=top_logprobs or 0,
        logprobs=top_logprobs is not None,
        grammar=body.constraint[1] if body.constraint else None,
        logit_bias=tuple(body.biases().items()),
    )


def prepare(model: Model, name: str, request: GenerationRequest) -> None:
    """Make a request's grammar ready and look at its biases. Raises ApiError naming the field, `name` the grammar's."""
    size = model.config.vocab_size
    beyond = next((token for token, _ in request.logit_bias if token >= size), None)
    if beyond is not None:
        raise ApiError(400, f"logit_bias names token {beyond} and the vocabulary has {size}", param="logit_bias")
    if request.grammar is not None:
        try:
            model.grammars.check(request.grammar)
        except UserError as error:
            raise ApiError(400, f"{name}: {error}", param=name) from error


def salt_of(request: Request, body: Sampled) -> str | None:
    """Return with whom a request shares the cache of prompts: those with its API key and its salt; None is no one.

    Otherwise the time of a first token, and the count of cached ones, would tell one client what others have asked.
    """
    if body.cache_prompt is False:
        return None
    key = request.scope.get(KEY, "")
    return f"{key}\0{body.cache_salt}" if body.cache_salt else key


def _extras(body: Sampled) -> Extras:
    return Extras(
        usage=body.usage_wanted,
        usage_always=body.usage_always,
        timings_always=bool(body.timings_per_token),
        progress=bool(body.return_progress),
    )


def _replicate(request: GenerationRequest, n: int) -> list[GenerationRequest]:
    """Return n requests: the same, but for their seeds."""
    seed = request.sampling.seed
    return [request if seed is None else with_settings(request, seed=(seed + i) % SEEDS) for i in range(n)]


def _check_choices(service: Service, n: int, prompts: int = 1, name: str = "n") -> None:
    limit = service.settings.limits.choices
    if prompts > limit:
        raise ApiError(400, f"a request may have {limit} prompts at most, not {prompts}", param="prompt")
    if n * prompts > limit:
        raise ApiError(400, f"a request may ask for {limit} replies at most, not {n * prompts}", param=name)


def check_model(service: Service, name: str | None) -> str:
    """Return the id to answer under: that of the one model there is, whatever other model was asked for.

    Raises ApiError (404) for an unknown name if the server is strict about it.
    """
    known = (service.settings.name, *service.settings.aliases)
    if not name:
        return known[0]
    if name not in known:
        if not service.settings.strict_model:
            return known[0]
        raise ApiError(
            404,
            f"there is no such model here; this server has {', '.join(known)}",
            param="model",
            code="model_not_found",
        )
    return name


async def lent(models: Models, request: Request, name: str | None) -> tuple[Service, str]:
    """Return the model that a request names, lent until it is answered, and the id to answer under. Raises ApiError."""
    service = await models.use(request, name)
    return service, check_model(service, name)


def _spelling(model: Model, wanted: bool, ids: Sequence[int]) -> Spelling | None:
    return Spelling(model.codec, ids) if wanted else None


async def chat_prompt(service: Service, body: ChatBody, param: str) -> tuple[list[int], Tools | None]:
    """Return the ids of a conversation, and the tools that its reply may call; param: the field that may be too long.

    Raises ApiError.
    """
    tools = await asyncio.to_thread(tools_of, service.model, body)
    ids = await asyncio.to_thread(chat_ids, service.model, body, service.context, tools)
    check_length(ids, service.context, param)
    return ids, tools


async def prepare_chat(
    service: Service, body: ChatBody, param: str
) -> tuple[list[int], GenerationRequest, Tools | None]:
    """Return `chat_prompt`, and what is asked of the model with all that constrains its reply. Raises ApiError."""
    ids, tools = await chat_prompt(service, body, param)
    if body.limit == 0:
        raise ApiError(400, "max_tokens must be 1 or more", param="max_tokens")
    asked = generation_request(body, (body.top_logprobs or 0) if body.logprobs else None)
    if tools is not None:
        asked = with_settings(asked, grammar=tools.grammar)
    if asked.grammar is not None or body.budget is not None:
        asked = with_settings(asked, grammar=service.model.prompts.constrained(asked.grammar, ids, body.budget))
    if asked.grammar is not None or asked.logit_bias:
        field = "tools" if tools is not None else body.constraint[0] if body.constraint else "reasoning_budget"
        await asyncio.to_thread(prepare, service.model, field, asked)
    return ids, asked, tools


def completion_router(models: Models) -> APIRouter:
    """Return the two routes."""
    router = APIRouter(tags=["completions"])

    @router.post("/chat/completions", include_in_schema=False)
    @router.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": SSE}},
        summary="Answer a conversation",
    )
    async def chat(body: ChatBody, request: Request) -> Response:
        arrived = time.monotonic()
        service, name = await lent(models, request, body.model)
        model, n = service.model, body.n or 1
        _check_choices(service, n)
        ids, asked, tools = await prepare_chat(service, body, "messages")
        answer = Answer(
            "chat.completion",
            prompts=[ids] * n,
            requests=_replicate(asked, n),
            salt=salt_of(request, body),
            writers=[
                ChatWriter(
                    i,
                    model.prompts.splitter(ids),
                    _spelling(model, bool(body.logprobs), ids),
                    None if tools is None else tools.splitter(),
                )
                for i in range(n)
            ],
            model=name,
            fingerprint=fingerprint(model.kernel),
            extras=_extras(body),
        )
        return await respond(request, service, answer, stream=bool(body.stream), arrived=arrived)

    @router.post("/completions", include_in_schema=False)
    @router.post(
        "/v1/completions",
        response_model=Completion,
        responses={200: {"content": SSE}},
        summary="Continue a text",
    )
    async def complete(body: CompletionBody, request: Request) -> Response:
        arrived = time.monotonic()
        service, name = await lent(models, request, body.model)
        model, context = service.model, service.context
        n = body.best_of or body.n or 1
        _check_choices(service, n, len(body.prompts), "best_of" if body.best_of else "n")
        bos = body.add_special_tokens is not False
        if body.suffix:
            suffix = body.suffix
            prompts = [await asyncio.to_thread(infill_ids, model, p, suffix, context) for p in body.prompts]
        else:
            prompts = [await asyncio.to_thread(prompt_ids, model, p, context, bos) for p in body.prompts]
        for ids in prompts:
            check_length(ids, context + (body.limit == 0), "prompt")
        ranked = n > (body.n or 1)
        asked = with_settings(generation_request(body, body.logprobs), logprobs=ranked or body.logprobs is not None)
        if asked.grammar is not None or asked.logit_bias:
            await asyncio.to_thread(prepare, model, body.constraint[0] if body.constraint else "", asked)
        scores = await asyncio.to_thread(_prompt_scores, model, body, prompts, n)
        writers = [
            TextWriter(
                place * n + i,
                _echo(model, prompt) if body.echo else "",
                _spelling(model, body.logprobs is not None, ids),
                scores[place * n + i] if scores else None,
            )
            for place, (prompt, ids) in enumerate(zip(body.prompts, prompts, strict=True))
            for i in range(n)
        ]
        answer = Answer(
            "text_completion",
            prompts=[ids for ids in prompts for _ in range(n)],
            requests=[each for _ in prompts for each in _replicate(asked, n)],
            salt=salt_of(request, body),
            writers=writers,
            model=name,
            fingerprint=fingerprint(model.kernel),
            extras=_extras(body),
            distinct_prompts=len(prompts),
            scores=scores,
            keep=(body.n or 1) if ranked else None,
        )
        return await respond(request, service, answer, stream=bool(body.stream), arrived=arrived)

    return router


def _prompt_scores(model: Model, body: CompletionBody, prompts: Sequence[Sequence[int]], n: int) -> list[PromptScores]:
    """Return what takes the probabilities of the prompt of each of n replies, if a body wants them.

    In a stream each reply has its own, so that none waits for another one's.
    """
    if not body.echo or body.logprobs is None:
        return []
    found: list[PromptScores] = []
    for ids in prompts:
        # an empty prompt is read as the token that begins a text
        read = ids or ([] if model.codec.bos is None else [model.codec.bos])
        one = PromptScores(model.codec, read, body.logprobs)
        found += [one, *(PromptScores(model.codec, read, body.logprobs) if body.stream else one for _ in range(n - 1))]
    return found


def _echo(model: Model, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else model.decode(prompt)
