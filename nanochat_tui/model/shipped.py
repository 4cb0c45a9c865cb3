"""Where the model that comes with the project lies: next to the package in a checkout, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

NAME = "d20-rust"
"""File name of the shipped model, without its ending."""


def _find(name: str) -> Path | None:
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "exported_models", package.parent / "exported_models"):
        if (folder / name).is_file():
            return folder / name
    return None


def shipped_model() -> Path | None:
    """Return the shipped GGUF file, or None if this installation has none."""
    return _find(f"{NAME}.gguf")


def shipped_tokenizer() -> Path | None:
    """Return the shipped `tokenizer.json` of GPT-2, or None."""
    return _find("gpt2-tokenizer.json")
