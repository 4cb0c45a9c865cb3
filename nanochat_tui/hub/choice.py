"""Which files of a repository are meant: by name, by quantisation, or the usual ternary ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

PREFERRED = ("PQ2_0", "TQ2_0", "Q2_0", "I2_S", "PTQ1_0", "TQ1_0", "STQ1_0", "Q1_0")
"""Ternary and binary types as file names have them, in the order in which one is taken when none was asked for."""
MOST_LISTED = 12
"""Files that a refusal names."""
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_OTHER = re.compile(
    r"(^|[/._-])(mmproj|clip|dspark|dflash|draft(er)?|eagle\d?|mtp|imatrix|lora|adapter)([/._-]|$)", re.IGNORECASE
)
"""Names of what is no language model by itself: vision towers, draft models, statistics, adapters."""


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file of a repository: its size in bytes, and SHA-256 (large files) or Git's SHA-1 of it, in hexadecimal."""

    name: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a repository: one file, or all the files it is split over. `name` leaves the numbers out."""

    name: str
    files: tuple[RepoFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def is_of(self, kind: str) -> bool:
        """Whether the name has a quantisation as one of its words: PQ2_0 is no Q2_0."""
        stem = self.name.removesuffix(".gguf")
        return re.search(rf"(^|[/._-]){re.escape(kind)}($|[/._-])", stem, re.IGNORECASE) is not None

    def ends_with(self, kind: str) -> bool:
        """Whether a quantisation is the last word of the name."""
        return re.search(rf"(^|[/._-]){re.escape(kind)}\.gguf$", self.name, re.IGNORECASE) is not None


def is_safe(name: str) -> bool:
    """Return whether a file's name is a path below its repository, on every system."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and all(
        c.isprintable() and c not in '\\:*?"<>|' for c in name
    )


def candidates(files: Sequence[RepoFile]) -> list[Candidate]:
    """Return the models among files, by name; those of which a part is missing are left out."""
    groups: dict[str, dict[int, RepoFile]] = {}
    counts: dict[str, int] = {}
    for file in files:
        if not file.name.lower().endswith(".gguf") or not is_safe(file.name) or _OTHER.search(file.name):
            continue
        shard = _SHARD.fullmatch(file.name)
        name, number, count = (shard[1] + shard[4], int(shard[2]), int(shard[3])) if shard else (file.name, 1, 1)
        groups.setdefault(name, {})[number] = file
        counts[name] = count
    return [
        Candidate(name, tuple(found[number] for number in sorted(found)))
        for name, found in sorted(groups.items())
        if sorted(found) == list(range(1, counts[name] + 1))
    ]


def choose(files: Sequence[RepoFile], wanted: str | None, where: str) -> Candidate:
    """Return the model that is meant; wanted: a file's name or a quantisation. Raises UserError with what there is."""
    found = candidates(files)
    if not found:
        raise UserError(
            f"{where} holds no GGUF file of a language model; look for a repository whose name has GGUF in it"
        )
    if wanted is not None:
        return _wanted(found, wanted, where)
    if len(found) == 1:
        return found[0]
    for kind in PREFERRED:
        some = [each for each in found if each.is_of(kind)]
        if some:
            return min(some, key=lambda each: each.size)
    raise UserError(f"{where} holds several models and no ternary one; name one of {_listed(found)}")


def _wanted(found: Sequence[Candidate], wanted: str, where: str) -> Candidate:
    word = wanted.casefold()
    for of_file in (
        lambda c: any(word == file.name.casefold() for file in c.files) or word == c.name.casefold(),
        lambda c: any(word == file.name.rpartition("/")[2].casefold() for file in c.files),
        lambda c: c.ends_with(wanted),
        lambda c: c.is_of(wanted),
    ):
        some = [each for each in found if of_file(each)]
        if len(some) == 1:
            return some[0]
        if some:
            raise UserError(f"{display_safe(wanted)} is said of several files of {where}; name one of {_listed(some)}")
    raise UserError(f"{where} has no {display_safe(wanted)}; it has {_listed(found)}")


def _listed(found: Sequence[Candidate]) -> str:
    names = [f"{display_safe(each.name)} ({each.size / 1e9:.2f} GB)" for each in found[:MOST_LISTED]]
    return ", ".join(names) + (f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else "")
