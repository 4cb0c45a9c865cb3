"""`POST /v1/embeddings`, OpenAI's: vectors of texts, made of the model's final states (see `generate.reading`)."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from nanochat_tui.engine.generate.reading import Embedding, unit
from nanochat_tui.errors import UserError
from nanochat_tui.request import GenerationRequest
from nanochat_tui.serve.bodies_embeddings import EmbeddingBody
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.generation import Ended, Replies, watch
from nanochat_tui.serve.models import Models
from nanochat_tui.serve.prompts import check_length, check_text
from nanochat_tui.serve.replies import Embedded, EmbeddingList, EmbeddingUsage
from nanochat_tui.serve.routes_completion import lent
from nanochat_tui.serve.service import Asked, Service

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

NO_REPLY = GenerationRequest(max_tokens=0, logprobs=False)


def embeddings_router(models: Models) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/embeddings", include_in_schema=False)
    @router.post("/v1/embeddings", response_model=EmbeddingList, summary="Vectors of texts")
    async def embed(body: EmbeddingBody, request: Request) -> Response:
        arrived = time.monotonic()
        service, name = await lent(models, request, body.model)
        model = service.model
        width = model.config.dim
        if body.dimensions is not None and body.dimensions > width:
            raise ApiError(400, f"dimensions is {body.dimensions} and the model has {width}", param="dimensions")
        texts = await asyncio.to_thread(_ids, model, body.inputs, service.context)
        readings = await _read(request, service, texts, arrived)
        return await asyncio.to_thread(_answer, body, name, texts, readings)

    return router


def _ids(model: Model, inputs: Sequence[str | list[int]], context: int) -> list[list[int]]:
    found = []
    for each in inputs:
        if isinstance(each, str):
            check_text(model, each, context, "input")
        try:
            ids = model.embedding_ids(each)
        except UserError as error:
            raise ApiError(400, f"{error}; correct input", param="input") from error
        check_length(ids, context + 1, "input")
        found.append(ids)
    return found


async def _read(request: Request, service: Service, texts: Sequence[Sequence[int]], arrived: float) -> list[Embedding]:
    """Let the batcher read texts, as many at a time as it has places. Raises ApiError."""
    named = service.model.embedding.pooling
    readings = [Embedding(len(ids), "mean" if named == "none" else named) for ids in texts]
    step = service.settings.max_sequences
    for first in range(0, len(texts), step):
        lot = list(zip(texts[first : first + step], readings[first : first + step], strict=True))
        streams = service.submit_all([Asked(ids, NO_REPLY, reading) for ids, reading in lot], None)
        replies = Replies(service, streams, arrived)
        watcher = asyncio.create_task(watch(request.receive, replies.cancel))
        try:
            while replies.open:
                for _, item in await replies.next():
                    failure = replies.failure(item) if isinstance(item, Ended) else None
                    if failure is not None:
                        raise failure
        finally:
            watcher.cancel()
            replies.cancel()
    return readings


def _answer(body: EmbeddingBody, name: str, texts: Sequence[Sequence[int]], readings: Sequence[Embedding]) -> Response:
    rows = []
    for index, reading in enumerate(readings):
        vector = reading.vector(normalize=True)
        if body.dimensions is not None:
            vector = unit(vector[: body.dimensions])
        told: list[float] | str = vector.tolist()
        if body.encoding_format == "base64":
            told = base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
        rows.append(Embedded(index=index, embedding=told))
    count = sum(len(ids) for ids in texts)
    answer = EmbeddingList(data=rows, model=name, usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count))
    return Response(answer.model_dump_json(), media_type="application/json")
