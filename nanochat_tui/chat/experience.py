"""Experiences that a model reads before it answers: short rules learned by `nanochat-tui grpo`, or written by hand.

The file is a JSON object of ids and texts, such as {"G0": "Check the edges: when …"}: the form in which the authors
of Training-Free GRPO (arXiv 2510.08191) keep them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.files import atomic_write_text
from nanochat_tui.text import display_safe

MAX_BYTES = 1 << 20
_BEFORE = "Rules from experience. Follow each one that applies, and do not mention them.\n"


def read_experiences(path: Path) -> dict[str, str]:
    """Return the experiences of a file by id, in its order.

    Raises:
        UserError: the file cannot be read, or is not a JSON object of texts.
    """
    shown = display_safe(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"the experiences {shown} cannot be read: {plain_reason(error)}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"the experiences {shown} have more than {MAX_BYTES >> 20} MiB; that is no such file")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise UserError(f'the experiences {shown} are no JSON object of texts, such as {{"G0": "When …, do …"}}')
    return dict(found)


def write_experiences(path: Path, experiences: Mapping[str, str]) -> None:
    """Replace a file of experiences. Raises WriteError."""
    atomic_write_text(path, json.dumps(dict(experiences), indent=1, ensure_ascii=False) + "\n")


def experience_text(experiences: Mapping[str, str]) -> str:
    """Return what a model is told of experiences; "" without any."""
    if not experiences:
        return ""
    return _BEFORE + "\n".join(f"[{name}] {' '.join(text.split())}" for name, text in experiences.items())


def with_experiences(question: str, experiences: Mapping[str, str]) -> str:
    """Return a question behind the experiences."""
    before = experience_text(experiences)
    return f"{before}\n\n{question}" if before else question
