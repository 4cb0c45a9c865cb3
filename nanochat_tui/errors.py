"""Errors a person can act on."""

from __future__ import annotations

import unicodedata


class UserError(Exception):
    """Bad input or a failure the user can mend; its text is one sentence saying what is wrong and what to do."""

    exit_code: int = 2
    """Process exit code: 2 for bad input or usage, 1 for a failure while working."""


def display_safe(text: str, limit: int = 200) -> str:
    """Return untrusted text with control and format characters escaped, cut to `limit` characters."""
    shown = "".join(
        c if not unicodedata.category(c).startswith("C") else c.encode("unicode_escape").decode() for c in text[:limit]
    )
    return shown + "…" if len(text) > limit else shown
