"""Starting real servers on loopback, and asking them."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
from support import TINY

from nanochat_tui.serve.loading import Loader, ModelFiles, loader
from nanochat_tui.serve.runner import Server, bind
from nanochat_tui.serve.service import Service
from nanochat_tui.serve.settings import Limits, Settings

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}# {{ m.content }}\n"
    "{% elif m.role == 'user' %}Q: {{ m.content }}\n{% else %}A: {{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
LONG = TINY.with_(context_length=32_768)
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Reading the system's certificates takes longer than most requests here."""
PROMPT = "fn main"
"""Continued greedily by the models below, it never ends: thousands of tokens, when they are asked for."""


@dataclass
class Running:
    """A server in this process."""

    url: str
    port: int
    service: Service
    server: Server
    lines: list[str]

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, verify=NO_CERTIFICATES, **options)

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": self.url + "/v1", "api_key": "none", "max_retries": 0, "timeout": 60, **options}
        )

    def post(self, path: str, **body: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body)

    def running(self) -> int:
        now = self.service.snapshot()
        return now.running + now.waiting if now else 0


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@contextmanager
def serving(load: Loader, settings: Settings | None = None, *, ready: bool = True, **limits: Any) -> Iterator[Running]:
    lines: list[str] = []
    settings = replace(
        settings or Settings("tiny"), log=lines.append, limits=Limits(**{"drain_seconds": 1.0, **limits})
    )
    listening = bind("127.0.0.1", 0)
    service = Service(load, settings)
    server = Server(service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    port = listening.getsockname()[1]
    try:
        wait_for(lambda: server.started)
        if ready:
            wait_for(lambda: service.state != "loading", 120)
            assert service.state == "ok", lines
        yield Running(f"http://127.0.0.1:{port}", port, service, server, lines)
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive(), "the server did not end"


def files(path: Path, **options: Any) -> Loader:
    return loader(ModelFiles(path, threads=1, **options))
