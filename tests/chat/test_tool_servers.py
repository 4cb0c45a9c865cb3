"""Servers of tools as real programs and on loopback, what of them is told, called, cut, kept apart."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mcp_support import WAIT, entry, on_loopback, write_config

from nanochat_tui.chat.backend import ToolCall
from nanochat_tui.chat.tools.approvals import Approvals
from nanochat_tui.chat.tools.config import config_file, read_servers
from nanochat_tui.chat.tools.definitions import Tool, with_functions
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.chat.tools.results import capped
from nanochat_tui.chat.tools.toolbox import DENIED, Answer, Limits, Toolbox, record_of
from nanochat_tui.errors import UserError

pytest.importorskip("mcp")

Make = Callable[..., Toolbox]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Toolbox] = []

    def toolbox(allowed: list[str] | None = None, limits: Limits | None = None, path: Path | None = None,
                **servers: dict[str, Any]) -> Toolbox:  # fmt: skip
        config = write_config(tmp_path / "mcp.json", **(servers or {"t": entry()}))
        one = Toolbox(read_servers(config), Approvals(path), limits, allowed)
        made.append(one)
        one.ready(WAIT, threading.Event())
        return one

    yield toolbox
    for one in made:
        one.close()


class Asked:
    """Answers questions about calls, and remembers them."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.titles: list[str] = []

    def __call__(self, record: CallRecord, tool: Tool) -> Answer:
        self.titles.append(tool.title)
        return self.answers.pop(0)


def words(text: str) -> int:
    return len(text.split())


def steps(box: Toolbox, name: str, ask: Asked | None = None, cancel: threading.Event | None = None,
          **arguments: Any) -> list[CallRecord]:  # fmt: skip
    record = record_of(ToolCall(name, json.dumps(arguments)), 0)
    return list(box.run(record, ask or Asked("once"), cancel or threading.Event(), words, 4096))


def call(box: Toolbox, name: str, ask: Asked | None = None, **arguments: Any) -> CallRecord:
    return steps(box, name, ask, **arguments)[-1]


def test_a_call_is_asked_about_made_and_timed(make: Make) -> None:
    made = steps(make(), "t__echo", text="hello")
    assert [step.state for step in made] == ["waiting", "running", "done"]
    assert made[-1].result == "echo: hello"
    assert made[-1].seconds is not None
    assert (made[-1].title, made[-1].server, made[-1].tool) == ("t.echo", "t", "echo")


@pytest.mark.parametrize("answer", ["never", "no"])
def test_a_call_that_is_not_allowed_never_reaches_the_server(make: Make, tmp_path: Path, answer: Answer) -> None:
    marks = tmp_path / "marks"
    box = make(t=entry(env={"MARKS": str(marks)}))
    denied = call(box, "t__echo", Asked(answer), text="hello")
    assert (denied.state, denied.result) == ("denied", DENIED)
    assert not marks.exists()
    assert call(box, "t__fails", Asked("once")).state == "failed"
    assert marks.read_text() == "fails\n"
    told = [tool.title for tool in box.tools()]
    assert ("t.echo" in told) == (answer == "no")  # what is never allowed is not offered any more


def test_always_holds_for_the_next_program_and_not_for_another_definition(make: Make, tmp_path: Path) -> None:
    version, kept = tmp_path / "version", tmp_path / "config" / "tools.json"
    settings = {"t": entry(env={"VERSION": str(version)})}
    first = make(path=kept, **settings)
    ask = Asked("always")
    assert call(first, "t__shifting", ask).state == "done"
    assert call(first, "t__shifting", ask).state == "done"
    assert ask.titles == ["t.shifting"]

    second = make(path=kept, **settings)
    assert call(second, "t__shifting", Asked()).state == "done"  # an empty list of answers: a question would fail

    version.write_text("two: also sends your files away")
    second.ready(WAIT, threading.Event())
    ask = Asked("no")
    assert call(second, "t__shifting", ask).state == "denied"
    assert ask.titles == ["t.shifting"]

    other = make(path=kept, t=entry(env={"VERSION": str(tmp_path / "none"), "ROOT": "/"}))
    ask = Asked("no")
    assert call(other, "t__shifting", ask).state == "denied"
    assert ask.titles == ["t.shifting"]  # the server's entry is another one
    assert kept.stat().st_mode & 0o077 == 0 or kept.parent.stat().st_mode & 0o077 == 0


def test_decisions_can_be_forgotten_and_tools_turned_off(make: Make, tmp_path: Path) -> None:
    kept = tmp_path / "tools.json"
    box = make(path=kept)
    tool = next(tool for tool in box.tools() if tool.name == "echo")
    box.decide(tool, "always")
    assert Approvals(kept).decision(tool) == "always"
    box.decide(tool, None)
    assert Approvals(kept).decision(tool) is None
    box.approvals.turn("t", "echo", on=False)
    assert "t__echo" not in [spec.name for spec in box.specs()]
    assert call(box, "t__echo", Asked(), text="x").state == "failed"
    box.approvals.turn("t", "echo", on=True)
    assert "t__echo" in [spec.name for spec in box.specs()]
    box.approvals.turn("t", on=False)
    assert not box.specs()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 9, "decisions": 3}', '{"version": 1, "decisions": [{}]}'])
def test_a_damaged_file_of_decisions_allows_nothing(tmp_path: Path, text: str) -> None:
    kept = tmp_path / "tools.json"
    kept.write_text(text)
    tool = Tool("t", "e", "echo", "", {})
    approvals = Approvals(kept)
    assert approvals.decision(tool) is None
    approvals.decide(tool, "always")
    assert Approvals(kept).decision(tool) == "always"


def test_a_server_gets_the_environment_of_its_entry_and_the_folder_of_its_file(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-of-the-user")
    monkeypatch.setenv("TOKEN_OF_TESTS", "named")
    monkeypatch.chdir("/")
    box = make(t=entry(env={"GIVEN": "1", "TOKEN": "${TOKEN_OF_TESTS}", "OTHER": "${env:UNSET_X:-otherwise}"}))
    told = json.loads(call(box, "t__environment").result)
    environment = told["environment"]
    assert (environment["GIVEN"], environment["TOKEN"], environment["OTHER"]) == ("1", "named", "otherwise")
    allowed = {"HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LC_CTYPE", "GIVEN", "TOKEN", "OTHER"}
    assert set(environment) <= allowed | {"__CF_USER_TEXT_ENCODING"}
    assert told["folder"] == str(tmp_path)


def test_results_are_escaped_and_cut_with_a_note(make: Make) -> None:
    box = make(limits=Limits(max_bytes=1000))
    shown = call(box, "t__escapes").result
    assert shown == "\\x1b]0;owned\\x07\\x1b[31mred\\u202egnp.exe\nnext"
    cut = call(box, "t__huge", size=1 << 20).result
    assert len(cut) < 1100
    assert cut.endswith("[cut here: the whole result has 1,048,576 bytes]")


def test_a_cut_keeps_to_the_tokens() -> None:
    text = capped("word " * 1000, words, max_tokens=10)
    assert 8 <= words(text.partition("\n")[0]) <= 10
    assert "5,000 bytes" in text
    assert capped("short", words, max_tokens=10) == "short"


def test_what_fails_is_a_result_that_says_so(make: Make) -> None:
    box = make()
    failed = call(box, "t__fails")
    assert (failed.state, "fails" in failed.result) == ("failed", True)
    assert call(box, "t__echo", wrong=1).state == "failed"
    assert call(box, "t__nothing").result == "There is no tool t__nothing here."
    record = record_of(ToolCall("t__echo", "[1]"), 0)
    assert list(box.run(record, Asked(), threading.Event(), words, 10))[-1].state == "failed"


def test_a_slow_tool_is_given_up(make: Make, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    box = make(limits=Limits(seconds=0.5), t=entry(env={"MARKS": str(marks)}))
    late = call(box, "t__slow", seconds=60)
    assert (late.state, late.result) == ("failed", "The tool gave no result within 0.5 seconds.")
    wait_for(lambda: "slow cancelled" in marks.read_text())  # and the server is told


def test_a_running_tool_can_be_stopped(make: Make, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    box = make(t=entry(env={"MARKS": str(marks)}))
    cancel = threading.Event()
    record = record_of(ToolCall("t__slow", '{"seconds": 600}'), 0)
    running = box.run(record, Asked("once"), cancel, words, 10)
    assert [next(running).state, next(running).state] == ["waiting", "running"]
    ended: list[CallRecord] = []
    thread = threading.Thread(target=lambda: ended.extend(running))
    thread.start()
    wait_for(marks.exists)
    cancel.set()
    thread.join(WAIT)
    assert ended[-1].state == "cancelled"
    wait_for(lambda: "slow cancelled" in marks.read_text())


def test_a_server_that_does_not_start_is_one_sentence_and_the_others_go_on(make: Make) -> None:
    box = make(
        t=entry(),
        absent={"command": "no-such-program-anywhere"},
        dies=entry("--die"),
        unset=entry(env={"A": "${UNSET_VARIABLE_X}"}),
        far={"url": "http://127.0.0.1:9/mcp"},
        off=entry(disabled=True),
    )
    assert [server.state for server in box.servers.all] == ["ready", "failed", "failed", "failed", "failed"]
    absent, dies, unset, far = box.problems()
    assert "no-such-program-anywhere cannot be started" in absent
    assert "cannot start on purpose" in dies
    assert "UNSET_VARIABLE_X is not set" in unset
    assert "127.0.0.1:9" in far
    assert box.problems() == []
    assert call(box, "t__echo", text="x").state == "done"


def test_a_server_that_exits_is_started_again_for_the_next_reply(make: Make) -> None:
    box = make()
    first = call(box, "t__pid").result
    assert call(box, "t__vanish").state == "failed"
    box.ready(WAIT, threading.Event())
    second = call(box, "t__pid")
    assert second.state == "done"
    assert second.result != first


def test_programs_end_with_the_toolbox(make: Make) -> None:
    box = make()
    process = psutil.Process(int(call(box, "t__pid").result))
    box.close()
    gone, _ = psutil.wait_procs([process], WAIT)
    assert gone


@pytest.mark.parametrize("kind", ["http", "sse"])
def test_servers_on_loopback(make: Make, kind: str) -> None:
    with on_loopback(kind) as url:
        box = make(web={"url": url, **({"type": "sse"} if kind == "sse" else {}), "headers": {"X-Test": "1"}})
        assert call(box, "web__echo", text="hello").result == "echo: hello"
        box.close()


def test_only_what_is_allowed_exists_and_starts(make: Make) -> None:
    box = make(allowed=["t.echo"], t=entry(), other=entry())
    assert [server.state for server in box.servers.all] == ["ready", "off"]
    assert [spec.name for spec in box.specs()] == ["t__echo"]
    assert call(box, "t__echo", Asked(), text="x").state == "done"
    assert call(box, "t__fails", Asked()).result == "There is no tool t__fails here."


def test_names_for_models_are_of_allowed_characters_and_differ() -> None:
    tools = [
        Tool("my server", "", "a.b", "", {}),
        Tool("my server", "", "a_b", "", {}),
        Tool("s", "", "x" * 100, "", {}),
    ]
    names = [tool.function for tool in with_functions(tools)]
    assert len(set(names)) == 3
    assert all(len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() for name in names)
    assert names[0] == "my_server__a_b"


# The configuration


def test_no_file_of_ones_own_means_no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    for name in ("mcp.json", ".mcp.json"):
        write_config(tmp_path / name, t=entry())
    assert read_servers() == []  # what lies in the working directory is not read
    write_config(config_file(), own={"command": "x", "args": ["-y"], "env": {"A": 1}}, far={"url": "https://a/mcp"})
    own, far = read_servers()
    assert (own.transport, own.args, own.env, own.folder) == ("stdio", ("-y",), {"A": "1"}, tmp_path / "config")
    assert (far.transport, far.url) == ("http", "https://a/mcp")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", 'has no "mcpServers" object'),
        ('{"mcpServers": {"a": 1}}', "must be an object"),
        ('{"mcpServers": {"a": {}}}', "either a command or a url"),
        ('{"mcpServers": {"a": {"command": "x", "url": "http://y"}}}', "either a command or a url"),
        ('{"mcpServers": {"a": {"command": ["x"]}}}', "a text as command"),
        ('{"mcpServers": {"a": {"command": "x", "args": "y"}}}', "a list of texts as args"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A": null}}}}', "an object of texts as env"),
        ('{"mcpServers": {"a": {"command": "x", "type": "http"}}}', "type that does not go with it"),
        ('{"mcpServers": {"a": {"url": "file:///etc"}}}', "does not begin with http"),
        ('{"mcpServers": {"": {"command": "x"}}}', "1 to 60 characters"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_servers(path)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert os.getpid()
