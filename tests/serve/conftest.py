"""Servers with models of random weights, shared by the tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import Pages, chromium, opening
from servers import CHAT_TEMPLATE, LONG, Running, files, serving
from support import write_model

from nanochat_tui.serve.settings import Settings


@pytest.fixture(scope="session")
def base_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("base") / "model.gguf", LONG)


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("chat") / "model.gguf", LONG, chat_template=CHAT_TEMPLATE, infill=True)


@pytest.fixture(scope="session")
def base(base_file: Path) -> Iterator[Running]:
    with serving(files(base_file)) as running:
        yield running


@pytest.fixture(scope="session")
def chat(chat_file: Path) -> Iterator[Running]:
    with serving(files(chat_file), Settings("tiny", aliases=("gpt-4o",))) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


@pytest.fixture
def pages(browser: Any) -> Iterator[Pages]:
    yield from opening(browser)


@pytest.fixture
def page(pages: Pages, chat: Running) -> Any:
    return pages(chat.url)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
