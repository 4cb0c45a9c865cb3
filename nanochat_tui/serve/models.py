"""The models behind the routes: one that is always there, or several (see `several`) that come and go.

A route asks for the model of its body with `use`, which lends it until the answer is sent; what is lent stays loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.metrics import ServerMetrics
from nanochat_tui.serve.replies import Health, ModelCard, ModelStatus
from nanochat_tui.serve.service import Service
from nanochat_tui.serve.settings import Settings
from nanochat_tui.version import __version__

LOANS = "nanochat.loans"
"""Name in a request's scope of what is to be called once its answer is sent."""


class Models(Protocol):
    """What the application needs of the models of a server. Used on the event loop, `close` on any thread."""

    settings: Settings
    metrics: ServerMetrics

    async def use(self, request: Request, name: str | None) -> Service:
        """Return the model of a name, loaded, and lend it until the request is answered. Raises ApiError."""

    async def cards(self) -> list[ModelCard]:
        """Return what /v1/models says."""

    async def load(self, name: str) -> ModelCard:
        """Load a listed model and return its card. Raises ApiError."""

    async def unload(self, name: str) -> ModelCard:
        """Unload a listed model once its replies are written, and return its card. Raises ApiError."""

    def health(self, *, names: bool) -> Health:
        """Return what /health says; names: with the state of each model, for those who may know them."""

    def running(self) -> int:
        """Return how many replies are being written."""

    def start(self) -> None:
        """Begin; returns at once."""

    def stop(self) -> None:
        """Take no more requests."""

    def cut(self) -> None:
        """End all replies at their next token."""

    def close(self) -> None:
        """End everything."""


class OneModel:
    """A server's only model: loaded at the start, and there until the end."""

    def __init__(self, service: Service) -> None:
        self.settings = service.settings
        self.metrics = service.metrics.server
        self._service = service
        self.start, self.stop, self.cut, self.close = service.start, service.stop, service.cut, service.close

    async def use(self, request: Request, name: str | None) -> Service:
        """Return the model, whatever its name; see `routes_completion.check_model` for strict servers."""
        return self._service

    async def cards(self) -> list[ModelCard]:
        """Return a card for the model's name and for each other name it answers to."""
        service = self._service
        value = {"ok": "loaded", "loading": "loading"}.get(service.state, "unloaded")
        meta = meta_of(service) if service.state == "ok" else None
        names = (self.settings.name, *self.settings.aliases)
        return [
            ModelCard(id=name, created=service.created, meta=meta, status=ModelStatus(value=value)) for name in names
        ]

    async def load(self, name: str) -> ModelCard:
        """Return the model's card: it is loaded already, or on its way."""
        return next((card for card in await self.cards() if card.id == name), None) or _unknown()

    async def unload(self, name: str) -> ModelCard:
        """Refuse: there would be nothing left. Raises ApiError."""
        await self.load(name)
        raise ApiError(400, "this server has one model and keeps it; --models-dir serves several", param="model")

    def health(self, *, names: bool) -> Health:
        """Return the state of the model."""
        state = self._service.state
        failed = state == "failed"
        told = "the model cannot be used; the server's log says why" if failed else None
        return Health(status=state, message=told)

    def running(self) -> int:
        """Return how many replies are being written."""
        now = self._service.snapshot()
        return now.running if now else 0


def models_of(served: Service | Models) -> Models:
    """Return the models of a server that was made for a single one, too."""
    return OneModel(served) if isinstance(served, Service) else served


def meta_of(service: Service) -> dict[str, Any]:
    """Return what is said of a loaded model, in llama-server's words."""
    model = service.model
    config = model.config
    return {
        "n_vocab": config.vocab_size,
        "n_ctx_train": config.context_length,
        "n_ctx": service.context,
        "n_embd": config.dim,
        "n_params": config.parameters,
        "chat_template": model.chat_template is not None,
        "kernel": model.kernel,
        "version": __version__,
    }


def unknown_model(names: Mapping[str, object] | None = None) -> ApiError:
    """Return the failure of a name that no model here has."""
    listed = list(names or ())
    there = f"; this server has {', '.join(listed[:20])}" if listed else ""
    return ApiError(404, f"there is no such model here{there}", param="model", code="model_not_found")


def _unknown() -> ModelCard:
    raise unknown_model()


class Loans:
    """Gives back what a request was lent, once its answer is sent to the last byte or its client has left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        loans: list[Callable[[], None]] = []
        scope[LOANS] = loans
        try:
            await self._app(scope, receive, send)
        finally:
            for give_back in loans:
                give_back()
