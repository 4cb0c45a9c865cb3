"""The plain routes, and what every answer carries."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import PROMPT, Running, files, serving, wait_for
from support import tiny_tokenizer

from nanochat_tui.chat.backend import Request, Stats
from nanochat_tui.chat.remote import RemoteBackend
from nanochat_tui.engine.generate.scheduler import Batcher
from nanochat_tui.errors import UserError
from nanochat_tui.model.tokenizer import TextCodec
from nanochat_tui.request import SamplingParams, Token
from nanochat_tui.serve.loading import ModelFiles, loader
from nanochat_tui.serve.replies import TopLogprob
from nanochat_tui.serve.settings import Log, Settings
from nanochat_tui.serve.spelling import Spelling, legacy_name


def _samples(running: Running) -> dict[str, float]:
    answer = httpx.get(running.url + "/metrics", timeout=120)
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "model_name")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_health_is_ok_and_the_page_is_guarded(base: Running) -> None:
    assert httpx.get(base.url + "/health", timeout=120).json() == {"status": "ok"}
    page = httpx.get(base.url + "/", timeout=120)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["x-frame-options"] == "DENY"
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text), "the page asks somebody else for something"


def test_tokens_there_and_back(base: Running) -> None:
    for text in ("fn main() {\n    let x = 1;\n}", "naïve 日本 🦀", ""):
        ids = base.post("/tokenize", content=text).json()["tokens"]
        assert ids == base.service.model.codec.encode(text, bos=False)
        assert base.post("/detokenize", tokens=ids).json() == {"content": text}
    bos = base.post("/tokenize", content="a", add_special=True).json()["tokens"]
    assert bos == base.service.model.encode("a")
    pieces = base.post("/tokenize", content=" main é", with_pieces=True).json()["tokens"]
    assert pieces[0]["piece"] == " main" and pieces[-1]["piece"] == [0xA9]
    assert base.post("/detokenize", tokens=[300]).status_code == 400


def test_metrics_count_what_happened(base: Running) -> None:
    before = _samples(base)
    text = "let counted = [1, 2, 3];\n" * 8  # caches are shared by whole pages, so it must be longer than one
    body = {"prompt": text, "max_tokens": 12, "temperature": 0}
    assert base.post("/v1/completions", **body).status_code == 200
    with base.client() as client, client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        answer.read()
    assert base.post("/v1/completions", prompt="x", temperature=-1).status_code == 400
    wait_for(lambda: base.running() == 0)
    after = _samples(base)

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grew("nanochat_http_requests_total{method=POST,route=/v1/completions,status=200}") == 2
    assert grew("nanochat_http_requests_total{method=POST,route=/v1/completions,status=400}") == 1
    assert grew("nanochat_request_success_total{finished_reason=length}") == 2
    assert grew("nanochat_generation_tokens_total") == 24
    prompt = len(base.service.model.encode(text))
    assert grew("nanochat_prompt_tokens_total") == grew("nanochat_prefix_cache_queries_total") == 2 * prompt
    assert grew("nanochat_prefix_cache_hits_total") >= prompt // 2  # the second prompt is the first one
    for name, count in (("time_to_first_token", 2), ("inter_token_latency", 22), ("e2e_request_latency", 2)):
        assert grew(f"nanochat_{name}_seconds_count") == count
        assert after[f"nanochat_{name}_seconds_bucket{{le=+Inf}}"] == after[f"nanochat_{name}_seconds_count"]
    assert after["nanochat_e2e_request_latency_seconds_sum"] > after["nanochat_time_to_first_token_seconds_sum"] > 0
    assert after["nanochat_num_requests_running"] == after["nanochat_num_requests_waiting"] == 0
    assert after["nanochat_model_load_time_seconds"] > 0 and after["nanochat_tokens_per_second"] > 0
    assert 0 <= after["nanochat_kv_cache_usage_perc"] <= 1
    assert 1 <= after["nanochat_engine_threads"] <= base.service.model.threads
    assert after["nanochat_engine_stolen_pieces_total"] >= 0 and after["nanochat_engine_thread_naps_total"] >= 0
    guessed, right = (after[f"nanochat_spec_decode_num_{kind}_tokens_total"] for kind in ("draft", "accepted"))
    assert 0 <= right <= guessed
    assert after["process_resident_memory_bytes"] > 10_000_000
    assert all(after[name] >= value for name, value in before.items() if name.endswith(("_total", "_count")))


def test_refusals_count_for_the_route_they_were_meant_for(base_file: Path) -> None:
    settings = Settings("tiny", api_keys=("key",), cors_origins=("https://friend.example",))
    with serving(files(base_file), settings, body_bytes=2000) as running:
        key, path = {"authorization": "Bearer key"}, "/v1/completions"
        with running.client() as client:
            assert client.post(path, json={}).status_code == 401
            assert client.post(path, json={}, headers={"origin": "https://evil.example"}).status_code == 403
            assert client.post(path, content=b" " * 3000, headers=key).status_code == 413
            assert client.post(path, content=b"", headers={**key, "content-encoding": "gzip"}).status_code == 415
            asked = {"origin": "https://friend.example", "access-control-request-method": "POST"}
            assert client.options(path, headers=asked).status_code == 200
            assert client.get("/v1/models/x").status_code == 401
            assert client.get("/made/up").status_code == 401
            text = client.get("/metrics", headers=key).text
    counted = {
        (sample.labels["route"], sample.labels["status"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "nanochat_http_requests_total"
    }
    refused = {(path, status) for status in ("401", "403", "413", "415", "200")}
    assert counted >= refused | {("/v1/models/{name:path}", "401"), ("other", "401")}
    assert {status for route, status in counted if route == "other"} == {"401"}


def test_who_left_while_waiting_has_no_prompt_tokens(base_file: Path) -> None:
    with serving(files(base_file, max_sequences=1), Settings("tiny", max_sequences=1)) as running:
        body = {"prompt": PROMPT, "max_tokens": 30_000, "temperature": 0, "stream": True}
        with running.client() as client:
            streams = []
            for held in (1, 2):
                streams.append(client.send(client.build_request("POST", "/v1/completions", json=body), stream=True))
                wait_for(lambda held=held: running.running() == held)
            for stream in reversed(streams):
                stream.close()
                wait_for(lambda: running.running() < 2)
        wait_for(lambda: running.running() == 0)
        wait_for(lambda: _samples(running)["nanochat_request_success_total{finished_reason=abort}"] == 2)
        after, size = _samples(running), len(running.service.model.encode(PROMPT))
        assert after["nanochat_prompt_tokens_total"] == after["nanochat_prefix_cache_queries_total"] == size
        assert after["nanochat_request_prompt_tokens_count"] == 1


def test_guesses_of_a_reply_are_counted_in_its_timings(base_file: Path) -> None:
    """As llama-server tells them; a chat that is attached shows them as those of an engine of its own."""
    with serving(loader(ModelFiles(base_file, threads=1, speculation="on"))) as running:
        body = {"prompt": PROMPT, "max_tokens": 120, "temperature": 0}
        timings = running.post("/v1/completions", **body).json()["timings"]
        assert 0 < timings["draft_n_accepted"] <= timings["draft_n"]
        remote = RemoteBackend(running.url)
        remote.load()
        request = Request(prompt=PROMPT, max_tokens=120, sampling=SamplingParams(temperature=0.0))
        stats = [event for event in remote.chat(request, threading.Event()) if isinstance(event, Stats)][-1]
        assert 0 < stats.accepted <= stats.drafted


def test_wrong_routes_and_methods_get_error_objects(base: Running) -> None:
    with base.client() as client:
        for answer, status in (
            (client.get("/nowhere"), 404),
            (client.get("/v1/completions"), 405),
            (client.delete("/v1/models"), 405),
            (client.get("/static/../../etc/passwd"), 404),
        ):
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert "no" in answer.json()["error"]["message"]
        options = client.options("/v1/completions")
        assert options.status_code == 405 and options.headers["allow"] == "POST" and options.json()["error"]


def test_what_can_be_got_has_a_head(base: Running) -> None:
    with base.client() as client:
        for path in ("/", "/health", "/metrics", "/v1/models", "/v1/models/tiny", "/openapi.json"):
            whole, head = client.get(path), client.head(path)
            assert head.status_code == 200 and head.content == b"", path
            assert head.headers["content-type"] == whole.headers["content-type"]
            assert int(head.headers["content-length"]) > 0
        assert client.head("/nowhere").status_code == 404 and client.head("/v1/completions").status_code == 405
    counted = _samples(base)
    assert counted["nanochat_http_requests_total{method=HEAD,route=/health,status=200}"] >= 1


def test_health_says_loading_and_requests_are_told_to_wait(base_file: Path) -> None:
    import threading

    go = threading.Event()
    load = files(base_file)

    def slowly(log: Log) -> list[Batcher]:
        go.wait(120)
        return load(log)

    with serving(slowly, ready=False) as running:
        answer = httpx.get(running.url + "/health", timeout=120)
        assert answer.status_code == 503 and answer.json() == {"status": "loading"}
        refused = running.post("/v1/completions", prompt="x")
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "loading"
        assert httpx.get(running.url + "/v1/models", timeout=120).json()["data"][0]["meta"] is None
        assert httpx.get(running.url + "/metrics", timeout=120).status_code == 200
        go.set()
        wait_for(lambda: httpx.get(running.url + "/health", timeout=120).json() == {"status": "ok"})
        assert running.post("/v1/completions", prompt="x").status_code == 200


def test_health_says_failed_and_hides_why(tmp_path: Path) -> None:
    def fail(log: Log) -> list[Batcher]:
        raise UserError(f"{tmp_path}/model.gguf is broken")

    with serving(fail, ready=False) as running:
        wait_for(lambda: running.service.state == "failed")
        answer = httpx.get(running.url + "/health", timeout=120)
        assert answer.status_code == 503 and answer.json()["status"] == "failed"
        refused = running.post("/v1/completions", prompt="x")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "failed"
        assert str(tmp_path) not in answer.text + refused.text
        assert any("is broken" in line for line in running.lines)


def test_an_engine_that_breaks_is_found_out(base_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(files(base_file)) as running:
        model = running.service.model

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("/secret/path broke")

        for name in ("execute", "generate", "run"):
            if hasattr(model.executor, name):
                monkeypatch.setattr(model.executor, name, broken)
        answer = running.post("/v1/completions", prompt="x")
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text and "Traceback" not in answer.text
        wait_for(lambda: running.service.state == "failed")
        assert httpx.get(running.url + "/health", timeout=120).json()["status"] == "failed"


def test_other_sites_pages_are_kept_out_unless_allowed(base: Running, base_file: Path) -> None:
    def ask(running: Running, origin: str) -> httpx.Response:
        body = {"prompt": "x", "max_tokens": 1}
        return httpx.post(running.url + "/v1/completions", json=body, headers={"origin": origin}, timeout=120)

    assert ask(base, "https://evil.example").status_code == 403
    assert ask(base, "null").status_code == 403
    own = ask(base, base.url)
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    with serving(files(base_file), Settings("tiny", cors_origins=("https://friend.example",))) as running:
        friend = ask(running, "https://friend.example")
        assert friend.status_code == 200
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        assert ask(running, "https://evil.example").status_code == 403
        preflight = httpx.options(
            running.url + "/v1/completions",
            headers={
                "origin": "https://friend.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization,content-type,x-stainless-lang,x-stainless-retry-count",
            },
            timeout=60,
        )
        assert preflight.status_code == 200
        allowed = preflight.headers["access-control-allow-headers"].lower()
        assert "x-stainless-lang" in allowed and "authorization" in allowed  # those of OpenAI's JavaScript client
        assert friend.headers["access-control-expose-headers"] == "retry-after"


def test_a_name_that_was_made_to_lead_here_is_a_stranger(base: Running, base_file: Path) -> None:
    def ask(running: Running, host: str) -> int:
        own = f"{host}:{running.port}"
        headers = {"host": own, "origin": f"http://{own}", "authorization": "Bearer key"}
        return httpx.post(
            running.url + "/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=headers, timeout=60
        ).status_code

    assert [ask(base, host) for host in ("localhost", "127.0.0.1", "[::1]", "rebound.example")] == [200, 200, 200, 403]
    with serving(files(base_file), Settings("tiny", loopback=False)) as running:
        assert ask(running, "box.home.arpa") == 200
    proxied = Settings("tiny", api_keys=("key",), allowed_hosts=("behind-a-proxy.example",))
    with serving(files(base_file), proxied) as running:
        assert [ask(running, host) for host in ("behind-a-proxy.example", "rebound.example")] == [200, 403]


@pytest.mark.parametrize("prompt", ["", "fn main() {\n", "fn main() {\n    ", "let a ="])
def test_a_tokens_bytes_are_those_of_the_text(prompt: str) -> None:
    # a leading tab of the model is four spaces of the text, in the probabilities as well
    codec = TextCodec(tiny_tokenizer(), bos=299, eos=299, add_bos=True, indentation=4)
    before = codec.encode(prompt)
    reply = codec.encode(prompt + "    if é {\n        f(\t)\n\n    }")[len(before) :]
    spelling = Spelling(codec, before)
    entries = [spelling.spell(Token("", token, -1.0, ((reply[0], "", -2.0),))) for token in reply]
    stream = codec.stream(after=before)
    text = "".join([*map(stream.feed, reply), stream.flush()])
    assert b"".join(bytes(e.bytes) for e in entries).decode() == text and "        f(\t)" in text
    assert entries[0].top_logprobs[0].bytes == entries[0].bytes


def test_names_of_tokens_that_are_no_text_stay_apart() -> None:
    names = [legacy_name(TopLogprob(token="\ufffd", logprob=-1.0, bytes=[byte])) for byte in (0xC3, 0xA9)]
    assert names == ["bytes:\\xc3", "bytes:\\xa9"]
