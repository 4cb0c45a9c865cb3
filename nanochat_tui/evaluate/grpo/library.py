"""Changes of an experience library: read from a model's reply, merged, applied."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["ADD", "UPDATE", "DELETE", "NONE"]
_KINDS: dict[str, Kind] = {"ADD": "ADD", "UPDATE": "UPDATE", "DELETE": "DELETE", "NONE": "NONE"}
MAX_CONTENT = 600
"""Characters of an experience that are kept: each is in every later prompt."""
_BLOCK = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Operation:
    """One change: ADD without id, UPDATE and DELETE of an id, NONE. DELETE and NONE have no content."""

    operation: Kind
    id: str | None = None
    content: str = ""


def read_operations(reply: str) -> list[Operation] | None:
    """Return the operations of a reply: a JSON list, alone, in a code block, or with text around it.

    None if there is no such list, or one of its entries is no operation: nothing is then changed.
    """
    found = _list_in(reply)
    if found is None:
        return None
    operations = [_operation(entry) for entry in found]
    known = [one for one in operations if one is not None]
    return known if len(known) == len(operations) else None


def _list_in(reply: str) -> list[object] | None:
    texts = [*_BLOCK.findall(reply), reply]
    begin, end = reply.find("["), reply.rfind("]")
    if 0 <= begin < end:
        texts.append(reply[begin : end + 1])
    for text in texts:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, list):
            return value
    return None


def _operation(entry: object) -> Operation | None:
    if not isinstance(entry, dict):
        return None
    kind = _KINDS.get(str(entry.get("operation", "")).upper())
    name, content = entry.get("id"), entry.get("content")
    text = " ".join(content.split())[:MAX_CONTENT] if isinstance(content, str) else ""
    if kind is None or (kind in ("ADD", "UPDATE") and not text) or (kind == "DELETE" and not isinstance(name, str)):
        return None
    if kind == "NONE":
        return Operation("NONE")
    return Operation(kind, name if isinstance(name, str) else None, "" if kind == "DELETE" else text)


def merge(operations: Sequence[Operation]) -> list[Operation]:
    """Return operations without conflicts: DELETE wins over UPDATE of the same id, the last UPDATE over earlier ones,
    and of equal texts one is added.
    """
    deleted = {one.id for one in operations if one.operation == "DELETE"}
    updates = {one.id: one for one in operations if one.operation == "UPDATE" and one.id not in deleted}
    added = {one.content.casefold(): one for one in reversed(operations) if one.operation == "ADD"}
    kept_deletes = {one.id: one for one in operations if one.operation == "DELETE"}
    return [*updates.values(), *kept_deletes.values(), *reversed(added.values())]


def apply(operations: Sequence[Operation], library: Mapping[str, str], most: int) -> dict[str, str]:
    """Return the library after merged operations, numbered anew from G0; with more than `most` the oldest ones go.

    UPDATE of an unknown id adds, DELETE of one does nothing.
    """
    changed = dict(library)
    new: list[str] = []
    for one in merge(operations):
        if one.operation == "DELETE":
            changed.pop(one.id or "", None)
        elif one.operation == "UPDATE" and one.id in changed:
            changed[one.id or ""] = one.content
        else:
            new.append(one.content)
    texts = list(dict.fromkeys([*changed.values(), *new]))
    return {f"G{number}": text for number, text in enumerate(texts[-most:] if most else [])}
