"""Experiences that a model reads before it answers: short rules learned by `nanochat-tui grpo`, or written by hand.

The file is a JSON object of ids and texts, such as {"G0": "Check the edges: when …"}: the form in which the authors
of Training-Free GRPO (arXiv 2510.08191) keep them. One that is switched off is {"text": …, "enabled": false} there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.files import atomic_write_text
from nanochat_tui.text import display_safe

MAX_BYTES = 1 << 20
_BEFORE = "Rules from experience. Follow each one that applies, and do not mention them.\n"


@dataclass(frozen=True, slots=True)
class Experience:
    """One rule; `enabled`: whether the model is told of it."""

    text: str
    enabled: bool = True


def read_experiences(path: Path) -> dict[str, str]:
    """Return the experiences of a file that are switched on by id, in its order.

    Raises:
        UserError: the file cannot be read, or is not a JSON object of texts.
    """
    return enabled_texts(_read(path)[0])


def enabled_texts(experiences: Mapping[str, Experience]) -> dict[str, str]:
    """Return the texts of those that are switched on."""
    return {name: one.text for name, one in experiences.items() if one.enabled}


def _read(path: Path) -> tuple[dict[str, Experience], bytes]:
    shown = display_safe(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"the experiences {shown} cannot be read: {plain_reason(error)}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"the experiences {shown} have more than {MAX_BYTES >> 20} MiB; that is no such file")
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError):
        loaded = None
    found = {name: _experience(value) for name, value in loaded.items()} if isinstance(loaded, dict) else {"": None}
    known = {name: one for name, one in found.items() if one is not None}
    if len(known) < len(found):
        raise UserError(f'the experiences {shown} are no JSON object of texts, such as {{"G0": "When …, do …"}}')
    return known, data


def _experience(value: object) -> Experience | None:
    text, enabled = (value.get("text"), value.get("enabled", True)) if isinstance(value, dict) else (value, True)
    right = isinstance(text, str) and bool(text.strip()) and isinstance(enabled, bool)
    return Experience(text, enabled) if right and isinstance(text, str) else None


def write_experiences(path: Path, experiences: Mapping[str, str]) -> None:
    """Replace a file of experiences. Raises WriteError."""
    atomic_write_text(path, _as_text({name: Experience(text) for name, text in experiences.items()}))


def _as_text(experiences: Mapping[str, Experience]) -> str:
    found = {
        name: one.text if one.enabled else {"text": one.text, "enabled": False} for name, one in experiences.items()
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


class ExperienceFile:
    """A file of experiences that is edited: each change is saved at once, and changes of others are not overwritten."""

    def __init__(self, path: Path) -> None:
        """Open a file; one that is not there begins empty. Raises UserError as `read_experiences` does."""
        self.path = path
        self._seen: bytes | None = None
        self._all: dict[str, Experience] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file again. Raises UserError as `read_experiences` does."""
        if self.path.exists():
            self._all, self._seen = _read(self.path)
        else:
            self._all, self._seen = {}, None

    @property
    def all(self) -> dict[str, Experience]:
        """All experiences by id, in the file's order."""
        return dict(self._all)

    @property
    def text(self) -> str:
        """What a model is told; "" where none is switched on."""
        return experience_text(enabled_texts(self._all))

    @property
    def enabled(self) -> int:
        """How many are switched on."""
        return sum(one.enabled for one in self._all.values())

    def add(self, text: str) -> str:
        """Add one and return its id. Raises UserError for an empty text, and as `_save` does."""
        number = 0
        while f"G{number}" in self._all:
            number += 1
        self._save({**self._all, f"G{number}": Experience(_checked(text))})
        return f"G{number}"

    def edit(self, name: str, text: str) -> None:
        """Give one another text. Raises UserError for an empty one, and as `_save` does."""
        self._save({**self._all, name: replace(self._all[name], text=_checked(text))})

    def delete(self, name: str) -> None:
        """Take one out. Raises as `_save` does."""
        self._save({other: one for other, one in self._all.items() if other != name})

    def switch(self, name: str) -> None:
        """Switch one off or on. Raises as `_save` does."""
        self._save({**self._all, name: replace(self._all[name], enabled=not self._all[name].enabled)})

    def _save(self, changed: dict[str, Experience]) -> None:
        """Write the file.

        Raises:
            UserError: another program changed it since it was read; what it holds now is read.
            WriteError: it cannot be written; then nothing is changed here either.
        """
        try:
            now = self.path.read_bytes()
        except FileNotFoundError:
            now = None
        except OSError as error:
            shown = display_safe(str(self.path))
            raise UserError(f"the experiences {shown} cannot be read: {plain_reason(error)}") from None
        if now != self._seen:
            self.reload()
            raise UserError(
                f"{display_safe(self.path.name)} was changed by another program, and is read again; repeat your change"
            )
        text = _as_text(changed)
        atomic_write_text(self.path, text)
        self._all, self._seen = changed, text.encode()


def _checked(text: str) -> str:
    folded = " ".join(text.split())
    if not folded:
        raise UserError("a rule needs a text, such as: When a number may be negative, test for it first")
    return folded


def experience_text(experiences: Mapping[str, str]) -> str:
    """Return what a model is told of experiences; "" without any."""
    if not experiences:
        return ""
    return _BEFORE + "\n".join(f"[{name}] {' '.join(text.split())}" for name, text in experiences.items())


def with_experiences(question: str, experiences: Mapping[str, str]) -> str:
    """Return a question behind the experiences."""
    return behind(experience_text(experiences), question)


def behind(rules: str, question: str) -> str:
    """Return a question behind what `experience_text` gave."""
    return f"{rules}\n\n{question}" if rules else question
