"""What Tab makes of a line that begins with `/`: the name of a command, or the path it takes."""

from __future__ import annotations

import os
from pathlib import Path

from nanochat_tui.tui.chat.commands import BY_NAME, suggestions

MOST = 5_000
"""Entries of a folder that are looked at."""


def is_command_line(text: str) -> bool:
    """Whether Tab belongs to the line: it begins with `/`."""
    return text.startswith("/")


def completed(text: str) -> tuple[str, list[str]]:
    """Return the line as far as it is certain how it goes on, and the ways it may go on when there are several.

    Paths are completed for commands that take a FILE; folders end in a slash. A line that cannot be completed is
    returned as it is, with no ways.
    """
    if "\n" in text:
        return text, []
    name, blank, argument = text[1:].partition(" ")
    command = BY_NAME.get(name)
    if not blank:
        found = suggestions(text)
        if command is not None and len(found) == 1:
            return (f"{text} " if command.argument else text), []
        if not found:
            return text, []
        if len(found) == 1:
            return f"/{found[0].name}" + (" " if found[0].argument else ""), []
        shared = _shared([other.name for other in found])
        return f"/{shared}", [f"/{other.name}" for other in found]
    if command is None or command.argument != "FILE":
        return text, []
    path, ways = completed_path(argument.lstrip())
    return f"/{name} {path}", ways


def completed_path(text: str) -> tuple[str, list[str]]:
    """Return a path as far as it is certain, and the names it may continue when there are several."""
    if text == "~":
        return "~/", []
    folder, _, start = text.rpartition("/")
    folder += "/" if "/" in text else ""
    try:
        place = Path(folder or ".").expanduser()
        with os.scandir(place) as entries:
            found = []
            for entry, _ in zip(entries, range(MOST), strict=False):
                hidden = entry.name.startswith(".") and not start.startswith(".")
                if entry.name.startswith(start) and not hidden and entry.name.isprintable():
                    found.append(entry.name + ("/" if entry.is_dir() else ""))
    except (OSError, RuntimeError, ValueError):  # no such folder or home, a NUL
        return text, []
    if not found:
        return text, []
    shared = _shared(found)
    return folder + shared, sorted(found) if len(found) > 1 else []


def _shared(names: list[str]) -> str:
    """Return what all names begin with."""
    low, high = min(names), max(names)
    return low[: next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]
