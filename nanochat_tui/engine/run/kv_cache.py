"""The key-value cache of one sequence: its tokens and the pages that hold their keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.engine.layout.memory import aligned
from nanochat_tui.engine.run.paging import PAGE, CacheType, Page, PagePool, PoolFull, pages_for, root_of
from nanochat_tui.errors import UserError
from nanochat_tui.model.architectures.description import Architecture

__all__ = ["CacheType", "KVCache", "PoolFull"]


KEPT_STATES = 2
"""Recurrent states that a sequence can come back to: the ends of its prompt and of the part before the last one."""


class KVCache:
    """Room for `positions` tokens, in pages of a pool of its own or of one shared with others.

    `ids` are the tokens whose keys and values are in it: what lies beyond them may be overwritten at any time.
    salt: full pages are shared with the pool's caches of the same salt (`paging.root_of`), None with none of them.
    Used by one thread at a time; `release` gives the pages back.
    """

    def __init__(
        self,
        config: Architecture,
        positions: int,
        kind: CacheType = "f16",
        pool: PagePool | None = None,
        salt: str | None = "",
    ) -> None:
        # one page more than needed, so that what an edit leaves can be kept
        self.pool = pool or PagePool(config, pages_for(positions) + 1, kind)
        self.positions = positions
        self.salt = salt
        self._root = root_of(salt or "")
        self.ids: list[int] = []
        self._config = config
        self._pages: list[Page] = []
        self.table = np.zeros(pages_for(positions), np.int64)
        """Addresses of the pages, int64; the array stays where it is."""
        self._state: NDArray[np.float32] | None = None
        if config.state_floats:
            self._state = aligned(config.state_floats, np.float32, 0.0)
        self._state_at = 0
        self._kept: list[tuple[int, NDArray[np.float32]]] = []

    @property
    def state_address(self) -> int:
        """Address of the recurrent layers' state, 0 if the model has none."""
        return 0 if self._state is None else int(self._state.ctypes.data)

    def state_for(self, position: int) -> int:
        """Return the state's address for tokens from `position` on, which the state has to have come to.

        It counts as unknown until `came_to` says what was run: an interrupted job leaves it anywhere.
        """
        if self._state is not None:
            if self._state_at != position:
                raise ValueError("a recurrent state cannot go back; begin the sequence again")
            self._state_at = -1
        return self.state_address

    def came_to(self, position: int) -> None:
        """Note that a job ran tokens up to a position."""
        self._state_at = position

    def keep_state(self) -> None:
        """Remember the recurrent state as it is now, to come back to: what follows may be said otherwise later."""
        known = self._kept[-1][0] if self._kept else -1
        if self._state is not None and self._state_at == len(self.ids) != known:
            self._kept = [*self._kept[1 - KEPT_STATES :], (len(self.ids), self._state.copy())]

    def _rewind(self, count: int) -> int:
        """Bring the recurrent state to at most `count` tokens; return how many it is then."""
        if self._state is None or self._state_at == count:
            return count
        self._kept = [kept for kept in self._kept if kept[0] <= count]
        if self._kept:
            self._state_at, kept = self._kept[-1]
            self._state[...] = kept
        else:
            self._state_at = 0
            self._state[...] = 0.0
        return self._state_at

    def _set(self, index: int, page: Page) -> None:
        if index == len(self._pages):
            self._pages.append(page)
        else:
            self._pages[index] = page
        self.table[index] = page.address

    def begin(self, ids: Sequence[int]) -> int:
        """Keep what this cache or its pool knows of a sequence's beginning, at most all but one token.

        Returns how many tokens that is; the others are to be run.
        """
        limit = len(ids) - 1
        same = 0
        for old, new in zip(self.ids, ids[:limit], strict=False):
            if old != new:
                break
            same += 1
        self.truncate(same)
        if self._state is not None or self.salt is None:  # a page without the state behind it is of no use
            return len(self.ids)
        whole = same // PAGE
        found: list[Page] = []
        parent = self._pages[whole - 1].number if whole else self._root
        while (whole + len(found) + 1) * PAGE <= limit:
            start = (whole + len(found)) * PAGE
            page = self.pool.find(parent, ids[start : start + PAGE])
            if page is None:
                break
            found.append(page)
            parent = page.number
        if found:
            self.truncate(whole * PAGE)
            for page in found:
                self._set(len(self._pages), page)
            self.ids = [int(token) for token in ids[: len(self._pages) * PAGE]]
        return len(self.ids)

    def truncate(self, count: int) -> None:
        """Keep the first `count` tokens only; fewer if there is a recurrent state, which only some can be had of."""
        count = self._rewind(min(count, len(self.ids)))
        del self.ids[count:]
        # from the end, so that of a beginning its later part is forgotten first
        while len(self._pages) > pages_for(count):
            self.pool.drop(self._pages.pop())

    def missing(self, end: int) -> int:
        """Return how many pages `reserve` would take from the pool for positions up to `end`."""
        return max(0, pages_for(end) - len(self._pages))

    def reserve(self, first: int, end: int) -> None:
        """Make positions first..end writable: pages of this sequence alone. Raises PoolFull or UserError."""
        for index in range(first // PAGE, min(len(self._pages), pages_for(end))):
            self._set(index, self.pool.own(self._pages[index]))
        while len(self._pages) < pages_for(end):
            self._set(len(self._pages), self.pool.take())

    def extend(self, ids: Sequence[int]) -> None:
        """Note that the next tokens' keys and values were written; pages that are full now can be found by others."""
        full = len(self.ids) // PAGE
        self.ids += ids
        if self._state is not None or self.salt is None:
            return
        for index in range(full, len(self.ids) // PAGE):
            parent = self._pages[index - 1].number if index else self._root
            part = self.ids[index * PAGE : (index + 1) * PAGE]
            self._set(index, self.pool.register(self._pages[index], parent, part))

    def fork(self) -> KVCache:
        """Return a cache with the same content that shares its pages until one of the two writes into one."""
        other = KVCache(self._config, self.positions, self.pool.kind, self.pool, self.salt)
        other.ids = list(self.ids)
        if self._state is not None and other._state is not None:
            other._state[...] = self._state
            other._state_at, other._kept = self._state_at, list(self._kept)
        for page in self._pages[: pages_for(len(self.ids))]:
            other._set(len(other._pages), self.pool.share(page))
        return other

    def release(self) -> None:
        """Give all pages back; the cache is empty then."""
        self.truncate(0)


def reserve(cache: KVCache, first: int, end: int) -> None:
    """Make positions writable, in words if the pool is full."""
    try:
        cache.reserve(first, end)
    except PoolFull:
        raise UserError("the key-value cache is full; shorten the conversation or close another one") from None
