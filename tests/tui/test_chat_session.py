"""The session on the screen without a screen: what is said, undone and kept, checked against the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat_tui.chat.backend import Token
from nanochat_tui.chat.store import Store
from nanochat_tui.chat.store.records import StoredSession
from nanochat_tui.request import SamplingParams
from nanochat_tui.tui.chat.conversation import Turn
from nanochat_tui.tui.chat.session import ChatSession
from nanochat_tui.tui.preferences import Preferences


@pytest.fixture
def session(tmp_path: Path) -> Iterator[ChatSession]:
    store = Store(tmp_path / "s.db")
    made = ChatSession(store, Preferences(), "tiny")
    made.restart(is_chat=True)
    yield made
    assert store.close()


def exchange(session: ChatSession, prompt: str, reply: str) -> Turn:
    """Say something and let it be answered, token by token."""
    turn = session.say(prompt)
    for number, word in enumerate(reply.split()):
        session.write(word + " ", (Token(word + " ", number, -0.5),), thinking=False)
    turn.reason = "stop"
    session.keep_turn()
    return turn


def kept(session: ChatSession) -> StoredSession:
    """The session as the store has it."""
    assert session.id is not None
    return session.store.load(session.id).result(120)


def test_a_session_begins_with_its_first_turn_and_is_kept_as_it_grows(session: ChatSession) -> None:
    assert session.id is None
    assert session.as_stored() is None
    exchange(session, "why is it so", "because it is")
    stored = kept(session)
    assert stored.info.title == "why is it so"
    assert stored.info.model == "tiny"
    assert [turn.reply for turn in stored.turns] == ["because it is "]
    assert stored.turns == (session.as_stored() or stored).turns


def test_begin_leaves_what_was_said_and_takes_the_settings_new_sessions_have(session: ChatSession) -> None:
    exchange(session, "one", "A")
    first = session.id
    session.change_settings(sampling=SamplingParams(temperature=0.1), max_tokens=7)
    assert kept(session).info.settings.max_tokens == 7
    session.begin(is_chat=True)
    assert (session.id, session.conversation.turns) == (None, [])
    assert session.sampling == Preferences().session_settings().sampling
    exchange(session, "two", "B")
    assert session.id != first
    assert len(session.store.sessions().result(120)) == 2


def test_what_is_opened_is_what_was_kept(session: ChatSession) -> None:
    exchange(session, "one", "A")
    exchange(session, "two", "B")
    session.delete(0)
    before = kept(session)
    session.begin(is_chat=False)
    session.open(before)
    assert session.as_stored() == before
    assert session.conversation.is_chat
    assert session.undo() == 0
    assert [turn.prompt for turn in kept(session).turns] == ["one", "two"]
    assert kept(session).deleted == ()


def test_a_retry_keeps_the_old_reply_and_undo_brings_it_back(session: ChatSession) -> None:
    turn = exchange(session, "one", "old words")
    assert session.retry(whole=False)
    session.write("new", (), thinking=False)
    (stored,) = kept(session).turns
    assert (stored.reply, [version.reply for version in stored.versions]) == ("new", ["old words "])
    assert session.undo() is turn
    assert turn.reply == "old words "
    assert kept(session).turns[0].place == 0
    assert not session.undoable


@pytest.mark.parametrize("ended", ["nothing came", "in order", "words came"])
def test_a_retry_of_which_nothing_comes_is_dropped(session: ChatSession, ended: str) -> None:
    exchange(session, "one", "old")
    session.retry(whole=False)
    if ended == "in order":
        session.accept_empty()
    elif ended == "words came":
        session.write("new", (), thinking=False)
    assert session.drop_if_empty() == (ended == "nothing came")
    last = session.conversation.last
    assert last is not None
    assert last.reply == {"nothing came": "old ", "in order": "", "words came": "new"}[ended]


def test_undo_goes_back_step_by_step_whatever_the_steps_were(session: ChatSession) -> None:
    first = exchange(session, "one", "A")
    exchange(session, "two", "B")
    session.delete(1)
    session.retry(whole=False)
    session.write("C", (), thinking=False)
    cut = session.cut(0)
    turn = session.say("uno", replaced=cut)
    session.write("D", (), thinking=False)
    assert session.undo() is turn
    assert (turn.prompt, turn.reply) == ("one", "C")
    assert session.undo() is None, "the turn that was written again is another one now"
    assert session.undo() == 1
    assert [t.prompt for t in session.conversation.turns] == ["one", "two"]
    assert not session.undoable
    assert first not in session.conversation.turns


def test_a_branch_is_a_new_session_and_the_old_one_stays(session: ChatSession) -> None:
    exchange(session, "count", "one two three")
    exchange(session, "again", "four")
    old = kept(session)
    turn = session.branch(0, 1, Token("TWO ", 9))
    assert turn.reply == "one TWO "
    assert session.id != old.info.id
    new = kept(session)
    assert new.info.parent == old.info.id
    assert new.info.title == "count (branch)"
    assert [t.reply for t in new.turns] == ["one TWO "]
    assert session.store.load(old.info.id).result(120) == old


def test_drafts_are_kept_but_a_command_begins_no_session(session: ChatSession) -> None:
    session.keep_draft("/attach http", commands=True)
    session.keep_draft("  ")
    assert session.id is None
    session.keep_draft("half a thought")
    assert kept(session).info.draft == "half a thought"
    session.keep_draft("/attach http")
    assert kept(session).info.draft == "half a thought"
    session.keep_draft("/attach http", commands=True)
    assert kept(session).info.draft == "/attach http"


def test_an_edit_sets_the_draft_aside_and_loses_neither(session: ChatSession) -> None:
    exchange(session, "one", "A")
    exchange(session, "two", "B")
    draft, said = session.draft, session.conversation
    assert draft.begin_edit(0, "half a thought")
    assert draft.text("one", said) == "half a thought", "an unchanged message is no draft"
    assert draft.text("uno", said) == "half a thought\n\nuno"
    assert not draft.begin_edit(1, "uno")
    assert draft.set_aside == "half a thought"
    draft.resending = True
    assert draft.text("due", said) == "half a thought", "what is being sent is none either"
    assert draft.end_edit() == "half a thought"
    assert draft.text("typed", said) == "typed"


def test_the_penalty_follows_the_kind_until_something_is_said_or_chosen(session: ChatSession) -> None:
    usual = Preferences().sampling
    session.restart(is_chat=False)
    session.fit_penalty()
    assert session.sampling.repeat_penalty == usual.completion_penalty
    session.restart(is_chat=True)
    session.fit_penalty()
    assert session.sampling.repeat_penalty == usual.repeat_penalty
    session.sampling = SamplingParams(repeat_penalty=1.7)
    session.restart(is_chat=False)
    session.fit_penalty()
    assert session.sampling.repeat_penalty == 1.7
    session.sampling = SamplingParams(repeat_penalty=usual.repeat_penalty)
    exchange(session, "fn", "main")
    session.fit_penalty()
    assert session.sampling.repeat_penalty == usual.repeat_penalty


def test_messages_for_a_template(session: ChatSession) -> None:
    session.change_settings(system="be brief")
    assert session.messages() == []
    exchange(session, "hi", "hello")
    session.say("and")
    roles = [message["role"] for message in session.messages()]
    assert roles == ["system", "user", "assistant", "user"]
    session.begin(is_chat=False)
    exchange(session, "fn", "main")
    assert session.messages() == []
