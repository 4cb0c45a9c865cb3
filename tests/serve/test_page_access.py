"""The page for people who cannot see it, and when something fails: said once, and in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import Pages, answering, finished, scripted, send, settings, until
from servers import Running, files, serving

from nanochat_tui.serve.settings import Settings

pytestmark = pytest.mark.slow

WATCH = """() => { window.heard = []; new MutationObserver(() => heard.push($("heard").textContent))
  .observe($("heard"), { childList: true, characterData: true, subtree: true }); }"""
BUSY = """() => { window.seenBusy = []; new MutationObserver(() => seenBusy.push($("log").getAttribute("aria-busy")))
  .observe($("log"), { attributes: true }); }"""


def test_a_reply_is_heard_once_and_whole(page: Any, chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    page.evaluate(WATCH)
    page.evaluate(BUSY)
    scripted(chat, monkeypatch, ["A paragraph ", "in **many** ", "pieces.\n\n", *[f"w{i} " for i in range(40)]], 0.02)
    send(page, "hello")
    until(page, "writing && writing.content.length > 40")
    assert page.evaluate("$('log').getAttribute('aria-busy')") == "true" and page.evaluate("heard") == []
    finished(page)
    page.wait_for_timeout(100)
    said = page.evaluate("talk().messages[1].content")
    assert page.evaluate("heard") == [said] and page.evaluate("seenBusy") == ["true", None]
    live = page.evaluate("[...document.querySelectorAll('[aria-live],[role=status]')].map((n) => n.id)")
    assert sorted(live) == ["heard", "log", "state"]
    assert page.evaluate("$('log').getAttribute('aria-live')") == "off"


def test_nothing_that_was_written_is_put_in_again(page: Any, chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(chat, monkeypatch, ["begin ", *[f"word{i} " for i in range(60)]], 0.02)
    send(page, "hello")
    until(page, "$('log').querySelector('.assistant p')")
    page.evaluate(
        """() => { window.added = 0;
          new MutationObserver((all) => { for (const r of all) added += r.addedNodes.length; })
            .observe($("log"), { childList: true, subtree: true }); }"""
    )
    until(page, "writing && writing.content.includes('word50')")
    assert page.evaluate("added") == 0  # its one text only grows
    finished(page)


def test_the_page_has_a_heading_and_landmarks(page: Any) -> None:
    assert page.locator("h1").all_text_contents() == ["tiny"]
    for landmark in ("header", "main", "form[aria-label]", "aside[aria-label]"):
        assert page.locator(landmark).count() == 1, landmark
    outside = page.evaluate(
        """[...document.body.children].filter((n) => !n.matches("header, main, form, aside, #middle, script"))"""
        ".map((n) => n.outerHTML)"
    )
    assert outside == [] and page.evaluate("[...$('middle').children].map((n) => n.tagName)") == ["MAIN", "ASIDE"]


def test_a_server_that_stops_is_said_in_words(pages: Pages, chat_file: Path) -> None:
    with serving(files(chat_file)) as running:
        page = pages(running.url)
        settings(page, temperature=0, max_tokens=30_000)
        send(page, "fn main")
        until(page, "writing && writing.content.length > 5")
    finished(page)  # the server has ended, with a word to its streams
    note = page.inner_text(".note")
    assert "server" in note and "fetch" not in note
    until(page, "$('state').textContent.includes('does not answer')")
    before = page.locator(".message").count()
    send(page, "are you there?")
    finished(page)
    notes = page.locator(".note").all_text_contents()
    assert notes[-1] == "the server does not answer; it has stopped, or it cannot be reached"
    assert page.locator(".message").count() == before + 1  # the question stays
    assert page.evaluate("$('heard').textContent") == notes[-1]
    page.complaints.clear()


def test_a_connection_that_breaks_is_said_in_words(page: Any) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionreset"))
    send(page, "hello")
    finished(page)
    assert "the server does not answer" in page.inner_text(".note")
    page.unroute_all()
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
    page.keyboard.press("Alt+r")
    finished(page)
    assert "status 502" in page.locator(".note").last.inner_text()
    answering(page, {"delta": {"content": "half"}, "logprobs": None, "finish_reason": None}, end="")
    page.keyboard.press("Alt+r")
    finished(page)
    assert "the connection ended before the reply did" in page.inner_text("#log")
    page.unroute_all()
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body="data: {oh no\n\n"),
    )
    page.keyboard.press("Alt+r")
    finished(page)
    assert "the server's answer cannot be read" in page.inner_text("#log")
    page.complaints.clear()


def test_a_keyed_server_points_at_the_settings(browser: Any, chat_file: Path) -> None:
    with serving(files(chat_file), Settings("tiny", api_keys=("secret",))) as running:
        page = browser.new_page()
        page.goto(running.url)
        until(page, "$('state').textContent.includes('needs an API key: enter it under Settings')")
        send(page, "hello")
        finished(page)
        assert "needs an API key" in page.inner_text(".note") and "Bearer" not in page.inner_text("body")
        page.click("text=Open settings")
        assert page.evaluate("document.activeElement.id") == "key" and page.locator("#side").is_visible()
        page.fill("#key", "wrong")
        page.press("#key", "Tab")
        until(page, "$('state').textContent.includes('is not one of the server')")
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        until(page, "server.known")
        page.click("#close")
        settings(page, max_tokens=4)
        page.keyboard.press("Alt+r")
        finished(page)
        assert page.locator(".stats").count() == 1
        page.close()


def test_a_stopped_reply_has_its_speed(page: Any) -> None:
    settings(page, temperature=0, max_tokens=30_000)
    send(page, "fn main")
    until(page, "writing && writing.content.length > 200")
    page.keyboard.press("Escape")
    finished(page)
    stats = page.inner_text(".stats")
    assert "tokens/s" in stats and "stopped" in stats and " tokens · " in stats


def test_probabilities_are_asked_for_when_they_are_shown(pages: Pages, chat: Running, base: Running) -> None:
    for running, names in ((chat, {"logprobs", "top_logprobs"}), (base, {"logprobs"})):
        page = pages(running.url)
        settings(page, max_tokens=3)
        bodies: list[dict[str, Any]] = []
        page.on("request", lambda r, kept=bodies: kept.append(r.post_data_json) if r.method == "POST" else None)
        for shown in (False, True, False):
            send(page, "hello")
            finished(page)
            assert (names & set(bodies[-1]) == names) is shown
            assert page.locator(".message").last.locator(".tokens.coloured").count() == shown
            page.evaluate("$('probabilities').click()")


def test_the_prompt_is_said_to_be_read(page: Any) -> None:
    page.evaluate("writing = { role: 'assistant', content: '', tokens: [] }; talk().messages.push(writing); show()")
    found = []
    for chunk in ("{}", "{ prompt_progress: { total: 200, cache: 0, processed: 90, time_ms: 5 } }"):
        page.evaluate(f"take(writing, {{ choices: [], ...{chunk} }}); fill($('log').lastChild, writing, 0)")
        found.append(page.locator(".foot").inner_text())
    assert found == ["reading the prompt…", "reading the prompt: 45 %"]
