"""The session on the screen: what was said, how tokens are chosen, what is kept of it and what can be undone.

Pure state and the store: no widgets, no threads of its own, no model. Every change of the conversation is made here, so
that every change reaches the store.
"""

from __future__ import annotations

import time
from dataclasses import replace

from nanochat_tui.chat.backend import Token
from nanochat_tui.chat.experience import ExperienceFile
from nanochat_tui.chat.store import Store
from nanochat_tui.chat.store.records import SessionInfo, StoredSession, new_session, title_of
from nanochat_tui.chat.tools.records import CallRecord
from nanochat_tui.request import SamplingParams
from nanochat_tui.tui.chat.conversation import Conversation, Turn
from nanochat_tui.tui.chat.draft import Draft
from nanochat_tui.tui.preferences import Preferences

Step = tuple[Turn, int]
"""A turn and the version of it that was shown."""


class ChatSession:
    """One conversation or document, kept in `store` as it happens. `model` is the name kept with it."""

    def __init__(self, store: Store, preferences: Preferences, model: str = "") -> None:
        self.store = store
        self.preferences = preferences
        self.model = model
        self.settings = preferences.session_settings()
        self.conversation = Conversation(is_chat=False)
        self.info: SessionInfo | None = None
        """The session as it is kept; None before anything was said."""
        self.draft = Draft()
        self.experience: ExperienceFile | None = None
        """The rules that the model is told before each message."""
        self._replaced: Step | None = None
        """The turn that is written again, until something comes in its place."""
        self._undo: list[Step | None] = []
        """What can be undone in this conversation, the newest last; None: a deletion."""

    @property
    def id(self) -> str | None:
        """The session's id in the store, once it has one."""
        return None if self.info is None else self.info.id

    # Rules

    def use_experience(self, file: ExperienceFile | None) -> None:
        """Tell the model the rules of a file, as they are now, from the next message on; None: tell it none."""
        self.experience = file
        self.conversation.rules = "" if file is None else file.text

    @property
    def experience_name(self) -> str:
        """What the status says of the rules: their file and how many are told; "" without any."""
        file = self.experience
        return "" if file is None or not self.conversation.is_chat else f"{file.path.stem} ({file.enabled})"

    # Settings

    @property
    def sampling(self) -> SamplingParams:
        """How tokens of this session are chosen."""
        return self.settings.sampling

    @sampling.setter
    def sampling(self, value: SamplingParams) -> None:
        self.settings = replace(self.settings, sampling=value)

    @property
    def max_tokens(self) -> int | None:
        """Most tokens of one reply; None for as many as fit."""
        return self.settings.max_tokens

    @max_tokens.setter
    def max_tokens(self, value: int | None) -> None:
        self.settings = replace(self.settings, max_tokens=value)

    def change_settings(
        self,
        *,
        system: str | None = None,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Take new values, `max_tokens` with `sampling` only, and save them if the session has begun."""
        if system is not None:
            self.settings = replace(self.settings, system=system)
        if sampling is not None:
            self.settings = replace(self.settings, sampling=sampling, max_tokens=max_tokens)
        if self.info is not None:
            self.keep_info()

    def fit_penalty(self) -> None:
        """Give a session that has not begun the repeat penalty of its kind, unless another one was chosen: small base
        models fall into loops without one.
        """
        if self.conversation.turns:
            return
        usual = self.preferences.sampling
        continues, answers = usual.completion_penalty, usual.params().repeat_penalty
        wanted, other = (answers, continues) if self.conversation.is_chat else (continues, answers)
        if self.sampling.repeat_penalty == other:
            self.sampling = replace(self.sampling, repeat_penalty=wanted)

    # One session in the place of another

    def restart(self, *, is_chat: bool) -> None:
        """Stand before an empty conversation of this kind, in the session that has not begun."""
        self._put(Conversation(is_chat=is_chat))

    def leave(self) -> None:
        """Begin another session; what was said stays in the store."""
        self.info = None
        self.store.hold(None)
        self.draft.saved = ""

    def forget(self, *, is_chat: bool) -> None:
        """Stand before an empty session whose first turn will begin a new one in the store."""
        self.info = None
        self._put(Conversation(is_chat=is_chat))

    def begin(self, *, is_chat: bool) -> None:
        """Start over with the settings new sessions have. What holds anything is left in the store."""
        if self.conversation.turns or self.conversation.deleted:
            self.leave()
        self.settings = self.preferences.session_settings()
        self._put(Conversation(is_chat=is_chat))

    def open(self, stored: StoredSession) -> None:
        """Take a session from the store and hold it for this window."""
        self.info = stored.info
        self.store.hold(stored.info.id)
        self.settings = stored.info.settings
        self._put(Conversation(is_chat=stored.info.is_chat, turns=stored.turns))
        self.conversation.deleted = [(index, Turn.from_stored(turn)) for index, turn in stored.deleted]
        self.draft.saved = stored.info.draft

    def _put(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.use_experience(self.experience)
        self._replaced = None
        self._undo.clear()

    def as_stored(self) -> StoredSession | None:
        """Return the session as a file would hold it; None before anything was said."""
        if self.info is None:
            return None
        turns = tuple(turn.stored() for turn in self.conversation.turns)
        return StoredSession(self.info, turns, tuple((at, turn.stored()) for at, turn in self.conversation.deleted))

    def messages(self) -> list[dict[str, str]]:
        """What was said, as a chat template takes it; empty with a base model, which has no messages."""
        if not self.conversation.is_chat:
            return []
        system, turns = self.settings.system, self.conversation.turns
        said = [{"role": "system", "content": system}] if system.strip() and turns else []
        for turn in turns:
            said.append({"role": "user", "content": turn.prompt})
            if turn.reply:
                said.append({"role": "assistant", "content": turn.reply})
        return said

    # Keeping

    def keep_info(self, **changes: object) -> None:
        """Save the session's own values; begins a session if there is none yet."""
        if self.info is None:
            self.info = new_session(self.model, is_chat=self.conversation.is_chat, settings=self.settings)
            self.store.hold(self.info.id)
        self.info = replace(
            self.info,
            model=self.model,
            is_chat=self.conversation.is_chat,
            settings=self.settings,
            updated=time.time(),
            turns=len(self.conversation.turns),
        )
        self.info = replace(self.info, **changes)  # type: ignore[arg-type]
        if not self.info.titled and self.conversation.turns:
            self.info = replace(self.info, title=title_of(self.conversation.turns[0].prompt))
        self.store.save_session(self.info)

    def keep_turn(self, index: int = -1) -> None:
        """Save one turn as it is now."""
        turns = self.conversation.turns
        if self.info is not None and turns:
            at = index % len(turns)
            self.store.save_turn(self.info.id, at, turns[at].stored())

    def keep_all(self, start: int = 0) -> None:
        """Save every turn from `start` on, and drop those beyond the last."""
        self.keep_info()
        if self.info is not None:
            self.store.keep_turns(self.info.id, start)
        for index in range(start, len(self.conversation.turns)):
            self.keep_turn(index)

    def keep_deleted(self) -> None:
        """Save which turns of this session can be brought back."""
        if self.info is not None:
            deleted = [(index, turn.stored()) for index, turn in self.conversation.deleted]
            self.store.save_deleted(self.info.id, deleted)

    def keep_draft(self, text: str, *, commands: bool = False) -> None:
        """Save what is typed and not sent, if it changed; a line that begins a command only with `commands`, and only
        in a session that has begun.
        """
        command = text.startswith("/")
        if text == self.draft.saved or (command and not commands):
            return
        if self.info is not None or (text.strip() and not command):
            self.draft.saved = text
            self.keep_info(draft=text)

    # Turns

    def say(self, text: str, *, draft: str = "", replaced: Turn | None = None) -> Turn:
        """Begin a turn, as a newer version of `replaced` if that is given; `draft` stays unsent."""
        turn = self.conversation.say(text)
        if replaced is not None:
            turn.follow(replaced)
            self._undo.append((turn, turn.place - 1))
        self.keep_info(draft=draft)
        if len(self.conversation.turns) > 1:
            self.keep_turn(-2)  # a document's last line may have been ended
        self.keep_turn()
        return turn

    def cut(self, index: int) -> Turn | None:
        """Take the turns from `index` on away, to be said in other words; returns the first of them."""
        removed = self.conversation.cut(index)
        self.keep_info()
        return removed[0] if removed else None

    def retry(self, *, whole: bool) -> bool:
        """Begin another version of the last reply, of all its parts if `whole`; returns whether there is one."""
        last = self.conversation.last
        if last is None:
            return False
        self._replaced = (last, last.place)
        self._undo.append(self._replaced)
        self.conversation.retry()
        if whole:
            last.parts, last.tokens, last.thinking, last.calls = [""], [[]], "", []
        return True

    def write(self, text: str, tokens: tuple[Token, ...], *, thinking: bool) -> None:
        """Append to the reply being written."""
        self._replaced = None  # something came
        self.conversation.write(text, tokens, thinking=thinking)
        self.keep_turn()

    def take_call(self, record: CallRecord) -> CallRecord | None:
        """Keep a call of the reply being written, or its new state; returns it with its place."""
        self._replaced = None
        last = self.conversation.last
        made = None if last is None else last.take_call(record)
        self.keep_turn()
        return made

    def accept_empty(self) -> None:
        """The reply that is written again may stay empty: it ended in order."""
        self._replaced = None

    def drop_if_empty(self) -> bool:
        """Go back to the version before if nothing came of the one being written; returns whether that was done."""
        replaced, self._replaced = self._replaced, None
        if replaced is None or replaced[0] is not self.conversation.last:
            return False
        replaced[0].drop_version(replaced[1])
        return True

    def delete(self, index: int) -> None:
        """Delete one turn; `undo` brings it back."""
        self._undo.append(None)
        self.conversation.delete(index)
        self.keep_deleted()
        self.keep_all(index)

    @property
    def undoable(self) -> bool:
        """Whether there is anything to bring back."""
        return bool(self.conversation.deleted or self._undo)

    def undo(self) -> Turn | int | None:
        """Bring back what was deleted or replaced last; what is there now is kept as a version. Returns the turn that
        shows another version, or the number of the turn that is there again; None if nothing changed.
        """
        step = self._undo.pop() if self._undo else None
        if step is not None:
            turn, place = step
            if turn not in self.conversation.turns or place > len(turn.versions):
                return None
            self.show_version(turn, place)
            return turn
        index = self.conversation.undelete()
        if index is not None:
            self.keep_deleted()
            self.keep_all(index)
        return index

    def show_version(self, turn: Turn, place: int) -> None:
        """Show another version of a turn."""
        turn.show_version(place)
        self.keep_turn(self.conversation.turns.index(turn))

    def branch(self, index: int, at: int, token: Token) -> Turn:
        """Continue in a new session from another token of a reply; the session of before stays. Returns the turn."""
        old = self.info
        turn = self.conversation.branch(index, at, token)
        self.info = new_session(
            self.model,
            is_chat=self.conversation.is_chat,
            settings=self.settings,
            parent=old.id if old is not None else None,
        )
        self.store.hold(self.info.id)
        if old is not None:
            self.info = replace(self.info, title=f"{old.title} (branch)"[:200], titled=True)
        self.keep_all()
        return turn

    # A file kept as a session

    def keep_imported(self, stored: StoredSession) -> None:
        """Put a session that came from a file into the store."""
        self.store.save_session(stored.info)
        for position, turn in enumerate(stored.turns):
            self.store.save_turn(stored.info.id, position, turn)
