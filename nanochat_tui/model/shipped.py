"""Where the model that comes with the project lies: next to the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

NAME = "d20-rust"
"""File name of the shipped base model, which continues code, without its ending."""
CHAT = "d20-rust-chat"
"""File name of the shipped model that answers requests."""


def _find(name: str) -> Path | None:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "exported_models", package.parent / "exported_models"):
        if (folder / name).is_file():
            return folder / name
    return None


def shipped_model(*, chat: bool = False) -> Path | None:
    """Return the shipped base model, or with `chat` the one that answers; None if this installation has none.

    Where one is missing the other one is returned.
    """
    names = (CHAT, NAME) if chat else (NAME, CHAT)
    return next((found for name in names if (found := _find(f"{name}.gguf")) is not None), None)


def shipped_models() -> list[Path]:
    """Return all shipped models, the one that answers first."""
    return [found for name in (CHAT, NAME) if (found := _find(f"{name}.gguf")) is not None]


def shipped_tokenizer() -> Path | None:
    """Return the shipped `tokenizer.json` of GPT-2, or None."""
    return _find("gpt2-tokenizer.json")
