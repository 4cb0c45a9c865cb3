"""The same requests to llama-cpp-python's server and to ours: answers of the same shape, and our client at both."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import CHAT_TEMPLATE, Running, files, serving, wait_for

from nanochat_tui.chat.backend import Finished, Message, Request, Token
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.formats.gguf import string, u32, write_gguf
from nanochat_tui.serve.settings import Settings

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from models import Shape, tensors, tokenizer_metadata

NEEDED = ("llama_cpp", "sse_starlette", "starlette_context", "pydantic_settings")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)), reason="needs pip install 'llama-cpp-python[server]'"
    ),
]
SHAPE = Shape("llama", 2, 256, 4, 4, 64, 512, 512, "TQ2_0", "Q8_0", 512, 1e4)
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
TEXT = {"prompt": "fn main() {", "max_tokens": 6, "temperature": 0}
CHAT = {"messages": TALK, "max_tokens": 6, "temperature": 0}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", TEXT),
    ("/v1/completions", TEXT | {"echo": True}),
    ("/v1/completions", TEXT | {"logprobs": 2}),
    ("/v1/completions", TEXT | {"top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "temperature": 1.0}),
    ("/v1/completions", TEXT | {"presence_penalty": 0.5, "frequency_penalty": 0.5, "stop": ["zzz", "yyy"]}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", CHAT | {"stop": "zzz", "seed": 3, "user": "somebody"}),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    path = tmp_path_factory.mktemp("peer") / "tiny.gguf"
    more = {
        "tokenizer.chat_template": string(CHAT_TEMPLATE),
        "tokenizer.ggml.bos_token_id": u32(510),
        "tokenizer.ggml.eos_token_id": u32(511),
    }
    metadata = SHAPE.metadata | tokenizer_metadata(SHAPE.vocab) | more
    write_gguf(path, metadata, list(tensors(SHAPE, np.random.default_rng(3))))
    return path


@pytest.fixture(scope="module")
def ours(model: Path) -> Iterator[Running]:
    with serving(files(model), Settings("tiny")) as running:
        yield running


@pytest.fixture(scope="module")
def theirs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    log = tmp_path_factory.mktemp("log") / "log"
    words = ["--model", str(model), "--model_alias", "tiny", "--port", str(port), "--n_ctx", "512", "--n_threads", "1"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "llama_cpp.server", *words, "--logits_all", "true"], stdout=out, stderr=out
        )
        url = f"http://127.0.0.1:{port}"

        def up() -> bool:
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                return httpx.get(url + "/v1/models", timeout=120).status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_for(up, 120)
            yield url
        finally:
            process.terminate()
            process.wait(120)


def shape(value: Any) -> Any:
    """Return the keys and kinds of a JSON value; a list stands for its first element."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def missing(wanted: Any, found: Any, at: str = "") -> list[str]:
    """Return what `wanted` has and `found` has not; more than wanted, and something for null, is no fault."""
    if wanted == "NoneType":
        return []
    if isinstance(wanted, dict) and isinstance(found, dict):
        lost = [f"{at}.{key}" for key in wanted if key not in found and wanted[key] != "NoneType"]
        return lost + [one for key in wanted if key in found for one in missing(wanted[key], found[key], f"{at}.{key}")]
    if isinstance(wanted, list) and isinstance(found, list):
        return missing(wanted[0], found[0], at + "[]") if wanted and found else []
    return [] if wanted == found else [f"{at}: {wanted} but {found}"]


def ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(url + path, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(url: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = httpx.post(url + path, json=body | {"stream": True}, timeout=120)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_comparison_sees_what_is_missing() -> None:
    assert missing(shape({"a": [{"b": 1}]}), shape({"a": [{"c": 1}]})) == [".a[].b"]
    assert missing(shape({"a": 1}), shape({"a": "1"})) == [".a: number but str"]
    assert missing(shape({"a": None}), shape({})) == []


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_whole_answers_have_the_same_shape(path: str, body: dict[str, Any], ours: Running, theirs: str) -> None:
    wanted, found = ask(theirs, path, body), ask(ours.url, path, body)
    assert not missing(shape(wanted), shape(found))
    assert found["object"] == wanted["object"] and found["id"].split("-")[0] == wanted["id"].split("-")[0]
    assert found["usage"]["prompt_tokens"] == wanted["usage"]["prompt_tokens"]
    assert found["choices"][0]["finish_reason"] == wanted["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", TEXT), ("/v1/chat/completions", CHAT)])
def test_streams_have_the_same_shape(path: str, body: dict[str, Any], ours: Running, theirs: str) -> None:
    wanted, found = stream(theirs, path, body), stream(ours.url, path, body)
    for place in (0, 1, -1):  # the role or first text, text, the end; ours may say several tokens at once
        lost = missing(shape(wanted[place]), shape(found[place]))
        assert not lost, (wanted[place], found[place])
    assert len({event["id"] for event in found}) == len({event["created"] for event in found}) == 1
    assert found[-1]["choices"][0]["finish_reason"] == wanted[-1]["choices"][0]["finish_reason"]


def test_models_and_errors_have_the_same_shape(ours: Running, theirs: str) -> None:
    lists = [httpx.get(url + "/v1/models", timeout=120).json() for url in (theirs, ours.url)]
    assert [one["id"] for one in lists[0]["data"]] == [one["id"] for one in lists[1]["data"]] == ["tiny"]
    lost = missing(shape(lists[0]), shape(lists[1]))
    assert set(lost) <= {".data[].permissions"}  # OpenAI gave it up
    answers = [
        httpx.post(url + "/v1/completions", json=TEXT | {"prompt": "x" * 600}, timeout=120)
        for url in (theirs, ours.url)
    ]
    assert [one.status_code for one in answers] == [400, 400]
    wanted, found = (one.json() for one in answers)
    assert not missing(shape(wanted), shape(found))
    assert found["error"]["code"] == wanted["error"]["code"] == "context_length_exceeded"


def test_our_client_talks_to_both(ours: Running, theirs: str) -> None:
    raw = Request(prompt="fn main() {", max_tokens=5)
    talk = Request(messages=(Message("user", "Hi"),), max_tokens=5)
    for url in (ours.url, theirs):
        backend = RemoteBackend(url)
        try:
            backend.load()
            assert [model.id for model in backend.list_models()] == ["tiny"]
            for request in (raw, talk):
                events = list(backend.chat(request, threading.Event()))
                assert sum(isinstance(event, Token) for event in events) >= 1
                assert isinstance(events[-1], Finished) and events[-1].reason == "length"
        finally:
            backend.close()
