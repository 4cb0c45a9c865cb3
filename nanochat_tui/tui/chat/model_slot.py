"""The model of the chat: the backend, the thread that loads it, how far that is, and why there is none."""

from __future__ import annotations

import time

from nanochat_tui.chat.backend import Backend, Stats
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.generation import Loader, Post

STEPS_SHOWN = 6
"""Newest steps of loading that are remembered."""


class ModelSlot:
    """Holds one backend at a time. The loader reports through `post`; the receiver calls `progressed`, `loaded`
    and `failed`.
    """

    def __init__(self, backend: Backend, post: Post) -> None:
        self.backend = backend
        self.ready = False
        self.failure: tuple[str, str] | None = None
        """Why there is no model: a title and the text; None while it loads or is ready."""
        self.steps: tuple[str, ...] = ()
        """What the loader did, the present step last."""
        self._post = post
        self._began = 0.0
        self.loader = Loader(backend, post)

    @property
    def answers(self) -> bool:
        """Whether there is a model, and one that answers messages; what it is shows only once it is loaded."""
        return self.ready and self.backend.is_chat

    @property
    def is_file(self) -> bool:
        """Whether the model is a file here and not a server's."""
        return self.backend.path is not None

    def can_continue(self, *, chat: bool) -> bool:
        """Whether replies can go on from the middle; False without a model."""
        return self.ready and self.backend.can_continue(chat=chat)

    @property
    def seconds(self) -> float:
        """How long it has been loading."""
        return time.monotonic() - self._began

    def begin(self) -> None:
        """Nothing is ready any more; `loader.start` is to follow."""
        self.ready, self.failure, self.steps = False, None, ()
        self._began = time.monotonic()

    def replace(self, backend: Backend) -> None:
        """Put another backend in the place of this one; the old one's loader ends at its next step."""
        self.loader.stop()
        if backend is not self.backend and not self.loader.is_working:
            self.backend.close()
        self.backend = backend
        self.loader = Loader(backend, self._post)

    def progressed(self, step: str) -> bool:
        """Remember a step of loading; returns whether it is a new one."""
        if step in self.steps:
            return False
        self.steps = (*self.steps, step)[-STEPS_SHOWN:]
        return True

    def loaded(self) -> None:
        """The model can answer."""
        self.ready = True

    def failed(self, title: str, text: str) -> None:
        """There is no model, and that is why."""
        self.ready = False
        self.failure = title, text

    def context_of(self, turn: Turn | None) -> Stats | None:
        """How much of this model's context the turn's reply had used; None where unknown."""
        if turn is None or turn.stats is None or not self.ready:
            return None
        return Stats(None, None, turn.stats.context_used, self.backend.context_size)
