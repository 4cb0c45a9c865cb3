"""Key bindings that can be given other keys: those with a name (`id`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from textual.binding import Binding
from textual.dom import DOMNode

_KEY = re.compile(r"((ctrl|shift|alt|super)\+)*([a-z0-9_]+|[A-Z])")


@dataclass(frozen=True, slots=True)
class Remappable:
    """One binding: its name, what it does, the keys it came with."""

    id: str
    title: str
    default: str


def remappable(classes: Iterable[type[DOMNode]]) -> list[Remappable]:
    """Return every named binding of some classes, in their order, each once."""
    found: dict[str, Remappable] = {}
    for cls in classes:
        for binding in cls.BINDINGS:
            if isinstance(binding, Binding) and binding.id:
                room = binding.id.partition(".")[0]
                title = f"{room}: {binding.description}"
                found.setdefault(binding.id, Remappable(binding.id, title, binding.key))
    return list(found.values())


def key_problem(name: str, keys: str, known: Iterable[Remappable], chosen: dict[str, str]) -> str | None:
    """Return why `keys` cannot be given to binding `name`, or None. Bindings of one widget must not share a key."""
    wanted = [key.strip() for key in keys.split(",")]
    for key in wanted:
        if not _KEY.fullmatch(key):
            return f"“{key}” is no key; write for example ctrl+x, f6, escape, or several with commas."
    room = name.partition(".")[0]
    for other in known:
        if other.id == name or other.id.partition(".")[0] not in (room, "app"):
            continue
        taken = {key.strip() for key in chosen.get(other.id, other.default).split(",")}
        both = {other.id, name} == {"chat.stop", "chat.back"}  # one key for both is what they came with
        if not both and taken & set(wanted):
            return f"{', '.join(sorted(taken & set(wanted)))} already means “{other.title}”."
    return None
