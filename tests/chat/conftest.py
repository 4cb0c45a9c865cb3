"""Models of random weights for conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import TINY, write_model

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}# {{ m.content }}\n"
    "{% elif m.role == 'user' %}Q: {{ m.content }}\n{% else %}A: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
CONFIG = TINY.with_(context_length=128)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with a context of 128 tokens, nearly all of them single bytes."""
    return write_model(tmp_path_factory.mktemp("base") / "model.gguf", CONFIG)


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template: lines beginning with "Q: " and "A: "."""
    return write_model(tmp_path_factory.mktemp("chat") / "model.gguf", CONFIG, chat_template=CHAT_TEMPLATE)
