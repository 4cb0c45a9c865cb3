"""Sessions as files: JSON that can be read back exactly, Markdown for people (and read back as far as it says)."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import asdict, replace
from pathlib import Path

from nanochat_tui.chat.store.records import (
    SessionSettings,
    StoredSession,
    StoredTurn,
    new_session,
    settings_from_dict,
    settings_to_dict,
    title_of,
    turn_from_dict,
)
from nanochat_tui.chat.tools.records import CallRecord, call_from_dict
from nanochat_tui.errors import UserError
from nanochat_tui.files import atomic_write
from nanochat_tui.text import display_safe

FORMAT = "nanochat-tui session"
VERSION = 1
MAX_BYTES = 64 << 20
"""Largest file that is read: no conversation comes near it, and a wrong file might."""
_HEADING = re.compile(
    r"^## (User|Assistant|Prompt|Continuation|System|Tool)(?:, version (\d{1,6}) of \d{1,6})?[ \t]*$", re.MULTILINE
)

_CALL = re.compile(
    r"`(?P<name>[^`]+)` (?P<state>done|failed|denied|cancelled)(?: (?:in|after) (?P<seconds>[0-9.]+) s)?\n\n"
    r"(?P<fence>`{3,})\n(?P<given>.*?)\n(?P=fence)\n\n(?P<other>`{3,})\n(?P<result>.*)\n(?P=other)",
    re.DOTALL,
)


def to_json(session: StoredSession) -> str:
    """Return a session as indented JSON."""
    info = session.info
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "title": info.title,
            "model": info.model,
            "kind": "chat" if info.is_chat else "completion",
            "system": info.settings.system,
            "settings": settings_to_dict(info.settings),
            "created": info.created,
            "turns": [asdict(turn) for turn in session.turns],
        },
        indent=2,
        ensure_ascii=False,
    )


def to_markdown(session: StoredSession) -> str:
    """Return a session as Markdown: a heading for every message, or fenced text for a completion."""
    info = session.info
    ours = ("User", "Assistant") if info.is_chat else ("Prompt", "Continuation")
    lines = [f"# {info.title}", "", f"Model: {info.model}", ""]
    if info.settings.system:
        lines += ["## System", "", _guarded(info.settings.system, info.is_chat), ""]

    def put(turn: StoredTurn, version: str = "") -> None:
        lines.extend([f"## {ours[0]}{version}", "", _guarded(turn.prompt, info.is_chat), ""])
        for call in turn.calls:
            lines.extend([f"## Tool{version}", "", _told(call), ""])
        lines.extend([f"## {ours[1]}{version}", "", _guarded(turn.reply, info.is_chat), ""])

    for turn in session.turns:
        put(turn)
        places = [place for place in range(len(turn.versions) + 1) if place != turn.place]
        for place, version in zip(places, turn.versions, strict=True):
            put(version, f", version {place + 1} of {len(turn.versions) + 1}")
    return "\n".join(lines)


def _told(call: CallRecord) -> str:
    """Return a call: its name and outcome, its arguments and its result."""
    name = call.title.replace("`", "'")
    return f"`{name}` {call.outcome}\n\n{_guarded(call.arguments, False)}\n\n{_guarded(call.result, False)}"


def _call_in(text: str) -> CallRecord | None:
    """Return the call that `_told` wrote, as far as it says; None if it is something else."""
    found = _CALL.fullmatch(text.strip("\n"))
    if found is None:
        return None
    server, _, tool = found["name"].rpartition(".")
    function = f"{server}__{tool}" if server else tool
    arguments, result = (re.sub(r"^\\(?=## )", "", found[part], flags=re.MULTILINE) for part in ("given", "result"))
    return call_from_dict(
        {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "function": function,
            "server": server,
            "tool": tool if server else "",
            "arguments": arguments,
            "result": result,
            "state": found["state"],
            "seconds": float(found["seconds"]) if found["seconds"] else None,
        }
    )


def _guarded(text: str, is_chat: bool) -> str:
    """Fence the text of completions, whose blanks matter, and escape what would read as one of our headings."""
    text = _HEADING.sub(r"\\\g<0>", text)
    if is_chat:
        return text
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _unguarded(text: str) -> str:
    fenced = re.fullmatch(r"\n*(`{3,})\n(.*)\n\1\n*", text, re.DOTALL)
    inner = fenced[2] if fenced else text.strip("\n")
    return re.sub(r"^\\(?=## )", "", inner, flags=re.MULTILINE)


def from_json(text: str) -> StoredSession:
    """Return the session that `to_json` wrote, under a new id. Raises `UserError` for anything else."""
    try:
        data = json.loads(text)
    except RecursionError as exc:
        raise UserError("The file is JSON nested too deeply to be a session; choose another file.") from exc
    except ValueError as exc:
        raise UserError(f"The file is not JSON ({exc}); export a session as JSON and import that.") from exc
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError("The JSON file is no session of this program; export one as JSON and import that.")
    if not isinstance(data.get("version"), int) or data["version"] > VERSION:
        raise UserError("The session was exported by a newer version of this program; update it first.")
    turns = data.get("turns")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError("The session file is damaged: its turns are missing.")
    values = data.get("settings")
    settings = settings_from_dict(str(data.get("system") or ""), values if isinstance(values, dict) else {})
    info = new_session(str(data.get("model") or ""), is_chat=data.get("kind") != "completion", settings=settings)
    made = tuple(map(turn_from_dict, turns))
    title = str(data.get("title") or "")[:200]
    info = replace(info, title=title or _first_title(made), titled=bool(title), turns=len(made))
    return StoredSession(info, made)


def from_markdown(text: str) -> StoredSession:
    """Return the session that a Markdown file with our headings tells. Raises `UserError` if it has none."""
    pieces = _HEADING.split(text)
    sections = [(pieces[i], pieces[i + 1], _unguarded(pieces[i + 2])) for i in range(1, len(pieces), 3)]
    if not sections:
        raise UserError("The Markdown file has no '## User' or '## Prompt' headings; export a session to see the form.")
    is_chat = any(heading in ("User", "Assistant") for heading, _, _ in sections)
    system = next((body for heading, _, body in sections if heading == "System"), "")
    turns: list[StoredTurn] = []
    versions: list[list[tuple[int, StoredTurn]]] = []
    for heading, number, body in sections:
        if heading in ("User", "Prompt"):
            if number is not None and turns:
                versions[-1].append((int(number), StoredTurn(body)))
            else:
                turns.append(StoredTurn(body))
                versions.append([])
        elif heading == "Tool":
            call = _call_in(body)
            if call is not None and number is not None and versions and versions[-1]:
                at, version = versions[-1].pop()
                versions[-1].append((at, _with_call(version, call)))
            elif call is not None and number is None and turns:
                turns[-1] = _with_call(turns[-1], call)
        elif heading in ("Assistant", "Continuation"):
            if number is not None and versions and versions[-1]:
                place, version = versions[-1].pop()
                versions[-1].append((place, replace(version, parts=(body,), reason="stop")))
                continue
            if not turns or turns[-1].reply:
                turns.append(StoredTurn(""))
                versions.append([])
            turns[-1] = replace(turns[-1], parts=(body,), reason="stop")
    turns = [_with_versions(turn, found) for turn, found in zip(turns, versions, strict=True)]
    title = re.match(r"\s*# (.+)", text)
    model = re.search(r"^Model: (.+)$", pieces[0], re.MULTILINE)
    info = new_session(model[1].strip() if model else "", is_chat=is_chat, settings=SessionSettings(system))
    name = title[1].strip()[:200] if title else ""
    info = replace(info, title=name or _first_title(tuple(turns)), titled=bool(name), turns=len(turns))
    return StoredSession(info, tuple(turns))


def _with_call(turn: StoredTurn, call: CallRecord) -> StoredTurn:
    """Return `turn` with one more call; where in the reply it stood, and what was called together, is not told."""
    return replace(turn, calls=(*turn.calls, replace(call, round=len(turn.calls))))


def _with_versions(turn: StoredTurn, found: list[tuple[int, StoredTurn]]) -> StoredTurn:
    """Return `turn` with its other versions, whose numbers say between which of them it stands."""
    found = sorted(found, key=lambda pair: pair[0])
    place = next((at for at, (number, _) in enumerate(found) if number != at + 1), len(found))
    return replace(turn, versions=tuple(version for _, version in found), place=place)


def _first_title(turns: tuple[StoredTurn, ...]) -> str:
    return title_of(turns[0].prompt if turns else "")


def export_session(session: StoredSession, path: Path) -> Path:
    """Write a session to `path`; its ending, .md or .json, says how. Returns the path. Raises `UserError`."""
    if path.suffix.lower() not in (".md", ".markdown", ".json"):
        raise UserError(f"{display_safe(path.name)} must end in .md or .json, which says how the session is written.")
    text = to_json(session) if path.suffix.lower() == ".json" else to_markdown(session)
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "replace"))
    return path


def import_session(path: Path) -> StoredSession:
    """Read a session from a .json or .md file. Raises `UserError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{display_safe(path.name)} is too large to be a session; choose another file.")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise UserError(f"{display_safe(path.name)} is not text; choose a .json or .md file.") from exc
    except OSError as exc:
        raise UserError(f"Cannot read {display_safe(str(path))}: {exc.strerror or exc}.") from exc
    return from_json(text) if path.suffix.lower() == ".json" else from_markdown(text)
