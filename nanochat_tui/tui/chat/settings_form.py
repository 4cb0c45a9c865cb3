"""The sampling settings as text fields and back: what each field is called, means and accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nanochat_tui.chat.backend import Request, SamplingSettings
from nanochat_tui.errors import UserError


@dataclass(frozen=True, slots=True)
class Field:
    """One line of the form. `blank` says what an empty field means; '' where one is not allowed."""

    key: str
    label: str
    whole: bool
    hint: str
    blank: str = ""


FIELDS = (
    Field("temperature", "Temperature", False, "0 is greedy; higher is wilder"),
    Field("top_k", "Top-k", True, "likeliest tokens kept; 0: all"),
    Field("top_p", "Top-p", False, "probability kept, up to 1"),
    Field("min_p", "Min-p", False, "least share of the likeliest"),
    Field("repeat_penalty", "Repeat penalty", False, "1 is none; 1.1 discourages loops"),
    Field("seed", "Seed", True, "same seed, same text", blank="random"),
    Field("max_tokens", "Max tokens", True, "length of one reply", blank="all that fit"),
)


class FieldError(UserError):
    """One field holds something that makes no sense."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


def to_text(sampling: SamplingSettings, max_tokens: int | None) -> dict[str, str]:
    """Return what each field shows for these settings."""
    values: dict[str, object] = {f.key: getattr(sampling, f.key) for f in FIELDS if f.key != "max_tokens"}
    values["max_tokens"] = max_tokens
    return {
        key: "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        for key, value in values.items()
    }


def from_text(values: Mapping[str, str]) -> tuple[SamplingSettings, int | None]:
    """Return the settings the fields spell. Raises `FieldError` for the first field that is wrong."""
    sampling = SamplingSettings()
    max_tokens: int | None = None
    for f in FIELDS:
        number = _number(f, values[f.key].strip())
        try:
            if f.key == "max_tokens":
                max_tokens = None if number is None else int(number)
                Request(prompt="", max_tokens=max_tokens)
            else:
                sampling = replace(sampling, **{f.key: number})  # type: ignore[arg-type]
        except UserError as exc:
            raise FieldError(f.key, str(exc)) from exc
    return sampling, max_tokens


def _number(f: Field, text: str) -> float | int | None:
    if not text:
        if f.blank:
            return None
        raise FieldError(f.key, f"{f.label} needs a number.")
    try:
        return int(text) if f.whole else float(text)
    except ValueError as exc:
        kind = "a whole number" if f.whole else "a number"
        raise FieldError(f.key, f"{f.label} must be {kind}.") from exc
