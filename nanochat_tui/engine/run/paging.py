"""Memory of the key-value cache in pages of 64 positions, which several sequences may share.

A page holds keys and values of all layers and kv heads. A full page is known by the tokens in it and by the page before
it, so that another sequence that begins in the same way can use it (PagedAttention, Kwon et al. 2023). Pages without
users stay until their memory is needed; the least recently used one goes first.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned, round_up
from nanochat_tui.errors import UserError
from nanochat_tui.model.architectures.description import Architecture

CacheType = Literal["f16", "f32", "int8"]
KINDS: dict[str, int] = {"f32": s.KV_F32, "f16": s.KV_F16, "int8": s.KV_INT8}
_BYTES = {"f32": 4, "f16": 2, "int8": 1}
PAGE = s.PAGE
Key = tuple[int, tuple[int, ...]]
NO_PARENT = 0
"""Stands for the page before the first one."""


def root_of(salt: str) -> int:
    """Return what stands for the page before the first one of the sequences that share pages under a salt.

    Sequences under different salts never find each other's pages, so that how long a prompt takes tells nothing about
    those of other people (`cache_salt` of vLLM). The empty salt is `NO_PARENT`; others are negative, which no page's
    number is.
    """
    digest = hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return -1 - int.from_bytes(digest) if salt else NO_PARENT


def pages_for(positions: int) -> int:
    """Return how many pages hold that many positions."""
    return -(-positions // PAGE)


class PoolFull(Exception):  # noqa: N818 - a state that the caller waits out or words for people
    """Every page is in use."""


class Page:
    """Memory of 64 positions. users: sequences that hold it. number: stands for its content in other pages' keys."""

    __slots__ = ("address", "key", "memory", "number", "users")

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.memory = memory
        self.address = int(memory.ctypes.data)
        self.users = 0
        self.number = NO_PARENT
        self.key: Key | None = None


class PagePool:
    """Up to `capacity` pages for one model; safe to use from several threads.

    kind: "f32", "f16" or "int8" (a float32 scale per position and head). Memory is taken when it is first
    needed, and kept. A layer's part of a page is [kv head][head_bytes], see `kernels.attention`.
    """

    def __init__(self, config: Architecture, pages: int, kind: CacheType = "f16") -> None:
        self.kind: CacheType = kind
        self.capacity = pages
        size, padded = _BYTES[kind], round_up(config.head_dim, 16)
        self.value_offset = PAGE * config.head_dim * size
        self.key_scale_offset = self.value_offset + PAGE * padded * size
        self.value_scale_offset = self.key_scale_offset + 4 * PAGE
        end = self.key_scale_offset + (8 * PAGE if kind == "int8" else 0)
        self.head_bytes = round_up(end, 64)
        self.layer_bytes = config.n_kv_heads * self.head_bytes
        self.page_bytes = self.layer_bytes * config.n_cached_layers
        self._lock = threading.RLock()
        self._made = 0
        self._used = 0
        self._free: list[Page] = []
        self._known: dict[Key, Page] = {}
        self._idle: OrderedDict[int, Page] = OrderedDict()
        self._numbers = itertools.count(NO_PARENT + 1)

    @property
    def used(self) -> int:
        """Pages that sequences hold; the others are free or kept in case their beginning is seen again."""
        return self._used

    @property
    def available(self) -> int:
        """Pages that could be taken now."""
        return self.capacity - self._used

    def grow(self, pages: int) -> None:
        """Allow for more pages (or fewer, if negative; those in use stay)."""
        with self._lock:
            self.capacity += pages

    def take(self) -> Page:
        """Return a page for one user, its content undefined. Raises PoolFull, or UserError if memory has run out."""
        with self._lock:
            if self._free:
                page = self._free.pop()
            elif self._made < self.capacity:
                try:
                    page = Page(aligned(self.page_bytes, np.uint8))
                except MemoryError as error:
                    raise UserError("there is not enough memory for a longer context; choose a smaller one") from error
                self._made += 1
            elif self._idle:
                _, page = self._idle.popitem(last=False)
                self._forget(page)
            else:
                raise PoolFull
            page.users = 1
            self._used += 1
            return page

    def _forget(self, page: Page) -> None:
        if page.key is not None:
            del self._known[page.key]
            page.key = None

    def share(self, page: Page) -> Page:
        """Count one more user of a page that is held already, and return it."""
        with self._lock:
            page.users += 1
            return page

    def drop(self, page: Page) -> None:
        """Count one user less; a page without any can be taken again, last of all if its content is known."""
        with self._lock:
            page.users -= 1
            if page.users:
                return
            self._used -= 1
            if page.key is not None:
                self._idle[page.number] = page
            elif self._made > self.capacity:
                self._made -= 1
            else:
                self._free.append(page)

    def find(self, parent: int, ids: Sequence[int]) -> Page | None:
        """Return the page with these 64 tokens after the page of number `parent`, one user more; or None."""
        with self._lock:
            page = self._known.get((parent, tuple(ids)))
            if page is not None:
                if page.users == 0:
                    del self._idle[page.number]
                    self._used += 1
                page.users += 1
            return page

    def register(self, page: Page, parent: int, ids: Sequence[int]) -> Page:
        """Make a full page known by its tokens. If another one already is, return that and drop the given one.

        Equal tokens at equal positions after equal ones have equal bits, whichever thread computed them.
        """
        with self._lock:
            if page.key is not None:
                return page
            other = self.find(parent, ids)
            if other is not None:
                self.drop(page)
                return other
            page.key, page.number = (parent, tuple(ids)), next(self._numbers)
            self._known[page.key] = page
            return page

    def own(self, page: Page) -> Page:
        """Return a page with the same content that only the caller uses and finds, giving up the given one.

        That is the page itself when it has no other user and there is no memory for a copy. Raises PoolFull.
        """
        with self._lock:
            if page.users == 1 and page.key is None:
                return page
            try:
                copy = self.take()
            except PoolFull:
                if page.users > 1:
                    raise
                self._forget(page)
                return page
            copy.memory[:] = page.memory
            self.drop(page)
            return copy


def layout_of(pool: PagePool, job: NDArray[Any]) -> None:
    """Write a pool's layout into the JOB table."""
    job[s.KV_KIND], job[s.VALUE_OFFSET] = KINDS[pool.kind], pool.value_offset
    job[s.KEY_SCALE_OFFSET], job[s.VALUE_SCALE_OFFSET] = pool.key_scale_offset, pool.value_scale_offset
    job[s.HEAD_KV_BYTES], job[s.LAYER_KV_BYTES] = pool.head_bytes, pool.layer_bytes
