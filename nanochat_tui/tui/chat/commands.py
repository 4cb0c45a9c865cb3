"""The slash commands: what they are called and mean, and how a line is read. `CommandRunner` knows what they do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nanochat_tui.errors import UserError


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `argument` names what it takes ('' for nothing); `key` is the key that does the same, as texts name
    keys (`tui/keys.py`).
    """

    name: str
    title: str
    help: str
    argument: str = ""
    optional: bool = False
    """Whether it makes sense without its argument; else a dialog asks for that."""
    key: str = ""


COMMANDS = (
    Command("new", "New session", "Start over with an empty transcript", key="{chat.new|Ctrl+N}"),
    Command("sessions", "Sessions", "List, search, rename, delete, fork, export", key="{chat.sessions|Ctrl+O}"),
    Command("search", "Search all sessions", "Find words in everything ever said", "WORDS"),
    Command("rename", "Rename this session", "Give it a name of your own", "NAME"),
    Command("fork", "Fork this session", "A copy up to the chosen turn; both continue by themselves"),
    Command("delete", "Delete this session", "Asks first; /restore brings it back"),
    Command("restore", "Restore a deleted session", "Within 30 days of its deletion"),
    Command("purge", "Drop what was deleted", "Deleted sessions and turns, permanently; asks first"),
    Command("export", "Export this session", "To a .md or .json file", "FILE"),
    Command("import", "Import a session", "From a .json or .md file", "FILE"),
    Command("stop", "Stop the reply", "End it at the next token", key="{chat.stop|Esc}"),
    Command("retry", "Write again", "Replace the last reply by a new one", key="{chat.again|Ctrl+R}"),
    Command("continue", "Continue the reply", "Let the model write more of the last reply"),
    Command("edit", "Edit and send again", "Change a message; a fork, if others follow"),
    Command("remove", "Delete the chosen turn", "A message and its reply; /undo brings them back"),
    Command("undo", "Undo", "Bring back what was deleted or replaced last"),
    Command(
        "versions",
        "Versions of the reply",
        "Choose between what was written before",
        key="{chat.earlier_version|Alt+←} {chat.later_version|Alt+→}",
    ),
    Command("copy", "Copy the reply", "Of the chosen or last turn, to the clipboard", key="{chat.copy|Ctrl+Y}"),
    Command("code", "Copy a block of code", "Of the chosen or last reply"),
    Command("all", "Copy everything", "The whole document or conversation"),
    Command("thoughts", "Unfold or fold thoughts", "Of the chosen or last turn"),
    Command("sort", "Sort sessions", "By last use, age, name or length, one after the other"),
    Command("system", "System prompt", "What the model is told before everything else", "TEXT"),
    Command(
        "experience",
        "Rules from experience",
        "What the model reads before each message; edit them; off",
        "FILE",
        optional=True,
    ),
    Command("set", "Set a sampling value", "As in: /set temperature 0.5", "NAME VALUE"),
    Command("settings", "Session settings", "System prompt and sampling", key="{chat.settings|Ctrl+S}"),
    Command("complete", "Completion or conversation", "Let a chat model continue raw text, or answer"),
    Command("file", "Complete a file", "Read a file's beginning and let the model continue it", "FILE"),
    Command("lens", "Token probabilities", "Colours by probability; branch at any token", key="{chat.lens|F5}"),
    Command("live", "Live panel", "Speed, memory, hyper-connections, depth", key="{chat.live|Ctrl+L}"),
    Command("parity", "Compare with a server", "The same prompt here and there, token by token", "URL"),
    Command(
        "model",
        "Choose a model",
        "Shipped, recent, in a folder or in Hugging Face's cache",
        "FILE",
        optional=True,
        key="{chat.model|Ctrl+G}",
    ),
    Command("attach", "Attach to a server", "Any OpenAI-compatible one", "URL"),
    Command("models", "Models of the server", "Choose one of those it offers"),
    Command("inspect", "Inspect this model", "What is in the file"),
    Command("preferences", "Preferences", "Theme, keys, defaults of new sessions", key="{app.preferences|F9}"),
    Command("tools", "Tools", "Servers, their tools, and what was decided about them"),
    Command("log", "Log", "What the application noted", key="{app.log|F8}"),
    Command("help", "Help", "Explain what has the focus, and all keys", key="{app.help|F1}"),
    Command("quit", "Quit", "Leave; the session is kept", key="{app.quit|Ctrl+Q}"),
)
BY_NAME = {command.name: command for command in COMMANDS}
_LINE = re.compile(r"/([a-z]+)(?:[ \t]+(.*))?", re.DOTALL)


def parse(text: str) -> tuple[Command, str] | None:
    """Return the command and argument that `text` is, or None if it is a message.

    A leading blank makes any text a message, and so does whatever cannot be a command, such as `//` or `/usr/bin`.
    Raises `UserError` for a word that looks like a command and is none.
    """
    match = _LINE.fullmatch(text.rstrip())
    if match is None:
        return None
    name, argument = match[1], match[2] or ""
    command = BY_NAME.get(name)
    if command is None:
        near = [c.name for c in suggestions(f"/{name[:2]}")] or ["help"]
        raise UserError(f"There is no command /{name}; did you mean /{near[0]}? A blank before it sends it as text.")
    if argument and not command.argument:
        return None
    return command, argument.strip()


def suggestions(text: str) -> list[Command]:
    """Return the commands whose names begin as `text` does; none unless it is the beginning of a command."""
    if not re.fullmatch(r"/[a-z]*", text):
        return []
    return [command for command in COMMANDS if command.name.startswith(text[1:])]
