"""Corrections of Textual where its own behaviour costs the user something; each says when it can go."""

from __future__ import annotations

from functools import _lru_cache_wrapper
from typing import Any

from textual._styles_cache import StylesCache


def release_removed_widgets() -> None:
    """Let what a removed widget had drawn go with it.

    `StylesCache.get_inner_outer` remembers the last 1,024 answers together with the object it was asked of, although
    that is written as if it were the class (Textual 8.2.8). So the drawn rows of a thousand removed widgets stay in
    memory, about six kilobytes for every reply. Asked of the class the answers are the same and hold nothing. Not
    needed once the method is a `classmethod`. Idempotent.
    """
    found: Any = StylesCache.__dict__.get("get_inner_outer")
    if isinstance(found, _lru_cache_wrapper):
        cached: Any = found
        StylesCache.get_inner_outer = classmethod(cached)  # type: ignore[method-assign, assignment]
