"""Key bindings that can be given other keys: those with a name (`id`); and what their keys are called in texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


def unused_keys(chosen: dict[str, str], known: Iterable[Remappable]) -> list[str]:
    """Return what is wrong with keys as a file gives them, in words: unknown bindings, keys that are none or taken."""
    known = list(known)
    names = {one.id for one in known}
    wrong = [f"keys.{name} is unknown" for name in chosen if name not in names]
    found = {name: key_problem(name, keys, known, chosen) for name, keys in chosen.items() if name in names}
    return wrong + [f"keys.{name}: {problem}" for name, problem in found.items() if problem]


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


# Keys in texts

NAMED = re.compile(r"\{([a-z]+\.[a-z0-9_]+)\|([^{}|]+)\}")
"""A key in a text: the binding's name and what the key it came with is called, as in `{chat.again|Ctrl+R}`."""
_WRITTEN = {
    "escape": "Esc",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "pageup": "PageUp",
    "pagedown": "PageDown",
    "slash": "/",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "plus": "+",
    "minus": "−",
    "equals_sign": "=",
    "full_stop": ".",
    "comma": ",",
    "question_mark": "?",
}


def written(keys: str) -> str:
    """Return how the first of some keys is called in a text: `Ctrl+R` for `ctrl+r`, `Esc` for `escape,f2`."""
    *modifiers, key = keys.split(",", maxsplit=1)[0].strip().split("+")
    named = _WRITTEN.get(key) or (key.upper() if modifiers or re.fullmatch(r"f\d+", key) else key)
    if len(key) > 1 and key not in _WRITTEN and not re.fullmatch(r"f\d+", key):
        named = key.replace("_", " ").capitalize()
    return "+".join([*(modifier.capitalize() for modifier in modifiers), named])


class KeyNames:
    """Puts the keys that a person chose (by the bindings' names) into texts that name keys, in the form of `NAMED`."""

    def __init__(self, chosen: Mapping[str, str] | None = None) -> None:
        self._chosen = dict(chosen or {})

    def __call__(self, text: str) -> str:
        """Return `text`, an own one and no other person's, with the keys as they are."""
        return NAMED.sub(lambda found: self.of(found[1], found[2]), text)

    def of(self, binding: str, default: str) -> str:
        """Return how the key of `binding` is called; `default` if it has the one it came with."""
        chosen = self._chosen.get(binding)
        return default if chosen is None else written(chosen)


@runtime_checkable
class NamesKeys(Protocol):
    """An application whose keys can be changed."""

    key_names: KeyNames


def key_names(node: DOMNode) -> KeyNames:
    """Return the names of keys as they are in the application of `node`."""
    app = node.app
    return app.key_names if isinstance(app, NamesKeys) else KeyNames()
