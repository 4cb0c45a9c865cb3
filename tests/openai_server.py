"""A small OpenAI-compatible server on loopback, of the standard library, that can be told to misbehave.

It knows nothing of our code: a second opinion on the protocol, with valves.
"""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["Hello", " there", ",", " dear", " reader", "!"]


@dataclass
class Server:
    """What it does can be changed while it runs."""

    url: str = ""
    words: list[str] = field(default_factory=lambda: list(WORDS))
    thoughts: list[str] = field(default_factory=list)
    key: str | None = None
    owner: str = "someone"
    meta: dict[str, Any] | None = None
    models: list[str] = field(default_factory=lambda: ["tiny", "other"])
    completions: bool = True
    logprobs: bool = True
    refuses_logprobs: bool = False
    refuses_tools: bool = False
    strict: bool = False
    """Refuses fields that OpenAI does not have."""
    die_after: int | None = None
    """Closes the connection without a word after so many words."""
    hold_after: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    error_after: int | None = None
    status: int = 200
    body: bytes = b""
    reason: str = "stop"
    raw: list[bytes] | None = None
    """Sent as the answer in these pieces, in place of a stream of its own; `raw_headers` go with it."""
    raw_headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    listed: tuple[int, bytes] | None = None
    """Status and body of the list of models, in place of its own."""
    moved: str | None = None
    """Where GET /v1/models is sent on to."""
    base: str = ""
    """Path under which the routes lie."""
    script: list[str | list[tuple[str, dict[str, Any]]]] = field(default_factory=list)
    """What it says to one request of a conversation after the other: a text, or calls of functions with arguments."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when a client left in mid-stream."""


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int, message: str) -> None:
            self.answer(status, json.dumps({"error": {"message": message}}).encode())

        def allowed(self) -> bool:
            """Whether a request is for this server and of no page of another one: a browser may run meanwhile."""
            server.headers.append(dict(self.headers))
            own = server.url.partition("://")[2]
            if self.headers.get("Host") != own or self.headers.get("Origin") not in (None, server.url):
                self.refuse(421, "this is another server")
                return False
            if server.key is not None and self.headers.get("Authorization") != f"Bearer {server.key}":
                self.refuse(401, "wrong key")
                return False
            return True

        def do_GET(self) -> None:
            if not self.allowed():
                return
            if server.moved is not None and self.path == "/v1/models":
                self.send_response(308)
                self.send_header("Location", server.moved)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path == f"{server.base}/v1/models" and server.listed is not None:
                self.answer(*server.listed)
                return
            if self.path != f"{server.base}/v1/models":
                self.refuse(404, "no such page")
                return
            cards = [
                {
                    "id": name,
                    "object": "model",
                    "owned_by": server.owner,
                    **({"meta": server.meta} if server.meta else {}),
                }
                for name in server.models
            ]
            self.answer(200, json.dumps({"object": "list", "data": cards}).encode())

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not self.allowed():
                return
            body = json.loads(raw)
            chat = self.path == f"{server.base}/v1/chat/completions"
            if not chat and (self.path != f"{server.base}/v1/completions" or not server.completions):
                self.refuse(404, "no such page")
                return
            if "model" not in body:
                self.refuse(422, "model is missing")
                return
            server.requests.append(body)
            if server.status != 200:
                self.answer(server.status, server.body or b'{"error": {"message": "broken on purpose"}}')
                return
            if server.refuses_logprobs and body.get("logprobs"):
                self.refuse(403, "you are not allowed to request logprobs from this model")
                return
            if server.refuses_tools and body.get("tools"):
                self.refuse(500, "tools param requires --jinja flag")
                return
            unknown = set(body) & {"top_k", "min_p", "repeat_penalty"}
            if server.strict and unknown:
                self.refuse(400, f"unknown fields {sorted(unknown)}")
                return
            if server.script:
                self.play(server.script.pop(0))
            elif server.raw is not None:
                self.send_raw(server.raw)
            else:
                self.stream(chat, body)

        def play(self, said: str | list[tuple[str, dict[str, Any]]]) -> None:
            """Stream a text by words, or calls with their arguments in pieces, as OpenAI's server does."""
            deltas: list[dict[str, Any]] = []
            if isinstance(said, str):
                deltas += [{"content": word} for word in said.splitlines(keepends=True)]
            else:
                for index, (name, arguments) in enumerate(said):
                    text, number = json.dumps(arguments), f"call_{len(server.requests)}_{index}"
                    function = {"name": name, "arguments": ""}
                    calls = [{"index": index, "id": number, "type": "function", "function": function}]
                    calls += [{"index": index, "function": {"arguments": part}} for part in (text[:4], text[4:])]
                    deltas += [{"tool_calls": [call]} for call in calls]
            reason = "stop" if isinstance(said, str) else "tool_calls"
            chunks = [{"choices": [{"delta": delta}]} for delta in deltas]
            chunks.append({"choices": [{"delta": {}, "finish_reason": reason}]})
            pieces = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
            self.send_raw([*pieces, b"data: [DONE]\n\n"])

        def send_raw(self, pieces: list[bytes]) -> None:
            self.send_response(200)
            for name, value in {**server.raw_headers, "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.close_connection = True
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.002)

        def stream(self, chat: bool, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            words = [(w, True) for w in server.thoughts] + [(w, False) for w in server.words]
            words = words[: body.get("max_tokens") or 10_000]
            try:
                for count, (word, thought) in enumerate(words):
                    if server.die_after == count:
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    if server.hold_after == count:
                        while not server.gate.wait(0.02):
                            self.wfile.write(b": waiting\n\n")
                            self.wfile.flush()
                    if server.error_after == count:
                        self.send({"error": {"message": "the model fell over"}})
                        return
                    self.send({"choices": [self.choice(chat, body, word, thought)]})
                    time.sleep(0.002)
                self.send({"choices": [{"delta": {}, "text": "", "finish_reason": server.reason}]})
                if body.get("stream_options"):
                    self.send({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(words)}})
                self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                server.closed.set()

        @staticmethod
        def choice(chat: bool, body: dict[str, Any], word: str, thought: bool) -> dict[str, Any]:
            wanted = server.logprobs and body.get("logprobs")
            top = {word: math.log(0.7), " other": math.log(0.2)}
            if chat:
                made: dict[str, Any] = {"delta": {"reasoning_content" if thought else "content": word}}
                if wanted:
                    others = [{"token": t, "logprob": v} for t, v in top.items()]
                    entry = {"token": word, "logprob": math.log(0.7), "top_logprobs": others}
                    made["logprobs"] = {"content": [entry]}
                return made
            made = {"text": word}
            if wanted:
                made["logprobs"] = {"tokens": [word], "token_logprobs": [math.log(0.7)], "top_logprobs": [top]}
            return made

        def send(self, data: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()

    return Handler


@contextmanager
def serving(**options: Any) -> Iterator[Server]:
    """Run a server on a free port for the length of a block."""
    server = Server(**options)
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        http.shutdown()
        http.server_close()
