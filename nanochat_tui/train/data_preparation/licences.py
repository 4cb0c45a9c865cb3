"""Which licence a source file is under, and whether that licence is permissive.

Three statements are read, from the most to the least specific: an `SPDX-License-Identifier` line in the file
itself, the stanza of a Debian copyright file (the DEP-5 format) that matches the file's path, and `license`
of the nearest Cargo.toml. Every statement found must be permissive; the most specific one is recorded.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNKNOWN = "unknown"

# An allow-list, because a licence nobody thought of must stay out. Lower case, without versions of exceptions.
_PERMISSIVE = frozenset(
    """
    mit mit-0 expat x11 apache-2.0 apache-2 bsd bsd-1-clause bsd-2-clause bsd-3-clause bsd-2-clause-patent
    bsd-1-clause-fiat-crypto 0bsd isc zlib bsl-1.0 boost-1.0 unlicense cc0 cc0-1.0 public-domain ncsa
    unicode unicode-3.0 unicode-dfs-2016 unicode-data-files-and-software-license blueoak-1.0.0 upl-1.0
    """.split()
)
_PERMISSIVE_EXCEPTIONS = frozenset({"llvm-exception", "llvm exception"})


class _Expression:
    """Recursive descent over `AND`, `OR`, `WITH` and parentheses; `,` joins looser than both, as DEP-5 has it."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"(?i)(\S)-with-(llvm-exception)", r"\1 with \2", text)
        self.words = re.findall(r"[(),]|[^\s(),]+", text.replace("/", " or "))
        self.at = 0

    def peek(self) -> str:
        return self.words[self.at].lower() if self.at < len(self.words) else ""

    def take(self) -> str:
        word = self.peek()
        self.at += 1
        return word

    def whole(self) -> bool:
        value = self.clause()
        while self.peek() == ",":
            self.take()
            word = self.peek()
            if word in ("and", "or"):
                self.take()
            right = self.clause()
            value = (value or right) if word == "or" else (value and right)
        return value and self.at >= len(self.words)

    def clause(self) -> bool:
        value = self.conjunction()
        while self.peek() == "or":
            self.take()
            right = self.conjunction()
            value = value or right
        return value

    def conjunction(self) -> bool:
        value = self.term()
        while self.peek() == "and":
            self.take()
            right = self.term()
            value = value and right
        return value

    def term(self) -> bool:
        if self.peek() == "(":
            self.take()
            value = self.clause()
            return self.take() == ")" and value
        words: list[str] = []
        while self.peek() and self.peek() not in ("and", "or", "with", "(", ")", ","):
            words.append(self.take())
        if words[1:] == ["license"] or words[1:] == ["licence"]:
            words.pop()
        value = " ".join(words) in _PERMISSIVE
        if self.peek() == "with":
            self.take()
            exception: list[str] = []
            while self.peek() and self.peek() not in ("and", "or", "(", ")", ","):
                exception.append(self.take())
            value = value and " ".join(exception) in _PERMISSIVE_EXCEPTIONS
        return value


def is_permissive(expression: str) -> bool:
    """Say whether a licence expression leaves at least one way to use the text under permissive terms.

    Understands SPDX expressions, the `A/B` of old Cargo manifests and DEP-5's short names ("MIT or GPL-2+").
    `OR` needs one permissive side, `AND` both; whatever cannot be read is not permissive.
    """
    return _Expression(expression).whole()


@dataclass(frozen=True)
class Dep5Match:
    """Licence of a file by a Debian copyright file, and how many path parts the matching pattern spells out."""

    licence: str
    depth: int


@dataclass(frozen=True)
class _Stanza:
    patterns: tuple[tuple[re.Pattern[str], int], ...]
    licence: str


def _fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line[:1] in (" ", "\t"):
            if name:
                fields[name] += "\n" + line.strip()
        elif ":" in line and not line.startswith("#"):
            name, value = line.split(":", 1)
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _pattern(glob: str) -> tuple[re.Pattern[str], int]:
    """DEP-5 globs know `*` (which crosses `/`), `?` and a backslash before either; nothing else is special."""
    glob = glob.removeprefix("./")
    parts: list[str] = []
    for piece in re.findall(r"\\[*?\\]|[*?]|[^*?\\]+|\\", glob):
        if piece == "*":
            parts.append(".*")
        elif piece == "?":
            parts.append(".")
        else:
            parts.append(re.escape(piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece))
    literal = re.split(r"(?<!\\)[*?]", glob, maxsplit=1)[0]
    return re.compile("".join(parts), re.DOTALL), literal.count("/")


class Dep5Copyright:
    """The `Files:` stanzas of a machine-readable Debian copyright file (DEP-5); the last match of a path holds.

    A text of another form has no stanzas, so that every file in it is of unknown licence.
    """

    def __init__(self, text: str) -> None:
        self.stanzas: list[_Stanza] = []
        for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
            fields = _fields(paragraph)
            if "files" in fields and fields.get("license"):
                patterns = tuple(_pattern(glob) for glob in fields["files"].split())
                self.stanzas.append(_Stanza(patterns, " ".join(fields["license"].split("\n")[0].split())))

    def match(self, path: str) -> Dep5Match | None:
        """Return the licence of `path` (relative to the source's root, `/` between its parts), or None."""
        for stanza in reversed(self.stanzas):
            depths = [depth for regex, depth in stanza.patterns if regex.fullmatch(path)]
            if depths:
                return Dep5Match(stanza.licence, max(depths))
        return None


@functools.lru_cache(maxsize=64)
def read_dep5(path: Path) -> Dep5Copyright:
    """Read and parse a copyright file once per process."""
    return Dep5Copyright(path.read_text(encoding="utf-8", errors="replace"))


@functools.lru_cache(maxsize=4096)
def _manifest(path: Path) -> dict[str, object] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, tomllib.TOMLDecodeError):
        return None


def _table(value: object, key: str) -> dict[str, object]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _manifests(folder: PurePosixPath, root: Path) -> Iterator[tuple[dict[str, object], int]]:
    """Yield the readable Cargo.toml files from `folder` (relative to `root`) upwards, with their depth."""
    for inner in (folder, *folder.parents):
        manifest = _manifest(root / inner / "Cargo.toml")
        if manifest is not None:
            yield manifest, len(inner.parts)


@functools.lru_cache(maxsize=16384)
def cargo_licence(root: Path, folder: PurePosixPath) -> tuple[str, int] | None:
    """Return `license` of the nearest Cargo.toml at or above `folder` inside `root`, and its depth below `root`.

    `license.workspace = true` is looked up in the workspace's manifest further up. A nearest manifest without a
    licence answers None: what stands above it belongs to another package.
    """
    inherited = False
    depth = 0
    for manifest, level in _manifests(folder, root):
        if inherited:
            licence = _table(_table(manifest, "workspace"), "package").get("license")
            if isinstance(licence, str):
                return licence, depth
            continue
        depth = level
        package = _table(manifest, "package") or _table(manifest, "project")
        licence = package.get("license")
        if isinstance(licence, str):
            return licence, depth
        if not _table(package, "license").get("workspace"):
            return None
        inherited = True
        licence = _table(_table(manifest, "workspace"), "package").get("license")
        if isinstance(licence, str):
            return licence, depth
    return None


_SPDX_LINE = re.compile(r"SPDX-License-Identifier:[ \t]*([^\n*]+)")


@dataclass(frozen=True)
class Licence:
    """What is recorded for a file, and whether every statement about it is permissive."""

    name: str
    permissive: bool

    @property
    def known(self) -> bool:
        """Whether anything at all was said about the file."""
        return self.name != UNKNOWN


def file_licence(root: Path, path: str, head: str, copyright_file: Path | None) -> Licence:
    """Find the licence of `path` (relative to `root`); `head` is the beginning of its text.

    Raises:
        OSError: the copyright file cannot be read.
    """
    stated: list[tuple[int, int, str]] = []  # depth, rank among equals, expression
    if (line := _SPDX_LINE.search(head)) is not None:
        expression = re.sub(r"(-->|\*/|\")\s*$", "", line.group(1)).strip()
        if expression:
            stated.append((1_000_000, 2, expression))
    if copyright_file is not None and (dep5 := read_dep5(copyright_file).match(path)) is not None:
        stated.append((dep5.depth, 1, dep5.licence))
    if (cargo := cargo_licence(root, PurePosixPath(path).parent)) is not None:
        stated.append((cargo[1], 0, cargo[0]))
    if not stated:
        return Licence(UNKNOWN, False)
    name = max(stated)[2]
    return Licence(_tidy(name), all(is_permissive(expression) for _, _, expression in stated))


def _tidy(expression: str) -> str:
    """Write operators one way, so that `MIT or X`, `MIT  OR X` and `MIT/X` are counted as one licence."""
    words = expression.replace("/", " OR ").split()
    return " ".join(w.upper() if w.lower() in ("or", "and", "with") else w for w in words)
