"""The routes around the completions: the page, models, health, metrics, tokens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from nanochat_tui.request import SAMPLING
from nanochat_tui.serve.bodies import DetokenizeBody, ModelBody, TokenizeBody
from nanochat_tui.serve.errors import RETRY_SECONDS, ApiError
from nanochat_tui.serve.middleware import KEY
from nanochat_tui.serve.models import Models, unknown_model
from nanochat_tui.serve.page import Page
from nanochat_tui.serve.replies import Health, ModelCard, ModelChange, ModelList, Props, Slot, Text, Tokens
from nanochat_tui.serve.service import Service
from nanochat_tui.version import __version__

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model
    from nanochat_tui.model.tokenizer.codec import TextCodec


def other_router(models: Models, page: Page) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page.body, media_type="text/html; charset=utf-8", headers=page.headers)

    @router.get("/health", response_model=Health, responses={503: {"model": Health}}, summary="Can it answer?")
    async def health(request: Request) -> Response:
        may_know = not models.settings.api_keys or bool(request.scope.get(KEY))
        body = models.health(names=may_know)
        if body.status == "ok":
            return JSONResponse(body.model_dump(exclude_none=True))
        return JSONResponse(body.model_dump(exclude_none=True), 503, {"Retry-After": str(RETRY_SECONDS)})

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(models.metrics.exposition(), media_type=models.metrics.content_type)

    @router.get("/props", summary="What the server runs, in llama-server's words; of several models `?model=`")
    async def props(request: Request, model: str | None = None) -> Props:
        service = await models.use(request, model)
        return await asyncio.to_thread(_props, service)

    @router.get("/slots", summary="Places in the batch, and how many are taken; of several models `?model=`")
    async def slots(request: Request, model: str | None = None) -> list[Slot]:
        service = await models.use(request, model)
        context, now = service.context, service.snapshot()
        running = 0 if now is None else now.running
        return [
            Slot(id=i, n_ctx=context, is_processing=i < running)
            for i in range(max(running, service.settings.max_sequences))
        ]

    @router.get("/models", include_in_schema=False)
    @router.get("/v1/models", summary="The models that are served")
    async def listed() -> ModelList:
        return ModelList(data=await models.cards())

    @router.get("/models/{name:path}", include_in_schema=False)
    @router.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> ModelCard:
        for card in await models.cards():
            if card.id == name:
                return card
        raise unknown_model()

    @router.post("/models/load", response_model=ModelChange, summary="Load a listed model")
    async def load(body: ModelBody) -> ModelChange:
        card = await models.load(body.model)
        return ModelChange(model=card.id, status=card.status)

    @router.post("/models/unload", response_model=ModelChange, summary="Unload a listed model when it is idle")
    async def unload(body: ModelBody) -> ModelChange:
        card = await models.unload(body.model)
        return ModelChange(model=card.id, status=card.status)

    @router.post("/tokenize", response_model=Tokens, summary="Text to token ids")
    async def tokenize(body: TokenizeBody, request: Request) -> Response:
        service = await models.use(request, body.model)
        return await asyncio.to_thread(_tokenized, service.model.codec, body)

    @router.post("/detokenize", response_model=Text, summary="Token ids to text")
    async def detokenize(body: DetokenizeBody, request: Request) -> Response:
        service = await models.use(request, body.model)
        return await asyncio.to_thread(_detokenized, service.model, body.tokens)

    return router


# on a thread of their own, to the last byte of the answer: streams continue next to megabytes of tokens


def _props(service: Service) -> Props:
    model = service.model
    mark = model.codec.mark
    return Props(
        default_generation_settings={
            "n_ctx": service.context,
            "params": {name: one.default for name, one in SAMPLING.items()},
        },
        total_slots=service.settings.max_sequences,
        model_alias=service.settings.name,
        chat_template=model.chat_template or "",
        bos_token=mark(model.codec.bos),
        eos_token=mark(model.codec.eos),
        build_info=f"nanochat-serve {__version__}",
    )


def _tokenized(codec: TextCodec, body: TokenizeBody) -> Response:
    ids = codec.encode(body.content, bool(body.add_special), body.parse_special is not False)
    if not body.with_pieces:
        return JSONResponse({"tokens": ids})
    pieces: list[dict[str, object]] = []
    for token in ids:
        raw = codec.token_bytes(token, special=True)
        try:
            pieces.append({"id": token, "piece": raw.decode("utf-8")})
        except UnicodeDecodeError:
            pieces.append({"id": token, "piece": list(raw)})
    return JSONResponse({"tokens": pieces})


def _detokenized(model: Model, tokens: list[int]) -> Response:
    size = model.config.vocab_size
    if max(tokens, default=0) >= size:
        raise ApiError(400, f"a token id is outside the vocabulary of {size} tokens", param="tokens")
    return JSONResponse({"content": model.codec.decode(tokens, True)})
