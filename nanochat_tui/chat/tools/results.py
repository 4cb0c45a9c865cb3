"""From what a tool answers to text: parts that are no text are named, and what is too long is cut, with a note."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from nanochat_tui.text import display_safe, printable

MAX_BYTES = 32 * 1024
MAX_TOKENS = 4096
"""Most of a result that is kept and told to the model, where the context has four times as much."""


def result_text(content: Sequence[Any], structured: Any) -> str:
    """Return the blocks of a result (`mcp.types.ContentBlock`) as one text, with unsafe characters escaped."""
    texts = [text for text in map(_block, content) if text]
    if not texts and structured is not None:
        texts = [json.dumps(structured, ensure_ascii=False, indent=1)]
    return "\n".join(texts)


def _block(block: Any) -> str:
    kind = getattr(block, "type", "")
    if kind == "text":
        return str(block.text)
    if kind in ("image", "audio"):
        return f"[{kind} of type {block.mime_type}, {len(block.data) * 3 // 4:,} bytes, not shown]"
    if kind == "resource_link":
        return f"[resource {block.uri}]"
    inner = getattr(block, "resource", None)
    if inner is not None:
        text = getattr(inner, "text", None)
        return str(text) if text is not None else f"[resource {inner.uri}, not text]"
    return f"[a part of type {display_safe(str(kind), 40)}, not shown]"


def cleaned(text: str) -> str:
    """Return a text from outside as it is shown, kept and told to models: escapes written out, lines as here."""
    return printable(text.replace("\r\n", "\n"))


def capped(text: str, count: Callable[[str], int], *, max_bytes: int = MAX_BYTES, max_tokens: int = MAX_TOKENS) -> str:
    """Return a text made safe, of at most so many bytes and tokens (as `count` tells), with a note of what was cut."""
    whole = cleaned(text[: max_bytes + 1])
    kept = whole.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")
    tokens = count(kept)
    while tokens > max_tokens and kept:
        kept = kept[: min(len(kept) - 1, len(kept) * max_tokens // tokens)]
        tokens = count(kept)
    if len(kept) == len(whole):
        return whole
    return f"{kept}\n[cut here: the whole result has {len(text.encode('utf-8', 'replace')):,} bytes]"
