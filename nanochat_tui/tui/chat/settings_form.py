"""The sampling settings as text fields and back: what each field is called, means and accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nanochat_tui.chat.backend import Request
from nanochat_tui.errors import UserError
from nanochat_tui.request import REQUEST, SAMPLING, SamplingParams, Setting

FIELDS = (*(one for one in SAMPLING.values() if one.everyday), REQUEST["max_tokens"])
"""One line of the form each."""


class FieldError(UserError):
    """One field holds something that makes no sense."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


def to_text(sampling: SamplingParams, max_tokens: int | None) -> dict[str, str]:
    """Return what each field shows for these settings."""
    values: dict[str, object] = {f.name: getattr(sampling, f.name) for f in FIELDS if f.name != "max_tokens"}
    values["max_tokens"] = max_tokens
    return {
        key: "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in values.items()
    }


def from_text(values: Mapping[str, str]) -> tuple[SamplingParams, int | None]:
    """Return the settings the fields spell. Raises `FieldError` for the first field that is wrong."""
    sampling = SamplingParams()
    max_tokens: int | None = None
    for f in FIELDS:
        number = _number(f, values[f.name].strip())
        try:
            if f.name == "max_tokens":
                max_tokens = None if number is None else int(number)
                Request(prompt="", max_tokens=max_tokens)
            else:
                sampling = replace(sampling, **{f.name: number})  # type: ignore[arg-type]
        except UserError as exc:
            raise FieldError(f.name, str(exc)) from exc
    return sampling, max_tokens


def _number(f: Setting, text: str) -> float | int | None:
    if not text:
        if f.blank:
            return None
        raise FieldError(f.name, f"{f.title} needs a number.")
    try:
        return int(text) if f.is_whole else float(text)
    except ValueError as exc:
        kind = "a whole number" if f.is_whole else "a number"
        raise FieldError(f.name, f"{f.title} must be {kind}.") from exc
