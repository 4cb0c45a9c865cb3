"""The parts of the application that know no screen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nanochat_tui.chat.backend import Event, Finished, Message, Started, Stats, Token
from nanochat_tui.chat.store.records import SessionSettings, StoredTurn
from nanochat_tui.request import SamplingParams
from nanochat_tui.tui.background import explain
from nanochat_tui.tui.chat.conversation import Conversation
from nanochat_tui.tui.chat.generation import Batch, batched
from nanochat_tui.tui.chat.history import History
from nanochat_tui.tui.chat.language import guess_language
from nanochat_tui.tui.chat.settings_form import FieldError, from_text, to_text
from nanochat_tui.tui.widgets.highlighting import highlight_code
from nanochat_tui.tui.widgets.status import Status, gauge, speed, status_content

SETTINGS = SessionSettings()


def test_document_grows_by_whole_lines() -> None:
    document = Conversation(is_chat=False)
    document.say("fn a() {")
    document.write(" 1 }")
    document.go_on()
    request = document.request(SETTINGS)
    assert (request.prompt, request.prefix) == ("fn a() {", " 1 }")
    document.say("fn b() {")
    assert document.request(SETTINGS).prompt == "fn a() { 1 }\nfn b() {"
    document.write("\n}\n")
    document.say("fn c")
    assert document.document == "fn a() { 1 }\nfn b() {\n}\nfn c"


def test_going_on_and_trying_again_touch_the_last_part_only() -> None:
    document = Conversation(is_chat=False)
    assert document.go_on() is None
    assert document.retry() is None
    document.say("a")
    document.write(" b")
    document.go_on()
    document.write(" c")
    document.retry()
    assert document.document == "a b"
    document.write(" d")
    assert document.turns[0].reply == " b d"


def test_empty_reply_does_not_break_the_line_rule() -> None:
    document = Conversation(is_chat=False)
    document.say("a")
    document.say("b")
    assert document.document == "a\nb"


def test_chat_sends_messages_and_leaves_out_turns_without_an_answer() -> None:
    chat = Conversation(is_chat=True)
    chat.say("one")
    chat.write("1")
    chat.say("lost")
    chat.say("two")
    request = chat.request(SETTINGS)
    assert request.prompt is None
    assert request.messages == (Message("user", "one"), Message("assistant", "1"), Message("user", "two"))
    chat.write("half")
    chat.retry()
    assert chat.request(SETTINGS).messages == request.messages
    chat.write("half")
    chat.go_on()
    assert chat.request(SETTINGS).prefix == "half"
    told = chat.request(SessionSettings(system="be brief")).messages
    assert told[0] == Message("system", "be brief")


def token(text: str, identity: int, *, thinking: bool = False) -> Token:
    return Token(text, identity, -0.5, ((identity, text, -0.5), (9, "X", -1.0)), thinking)


def test_known_tokens_go_with_a_continuation_and_a_branch_takes_another_one() -> None:
    document = Conversation(is_chat=False)
    document.say("a")
    document.write(" b c", [token(" b", 1), token(" c", 2)])
    document.go_on()
    assert document.request(SETTINGS).prefix_ids == (1, 2)
    document.write(" d", [token(" d", 3)])
    document.say("later")
    turn = document.branch(0, 1, Token("X", 9, -1.0))
    assert (turn.reply, len(document.turns)) == (" bX", 1)
    document.go_on()
    request = document.request(SETTINGS)
    assert (request.prefix, request.prefix_ids) == (" bX", (1, 9))


def test_a_branch_inside_the_thinking_stays_there() -> None:
    chat = Conversation(is_chat=True)
    chat.say("q")
    chat.write("hm so", [token("hm", 1, thinking=True), token(" so", 2, thinking=True)], thinking=True)
    chat.write("yes", [token("yes", 3)])
    chat.branch(0, 1, Token("X", 9))
    chat.go_on()
    assert (chat.turns[0].thinking, chat.turns[0].reply) == ("hmX", "")
    assert chat.request(SETTINGS).prefix_thinking


def test_sessions_come_back_and_unknown_tokens_are_not_invented() -> None:
    document = Conversation(is_chat=False, turns=[StoredTurn("a", ("b", "c"), "t", "length")])
    assert document.turns[0].stored() == StoredTurn("a", ("b", "c"), "t", "length")
    assert document.turns[0].all_tokens == []
    document.go_on()
    document.write("d", [token("d", 4)])
    document.go_on()
    assert document.request(SETTINGS).prefix == "bcd"
    assert document.request(SETTINGS).prefix_ids == ()
    document.retry()
    assert document.document == "abcd"


def test_deleting_and_cutting() -> None:
    chat = Conversation(is_chat=True, turns=[StoredTurn(str(i), (f"r{i}",)) for i in range(4)])
    chat.delete(1)
    assert [turn.prompt for turn in chat.turns] == ["0", "2", "3"]
    assert [turn.prompt for turn in chat.cut(1)] == ["2", "3"]
    shorter = chat.up_to(0)
    assert (shorter.turns[0].prompt, shorter.turns[0].reply, chat.turns[0].reply) == ("0", "", "r0")


def test_history_walks_and_keeps_the_draft() -> None:
    past = History(["example"])
    past.add("one")
    past.add("one")
    assert past.older("draft") == "one"
    assert past.older("one") == "example"
    assert past.older("example") is None
    assert past.newer() == "one"
    assert past.newer() == "draft"
    assert past.newer() is None


def ticking(events: list[tuple[float, Event]]) -> tuple[Iterator[Event], list[float]]:
    now = [0.0]

    def feed() -> Iterator[Event]:
        for at, event in events:
            now[0] = at
            yield event

    return feed(), now


def test_batching_joins_what_comes_quickly_and_loses_nothing() -> None:
    stats = Stats(1.0, 1.0, 1, 2)
    feed, now = ticking(
        [
            (0.0, Started(1)),
            (0.1, Token("a")),
            (0.11, Token("b")),
            (0.12, Token("c")),
            (0.13, stats),
            (0.15, Token("d")),
            (0.16, Token("")),
            (0.17, Token("e")),
            (0.18, Finished("stop")),
        ]
    )
    got = list(batched(feed, 0.04, lambda: now[0]))
    told = [(event.text, len(event.tokens)) if isinstance(event, Batch) else event for event in got]
    assert told == [Started(1), ("a", 1), stats, ("bcd", 3), ("e", 2), Finished("stop")]


def test_batching_flushes_when_the_stream_ends_without_a_word() -> None:
    feed, now = ticking([(0.0, Token("a")), (0.01, Token("b"))])
    assert [event.text for event in batched(feed, 0.04, lambda: now[0]) if isinstance(event, Batch)] == ["a", "b"]


def test_thinking_and_answer_are_never_in_one_batch() -> None:
    feed, now = ticking([(0.0, Token("a")), (0.01, Token("b", thinking=True)), (0.02, Token("c"))])
    got = [(e.text, e.thinking) for e in batched(feed, 9.0, lambda: now[0]) if isinstance(e, Batch)]
    assert got == [("a", False), ("b", True), ("c", False)]


def test_failures_are_put_into_words() -> None:
    assert "report" in explain(KeyError("x"))
    assert "memory" in explain(MemoryError())


def test_form_round_trip() -> None:
    settings = SamplingParams(0.25, 7, 0.5, 0.05, 1.1, 42)
    assert from_text(to_text(settings, 64)) == (settings, 64)
    assert from_text(to_text(SamplingParams(), None)) == (SamplingParams(), None)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("temperature", "hot"),
        ("temperature", ""),
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("top_k", "1.5"),
        ("top_p", "0"),
        ("min_p", "2"),
        ("seed", "x"),
        ("max_tokens", "0"),
    ],
)
def test_form_names_the_wrong_field(key: str, text: str) -> None:
    with pytest.raises(FieldError) as caught:
        from_text(to_text(SamplingParams(), 256) | {key: text})
    assert caught.value.key == key


def test_gauge_is_exact_in_eighths_and_never_hides_a_beginning() -> None:
    assert gauge(0, 512) == " " * 8
    assert gauge(1, 512) == "▏" + " " * 7
    assert gauge(256, 512) == "████    "
    assert gauge(512, 512) == gauge(600, 512) == "█" * 8
    assert gauge(3, 0) == " " * 8


def test_speed_has_a_fixed_width() -> None:
    assert [speed(v) for v in (None, 8.44, 99.96, 412.3, 12345.0, 99999.0)] == [
        "    –",
        "  8.4",
        "  100",
        "  412",
        "12.3k",
        " 100k",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_status_line_never_exceeds_its_row_and_keeps_what_matters(width: int) -> None:
    status = Status("d20-rust", "writing", "avx512-vnni", 2, Stats(1234.0, 412.0, 130, 512, 9, 0.1), 512)
    line = status_content(status, width)
    assert line.cell_length <= width
    if width >= 40:
        assert "writing" in line.plain
        assert "412 tok/s" in line.plain
        assert "130/512" in line.plain
    if width >= 120:
        assert "avx512-vnni · 2 threads" in line.plain
    if width >= 80:
        assert "avx512-vnni" in line.plain
        assert "prompt  1234" in line.plain
        assert "█" in line.plain


def test_status_line_stays_put_while_numbers_change() -> None:
    lines = [
        status_content(Status("m", "writing", "k", 2, Stats(p, d, used, 512), 512), 100).plain
        for p, d, used in [(None, None, 1), (9.5, 8.0, 99), (15000.0, 99999.0, 512)]
    ]
    assert len({line.index("tok/s") for line in lines}) == 1
    assert len({line.index("/512") for line in lines}) == 1


def test_language_by_name_then_by_signs() -> None:
    assert guess_language("d20-rust", "def f():") == "rust"
    assert guess_language("trusty", "plain words") == "text"
    assert guess_language("d20", "pub fn a()") == "rust"
    assert guess_language("m", "def f(x):\n    return x") == "python"


def test_highlighting_keeps_every_character_and_is_not_markup() -> None:
    code = "fn a() {\n\tlet x = [bold]; // [/red] [link=x]\n}\n\n"
    content = highlight_code(code, "rust")
    assert content.plain == code.expandtabs(4).removesuffix("\n"), "the last line end is the widget's"
    start = content.plain.index("let")
    assert any(span.start == start and span.end == start + 3 and "primary" in str(span.style) for span in content.spans)


def test_highlighting_of_an_unknown_language_is_plain() -> None:
    assert highlight_code("x = 1", "no such language").plain == "x = 1"
