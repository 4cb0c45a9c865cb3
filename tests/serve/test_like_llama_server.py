"""What people who come from llama-server expect to work unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import PROMPT, Running, files, serving
from support import TINY, write_model

from nanochat_tui.cli.entry import run
from nanochat_tui.cli.serve_entry import _dispatch
from nanochat_tui.model.chat.families import NAMED
from nanochat_tui.serve.settings import Settings

HELLO = [{"role": "user", "content": "hello"}]
GREEDY: dict[str, Any] = {"max_tokens": 6, "temperature": 0}


def _events(running: Running, path: str, **body: Any) -> list[dict[str, Any]]:
    with running.client() as client, client.stream("POST", path, json={**body, "stream": True}) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert answer.status_code == 200 and lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_any_model_name_is_answered_and_the_real_one_named(chat: Running, chat_file: Path) -> None:
    for name in ("gpt-3.5-turbo", "anything/else:latest", "tiny"):
        assert chat.post("/v1/chat/completions", model=name, messages=HELLO, **GREEDY).json()["model"] == "tiny"
    assert chat.post("/v1/completions", model="gpt-4o", prompt="x", **GREEDY).json()["model"] == "gpt-4o"  # an alias
    assert {event["model"] for event in _events(chat, "/v1/completions", model="x", prompt="x", **GREEDY)} == {"tiny"}
    with serving(files(chat_file), Settings("tiny", aliases=("other",), strict_model=True)) as running:
        refused = running.post("/v1/completions", model="gpt-3.5-turbo", prompt="x")
        assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"
        assert "tiny, other" in refused.json()["error"]["message"]
        assert running.post("/v1/completions", model="other", prompt="x", max_tokens=1).status_code == 200
        assert running.post("/v1/completions", prompt="x", max_tokens=1).status_code == 200


@pytest.mark.parametrize("name", list(NAMED))
def test_a_base_model_takes_system_messages_with_a_template(base_file: Path, name: str) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    with serving(files(base_file, chat_template=NAMED[name])) as running:
        answer = running.post("/v1/chat/completions", messages=messages, **GREEDY)
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"]
        assert httpx.get(running.url + "/v1/models", timeout=120).json()["data"][0]["meta"]["chat_template"] is True
        rendered = running.service.model.chat_template
        assert rendered == NAMED[name]


def test_the_plain_template_is_what_was_said(base_file: Path) -> None:
    with serving(files(base_file, chat_template=NAMED["plain"])) as running:
        messages = [{"role": "system", "content": "fn a() {"}, {"role": "user", "content": "fn main"}]
        said = running.post("/v1/chat/completions", messages=messages, **GREEDY).json()["choices"][0]["message"]
        same = running.post("/v1/completions", prompt="fn a() {\nfn main\n", **GREEDY).json()["choices"][0]
        assert said["content"] == same["text"]


def test_the_template_comes_from_a_name_or_a_file(
    base_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("nanochat_tui.serve.loading.loader", lambda given, numa: seen.append(given))
    monkeypatch.setattr("nanochat_tui.serve.runner.run", lambda *_: 0)
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}|{% endfor %}", encoding="utf-8")
    for given in ("chatml", str(file)):
        assert run(_dispatch, [str(base_file), "--chat-template", given]) == 0
    assert [each.chat_template for each in seen] == [NAMED["chatml"], file.read_text(encoding="utf-8")]
    capsys.readouterr()
    wrong = tmp_path / "wrong.jinja"
    wrong.write_text("{% for %}", encoding="utf-8")
    none = tmp_path / "none.jinja"
    none.write_text(" \n", encoding="utf-8")
    for given, words in (
        (str(wrong), "is no chat template"),
        (str(none), "is no chat template"),
        ("chat-ml", "one of chatml, llama3"),
        ("x" * 5000, "one of chatml, llama3"),
        (str(tmp_path), "There is no chat template"),
    ):
        assert run(_dispatch, [str(base_file), "--chat-template", given]) == 2
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said and said.count("\n") == 1


def test_the_model_is_given_as_everywhere_else(base_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(_dispatch, [str(base_file), "--model", str(base_file)]) == 2
    assert "given twice" in capsys.readouterr().err
    assert run(_dispatch, ["nowhere.gguf"]) == 2
    assert "There is no file nowhere.gguf" in capsys.readouterr().err


def test_a_conversation_that_ends_with_the_assistant_is_continued(chat: Running) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Once upon"}]
    prompt = chat.service.model.generate("Q: hello\nA: Once upon", max_tokens=6, temperature=0)
    expected = "".join(token.text for token in prompt)

    def said(**more: Any) -> str:
        answer = chat.post("/v1/chat/completions", messages=begun, **GREEDY, **more)
        return str(answer.json()["choices"][0]["message"]["content"])

    assert said() == expected == said(continue_final_message=True)
    opened = "".join(
        t.text for t in chat.service.model.generate("Q: hello\nA: Once upon\nA:", max_tokens=6, temperature=0)
    )
    assert said(continue_final_message=False) == opened == said(add_generation_prompt=True)
    error = chat.post(
        "/v1/chat/completions", messages=begun, continue_final_message=True, add_generation_prompt=True
    ).json()["error"]
    assert error["param"] == "add_generation_prompt"


def test_routes_answer_without_their_prefix(chat: Running) -> None:
    for path, body in (("/chat/completions", {"messages": HELLO}), ("/completions", {"prompt": "x"})):
        long, short = (chat.post(prefix + path, **body, **GREEDY).json() for prefix in ("/v1", ""))
        assert long["choices"] == short["choices"]
    assert httpx.get(chat.url + "/models", timeout=120).json() == httpx.get(chat.url + "/v1/models", timeout=120).json()
    assert httpx.get(chat.url + "/models/tiny", timeout=120).json()["id"] == "tiny"
    client = chat.openai(base_url=chat.url)
    assert client.chat.completions.create(model="x", messages=HELLO, max_tokens=1).choices  # type: ignore[arg-type]


def test_an_unknown_route_is_told_which_there_are(base: Running) -> None:
    for method, path in (
        ("POST", "/v1/images/generations"),
        ("GET", "/v2"),
        ("POST", "/v1/v1/completions"),
        ("POST", "/api/chat"),
    ):
        error = httpx.request(method, base.url + path, timeout=120).json()["error"]
        assert "POST /v1/chat/completions" in error["message"] and "GET /v1/models" in error["message"]
        assert "/openapi.json" in error["message"] and error["code"] == "not_found"
    error = httpx.get(base.url + "/v1/completions", timeout=120).json()["error"]
    assert error["message"] == "this route takes POST, not GET"


def test_minus_one_means_none(base: Running, tmp_path: Path) -> None:
    plain = base.post("/v1/completions", prompt=PROMPT, **GREEDY).json()["choices"]
    given = {"seed": -1, "top_k": -1, "stop": ["", ""], "logprobs": None}
    assert base.post("/v1/completions", prompt=PROMPT, **GREEDY, **given).json()["choices"] == plain
    with serving(files(write_model(tmp_path / "short.gguf", TINY.with_(context_length=128)))) as short:
        for limits in ({"max_tokens": -1}, {"n_predict": -1}, {"n_predict": -2}):
            answer = short.post("/v1/completions", prompt="x", temperature=0, ignore_eos=True, **limits)
            assert answer.json()["usage"]["total_tokens"] == 128
    drawn = [base.post("/v1/completions", prompt=PROMPT, seed=-1, temperature=2).json()["choices"][0] for _ in range(3)]
    assert len({each["text"] for each in drawn}) > 1


def test_whole_numbers_may_be_written_as_fractions(base: Running) -> None:
    body = {
        "prompt": PROMPT,
        "temperature": 0,
        "max_tokens": 6.0,
        "n": 2.0,
        "top_k": 40.0,
        "seed": 7.0,
        "logprobs": 2.0,
    }
    answer = base.post("/v1/completions", **body)
    assert answer.status_code == 200 and len(answer.json()["choices"]) == 2
    assert base.post("/v1/completions", prompt=PROMPT, max_tokens=1.5).json()["error"]["param"] == "max_tokens"
    for huge in ("1e999", "1e300", "-1e300"):
        answer = httpx.post(
            base.url + "/v1/completions", content=f'{{"prompt": "x", "max_tokens": {huge}}}', timeout=120
        )
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "max_tokens"


def test_other_names_of_the_limit(chat: Running) -> None:
    for body, count in (
        ({"n_predict": 5}, 5),
        ({"max_tokens": 3, "n_predict": 5}, 3),
        ({}, 16),
        ({"max_tokens": None}, 16),
    ):
        usage = chat.post("/v1/completions", prompt=PROMPT, temperature=0, **body).json()["usage"]
        assert usage["completion_tokens"] == count
    for body, count in (({"n_predict": 5}, 5), ({"max_tokens": 3, "max_completion_tokens": 2, "n_predict": 5}, 2)):
        usage = chat.post("/v1/chat/completions", messages=HELLO, temperature=0, **body).json()["usage"]
        assert usage["completion_tokens"] == count


def test_what_ends_a_reply_can_be_said(base: Running) -> None:
    plain = base.post("/v1/completions", prompt=PROMPT, temperature=0, max_tokens=12, logprobs=0).json()["choices"][0]
    ids = [t.id for t in base.service.model.generate(PROMPT, max_tokens=12, temperature=0)]
    first = ids.index(ids[5])
    ended = base.post("/v1/completions", prompt=PROMPT, temperature=0, max_tokens=12, stop_token_ids=[ids[5]]).json()
    assert ended["choices"][0]["finish_reason"] == "stop" and ended["usage"]["completion_tokens"] == first
    assert plain["text"].startswith(ended["choices"][0]["text"])
    stop = plain["text"][:2]
    more = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "stop": [stop]}
    assert base.post("/v1/completions", **more).json()["choices"][0]["text"] == ""
    assert base.post("/v1/completions", **more, min_tokens=12).json()["choices"][0]["text"] == plain["text"]
    error = base.post("/v1/completions", prompt=PROMPT, max_tokens=3, min_tokens=4).json()["error"]
    assert error["param"] == "min_tokens"


def test_a_stream_tells_its_timings_usage_and_progress(chat: Running) -> None:
    body = {"messages": [{"role": "user", "content": "long " * 3000}], **GREEDY}
    options = {"continuous_usage_stats": True}
    events = _events(
        chat, "/v1/chat/completions", **body, timings_per_token=True, return_progress=True, stream_options=options
    )
    progress = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert progress and all(0 <= each["cache"] <= each["processed"] <= each["total"] for each in progress)
    assert progress[-1]["processed"] == progress[-1]["total"] == events[-1]["usage"]["prompt_tokens"]
    texts = [event for event in events if event["choices"] and event["choices"][0]["delta"].get("content")]
    assert texts and all(event["timings"]["predicted_n"] >= 1 for event in texts)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts) and counts[-1] == 6
    plain = _events(chat, "/v1/chat/completions", **body)
    assert not any("prompt_progress" in event or "usage" in event for event in plain)
    assert [bool(event.get("timings")) for event in plain].count(True) == 1


def test_tokenize_can_take_marks_for_text(base: Running) -> None:
    codec = base.service.model.codec
    marks = codec.marks
    if not marks:
        pytest.skip("this model has no marks")
    text = f"a {marks[0]} b"
    special = base.post("/tokenize", content=text).json()["tokens"]
    plain = base.post("/tokenize", content=text, parse_special=False).json()["tokens"]
    assert special == codec.encode(text, bos=False) and plain == codec.encode(text, bos=False, special=False)
    assert len(plain) > len(special)


def test_begin_of_text_can_be_left_out(base: Running) -> None:
    model = base.service.model
    with_bos = base.post("/v1/completions", prompt=PROMPT, **GREEDY).json()["usage"]["prompt_tokens"]
    without = base.post("/v1/completions", prompt=PROMPT, add_special_tokens=False, **GREEDY).json()["usage"]
    assert (with_bos, without["prompt_tokens"]) == (
        len(model.encode(PROMPT)),
        len(model.codec.encode(PROMPT, bos=False)),
    )
