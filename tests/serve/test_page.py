"""The chat page in a real browser, against a real server: a conversation, hostile replies, stop, errors, a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import Pages, finished, scripted, settings, until
from servers import LONG, Running, files, serving, wait_for
from support import write_model

pytestmark = pytest.mark.slow

HOSTILE = """# Title <b>bold</b>

<script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 2"> <svg/onload=alert(1)>

[click](javascript:window.hacked=3) [data](data:text/html,<script>1</script>) [JS](JaVaScRiPt:alert(1))

![image](https://example.invalid/pixel.png) [good](https://example.org/a?b=1)

`<i>code</i>` **bold <u>x</u>** and | a | b

```html
<iframe src="javascript:alert(1)"></iframe>
```

| h<script> | i |
|---|---|
| <a href="javascript:1">x</a> | y |
"""


def test_a_conversation_is_streamed_kept_and_repeated(page: Any, chat: Running) -> None:
    settings(page, temperature=0, max_tokens=20, system="be brief")
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    finished(page)
    expected = "".join(
        t.text for t in chat.service.model.generate("# be brief\nQ: hello\nA:", max_tokens=20, temperature=0)
    )
    assert page.evaluate("talk().messages[1].content") == expected
    assert "20 tokens" in page.inner_text(".stats") and "tokens/s" in page.inner_text(".stats")
    page.fill("#text", "and now?")
    page.press("#text", "Enter")
    finished(page)
    assert page.locator(".message").count() == 4
    second = page.evaluate("talk().messages[3].content")
    page.keyboard.press("Alt+r")
    finished(page)
    assert page.evaluate("talk().messages[3].content") == second and page.locator(".message").count() == 4
    page.reload()
    until(page, "server.known")
    assert page.locator(".message").count() == 4 and page.input_value("#system") == "be brief"
    page.keyboard.press("Alt+n")
    assert page.locator(".message").count() == 0
    assert page.evaluate("kept.talks.length") == 2


def test_two_tabs_keep_each_others_conversations(browser: Any, chat: Running) -> None:
    context = browser.new_context()
    first, second = context.new_page(), context.new_page()
    for page in (first, second):
        page.goto(chat.url)
        until(page, "server.known")
    for page, text in ((first, "from the first"), (second, "from the second")):
        page.keyboard.press("Alt+n")
        settings(page, max_tokens=3)
        page.fill("#text", text)
        page.press("#text", "Enter")
        finished(page)
    first.fill("#text", "more")
    first.press("#text", "Enter")
    finished(first)
    first.reload()
    until(first, "server.known")
    said = first.evaluate(
        "kept.talks.flatMap((t) => t.messages.filter((m) => m.role === 'user').map((m) => m.content))"
    )
    assert sorted(said) == ["from the first", "from the second", "more"]
    context.close()


def test_a_full_browser_gives_up_probabilities_before_text(page: Any) -> None:
    page.evaluate(
        "for (const size of [3e6, 1e6]) kept.talks.push({ id: 'x' + size, messages: [{ role: 'assistant',"
        " content: 'kept', tokens: [['t'.repeat(size), -1, []]] }] }); kept.current = 1; keep()"
    )
    page.evaluate("kept.talks[2].messages[0].tokens[0][0] = 't'.repeat(9e6); keep(kept.talks[2])")
    page.reload()
    until(page, "server.known")
    kept = page.evaluate("kept.talks.slice(1).map((t) => [t.messages[0].content, t.messages[0].tokens.length])")
    assert kept == [["kept", 1], ["kept", 0]]
    assert page.locator(".note").count() == 0


def test_a_hostile_reply_is_text(page: Any, chat: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    step = 7
    scripted(chat, monkeypatch, [HOSTILE[i : i + step] for i in range(0, len(HOSTILE), step)])
    page.fill("#text", HOSTILE)
    page.press("#text", "Enter")
    finished(page)
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    log = page.locator("#log")
    for tag in ("script", "img", "svg", "iframe", "b", "i", "u"):
        assert log.locator(tag).count() == 0, tag
    text = log.inner_text()
    for piece in ("<script>window.hacked = 1</script>", "onerror=", "javascript:window.hacked=3", "<iframe src="):
        assert text.count(piece) == 2, piece  # in the question and in the reply
    assert [a.get_attribute("href") for a in log.locator("a").all()] == ["https://example.org/a?b=1"] or [
        a.get_attribute("href") for a in log.locator("a").all()
    ] == ["https://example.invalid/pixel.png", "https://example.org/a?b=1"]
    assert log.locator("h2").count() == 1 and log.locator("table td").count() == 2


def test_even_with_markup_in_the_page_nothing_runs(page: Any) -> None:
    # the policy is the second wall: suppose the renderer had a hole
    page.evaluate("document.getElementById('log').innerHTML = '<img src=x onerror=\"window.hacked=1\">'")
    page.evaluate(
        "(() => { const s = document.createElement('script'); s.text = 'window.hacked=2'; document.body.append(s); })()"
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    wrong = page.complaints
    assert len(wrong) == 3 and all("Content Security Policy" in text for text in wrong)
    wrong.clear()


def test_markdown(page: Any) -> None:
    source = (
        "Intro *em* **strong** `a<b` ~~old~~\n\n- one\n- two\n  - inner\n\n1. first\n2. second\n\n> quoted\n> more\n\n"
        '---\n\n```rust\nfn main() {\n    let s = "*x*";\n}\n```\n\nlast **open'
    )
    page.evaluate(
        "(s) => { const d = make('div', 'body'); d.id = 'md'; document.body.append(d); render(d, s); }", source
    )
    box = page.locator("#md")
    assert box.locator("em").inner_text() == "em" and box.locator("strong").inner_text() == "strong"
    assert box.locator("p code").inner_text() == "a<b" and box.locator("del").inner_text() == "old"
    assert box.locator("ul > li").count() == 3 and box.locator("ul ul li").inner_text() == "inner"
    assert box.locator("ol > li").count() == 2 and box.locator("blockquote p").inner_text() == "quoted more"
    assert box.locator("hr").count() == 1
    assert box.locator("pre code").inner_text() == 'fn main() {\n    let s = "*x*";\n}'
    assert box.locator("p").last.inner_text() == "last **open"
    # unfinished input at any place renders
    page.evaluate(
        "(s) => { for (let i = 0; i <= s.length; i++) render(make('div'), s.slice(0, i)); }", source + HOSTILE
    )


def test_stop_keeps_what_was_said_and_frees_the_engine(page: Any, chat: Running) -> None:
    settings(page, temperature=0, max_tokens=30_000)
    page.fill("#text", "fn main")
    page.press("#text", "Enter")
    until(page, "running && talk().messages[1].content.length > 5")
    assert page.inner_text("#send") == "Stop"
    page.keyboard.press("Escape")
    finished(page)
    wait_for(lambda: chat.running() == 0, 120)
    assert "stopped" in page.inner_text(".stats") and page.evaluate("talk().messages[1].content.length") > 5


def test_probabilities_are_shown_on_hover(page: Any) -> None:
    settings(page, temperature=0, max_tokens=8)
    page.evaluate("$('probabilities').click()")
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    finished(page)
    assert page.locator(".tokens.coloured span").count() == 8  # shown as they were asked for
    page.click(".foot >> text=Probabilities")
    assert page.locator(".tokens").count() == 0
    page.click(".foot >> text=Probabilities")
    assert page.locator(".tokens span").count() == 8
    page.locator(".tokens span").nth(3).hover()
    tip = page.inner_text("#tip")
    assert tip.count("%") == 6 and len(tip.split("\n")) == 6
    page.locator(".tokens span").first.focus()  # and without a mouse
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    third = page.evaluate("talk().messages[1].tokens[2][0]")
    assert page.inner_text("#tip").startswith(page.evaluate("(t) => JSON.stringify(t)", third))
    page.mouse.move(5, 5)  # which a mouse elsewhere does not hide
    assert page.locator("#tip").is_visible()
    page.locator("#text").focus()
    assert not page.locator("#tip").is_visible()


def test_errors_are_said(page: Any) -> None:
    page.evaluate("keep(null, () => { kept.settings.temperature = -1; })")
    page.fill("#text", "hello")
    page.press("#text", "Enter")
    finished(page)
    assert "temperature" in page.inner_text(".note")
    assert page.locator(".message").count() == 1  # the question stays
    page.complaints.clear()  # the browser logs every answer that is not a success


def test_a_base_model_continues_a_text_and_a_full_context_is_cut(pages: Pages, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", LONG.with_(context_length=64))
    with serving(files(path)) as running:
        page = pages(running.url)
        assert "continues text" in page.inner_text("#state") and page.inner_text("#send") == "Continue"
        settings(page, temperature=0, max_tokens=16)
        page.fill("#text", "fn main() {\n")
        page.press("#text", "Enter")
        finished(page)
        expected = "".join(
            t.text for t in running.service.model.generate("fn main() {\n", max_tokens=16, temperature=0)
        )
        assert page.evaluate("talk().messages[1].content") == expected
        page.press("#text", "Enter")  # nothing to add: the model continues its own text
        finished(page)
        more = page.evaluate("talk().messages.map((m) => m.role)")
        assert more == ["user", "assistant", "assistant"]
        page.evaluate("talk().messages[0].content = 'line of code\\n'.repeat(9)")
        page.press("#text", "Enter")
        finished(page)
        assert "no longer reaches the model" in page.inner_text("#log")
        page.complaints.clear()  # the refusals that told it


def test_a_phone_and_both_themes(browser: Any, chat: Running) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True, color_scheme="dark")
    page = context.new_page()
    page.goto(chat.url)
    until(page, "server.known")
    page.click("#open")
    assert page.locator("#side").bounding_box()["width"] == 360
    page.click("#close")
    settings(page, temperature=0, max_tokens=8)
    page.fill("#text", "x" * 400)
    page.click("#send")
    finished(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360  # nothing sticks out
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.click("#open")
    page.select_option("#theme", "dark")  # against the system, and kept
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    context.close()


def test_a_key_is_asked_for_and_used(browser: Any, chat_file: Path) -> None:
    from nanochat_tui.serve.settings import Settings

    with serving(files(chat_file), Settings("tiny", api_keys=("secret",))) as running:
        context = browser.new_context()
        page = context.new_page()
        page.goto(running.url)
        until(page, "document.getElementById('state').textContent.includes('API key')")
        settings(page, key="secret")
        until(page, "server.known")
        context.close()
