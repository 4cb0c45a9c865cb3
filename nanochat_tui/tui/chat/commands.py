"""The slash commands: what they are called and mean, and how a line is read. What they do is the screen's business."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nanochat_tui.errors import UserError


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `argument` names what it takes ('' for nothing); `action` is the screen's action behind it."""

    name: str
    title: str
    help: str
    action: str
    argument: str = ""
    key: str = ""


COMMANDS = (
    Command("new", "New session", "Start over with an empty transcript", "new", key="Ctrl+N"),
    Command("sessions", "Sessions", "List, search, rename, delete, fork, export", "toggle_sessions", key="Ctrl+O"),
    Command("search", "Search all sessions", "Find words in everything ever said", "search", "WORDS"),
    Command("rename", "Rename this session", "Give it a name of your own", "rename", "NAME"),
    Command("fork", "Fork this session", "A copy up to the chosen turn; both go on by themselves", "fork_turn"),
    Command("delete", "Delete this session", "For good; asks first", "delete_session"),
    Command("export", "Export this session", "To a .md or .json file", "export", "FILE"),
    Command("import", "Import a session", "From a .json or .md file", "import", "FILE"),
    Command("stop", "Stop the reply", "End it at the next token", "stop", key="Esc"),
    Command("retry", "Write again", "Replace the last reply by a new one", "regenerate", key="Ctrl+R"),
    Command("continue", "Continue the reply", "Let the last reply go on", "continue_reply"),
    Command("edit", "Edit and send again", "Change a message; a fork, if others follow", "edit_turn"),
    Command("remove", "Delete the chosen turn", "A message and its reply; /undo brings them back", "delete_turn"),
    Command("undo", "Undo deleting a turn", "Bring back the one deleted last", "undo_delete"),
    Command("copy", "Copy the reply", "Of the chosen or last turn, to the clipboard", "copy_reply", key="Ctrl+Y"),
    Command("code", "Copy a block of code", "Of the chosen or last reply", "copy_code"),
    Command("all", "Copy everything", "The whole document or conversation", "copy_all"),
    Command("thoughts", "Unfold or fold thoughts", "Of the chosen or last turn", "toggle_thoughts"),
    Command("sort", "Sort sessions", "By last use, age, name or length, one after the other", "sort_sessions"),
    Command("system", "System prompt", "What the model is told before everything else", "system", "TEXT"),
    Command("set", "Set a sampling value", "As in: /set temperature 0.5", "set", "NAME VALUE"),
    Command("settings", "Session settings", "System prompt and sampling", "toggle_settings", key="Ctrl+S"),
    Command("complete", "Completion or conversation", "Let a chat model continue raw text, or answer", "toggle_kind"),
    Command("file", "Complete a file", "Read a file's beginning and let the model go on", "fill_file", "FILE"),
    Command("lens", "Token probabilities", "Colours by probability; branch at any token", "toggle_lens", key="F5"),
    Command("live", "Live panel", "Speed, memory, hyper-connections, depth", "toggle_live", key="Ctrl+L"),
    Command("parity", "Compare with a server", "The same prompt here and there, token by token", "parity", "URL"),
    Command("model", "Choose a model", "Shipped, recent, in a folder or in Hugging Face's cache", "model", "FILE"),
    Command("attach", "Attach to a server", "Any OpenAI-compatible one", "attach", "URL"),
    Command("models", "Models of the server", "Choose one of those it offers", "server_models"),
    Command("inspect", "Inspect this model", "What is in the file", "inspect_model"),
    Command("preferences", "Preferences", "Theme, keys, defaults of new sessions", "preferences", key="F9"),
    Command("log", "Log", "What the application noted", "show_log", key="F8"),
    Command("help", "Help", "Explain what has the focus, and all keys", "help", key="F1"),
    Command("quit", "Quit", "Leave; the session is kept", "quit", key="Ctrl+Q"),
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
