"""The chat page in a browser: what people run into while they use it for long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pages import Pages, answering, finished, scripted, send, settings, until
from servers import CHAT_TEMPLATE, LONG, Running, files, serving
from support import write_model

pytestmark = pytest.mark.slow

SLOW = [f"line {i}\n" for i in range(400)]
CRAB = "🦀".encode()


def _completion(text: str, *names: str, reason: str | None = None) -> dict[str, Any]:
    tops = [{name: -0.5, "\\x": -2.0} for name in names]
    logprobs = {"tokens": names, "token_logprobs": [-0.5] * len(names), "top_logprobs": tops} if names else None
    return {"text": text, "logprobs": logprobs, "finish_reason": reason}


def _chat(delta: dict[str, str], *tokens: bytes, reason: str | None = None) -> dict[str, Any]:
    entries = [{"token": t.decode("utf-8", "replace"), "bytes": list(t), "logprob": -0.5} for t in tokens]
    content = [{**entry, "top_logprobs": [entry]} for entry in entries]
    return {"delta": delta, "logprobs": {"content": content} if tokens else None, "finish_reason": reason}


def _name(raw: bytes) -> str:
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _spans(page: Any) -> list[str]:
    return page.locator(".message").last.locator(".tokens span").all_text_contents()


def _talk(page: Any, pairs: int) -> None:
    page.evaluate(
        f"for (let i = 0; i < {pairs}; i++) talk().messages.push({{ role: 'user', content: 'question number ' + i }},"
        " { role: 'assistant', content: 'answer ' + i, tokens: [] }); keep(); show()"
    )


def test_tokens_of_a_text_are_drawn_as_it_reads(pages: Pages, base: Running) -> None:
    page = pages(base.url)
    names = ["let", _name(b" " + CRAB[:2]), _name(CRAB[2:3]), _name(CRAB[3:]), "\\x41", ";", " dropped"]
    answering(page, _completion("let ", *names[:2]), _completion("🦀\\x41", *names[2:], reason="stop"))
    send(page, "fn main")
    finished(page)
    assert page.evaluate("talk().messages[1].content") == "let 🦀\\x41"
    assert _spans(page) == ["let", " ", "🦀", "\\x41"]  # the stop string and what followed it are no part of the reply
    page.locator(".tokens span").nth(2).hover()
    tip = page.inner_text("#tip")
    assert "\\xa6  61 %" in tip and "\\x80  61 %" in tip and len(tip.split("\n")) == 6
    # names that do not spell the reply are not shown instead of it
    answering(page, _completion("what was said", "something", " else", reason="stop"))
    page.keyboard.press("Alt+r")
    finished(page)
    assert page.locator(".message").last.locator(".body").text_content() == "what was said" and _spans(page) == []
    assert page.locator(".foot", has_text="Probabilities").count() == 0


def test_tokens_of_a_chat_leave_thoughts_and_what_is_no_text_out(page: Any) -> None:
    thought = _chat({"reasoning_content": "so"}, b"<think>", b"so", b"</think>", b"\n")
    answering(page, thought, _chat({"content": "a 🦀"}, b"a", b" " + CRAB[:3], CRAB[3:] + b"\xe2", reason="length"))
    send(page, "hello")
    finished(page)
    page.click("text=Probabilities")
    assert _spans(page) == ["a", " ", "🦀"]
    page.reload()
    until(page, "server.known")
    assert _spans(page) == ["a", " ", "🦀"]


def test_a_long_conversation_goes_on_and_its_cut_is_remembered(pages: Pages, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", LONG.with_(context_length=256), chat_template=CHAT_TEMPLATE)
    with serving(files(path)) as running:
        page = pages(running.url)
        settings(page, temperature=0, max_tokens=3)
        asked: list[Any] = []
        page.on("request", lambda request: asked.append(request.post_data_json) if "chat" in request.url else None)
        for pairs in (40, 120):
            page.keyboard.press("Alt+n")
            _talk(page, pairs)
            asked.clear()
            send(page, "and now?")
            finished(page)
            assert page.evaluate("talk().messages.at(-1).reason") == "length"
            assert len(asked) < 16 and 3 < len(asked[-1]["messages"]) < 30
            assert asked[-1]["messages"][0]["role"] == "user"
            asked.clear()
            send(page, "and then?")
            finished(page)
            assert len(asked) == 1
        _talk(page, 0)
        page.evaluate("edit(0)")  # a conversation that begins anew has all of its context again
        asked.clear()
        page.press("#text", "Enter")
        finished(page)
        assert [m["content"] for m in asked[0]["messages"]] == ["question number 0"]
        page.keyboard.press("Alt+n")
        send(page, "much too long " * 300)  # and where nothing is left to cut, the refusal is said
        finished(page)
        assert "context" in page.inner_text(".note")
        page.complaints.clear()  # the refusals that told it


def test_leaving_a_reply_that_is_written(page: Any, chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(chat, monkeypatch, SLOW, 0.02)

    def begin(text: str) -> None:
        send(page, text)
        until(page, "writing && writing.content")

    begin("first")
    page.keyboard.press("Alt+n")
    finished(page)
    assert page.inner_text("#send") == "Send" and page.locator(".message").count() == 0
    begin("second")
    page.click("#open")
    page.select_option("#list", "0")
    finished(page)
    assert page.inner_text("#send") == "Send"
    assert page.locator(".message").last.locator(".foot button").all_inner_texts() == ["Copy", "Again"]
    page.select_option("#list", "1")
    assert "stopped" in page.inner_text(".stats")
    page.click("text=Again")
    until(page, "writing && writing.content")
    page.click("#delete")
    finished(page)
    assert page.inner_text("#send") == "Send" and page.evaluate("stored().talks.length") == 1


def test_a_reload_keeps_what_was_written(page: Any, chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(chat, monkeypatch, SLOW, 0.02)
    send(page, "first")
    until(page, "writing && writing.content.length > 40")
    page.reload()
    until(page, "server.known")
    assert page.evaluate("talk().messages[1].content.length") > 40
    assert "broken off" in page.inner_text(".stats")
    send(page, "second")
    until(page, "stored().talks[0].messages[3]?.content")  # also without a farewell, after a second


def test_a_stream_that_ends_early_is_not_taken_for_a_reply(page: Any) -> None:
    for end in ("", "data: [DONE]\n\n"):
        answering(page, _chat({"content": "half an"}), end=end)
        page.keyboard.press("Alt+n")
        send(page, "hello")
        finished(page)
        assert page.locator(".message").count() == 2 and "broken off" in page.inner_text(".stats")
        assert "ended before the reply" in page.inner_text(".note")


def test_reading_further_up_is_left_in_peace(page: Any, chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    _talk(page, 40)
    scripted(chat, monkeypatch, SLOW[:40], 0.01)
    send(page, "more")
    until(page, "writing && writing.content")
    page.evaluate("$('scroll').scrollTop = 30")
    finished(page)
    page.wait_for_timeout(100)
    assert page.evaluate("$('scroll').scrollTop") == 30
    assert page.locator(".message").last.locator(".stats").count() == 1
    page.evaluate("toEnd()")  # who is at the end is taken along
    page.keyboard.press("Alt+r")
    finished(page)
    page.wait_for_timeout(100)
    assert page.evaluate("$('scroll').scrollHeight - $('scroll').scrollTop - $('scroll').clientHeight") < 2


def test_numbers_are_taken_as_they_are_written(page: Any) -> None:
    page.click("#open")
    for name, value in (("temperature", 0.75), ("top_p", 0.955), ("min_p", 0.005), ("repeat_penalty", 1.12)):
        page.fill(f"#{name}", str(value))
        page.press(f"#{name}", "Tab")
        assert page.evaluate(f"kept.settings.{name}") == value and page.input_value(f"#{name}") == str(value)
    page.fill("#top_p", "2")
    page.press("#top_p", "Tab")
    assert page.input_value("#top_p") == "0.955" and "1" in page.inner_text("#state")  # and it is said why
    page.fill("#seed", "41")
    page.fill("#stop", "\nfn\n;")
    page.click("#close")
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request.post_data_json) if "chat" in request.url else None)
    answering(page, _chat({"content": "x"}, reason="stop"))
    send(page, "hello")
    finished(page)
    assert (asked[0]["seed"], asked[0]["stop"], asked[0]["temperature"]) == (41, ["fn", ";"], 0.75)


def test_two_tabs_agree(pages: Pages, chat: Running) -> None:
    first = pages(chat.url)
    for text in ("one", "two"):
        first.keyboard.press("Alt+n")
        answering(first, _chat({"content": text}, reason="stop"))
        send(first, text)
        finished(first)
    second = first.context.new_page()
    second.goto(chat.url)
    until(second, "server.known")
    heads = "t.talks.map((t) => t.messages[0]?.content)"
    second.click("#open")
    second.select_option("#list", label="one")
    second.click("#delete")
    second.fill("#temperature", "0.3")
    second.press("#temperature", "Tab")
    first.click("#open")
    first.fill("#top_k", "7")
    first.press("#top_k", "Tab")
    until(first, "$('temperature').value === '0.3'")
    assert first.locator("#list option").all_inner_texts() == ["two"]
    first.evaluate("keep()")
    until(second, "$('top_k').value === '7'")
    for tab in (first, second):
        assert tab.evaluate(f"((t) => {heads})(stored())") == ["two"]
        assert tab.evaluate("[kept.settings.temperature, kept.settings.top_k]") == [0.3, 7]
    # one tab deletes what the other shows: that one goes on to a new conversation
    second.click("#delete")
    until(first, "!talk().messages.length")
    assert first.locator(".message").count() == 0


def test_reading_before_writing_needs_no_word_from_the_other_tab(page: Any) -> None:
    page.evaluate("talk().messages.push({ role: 'user', content: 'here' }); keep()")
    page.evaluate(
        "(() => { const other = stored(); other.talks.push({ id: 'other', changed: 1, messages: [] });"
        " other.settings.top_k = 3; localStorage.setItem(KEPT, JSON.stringify(other)); keep(); })()"
    )
    assert page.evaluate("[stored().talks.length, stored().settings.top_k]") == [2, 3]
    page.evaluate(
        "(() => { const other = stored(); other.talks.pop();"
        " localStorage.setItem(KEPT, JSON.stringify(other)); keep(); })()"
    )
    assert page.evaluate("stored().talks.map((t) => t.messages[0].content)") == ["here"]


def test_keys_of_a_mac(page: Any) -> None:
    page.evaluate("talk().messages.push({ role: 'user', content: 'hello' }); keep(); show()")

    def press(key: str, code: str) -> None:
        page.evaluate(
            "([key, code]) => dispatchEvent(new KeyboardEvent('keydown', { key, code, altKey: true }))", [key, code]
        )

    press("ß", "KeyS")
    assert page.locator("#side").is_visible()
    press("b", "KeyN")  # a layout that has its b there
    assert page.evaluate("kept.talks.length") == 1
    press("Dead", "KeyN")
    assert page.evaluate("kept.talks.length") == 2
    page.keyboard.press("Alt+s")
    assert not page.locator("#side").is_visible()


def test_writing_on_a_phone(pages: Pages, chat: Running) -> None:
    page = pages(chat.url, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page.fill("#text", "one")
    page.press("#text", "Enter")
    page.locator("#text").press_sequentially("two")
    assert page.input_value("#text") == "one\ntwo" and page.locator(".message").count() == 0
    sizes = "[...document.querySelectorAll('input, select, textarea')].map((f) => getComputedStyle(f).fontSize)"
    assert set(page.evaluate(sizes)) == {"16px"}
    answering(page, _chat({"content": "x"}, reason="stop"))
    page.click("#send")
    finished(page)
    assert page.evaluate("talk().messages[0].content") == "one\ntwo"


def test_small_things_stay_as_they_are(page: Any, chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat_tui.model.chat.prompt.thinking_tags", lambda _: ("<think>", "</think>"))
    scripted(chat, monkeypatch, ["<think>", *SLOW], 0.02)
    send(page, "hello")
    until(page, "document.querySelector('details')")
    page.click("summary")
    page.wait_for_timeout(150)
    assert not page.locator("details").evaluate("(d) => d.open")  # shut, though thoughts go on
    page.click("summary")
    page.evaluate("writing.content = 'said'")
    page.wait_for_timeout(150)
    assert page.locator("details").evaluate("(d) => d.open")
    page.keyboard.press("Escape")
    finished(page)
    assert page.locator("details").evaluate("(d) => d.open")
    page.keyboard.press("Alt+n")
    answering(page, _chat({"content": "said"}, b"said", reason="stop"))
    send(page, "hello")
    finished(page)
    before = page.inner_text("#state")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".foot button", has_text="Copy").last.click()
    until(page, "$('state').textContent === 'copied'")
    assert page.evaluate("navigator.clipboard.readText()") == "said"
    until(page, f"$('state').textContent === {json.dumps(before)}")
    page.locator(".foot button", has_text="Probabilities").focus()
    page.keyboard.press("Enter")
    assert _spans(page) == ["said"] and page.evaluate("document.activeElement.textContent") == "Probabilities"


def test_what_is_selected_stays_selected(
    pages: Pages, chat: Running, base: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    select = "getSelection().setBaseAndExtent({0}.firstChild, 0, {0}.firstChild, 5)"
    for running, where in ((chat, "$('log').querySelector('.assistant p')"), (base, "$('log').lastChild.body")):
        scripted(running, monkeypatch, ["first block\n\n", *SLOW], 0.02)
        page = pages(running.url)
        send(page, "hello")
        until(page, "writing && writing.content.length > 60")
        page.evaluate(select.format(where))
        page.wait_for_timeout(200)
        assert page.evaluate("getSelection().toString()") == "first"
        page.keyboard.press("Escape")
        finished(page)


def test_a_continued_program_lines_up(pages: Pages, base: Running) -> None:
    page = pages(base.url)
    answering(page, _completion("    let x = 1;", reason="stop"))
    send(page, "    fn main() {\n")
    finished(page)
    left = (
        "(n) => { const r = document.createRange(); r.selectNodeContents(n); return r.getBoundingClientRect().left; }"
    )
    assert page.locator(".body").first.evaluate(left) == page.locator(".body").last.evaluate(left)
    # undo gives the text back
    page.click("text=Undo")
    assert page.input_value("#text") == "    fn main() {\n" and page.locator(".message").count() == 0


def test_a_conversation_is_edited_switched_exported_and_deleted(page: Any) -> None:
    for text in ("first", "second"):
        page.keyboard.press("Alt+n")
        answering(page, _chat({"content": f"answer to {text}"}, reason="stop"))
        send(page, text)
        finished(page)
    settings(page, key="sekret", system="be brief")
    page.click("#open")
    page.select_option("#list", label="first")
    assert "answer to first" in page.inner_text("#log")
    with page.expect_download() as download:
        page.click("#json")
    assert download.value.suggested_filename == "conversation.json"
    text = Path(download.value.path()).read_text()
    exported = json.loads(text)
    assert [m["content"] for m in exported["messages"]] == ["first", "answer to first"] and "sekret" not in text
    assert exported["settings"]["system"] == "be brief"
    with page.expect_download() as download:
        page.click("#markdown")
    name = page.evaluate("server.name")
    assert Path(download.value.path()).read_text() == f"## You\n\nfirst\n\n## {name}\n\nanswer to first\n"
    page.click("#close")
    page.click("text=Edit")
    assert page.input_value("#text") == "first" and page.locator(".message").count() == 0
    send(page, "first again")
    finished(page)
    assert page.evaluate("talk().messages.map((m) => m.content)") == ["first again", "answer to second"]
    page.click("#open")
    page.click("#delete")
    assert page.evaluate("stored().talks.map((t) => t.messages[0].content)") == ["second"]
    assert "answer to second" in page.inner_text("#log")
    page.click("#delete")
    assert page.locator(".message").count() == 0 and page.evaluate("stored().talks.length") == 1
