"""`POST /infill`, llama-server's: what stands between two texts, for editors; and the words of its answer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from nanochat_tui.model.chat.thinking import ThinkingSplitter
from nanochat_tui.model.tokenizer.errors import TokenizerError
from nanochat_tui.serve.answering import PING, event, timings_of
from nanochat_tui.serve.bodies_infill import InfillBody
from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.following import End, Followed, Piece, follow
from nanochat_tui.serve.models import Models
from nanochat_tui.serve.replies import Filled, StopType
from nanochat_tui.serve.routes_completion import SSE, generation_request, lent, prepare, salt_of

if TYPE_CHECKING:
    from nanochat_tui.engine.generate.model import Model

MOST_CHARACTERS = 64
"""Of a text per token of the context: what is further from the gap is not looked at."""


def infill_router(models: Models) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["completions"])

    @router.post(
        "/infill",
        response_model=Filled,
        responses={200: {"content": SSE}},
        summary="Fill in between two texts, in llama-server's words",
    )
    async def infill(body: InfillBody, request: Request) -> Response:
        arrived = time.monotonic()
        service, name = await lent(models, request, body.model)
        model = service.model
        ids, dropped = await asyncio.to_thread(infill_prompt, model, body, service.context)
        asked = generation_request(body, None)
        if asked.grammar is not None or asked.logit_bias:
            await asyncio.to_thread(prepare, model, body.constraint[0] if body.constraint else "", asked)
        writer = InfillWriter(name, len(ids), truncated=dropped > 0)
        reply = Followed(ids, asked, salt_of(request, body), ThinkingSplitter(None), writer)
        return await follow(request, service, reply, stream=bool(body.stream), arrived=arrived)

    return router


def infill_prompt(model: Model, body: InfillBody, context: int) -> tuple[list[int], int]:
    """Return the ids of a request, and how many were left out because they do not fit.

    The texts next to the gap are kept, and of the other files what comes last. Raises ApiError if the model cannot
    fill in.
    """
    limit = context // 4 if body.limit is None or body.limit < 0 else min(body.limit, context // 2)
    room, most = context - max(1, limit), MOST_CHARACTERS * context
    before = body.input_prefix + body.prompt
    cut = len(before) > most or len(body.input_suffix) > most
    try:
        ids, dropped = model.codec.encode_infill(before[-most:], body.input_suffix[:most], room=room)
        files = model.codec.encode_files([(each.filename, each.text[-most:]) for each in body.input_extra or ()])
    except TokenizerError as error:
        raise ApiError(400, str(error), param="input_suffix") from None
    left = max(0, room - len(ids))
    dropped += max(0, len(files) - left) + cut
    start = 1 if model.codec.add_bos and ids[0] == model.codec.bos else 0
    return [*ids[:start], *files[max(0, len(files) - left) :], *ids[start:]], dropped


class InfillWriter:
    """Writes a middle as llama-server does: `content` in pieces, the last one with `stop` and the figures."""

    def __init__(self, model: str, prompt_tokens: int, *, truncated: bool) -> None:
        self._model, self._prompt_tokens, self._truncated = model, prompt_tokens, truncated
        self._text: list[str] = []

    def opening(self) -> list[bytes]:
        """Return nothing: a stream begins with text."""
        return []

    def write(self, piece: Piece) -> list[bytes]:
        """Take text; see `Dialect.write`."""
        self._text.append(piece.text)
        return [event({"index": 0, "content": piece.text, "stop": False})] if piece.text else []

    def _body(self, end: End, content: str) -> dict[str, Any]:
        kind: StopType = "limit" if end.cut else "word" if end.stop else "eos"
        filled = Filled(
            content=content,
            model=self._model,
            stop_type=kind,
            stopping_word=end.stop or "",
            tokens_predicted=end.tokens,
            tokens_evaluated=self._prompt_tokens,
            tokens_cached=end.cached_tokens,
            truncated=self._truncated,
            timings=timings_of(end.stats, end.tokens),
        )
        return filled.model_dump()

    def closing(self, end: End) -> list[bytes]:
        """Return the last event, which has no text."""
        return [event(self._body(end, ""))]

    def failing(self, error: ApiError) -> list[bytes]:
        """Return the event of a failure."""
        return [event(error.body())]

    def ping(self) -> bytes:
        """Return a comment."""
        return PING

    def whole(self, end: End) -> dict[str, Any]:
        """Return the whole answer."""
        return self._body(end, "".join(self._text))
