"""Sessions as files: out, in again, and refused when they are something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nanochat_tui.chat.backend import Stats
from nanochat_tui.chat.exchange import export_session, from_json, import_session, to_json, to_markdown
from nanochat_tui.chat.store.records import SessionSettings, StoredSession, StoredTurn, new_session
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.errors import UserError
from nanochat_tui.request import SamplingParams


def session(*turns: StoredTurn, is_chat: bool = True) -> StoredSession:
    settings = SessionSettings("be kind", SamplingParams(seed=3), 99)
    info = replace(new_session("some model", is_chat=is_chat, settings=settings), title="A title", titled=True)
    return StoredSession(replace(info, turns=len(turns)), turns)


HARD = (
    StoredTurn("hello\n\n## User\nstill the message", ("part one, ", "part two"), "a thought", "length"),
    StoredTurn("```rust\nfn main() {}\n```", ("## Assistant\nnot a heading",), "", "stop", Stats(1.0, None, 3, 4)),
)


def test_a_file_that_is_nested_too_deeply_is_refused_in_words(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000):
        (tmp_path / "deep.json").write_text(text)
        with pytest.raises(UserError, match="nested too deeply"):
            import_session(tmp_path / "deep.json")


def test_json_keeps_everything_under_a_new_id(tmp_path: Path) -> None:
    before = session(*HARD)
    after = import_session(export_session(before, tmp_path / "s.json"))
    assert after.turns == before.turns
    assert after.info.id != before.info.id
    assert (after.info.title, after.info.model, after.info.is_chat) == ("A title", "some model", True)
    assert after.info.settings == before.info.settings


@pytest.mark.parametrize("is_chat", [True, False])
def test_markdown_keeps_the_words(tmp_path: Path, is_chat: bool) -> None:
    turns = HARD if is_chat else (*HARD, StoredTurn("  indented `", ("\n\n  tail ```` \n",)))
    before = session(*turns, is_chat=is_chat)
    after = import_session(export_session(before, tmp_path / "s.md"))
    assert [(t.prompt, t.reply) for t in after.turns] == [(t.prompt, t.reply) for t in before.turns]
    assert (after.info.title, after.info.model, after.info.is_chat) == ("A title", "some model", is_chat)
    assert after.info.settings.system == "be kind"


def test_calls_of_tools_are_in_both_forms(tmp_path: Path) -> None:
    calls = (
        CallRecord("1", "t__echo", "t", "echo", '{"a": "```"}', "done", "## User\nof a tool ```", 0.3, 0, 0, 4),
        CallRecord("2", "t__no", "t", "no", "{}", "denied", "The user did not allow this call.", None, 1, 0, 4),
    )
    version = StoredTurn("q", ("b",), calls=calls[:1])
    before = session(StoredTurn("q", ("so: a",), versions=(version,), place=1, calls=calls), StoredTurn("r", ("c",)))
    after = import_session(export_session(before, tmp_path / "s.json"))
    assert after.turns == before.turns
    path = export_session(before, tmp_path / "s.md")
    assert "`t.echo` done in 0.3 s" in path.read_text()
    told = import_session(path)
    assert [(t.prompt, t.reply) for t in told.turns] == [("q", "so: a"), ("r", "c")]
    kept = [(c.title, c.arguments, c.state, c.result, c.seconds) for c in told.turns[0].calls]
    assert kept == [(c.title, c.arguments, c.state, c.result, c.seconds) for c in calls]
    assert [len(v.calls) for v in told.turns[0].versions] == [1]


def test_markdown_of_people() -> None:
    text = to_markdown(session(StoredTurn("q", ("a",))))
    assert text.startswith("# A title\n\nModel: some model\n")
    assert "## User\n\nq\n\n## Assistant\n\na\n" in text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", "[1]", "no session"),
        ("a.json", '{"format": "nanochat-tui session", "version": 99}', "newer version"),
        ("a.json", '{"format": "nanochat-tui session", "version": 1, "turns": [3]}', "damaged"),
        ("a.md", "# only a title", "no '## User'"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        import_session(tmp_path / name)


def test_bytes_missing_files_and_unknown_endings(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text"):
        import_session(tmp_path / "b.md")
    with pytest.raises(UserError, match="Cannot read"):
        import_session(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"\.md or \.json"):
        export_session(session(), tmp_path / "x.exe")
    with pytest.raises(UserError, match="could not be written"):
        export_session(session(), tmp_path / "missing" / "x.md")


def test_strange_values_in_json_become_defaults() -> None:
    text = (
        to_json(session(StoredTurn("q", ("a",))))
        .replace('"seed": 3', '"seed": "often"')
        .replace('"max_tokens": 99', '"max_tokens": -4')
    )
    assert from_json(text).info.settings == SessionSettings("be kind", SamplingParams(), 256)
