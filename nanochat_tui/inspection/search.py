"""Names found by a few of their letters, and tensors arranged as a tree."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from nanochat_tui.formats.gguf import TensorInfo

_BORDERS = "._-/ "


@dataclass(frozen=True, slots=True)
class Match:
    """A name that a query fits: the better, the higher the score. `positions` are the letters that were found."""

    name: str
    score: int
    positions: tuple[int, ...]


def fuzzy(query: str, names: Iterable[str]) -> list[Match]:
    """Return the names in which all words of `query` occur, best first.

    A word occurs as a run of letters, or else as letters in this order with others between them (`b3fd` finds
    `blk.3.ffn_down`). Runs, and letters after a border such as a dot, count more. Case does not matter; an empty query
    finds everything, in the given order.
    """
    words = query.lower().split()
    found = []
    for name in names:
        lowered = name.lower()
        score, positions = 0, set[int]()
        for word in words:
            match = _word(word, lowered)
            if match is None:
                break
            score += match[0]
            positions.update(match[1])
        else:
            found.append(Match(name, score - len(name) // 8 if words else 0, tuple(sorted(positions))))
    return sorted(found, key=lambda match: -match.score) if words else found


def _word(word: str, name: str) -> tuple[int, list[int]] | None:
    start = name.find(word)
    if start >= 0:
        at_border = start == 0 or name[start - 1] in _BORDERS
        return 10 * len(word) + (10 if at_border else 0), list(range(start, start + len(word)))
    positions: list[int] = []
    score, place = 0, -1
    for letter in word:
        after = place + 1
        place = _next(name, letter, after)
        if place < 0:
            return None
        score += 3 if place == after or name[place - 1] in _BORDERS else 1
        positions.append(place)
    return score, positions


def _next(name: str, letter: str, start: int) -> int:
    """Return where a letter comes next: adjacent, else after a border, else anywhere; -1 if nowhere."""
    if start < len(name) and name[start] == letter:
        return start
    first = name.find(letter, start)
    place = first
    while place > 0:
        if name[place - 1] in _BORDERS:
            return place
        place = name.find(letter, place + 1)
    return first


@dataclass(slots=True)
class Folder:
    """A group of tensors that share the beginning of their names."""

    name: str
    folders: dict[str, Folder] = field(default_factory=dict)
    tensors: list[TensorInfo] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes of everything below."""
        return sum(t.nbytes for t in self.tensors) + sum(f.bytes for f in self.folders.values())

    @property
    def count(self) -> int:
        """Tensors of everything below."""
        return len(self.tensors) + sum(f.count for f in self.folders.values())


_BLOCK = re.compile(r"(.*?(?:blk|blocks|layers))\.(\d+)\.")


def layer_of(name: str) -> tuple[int | None, str]:
    """Split a tensor's name into its layer and its name there: `blk.3.ffn_down.weight` is (3, `ffn_down`)."""
    match = _BLOCK.match(name)
    rest = name[match.end() :] if match else name
    short = rest.removesuffix(".weight")
    return (int(match.group(2)) if match and len(match.group(2)) < 9 else None), short


def tree(tensors: Iterable[TensorInfo]) -> Folder:
    """Arrange tensors by their block, in the order of the file; the others stay at the top."""
    root = Folder("")
    for info in tensors:
        match = _BLOCK.match(info.name)
        if match is None:
            root.tensors.append(info)
            continue
        label = f"{match.group(1)}.{match.group(2)}"
        root.folders.setdefault(label, Folder(label)).tensors.append(info)
    return root
