"""`nanochat-tui [MODEL]`: the terminal application."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat_tui.cli.options import (
    ActivationsOption,
    AttachOption,
    ContextOption,
    FileOptions,
    HfOption,
    I2sLayoutOption,
    KvOption,
    LoraOption,
    MhcOption,
    ModelArgument,
    SpeculationOption,
    ThreadsOption,
    TokenizerOption,
    find_model,
)
from nanochat_tui.cli.tool_options import McpOption, ToolRoundsOption, ToolTimeoutOption
from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from nanochat_tui.chat.backend import Backend
    from nanochat_tui.tui.chat.tool_slot import ToolSlot
    from nanochat_tui.tui.preferences import Preferences

SESSIONS = "sessions.db"


def open_tui(
    model: ModelArgument = None,
    hf: HfOption = None,
    attach: AttachOption = None,
    mhc: MhcOption = None,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
    context: ContextOption = None,
    kv: KvOption = None,
    i2s_layout: I2sLayoutOption = None,
    speculation: SpeculationOption = None,
    activations: ActivationsOption = None,
    lora: LoraOption = None,
    mcp: McpOption = None,
    tool_rounds: ToolRoundsOption = 8,
    tool_timeout: ToolTimeoutOption = 60.0,
) -> int:
    """Open the terminal application on a model or a server; this is what happens without a command."""
    if attach is not None and hf is not None:
        raise UserError("-hf is for models that run here; with --attach name one of the server's as MODEL.")
    path = None
    if attach is None and (model is not None or hf is not None or _has_shipped()):
        path = find_model(model, hf, chat=True)
    files = FileOptions(mhc, tokenizer, threads, context, kv, i2s_layout, speculation, activations, lora)
    if attach is None:
        files.check()
    else:
        files.refuse_with_server()
    if mcp is not None:
        from nanochat_tui.chat.tools.config import read_servers

        read_servers(mcp)
    # Textual draws on stderr; a browser has a driver of its own.
    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    if "TEXTUAL_DRIVER" not in os.environ and not terminal:
        raise UserError("The application needs a terminal; in a pipe or script use: nanochat-tui chat -p TEXT")

    from nanochat_tui.chat.missing import MissingBackend
    from nanochat_tui.chat.store import Store
    from nanochat_tui.paths import data_directory, state_directory
    from nanochat_tui.tui.app import NanochatApp
    from nanochat_tui.tui.keys import KeyNames
    from nanochat_tui.tui.log import logger
    from nanochat_tui.tui.preferences import load_preferences, preferences_file

    preferences_path = preferences_file()
    preferences, problem = load_preferences(preferences_path)
    backend: Backend
    if attach is not None:
        backend = _remote(attach, model, preferences)
    elif path is None:
        text = "This installation ships no model; choose one with {chat.model|Ctrl+G} or give one as argument."
        backend = MissingBackend(KeyNames(preferences.keys)(text))
    else:
        backend = files.backend(path)
    tools, wrong = chat_tools(mcp, tool_rounds, tool_timeout)
    app = NanochatApp(
        backend,
        store=Store(data_directory() / SESSIONS),
        preferences=preferences,
        preferences_path=None if problem else preferences_path,
        reports=state_directory(),
        tools=tools,
    )
    if said := " ".join(text for text in (problem, wrong) if text):
        logger.warning("%s", said)
        app.greeting = said
    app.run()
    code = app.return_code or 0
    if app.crash_report is not None:
        print(f"error: the application crashed; a report is at {app.crash_report}", file=sys.stderr)
    if app.is_working:
        # The user left while kernels compile or a big file loads, which cannot be interrupted. Waiting for it would
        # look like a hang, and files are only ever written under temporary names.
        sys.stdout.flush()
        os._exit(code)
    return code


def chat_tools(mcp: Path | None, rounds: int, seconds: float) -> tuple[ToolSlot, str]:
    """Return the tools of the chat, and what is wrong with the user's own file, '' if nothing is."""
    from nanochat_tui.browser import commands_allowed
    from nanochat_tui.chat.tools.config import read_servers
    from nanochat_tui.chat.tools.toolbox import Limits
    from nanochat_tui.tui.chat.tool_slot import ToolSlot, tool_slot

    if not commands_allowed():
        return ToolSlot(None, "Tools are off in the browser, because they run programs; the user who starts the "
                              "server can allow them: nanochat-tui web --allow-commands"), ""  # fmt: skip
    try:
        return tool_slot(read_servers(mcp), Limits(rounds=rounds, seconds=seconds)), ""
    except UserError as error:
        return ToolSlot(None, str(error)), str(error)


def _has_shipped() -> bool:
    from nanochat_tui.model.shipped import shipped_model

    return shipped_model() is not None


def _remote(url: str, model: str | None, preferences: Preferences) -> Backend:
    from nanochat_tui.chat.remote import RemoteBackend

    limits = preferences.remote
    return RemoteBackend(url, model, timeout=limits.timeout, connect_timeout=limits.connect_timeout)
