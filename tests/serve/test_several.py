"""Several models in one server: loaded when asked for, unloaded for others' memory, never while somebody uses them."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from servers import CHAT_TEMPLATE, LONG, NO_CERTIFICATES, PROMPT, wait_for
from support import write_model

from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.errors import UserError
from nanochat_tui.serve.listed import by_name, find_files, peek
from nanochat_tui.serve.loading import ModelFiles
from nanochat_tui.serve.runner import Server, bind
from nanochat_tui.serve.settings import Limits, Settings
from nanochat_tui.serve.several import SeveralModels

GREEDY: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
FILES = ModelFiles(Path("unused"), threads=1, max_sequences=2, kv_tokens=4096)


@dataclass
class Running:
    url: str
    models: SeveralModels
    lines: list[str]

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, timeout=240, verify=NO_CERTIFICATES)

    def post(self, path: str, *, key: str = "", **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=240, verify=NO_CERTIFICATES)

    def complete(self, model: str, **body: Any) -> httpx.Response:
        return self.post("/v1/completions", model=model, **{**GREEDY, **body})

    def states(self) -> dict[str, str]:
        return {card["id"]: card["status"]["value"] for card in self.get("/v1/models").json()["data"]}


@contextmanager
def serving(folder: Path, models: float, *, keys: tuple[str, ...] = (), **options: Any) -> Iterator[Running]:
    """Serve a folder, with memory for so many of its models."""
    lines: list[str] = []
    settings = Settings("", api_keys=keys, log=lines.append, limits=Limits(drain_seconds=1.0))
    first = ModelFiles(next(iter(find_files(folder).values())), threads=1, max_sequences=2, kv_tokens=4096)
    budget = round(models * peek(first, 1 << 40).memory.total)
    several = SeveralModels(lambda: find_files(folder), FILES, settings, budget=budget, **options)
    server = Server(several)
    listening = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", several, lines)
    finally:
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_model(made / "a.gguf", LONG, seed=1)
    write_model(made / "b.gguf", LONG, seed=2, chat_template=CHAT_TEMPLATE)
    (made / "sub").mkdir()
    write_model(made / "sub" / "c.gguf", LONG, seed=3)
    (made / "mmproj-a.gguf").write_bytes(b"GGUF")
    (made / "notes.txt").write_text("no model")
    return made


def test_files_are_named_by_their_place(folder: Path, tmp_path: Path) -> None:
    assert find_files(folder) == {
        "a": folder / "a.gguf",
        "b": folder / "b.gguf",
        "sub/c": folder / "sub" / "c.gguf",
    }
    with pytest.raises(UserError, match="no folder"):
        find_files(tmp_path / "missing")
    with pytest.raises(UserError, match="called a"):
        by_name([folder / "a.gguf", tmp_path / "a.gguf"])
    with pytest.raises(UserError, match="no GGUF file"):
        SeveralModels(lambda: find_files(tmp_path), FILES, Settings(""))


def test_models_are_listed_with_what_their_headers_say_and_loaded_on_first_use(folder: Path) -> None:
    with serving(folder, 3.5) as running:
        cards = {card["id"]: card for card in running.get("/v1/models").json()["data"]}
        assert running.states() == {"a": "unloaded", "b": "unloaded", "sub/c": "unloaded"}
        assert [cards[name]["meta"]["chat_template"] for name in ("a", "b")] == [False, True]
        assert cards["a"]["meta"]["n_params"] == LONG.parameters and cards["a"]["meta"]["n_ctx"] == 4096
        assert cards["a"]["status"]["memory"] > 0
        answer = running.complete("b").json()
        assert answer["model"] == "b" and answer["usage"]["completion_tokens"] == 4
        assert running.complete("sub/c").json()["model"] == "sub/c"
        assert running.states() == {"a": "unloaded", "b": "loaded", "sub/c": "loaded"}
        assert running.complete("").json()["model"] == "sub/c"  # the one that was used last
        meta = running.get("/v1/models/b").json()["meta"]
        assert meta["kernel"] and meta["n_ctx"] == 4096
        unknown = running.complete("gpt-4o")
        assert unknown.status_code == 404 and "a, b, sub/c" in unknown.json()["error"]["message"]
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="none", max_retries=0, timeout=240)
        assert {model.id for model in client.models.list()} == {"a", "b", "sub/c"}
        ids = [running.post("/tokenize", content="fn main", model=name).json()["tokens"] for name in ("a", "b")]
        assert ids[0] == ids[1] and running.states()["a"] == "loaded"


def test_the_least_recently_used_makes_room(folder: Path) -> None:
    with serving(folder, 2.5) as running:
        for name in ("a", "b", "a", "sub/c"):
            assert running.complete(name).json()["model"] == name
        assert running.states() == {"a": "loaded", "b": "unloaded", "sub/c": "loaded"}
        text = running.get("/metrics").text
        for name, loaded, loads in (("a", 1, 1), ("b", 0, 1), ("sub/c", 1, 1)):
            assert f'nanochat_model_loaded{{model_name="{name}"}} {loaded}.0' in text
            assert f'nanochat_model_loads_total{{model_name="{name}"}} {loads}.0' in text
        assert 'nanochat_generation_tokens_total{model_name="a"} 8.0' in text  # also of its former time in memory
        assert running.get("/health").json() == {
            "status": "ok",
            "models": {"a": "loaded", "b": "unloaded", "sub/c": "loaded"},
        }
    with serving(folder, 3.5, most=1) as running:
        for name in ("a", "b"):
            running.complete(name)
        assert running.states() == {"a": "unloaded", "b": "loaded", "sub/c": "unloaded"}


def test_a_running_reply_is_never_cut(folder: Path) -> None:
    body = {"model": "a", **GREEDY, "max_tokens": 3000, "stream": True, "stream_options": {"include_usage": True}}
    with (
        serving(folder, 1.5) as running,
        ThreadPoolExecutor(4) as pool,
        httpx.Client(base_url=running.url, timeout=240, verify=NO_CERTIFICATES) as client,
        client.stream("POST", "/v1/completions", json=body) as stream,
    ):
        lines = stream.iter_lines()
        first = next(lines)
        others = [pool.submit(running.complete, name) for name in ("b", "b", "a")]
        wait_for(
            lambda: running.models.health(names=True).models == {"a": "unloading", "b": "loading", "sub/c": "unloaded"}
        )
        events = [json.loads(line[6:]) for line in [first, *lines] if line.startswith("data: {")]
        assert [e["choices"][0]["finish_reason"] for e in events if e["choices"]][-1] == "length"
        assert events[-1]["usage"]["completion_tokens"] == 3000
        answers = [other.result(240) for other in others]
        assert [answer.json()["model"] for answer in answers] == ["b", "b", "a"]


def test_clients_of_three_models_with_memory_for_one_lose_nothing(folder: Path) -> None:
    names = ["a", "b", "sub/c"] * 6
    with serving(folder, 1.5) as running, ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda name: running.complete(name, max_tokens=40), names))
        assert [answer.status_code for answer in answers] == [200] * len(names)
        assert [answer.json()["model"] for answer in answers] == names
        for name in set(names):
            texts = {a.json()["choices"][0]["text"] for a in answers if a.json()["model"] == name}
            assert len(texts) == 1
        assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 3
        assert all(entry.loans == 0 and not entry.waiters for entry in running.models._entries.values())


def test_a_model_that_cannot_be_loaded_is_told_in_words_and_leaves_others_alone(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        os.link(folder / f"{name}.gguf", tmp_path / f"{name}.gguf")
    (tmp_path / "broken.gguf").write_bytes((folder / "a.gguf").read_bytes()[:5000])
    with serving(tmp_path, 3.5) as running:
        running.complete("a")
        refused = running.complete("broken")
        error = refused.json()["error"]
        assert refused.status_code == 503 and error["code"] == "model_load_failed"
        assert error["message"].startswith("broken cannot be loaded: ") and str(tmp_path) not in refused.text
        assert running.complete("broken").json() == refused.json()
        card = running.get("/v1/models/broken").json()
        assert card["status"]["failed"] is True and str(tmp_path) not in json.dumps(card)
        assert running.get("/health").json()["models"] == {"a": "loaded", "b": "unloaded", "broken": "failed"}
        assert running.complete("a").status_code == 200
        assert 'nanochat_model_load_failures_total{model_name="broken"} 1.0' in running.get("/metrics").text
        (tmp_path / "broken.gguf").unlink()
        os.link(folder / "b.gguf", tmp_path / "broken.gguf")
        assert running.post("/models/load", model="broken").json()["status"]["value"] == "loaded"
        assert running.complete("broken").status_code == 200
        (tmp_path / "b.gguf").rename(tmp_path / "new.gguf")
        assert set(running.states()) == {"a", "broken", "new"}
        assert running.complete("new").status_code == 200


def test_what_is_larger_than_all_memory_is_refused_and_nothing_is_unloaded(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "a.gguf", tmp_path / "a.gguf")
    write_model(tmp_path / "big.gguf", LONG.with_(n_layers=24), seed=4)
    with serving(tmp_path, 1.5) as running:
        running.complete("a")
        refused = running.complete("big")
        assert refused.status_code == 503 and "GB for all models" in refused.json()["error"]["message"]
        assert running.states() == {"a": "loaded", "big": "unloaded"}


def test_models_are_loaded_and_unloaded_by_listed_names_only(folder: Path) -> None:
    with serving(folder, 2.5, keys=("secret",)) as running:
        for path in ("/models/load", "/models/unload"):
            assert running.post(path, model="a").status_code == 401
            for name in (str(folder / "a.gguf"), "../a", "a.gguf", "sub", ""):
                assert running.post(path, key="secret", model=name).status_code in (400, 404), name
        assert running.get("/health").json() == {"status": "ok"}  # names are for those with a key
        assert "a" in running.get("/health", authorization="Bearer secret").json()["models"]
        refused = running.post("/models/unload", key="secret", model="a")
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "model_not_loaded"
        loaded = running.post("/models/load", key="secret", model="a").json()
        assert (loaded["success"], loaded["model"], loaded["status"]["value"]) == (True, "a", "loaded")
        service = running.models._entries["a"].service
        assert service is not None
        weights = weakref.ref(service.model)
        del service
        assert running.post("/models/unload", key="secret", model="a").json()["status"]["value"] == "unloaded"
        gc.collect()
        assert weights() is None, "the memory of an unloaded model is not given back"


def test_unloading_waits_for_replies(folder: Path) -> None:
    body = {"model": "a", **GREEDY, "max_tokens": 2000, "stream": True}
    with (
        serving(folder, 2.5) as running,
        httpx.Client(base_url=running.url, timeout=240, verify=NO_CERTIFICATES) as client,
        client.stream("POST", "/v1/completions", json=body) as stream,
    ):
        lines = stream.iter_lines()
        first = next(lines)
        assert running.post("/models/unload", model="a").json()["status"]["value"] == "unloading"
        rest = [line for line in [first, *lines] if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]" and json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
        wait_for(lambda: running.states()["a"] == "unloaded")


def test_a_client_that_leaves_gives_its_model_back(folder: Path) -> None:
    with serving(folder, 2.5) as running:
        with (
            httpx.Client(base_url=running.url, timeout=240, verify=NO_CERTIFICATES) as client,
            client.stream(
                "POST", "/v1/completions", json={**GREEDY, "model": "a", "max_tokens": 4000, "stream": True}
            ) as s,
        ):
            next(s.iter_lines())
        wait_for(lambda: running.models._entries["a"].loans == 0)
        assert running.post("/models/unload", model="a").json()["status"]["value"] == "unloaded"


def test_a_model_whose_engine_broke_is_loaded_again(folder: Path) -> None:
    with serving(folder, 2.5) as running:
        running.complete("a")
        broken = running.models._entries["a"].service
        assert broken is not None
        broken._fail("the engine no longer works")
        assert running.complete("a").status_code == 200
        assert running.models._entries["a"].service is not broken


def test_responses_and_messages_name_their_model_too(folder: Path) -> None:
    with serving(folder, 1.5) as running:
        first = running.post("/v1/responses", model="b", input="hi", max_output_tokens=4, temperature=0).json()
        assert first["model"] == "b"
        other = {"model": "a", "input": "hi", "max_output_tokens": 4, "previous_response_id": first["id"]}
        assert running.post("/v1/responses", **other).json()["model"] == "a"
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        assert running.post("/v1/messages", model="sub/c", **body).json()["model"] == "sub/c"
        assert running.post("/v1/messages", model="none", **body).json()["error"]["type"] == "not_found_error"


def test_the_applications_backend_lists_and_switches(folder: Path) -> None:
    with serving(folder, 2.5) as running:
        running.complete("b")
        backend = RemoteBackend(running.url)
        backend.load()
        assert backend.model_id == "b" and backend.is_chat and backend.context_size == 4096
        assert {model.id: model.status for model in backend.list_models()} == {
            "a": "unloaded",
            "b": "loaded",
            "sub/c": "unloaded",
        }
        other = RemoteBackend(running.url, "a")
        other.load()
        assert not other.is_chat and running.states()["a"] == "unloaded"  # asking loads nothing
        for each in (backend, other):
            each.close()


def test_the_command_serves_a_folder_and_ends_in_order(folder: Path) -> None:
    command = [sys.executable, "-m", "nanochat_tui.cli.serve_entry"]
    with subprocess.Popen(
        [*command, "--models-dir", str(folder), "--memory-budget", "1", "--port", "0", "-t", "1"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "listening on" in line)
        url = line.split("listening on ")[1].split(": the chat")[0]
        answer = httpx.post(url + "/v1/completions", json={"model": "sub/c", **GREEDY}, timeout=240)
        assert answer.status_code == 200 and answer.json()["model"] == "sub/c"
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(120) == 0, rest
    for arguments, words in (
        (["--models-dir", str(folder), "--mhc", __file__], "--mhc"),
        (["--models-dir", str(folder), str(folder / "a.gguf")], "--model"),
        (["--models-dir", str(folder / "none")], "no folder"),
        (["--model", str(folder / "a.gguf"), "--memory-budget", "1"], "several"),
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2 and words in done.stderr, done.stderr
