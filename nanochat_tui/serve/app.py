"""Putting the server together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route

from nanochat_tui.serve.errors import ErrorBody, install_handlers
from nanochat_tui.serve.middleware import Answers, Bodies, Cors, Gate
from nanochat_tui.serve.models import Loans, Models, models_of
from nanochat_tui.serve.page import load_page
from nanochat_tui.serve.routes_completion import completion_router
from nanochat_tui.serve.routes_dialects import messages_router, responses_router
from nanochat_tui.serve.routes_embeddings import embeddings_router
from nanochat_tui.serve.routes_infill import infill_router
from nanochat_tui.serve.routes_other import other_router
from nanochat_tui.serve.service import Service
from nanochat_tui.version import __version__

DESCRIPTION = "OpenAI's completion interface for the ternary model that this server runs."


def create_app(served: Service | Models) -> FastAPI:
    """Return the ASGI application of a model or several, which are started and closed with it.

    Its interactive documentation is off, because it would load scripts from elsewhere; /openapi.json is there.
    """

    models = models_of(served)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        models.start()
        yield
        await asyncio.to_thread(models.close)

    settings = models.settings
    app = FastAPI(
        title="nanochat-serve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    routers = (
        completion_router(models),
        messages_router(models),
        responses_router(models),
        embeddings_router(models),
        infill_router(models),
        other_router(models, load_page()),
    )
    for router in routers:
        app.include_router(router)
    paths = [route for router in routers for route in router.routes if isinstance(route, Route)]
    install_handlers(app, [route for route in paths if route.include_in_schema])
    # the last one added is the outermost
    app.add_middleware(Loans)
    app.add_middleware(Bodies, settings=settings)
    app.add_middleware(Gate, settings=settings)
    if settings.cors_origins:
        app.add_middleware(
            Cors,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # clients send headers of their own, OpenAI's more than ten of them
            expose_headers=["retry-after"],
        )
    app.add_middleware(
        Answers,
        metrics=models.metrics,
        log=settings.log,
        each=settings.log_requests,
        routes=[*(route.path for route in paths), "/openapi.json"],
    )
    return app
