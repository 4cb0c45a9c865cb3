"""Names of models: `user/repo`, `user/repo:Q2_0`, `user/repo:file.gguf`, an address, an entry of the catalogue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

MAIN = "main"
"""The branch that is meant when none is named."""
HOSTS = ("huggingface.co", "hf.co", "www.huggingface.co")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w.-]{0,199}(/[A-Za-z0-9_][\w.-]{0,199}){0,4}", re.ASCII)
_PAGES = ("tree", "blob", "resolve")
"""What stands between repository and revision in addresses of its pages and files."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository, what is wanted of it (a file name or a quantisation; None: the usual one), and a revision."""

    repo: str
    wanted: str | None = None
    revision: str = MAIN

    def __str__(self) -> str:
        return self.repo if self.wanted is None else f"{self.repo}:{self.wanted}"


def parse(text: str, revision: str | None = None) -> Reference:
    """Return what a name stands for; revision: a branch, tag or commit. Raises UserError."""
    from nanochat_tui.hub.catalogue import find

    given = text.strip()
    if "://" in given:
        return _of_address(given, revision)
    first, _, rest = given.partition("/")
    if first.lower() in HOSTS and rest:
        given = rest
    if "/" not in given.partition(":")[0]:
        name, _, wanted = given.partition(":")
        entry = find(name)
        return _checked(entry.repo, wanted or entry.wanted, revision)
    repo, _, wanted = given.partition(":")
    return _checked(repo, wanted or None, revision)


def _of_address(text: str, revision: str | None) -> Reference:
    try:
        parts = urlsplit(text)
        host = parts.hostname
    except ValueError:
        host = None
    if host not in HOSTS:
        raise UserError(
            f"{display_safe(text)} is no address of {HOSTS[0]}; give user/repo, and set HF_ENDPOINT for another server"
        )
    words = [unquote(word) for word in parts.path.split("/") if word]
    repo, rest = "/".join(words[:2]), words[2:]
    if len(rest) < 2 or rest[0] not in _PAGES:
        return _checked(repo, None, revision)
    return _checked(repo, "/".join(rest[2:]) or None, revision or rest[1])


def _checked(repo: str, wanted: str | None, revision: str | None) -> Reference:
    # the words become parts of addresses and of paths in the cache
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UserError(
            f"{display_safe(repo)} does not name a repository; give it as user/repo, user/repo:Q2_0 or "
            "user/repo:file.gguf"
        )
    chosen = revision or MAIN
    if not _REVISION.fullmatch(chosen) or ".." in chosen:
        raise UserError(f"{display_safe(chosen)} does not name a revision; give a branch, a tag or a commit")
    return Reference(repo, wanted, chosen)
