"""Which language a completion is highlighted in."""

from __future__ import annotations

import re

_SIGNS = (
    ("rust", r"\bfn \w+|\blet mut\b|\bimpl\b|\bpub (fn|struct|enum|mod)\b|^use \w+::|#\["),
    ("python", r"^\s*(def|class) \w+.*:\s*$|^(from \w+ )?import \w+$"),
    ("c", r"^#include\b|\bint main\s*\("),
    ("go", r"^package \w+|^func "),
    ("javascript", r"\bfunction \w*\(|\bconst \w+ =|=> \{"),
)


def guess_language(model_name: str, text: str) -> str:
    """Return a lexer's name: the language in the model's name, else the first whose signs the text shows, or "text"."""
    for language, _ in _SIGNS:
        if len(language) > 1 and re.search(rf"(?i)(^|[^a-z]){language}([^a-z]|$)", model_name):
            return language
    for language, signs in _SIGNS:
        if re.search(signs, text, re.MULTILINE):
            return language
    return "text"
