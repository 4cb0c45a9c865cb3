"""Anthropic's `/v1/messages` and OpenAI's `/v1/responses` over the wire; their clients are in test_dialect_clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import LONG, NO_CERTIFICATES, Running, files, serving
from support import write_model
from test_streams import THINKING, Scripted

from nanochat_tui.serve.errors import ApiError
from nanochat_tui.serve.settings import Limits, Settings
from nanochat_tui.serve.stored import Responses

HELLO = [{"role": "user", "content": "hello"}]
ASKED: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 0}
INPUT: dict[str, Any] = {"model": "tiny", "input": "hello", "max_output_tokens": 12, "temperature": 0}


def said(running: Running, prompt: str = "Q: hello\nA:", tokens: int = 12) -> str:
    return "".join(t.text for t in running.service.model.generate(prompt, max_tokens=tokens, temperature=0))


def events(running: Running, path: str, **body: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, whose names are those of their types."""
    with running.client() as client, client.stream("POST", path, json={**body, "stream": True}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        text = answer.read().decode()
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        row = json.loads(data.removeprefix("data: "))
        assert name == f"event: {row['type']}"
        found.append(row)
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    """Return the types of events, of several in a row one."""
    return [row["type"] for place, row in enumerate(found) if not place or found[place - 1]["type"] != row["type"]]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_model(tmp_path_factory.mktemp("thinks") / "m.gguf", LONG, chat_template=THINKING)
    with serving(files(path)) as running:
        yield running


# Anthropic


def test_a_message_has_anthropics_shape(chat: Running) -> None:
    body = chat.post("/v1/messages", **ASKED).json()
    assert body.pop("id").startswith("msg_")
    usage = body.pop("usage")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": said(chat)}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
    }
    prompt = len(chat.service.model.encode("Q: hello\nA:"))
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt and usage["output_tokens"] == 12
    counted = chat.post("/v1/messages/count_tokens", model="tiny", messages=HELLO).json()
    assert counted == {"input_tokens": prompt}


def test_a_streamed_message_says_the_same(chat: Running) -> None:
    found = events(chat, "/v1/messages", **ASKED)
    assert kinds(found) == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = found[0]["message"]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["input_tokens"] > 0
    deltas = [row["delta"] for row in found if row["type"] == "content_block_delta"]
    assert {delta["type"] for delta in deltas} == {"text_delta"}
    assert "".join(delta["text"] for delta in deltas) == said(chat)
    end = found[-2]
    assert end["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == 12


def test_system_blocks_prefill_and_neighbours(chat: Running) -> None:
    text = chat.post("/v1/messages", **ASKED, system=[{"type": "text", "text": "be", "cache_control": {"type": "e"}}])
    assert text.json()["content"][0]["text"] == said(chat, "# be\nQ: hello\nA:")
    begun = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": "Once"}]}]
    assert chat.post("/v1/messages", **{**ASKED, "messages": begun}).json()["content"][0]["text"] == said(
        chat, "Q: hello\nA: Once"
    )
    late = [{"role": "system", "content": "be"}, *HELLO]
    assert chat.post("/v1/messages", **{**ASKED, "messages": late}).json()["content"][0]["text"] == said(
        chat, "# be\nQ: hello\nA:"
    )
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}]
    assert chat.post("/v1/messages", **{**ASKED, "messages": twice}).json()["content"][0]["text"] == said(
        chat, "Q: a\nb\nA:"
    )


def test_why_a_message_ended(chat: Running) -> None:
    stop = said(chat)[4:7]
    body = chat.post("/v1/messages", **ASKED, stop_sequences=["never ever", stop]).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", stop)
    assert body["content"][0]["text"] == said(chat).partition(stop)[0]
    found = events(chat, "/v1/messages", **ASKED, stop_sequences=[stop])
    assert found[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": stop}


def test_the_end_of_the_context_is_told_apart(chat_file: Path) -> None:
    with serving(files(chat_file, kv_tokens=128)) as running:
        body = running.post("/v1/messages", **{**ASKED, "max_tokens": 10_000}).json()
    assert body["stop_reason"] == "model_context_window_exceeded"
    assert body["usage"]["input_tokens"] + body["usage"]["output_tokens"] == 128


def test_thoughts_are_blocks_of_their_own(thinker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = ["hm", "m\n", "</th", "ink>", "\n\n", "Yes", " & no"]
    monkeypatch.setattr(thinker.service, "submit", lambda *_, **__: Scripted(list(pieces)))
    whole = thinker.post("/v1/messages", **ASKED).json()
    assert whole["content"] == [
        {"type": "thinking", "thinking": "hmm\n", "signature": ""},
        {"type": "text", "text": "Yes & no"},
    ]
    assert whole["stop_reason"] == "end_turn"
    found = events(thinker, "/v1/messages", **ASKED)
    starts = [(row["index"], row["content_block"]["type"]) for row in found if row["type"] == "content_block_start"]
    assert starts == [(0, "thinking"), (1, "text")]
    thought = "".join(row["delta"].get("thinking", "") for row in found if row["type"] == "content_block_delta")
    assert thought == "hmm\n"
    monkeypatch.setattr(thinker.service, "submit", lambda *_, **__: Scripted([]))
    assert thinker.post("/v1/messages", **ASKED).json()["content"] == [{"type": "text", "text": ""}]


def test_whether_to_think_is_the_clients(thinker: Running) -> None:
    def count(**thinking: Any) -> int:
        body = thinker.post("/v1/messages/count_tokens", model="tiny", messages=HELLO, **thinking)
        return int(body.json()["input_tokens"])

    plain, off = count(), count(thinking={"type": "disabled"})
    assert off > plain  # the template closes the thinking that it opens
    assert count(thinking={"type": "enabled", "budget_tokens": 1024}) == count(thinking={"type": "adaptive"}) == plain


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "leave tools out"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "type image"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, "list of blocks"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "schema"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, "context"),
    ],
)
def test_errors_have_anthropics_shape(chat: Running, change: dict[str, Any], words: str) -> None:
    answer = chat.post("/v1/messages", **{**ASKED, **change})
    body = answer.json()
    assert answer.status_code == 400 and set(body) == {"type", "error"} and body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error" and words in body["error"]["message"]


def test_errors_before_the_route_have_it_too(chat_file: Path, chat: Running) -> None:
    with serving(files(chat_file), Settings("tiny", api_keys=("k",), strict_model=True)) as running:
        refused = running.post("/v1/messages", **ASKED)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        headers = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
        with running.client(headers=headers) as client:
            assert client.post("/v1/messages?beta=true", json=ASKED).status_code == 200
            unknown = client.post("/v1/messages", json={**ASKED, "model": "other"})
            assert unknown.status_code == 404 and unknown.json()["error"]["type"] == "not_found_error"
            assert client.get("/v1/messages").json()["type"] == "error"
    broken = httpx.post(chat.url + "/v1/messages", content=b"{", timeout=60, verify=NO_CERTIFICATES)
    assert broken.status_code == 400 and broken.json()["type"] == "error"


def test_a_stream_that_fails_says_so(chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat.service, "submit", lambda *_, **__: Scripted(["a"], error=RuntimeError("secret")))
    monkeypatch.setattr(chat.service, "broken", lambda error: None)
    last = events(chat, "/v1/messages", **ASKED)[-1]
    assert last["type"] == "error" and last["error"]["type"] == "api_error" and "secret" not in json.dumps(last)
    failed = events(chat, "/v1/responses", **INPUT)
    assert [row["type"] for row in failed[-2:]] == ["error", "response.failed"]
    assert failed[-1]["response"]["status"] == "failed" and "secret" not in json.dumps(failed)
    assert chat.post("/v1/messages", **ASKED).status_code == 500


# Responses


def test_a_response_has_openais_shape(chat: Running) -> None:
    body = chat.post("/v1/responses", **INPUT, metadata={"a": "b"}).json()
    assert body["id"].startswith("resp_") and body["object"] == "response" and body["model"] == "tiny"
    assert body["status"] == "incomplete" and body["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = body["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "incomplete")
    assert item["content"] == [{"type": "output_text", "text": said(chat), "annotations": [], "logprobs": []}]
    usage = body["usage"]
    assert usage["output_tokens"] == 12 and usage["total_tokens"] == usage["input_tokens"] + 12
    assert body["metadata"] == {"a": "b"} and body["temperature"] == 0 and body["store"] is True
    counted = chat.post("/v1/responses/input_tokens", model="tiny", input="hello").json()
    assert counted == {"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}


def test_a_streamed_response_says_the_same(chat: Running) -> None:
    found = events(chat, "/v1/responses", **INPUT)
    assert [row["sequence_number"] for row in found] == list(range(len(found)))
    assert kinds(found) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(row["delta"] for row in found if row["type"] == "response.output_text.delta")
    assert text == said(chat) == found[-4]["text"] == found[-1]["response"]["output"][0]["content"][0]["text"]
    assert found[2]["item"]["content"] == [] and found[2]["item"]["status"] == "in_progress"


def test_a_conversation_goes_on_from_a_response(chat: Running) -> None:
    first = chat.post("/v1/responses", **INPUT, instructions="be").json()
    text = first["output"][0]["content"][0]["text"]
    assert text == said(chat, "# be\nQ: hello\nA:")
    more = {**INPUT, "input": [{"role": "user", "content": [{"type": "input_text", "text": "more"}]}]}
    second = chat.post("/v1/responses", **more, previous_response_id=first["id"]).json()
    # the instructions were the first one's alone
    expected = said(chat, f"Q: hello\nA: {text}\nQ: more\nA:")
    assert second["output"][0]["content"][0]["text"] == expected
    by_hand = [
        {"role": "user", "content": "hello"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
        {"role": "user", "content": "more"},
    ]
    again = chat.post("/v1/responses", **{**INPUT, "input": by_hand}).json()
    assert again["output"][0]["content"][0]["text"] == expected
    with chat.client() as client:
        assert client.get(f"/v1/responses/{first['id']}").json() == first
        items = client.get(f"/v1/responses/{second['id']}/input_items").json()
        assert [item["content"][0]["text"] for item in items["data"]] == ["more"]
        assert items["first_id"] == items["last_id"] == items["data"][0]["id"]
        assert client.delete(f"/v1/responses/{first['id']}").json()["deleted"] is True
        assert client.get(f"/v1/responses/{first['id']}").status_code == 404
    third = chat.post("/v1/responses", **more, previous_response_id=second["id"])  # keeps what it went on from
    assert third.status_code == 200
    gone = chat.post("/v1/responses", **more, previous_response_id=first["id"])
    assert gone.status_code == 400 and gone.json()["error"]["code"] == "previous_response_not_found"
    unkept = chat.post("/v1/responses", **INPUT, store=False).json()
    assert chat.post("/v1/responses", **INPUT, previous_response_id=unkept["id"]).status_code == 400


def test_a_streamed_response_is_kept_once_it_is_whole(chat: Running) -> None:
    found = events(chat, "/v1/responses", **INPUT)
    with chat.client() as client:
        assert client.get(f"/v1/responses/{found[0]['response']['id']}").json() == found[-1]["response"]


def test_responses_belong_to_the_key_that_made_them(chat_file: Path) -> None:
    with serving(files(chat_file), Settings("tiny", api_keys=("mine", "yours"))) as running:
        mine, yours = ({"authorization": f"Bearer {key}"} for key in ("mine", "yours"))
        with running.client() as client:
            made = client.post("/v1/responses", json=INPUT, headers=mine).json()["id"]
            for path in (f"/v1/responses/{made}", f"/v1/responses/{made}/input_items"):
                assert client.get(path, headers=mine).status_code == 200
                assert client.get(path, headers=yours).status_code == 404
                assert client.get(path).status_code == 401
            assert client.delete(f"/v1/responses/{made}", headers=yours).status_code == 404
            body = {**INPUT, "previous_response_id": made}
            assert client.post("/v1/responses", json=body, headers=yours).status_code == 400
            assert client.post("/v1/responses/input_tokens", json=body, headers=yours).status_code == 400
            assert client.post("/v1/responses", json=body, headers=mine).status_code == 200


def test_what_is_kept_is_bounded_by_count_bytes_and_age() -> None:
    now = 100.0
    kept = Responses(Limits(stored_responses=3, stored_bytes=100_000, stored_seconds=10), lambda: now)

    def put(name: str, text: str = "x") -> None:
        kept.put("k", {"id": name}, [], [{"role": "user", "content": text}])

    def has(name: str) -> bool:
        try:
            kept.get("k", name)
        except ApiError:
            return False
        return True

    for name in "abcd":
        put(name)
    assert [has(name) for name in "abcd"] == [False, True, True, True]
    put("big", "x" * 20_000)
    assert has("big") and kept.size <= 100_000
    put("bigger", "x" * 22_000)
    assert has("bigger") and not has("big") and not has("d")
    put("huge", "x" * 200_000)
    assert not has("huge") and has("bigger")
    now += 11
    assert not has("bigger") and len(kept) == 0 and kept.size == 0


def test_thoughts_are_items_of_their_own_and_come_back(thinker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = ["hm", "m\n", "</th", "ink>", "\n\n", "Yes"]
    monkeypatch.setattr(thinker.service, "submit", lambda *_, **__: Scripted(list(pieces)))
    whole = thinker.post("/v1/responses", **INPUT).json()
    assert [(item["type"], item["content"][0]["text"]) for item in whole["output"]] == [
        ("reasoning", "hmm\n"),
        ("message", "Yes"),
    ]
    assert whole["status"] == "completed" and 0 < whole["usage"]["output_tokens_details"]["reasoning_tokens"] < 6
    found = events(thinker, "/v1/responses", **INPUT)
    assert "response.reasoning_text.done" in kinds(found) and found[-1]["type"] == "response.completed"
    places = {row["output_index"] for row in found if "output_index" in row}
    assert places == {0, 1}
    more = [*whole["output"], {"role": "user", "content": "and"}]
    assert thinker.post("/v1/responses", **{**INPUT, "input": more}).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function", "name": "f"}]}, "tools"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "messages"),
        ({"input": [{"type": "computer_call"}]}, "input"),
        ({"reasoning": {"effort": "huge"}}, "reasoning_effort"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": []}, "input"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"metadata": {"a": 1}}, "metadata.a"),
    ],
)
def test_what_a_response_cannot_have_is_refused_by_name(chat: Running, change: dict[str, Any], param: str) -> None:
    answer = chat.post("/v1/responses", **{**INPUT, **change})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_a_base_model_continues_in_both_and_takes_no_system_message(base: Running) -> None:
    text = said(base, "fn main")
    asked = {**ASKED, "messages": [{"role": "user", "content": "fn main"}]}
    assert base.post("/v1/messages", **asked).json()["content"][0]["text"] == text
    assert base.post("/v1/responses", **{**INPUT, "input": "fn main"}).json()["output"][0]["content"][0]["text"] == text
    assert base.post("/v1/messages", **asked, system="x").status_code == 400
    assert base.post("/v1/responses", **INPUT, instructions="x").status_code == 400
