"""The key-value cache of one sequence: its tokens and the pages that hold their keys and values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nanochat_tui.engine.paging import NO_PARENT, PAGE, CacheType, Page, PagePool, PoolFull, pages_for
from nanochat_tui.errors import UserError
from nanochat_tui.model.config import ModelConfig

__all__ = ["CacheType", "KVCache", "PoolFull"]


class KVCache:
    """Room for `positions` tokens, in pages of a pool of its own or of one shared with others.

    `ids` are the tokens whose keys and values are in it: what lies beyond them may be overwritten at any time.
    Used by one thread at a time; `release` gives the pages back.
    """

    def __init__(
        self, config: ModelConfig, positions: int, kind: CacheType = "f16", pool: PagePool | None = None
    ) -> None:
        # one page more than needed, so that what an edit leaves can be kept
        self.pool = pool or PagePool(config, pages_for(positions) + 1, kind)
        self.positions = positions
        self.ids: list[int] = []
        self._config = config
        self._pages: list[Page] = []
        self.table = np.zeros(pages_for(positions), np.int64)
        """Addresses of the pages, int64; the array stays where it is."""

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
        whole = same // PAGE
        found: list[Page] = []
        parent = self._pages[whole - 1].number if whole else NO_PARENT
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
        """Keep the first `count` tokens only."""
        del self.ids[count:]
        # from the end, so that of a beginning its later part is forgotten first
        while len(self._pages) > pages_for(count):
            self.pool.drop(self._pages.pop())

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
        for index in range(full, len(self.ids) // PAGE):
            parent = self._pages[index - 1].number if index else NO_PARENT
            part = self.ids[index * PAGE : (index + 1) * PAGE]
            self._set(index, self.pool.register(self._pages[index], parent, part))

    def fork(self) -> KVCache:
        """Return a cache with the same content that shares its pages until one of the two writes into one."""
        other = KVCache(self._config, self.positions, self.pool.kind, self.pool)
        other.ids = list(self.ids)
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
