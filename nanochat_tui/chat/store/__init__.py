"""The sessions on disk: `writer` owns the database in one thread, `queries` speak to it, `schema` opens it."""

from nanochat_tui.chat.store.schema import StoreError
from nanochat_tui.chat.store.writer import KEPT_DAYS, Store

__all__ = ["KEPT_DAYS", "Store", "StoreError"]
