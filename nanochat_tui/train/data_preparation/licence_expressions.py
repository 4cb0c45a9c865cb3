"""Licence expressions, as SPDX, Cargo manifests and Debian copyright files write them: is there a permissive way?"""

from __future__ import annotations

import functools
import re

# An allow-list, because an unknown licence must stay out. Lower case, without versions of exceptions.
_PERMISSIVE = frozenset(
    """
    mit mit-0 expat x11 apache-2.0 apache-2 bsd bsd-1-clause bsd-2-clause bsd-3-clause bsd-2-clause-patent
    bsd-1-clause-fiat-crypto 0bsd isc zlib bsl-1.0 boost-1.0 unlicense cc0 cc0-1.0 public-domain ncsa
    unicode unicode-3.0 unicode-dfs-2016 unicode-data-files-and-software-license blueoak-1.0.0 upl-1.0
    """.split()  # noqa: SIM905
)
_PERMISSIVE_EXCEPTIONS = frozenset({"llvm-exception", "llvm exception"})


class _Expression:
    """Recursive descent over `AND`, `OR`, `WITH` and parentheses; `,` joins looser than both, as DEP-5 has it."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"(?i)(\S)-with-(llvm-exception)", r"\1 with \2", text)
        self.words = re.findall(r"[(),]|[^\s(),]+", text.replace("/", " or "))
        self.at = 0
        self.malformed = False

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
        return value and not self.malformed and self.at >= len(self.words)

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
            self.malformed |= self.take() != ")"
            return value
        words: list[str] = []
        while self.peek() and self.peek() not in ("and", "or", "with", "(", ")", ","):
            words.append(self.take())
        self.malformed |= not words
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


@functools.lru_cache(maxsize=4096)
def is_permissive(expression: str) -> bool:
    """Say whether a licence expression leaves at least one way to use the text under permissive terms.

    Understands SPDX expressions, the `A/B` of old Cargo manifests and DEP-5's short names ("MIT or GPL-2+").
    `OR` needs one permissive side, `AND` both; whatever cannot be read is not permissive.
    """
    return _Expression(expression).whole()
