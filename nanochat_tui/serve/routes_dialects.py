"""Anthropic's `POST /v1/messages`, and OpenAI's `/v1/responses`: conversations in other words, over the same model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from nanochat_tui.serve.bodies import ChatBody
from nanochat_tui.serve.bodies_messages import CountBody, MessagesBody
from nanochat_tui.serve.bodies_responses import InputBody, ResponsesBody
from nanochat_tui.serve.following import Dialect, Followed, follow
from nanochat_tui.serve.messages import Message, MessageErrorBody, MessageWriter, TokenCount
from nanochat_tui.serve.middleware import KEY
from nanochat_tui.serve.models import Models
from nanochat_tui.serve.responses import (
    Deleted,
    InputItems,
    InputTokens,
    ResponseObject,
    ResponseWriter,
    new_id,
)
from nanochat_tui.serve.routes_completion import SSE, chat_prompt, lent, prepare_chat, salt_of
from nanochat_tui.serve.service import Service
from nanochat_tui.serve.stored import Responses

ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": MessageErrorBody}, "5XX": {"model": MessageErrorBody}}


async def _followed(
    service: Service, request: Request, chat: ChatBody, param: str, dialect: Callable[[int], Dialect]
) -> Followed:
    """Return a reply that can be submitted; dialect: makes its writer, from the number of tokens of the prompt."""
    ids, asked, tools = await prepare_chat(service, chat, param)
    splitter, calls = service.model.prompts.splitter(ids), None if tools is None else tools.splitter()
    return Followed(ids, asked, salt_of(request, chat), splitter, dialect(len(ids)), calls)


async def _tokens(models: Models, request: Request, name: str | None, chat: ChatBody, param: str) -> int:
    """Return how many tokens the prompt of a conversation has."""
    service, _ = await lent(models, request, name)
    ids, _ = await chat_prompt(service, chat, param)
    return len(ids)


def messages_router(models: Models) -> APIRouter:
    """Return Anthropic's routes."""
    router = APIRouter(tags=["messages"], responses=ERRORS)

    @router.post("/messages", include_in_schema=False)
    @router.post(
        "/v1/messages",
        response_model=Message,
        responses={200: {"content": SSE}},
        summary="Answer a conversation, in Anthropic's words",
    )
    async def messages(body: MessagesBody, request: Request) -> Response:
        arrived = time.monotonic()
        chat = body.chat()
        service, name = await lent(models, request, body.model)
        reply = await _followed(
            service, request, chat, "messages", lambda tokens: MessageWriter(name, tokens, body.max_tokens)
        )
        return await follow(request, service, reply, stream=bool(body.stream), arrived=arrived)

    @router.post("/messages/count_tokens", include_in_schema=False)
    @router.post("/v1/messages/count_tokens", summary="Count the tokens of a conversation")
    async def count(body: CountBody, request: Request) -> TokenCount:
        return TokenCount(input_tokens=await _tokens(models, request, body.model, body.chat(), "messages"))

    return router


def responses_router(models: Models) -> APIRouter:
    """Return OpenAI's routes of responses."""
    router = APIRouter(tags=["responses"])
    stored = Responses(models.settings.limits)

    def before(body: InputBody, key: str) -> tuple[dict[str, Any], ...]:
        if body.previous_response_id is None:
            return ()
        return stored.get(key, body.previous_response_id, "previous_response_id").messages

    def key_of(request: Request) -> str:
        return str(request.scope.get(KEY, ""))

    @router.post("/responses", include_in_schema=False)
    @router.post(
        "/v1/responses",
        response_model=ResponseObject,
        responses={200: {"content": SSE}},
        summary="Answer, and remember the conversation for a while",
    )
    async def respond(body: ResponsesBody, request: Request) -> Response:
        arrived, key = time.monotonic(), key_of(request)
        earlier = before(body, key)
        chat = body.chat(earlier)
        service, name = await lent(models, request, body.model)

        def keep(whole: dict[str, Any], answer: dict[str, Any]) -> None:
            rows = [{"id": new_id(item.prefix), **item.row()} for item in body.items]
            stored.put(key, whole, rows, [*earlier, *body.messages(), answer])

        sampling = chat.sampling
        writer = ResponseWriter(body, name, sampling.temperature, sampling.top_p, keep)
        reply = await _followed(service, request, chat, "input", lambda tokens: writer)
        return await follow(request, service, reply, stream=bool(body.stream), arrived=arrived)

    @router.post("/responses/input_tokens", include_in_schema=False)
    @router.post("/v1/responses/input_tokens", summary="Count the tokens of an input")
    async def count(body: InputBody, request: Request) -> InputTokens:
        chat = body.chat(before(body, key_of(request)))
        return InputTokens(input_tokens=await _tokens(models, request, body.model, chat, "input"))

    @router.get("/responses/{name}", include_in_schema=False)
    @router.get("/v1/responses/{name}", response_model=ResponseObject, summary="A response that was kept")
    async def get(name: str, request: Request) -> Response:
        return JSONResponse(stored.get(key_of(request), name).body)

    @router.delete("/responses/{name}", include_in_schema=False)
    @router.delete("/v1/responses/{name}", summary="Forget a response")
    async def delete(name: str, request: Request) -> Deleted:
        stored.delete(key_of(request), name)
        return Deleted(id=name)

    @router.get("/responses/{name}/input_items", include_in_schema=False)
    @router.get("/v1/responses/{name}/input_items", summary="What a kept response answered")
    async def items(name: str, request: Request) -> InputItems:
        rows = list(stored.get(key_of(request), name).items)
        return InputItems(data=rows, first_id=rows[0]["id"], last_id=rows[-1]["id"])

    return router
