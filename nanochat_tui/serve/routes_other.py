"""The routes around the completions: the page, models, health, metrics, tokens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from nanochat_tui.request import SAMPLING
from nanochat_tui.serve.bodies import DetokenizeBody, TokenizeBody
from nanochat_tui.serve.errors import RETRY_SECONDS, ApiError
from nanochat_tui.serve.page import Page
from nanochat_tui.serve.replies import Health, ModelCard, ModelList, Props, Slot, Text, Tokens
from nanochat_tui.serve.service import Service
from nanochat_tui.version import __version__

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model
    from nanochat_tui.model.tokenizer.codec import TextCodec


def other_router(service: Service, page: Page) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page.body, media_type="text/html; charset=utf-8", headers=page.headers)

    @router.get("/health", response_model=Health, responses={503: {"model": Health}}, summary="Can it answer?")
    async def health() -> Response:
        state = service.state
        message = service.message if state == "failed" else None
        body = Health(status=state, message="the model cannot be used; the server's log says why" if message else None)
        if state == "ok":
            return JSONResponse(body.model_dump(exclude_none=True))
        return JSONResponse(body.model_dump(exclude_none=True), 503, {"Retry-After": str(RETRY_SECONDS)})

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), media_type=service.metrics.content_type)

    @router.get("/props", summary="What the server runs, in llama-server's words")
    async def props() -> Props:
        model, context = service.model, service.context
        tokenizer = model.codec.tokenizer

        def mark(token: int | None) -> str:
            return "" if token is None else tokenizer.id_to_token(token) or ""

        params = {name: one.default for name, one in SAMPLING.items()}
        return Props(
            default_generation_settings={"n_ctx": context, "params": params},
            total_slots=service.settings.max_sequences,
            model_alias=service.settings.name,
            chat_template=model.chat_template or "",
            bos_token=mark(model.codec.bos),
            eos_token=mark(model.codec.eos),
            build_info=f"nanochat-serve {__version__}",
        )

    @router.get("/slots", summary="Places in the batch, and how many are taken")
    async def slots() -> list[Slot]:
        context, now = service.context, service.snapshot()
        running = 0 if now is None else now.running
        return [
            Slot(id=i, n_ctx=context, is_processing=i < running)
            for i in range(max(running, service.settings.max_sequences))
        ]

    def cards() -> list[ModelCard]:
        meta: dict[str, object] | None = None
        if service.state == "ok":
            model = service.model
            config = model.config
            meta = {
                "n_vocab": config.vocab_size,
                "n_ctx_train": config.context_length,
                "n_ctx": service.context,
                "n_embd": config.dim,
                "n_params": config.parameters,
                "chat_template": model.chat_template is not None,
                "kernel": model.kernel,
                "version": __version__,
            }
        names = (service.settings.name, *service.settings.aliases)
        return [ModelCard(id=name, created=service.created, meta=meta) for name in names]

    @router.get("/models", include_in_schema=False)
    @router.get("/v1/models", summary="The model that is served")
    async def models() -> ModelList:
        return ModelList(data=cards())

    @router.get("/models/{name:path}", include_in_schema=False)
    @router.get("/v1/models/{name:path}", summary="One model")
    async def model(name: str) -> ModelCard:
        for card in cards():
            if card.id == name:
                return card
        raise ApiError(404, "there is no such model here", param="model", code="model_not_found")

    @router.post("/tokenize", response_model=Tokens, summary="Text to token ids")
    async def tokenize(body: TokenizeBody) -> Response:
        return await asyncio.to_thread(_tokenized, service.model.codec, body)

    @router.post("/detokenize", response_model=Text, summary="Token ids to text")
    async def detokenize(body: DetokenizeBody) -> Response:
        return await asyncio.to_thread(_detokenized, service.model, body.tokens)

    return router


# on a thread of their own, to the last byte of the answer: streams continue next to megabytes of tokens


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
