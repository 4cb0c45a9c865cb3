"""Which licence a source file is under, and whether that licence is permissive.

Four statements are read, from the most to the least specific: an `SPDX-License-Identifier` line in the file
itself, the stanza of a Debian copyright file (the DEP-5 format) that matches the file's path, `license` of the nearest
Cargo.toml, and what the package that the source came in says of itself. Every statement found must be permissive; the
most specific one is recorded.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nanochat_tui.train.data_preparation.crates import is_vendored
from nanochat_tui.train.data_preparation.licence_expressions import is_permissive
from nanochat_tui.train.data_preparation.manifests import manifests, table

UNKNOWN = "unknown"


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
                synopsis = " ".join(fields["license"].split("\n")[0].split())
                self.stanzas.append(_Stanza(patterns, synopsis or UNKNOWN))

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


@functools.lru_cache(maxsize=16384)
def cargo_licence(root: Path, folder: PurePosixPath) -> tuple[str, int] | None:
    """Return `license` of the nearest Cargo.toml at or above `folder` inside `root`, and its depth below `root`.

    `license.workspace = true` is looked up in the workspace's manifest further up. A nearest manifest without a
    licence answers None: what stands above it belongs to another package.
    """
    inherited = False
    depth = 0
    for manifest, place in manifests(folder, root):
        if inherited:
            licence = table(table(manifest, "workspace"), "package").get("license")
            if isinstance(licence, str):
                return licence, depth
            continue
        depth = len(place.parts)
        package = table(manifest, "package") or table(manifest, "project")
        licence = package.get("license")
        if isinstance(licence, str):
            return licence, depth
        if not table(package, "license").get("workspace"):
            return None
        inherited = True
        licence = table(table(manifest, "workspace"), "package").get("license")
        if isinstance(licence, str):
            return licence, depth
    return None


# At the beginning of a comment line: a program that handles such lines has them in string literals, too.
_SPDX_LINE = re.compile(r"""(?m)^[^\w"'\n]*SPDX-License-Identifier:[ \t]*([^\n*]+)""")


@dataclass(frozen=True)
class Licence:
    """What is recorded for a file, and whether every statement about it is permissive."""

    name: str
    permissive: bool

    @property
    def known(self) -> bool:
        """Whether anything at all was said about the file."""
        return self.name != UNKNOWN


def file_licence(
    root: Path, path: str, head: str, copyright_file: Path | None, package_licence: str | None = None
) -> Licence:
    """Find the licence of `path` (relative to `root`); `head` is the beginning of its text.

    `package_licence` is what the package around the source says of itself: it does not speak for vendored folders.

    Raises:
        OSError: the copyright file cannot be read.
    """
    stated: list[tuple[int, int, str]] = []  # depth, rank among equals, expression
    if (line := _SPDX_LINE.search(head)) is not None:
        expression = line.group(1).removesuffix("-->").strip()
        if expression:
            stated.append((1_000_000, 2, expression))
    if copyright_file is not None and (dep5 := read_dep5(copyright_file).match(path)) is not None:
        stated.append((dep5.depth, 1, dep5.licence))
    if (cargo := cargo_licence(root, PurePosixPath(path).parent)) is not None:
        stated.append((cargo[1], 0, cargo[0]))
    if package_licence is not None and not is_vendored(path):
        stated.append((-1, 0, package_licence))
    if not stated:
        return Licence(UNKNOWN, False)
    name = max(stated)[2]
    return Licence(_tidy(name), all(is_permissive(expression) for _, _, expression in stated))


def _tidy(expression: str) -> str:
    """Write operators one way, so that `MIT or X`, `MIT  OR X` and `MIT/X` are counted as one licence."""
    words = expression.replace("/", " OR ").split()
    return " ".join(w.upper() if w.lower() in ("or", "and", "with") else w for w in words)
