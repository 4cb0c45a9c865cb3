"""`nanochat-tui web`: the terminal application in a browser."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from typing import Annotated

import typer

from nanochat_tui.cli.options import AttachOption, ModelArgument, find_model
from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe


def web(
    model: ModelArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other machines reach it only if you name one.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    attach: AttachOption = None,
    public_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Address under which a proxy shows the page, as in https://host/chat/."),
    ] = None,
    allow_commands: Annotated[
        bool,
        typer.Option(
            "--allow-commands",
            help="Let visitors run programs: tools of the chat, prefixes of a training such as ssh HOST.",
        ),
    ] = False,
    max_visitors: Annotated[
        int, typer.Option(help="Pages open together; each has a process and a model of its own.", min=1, max=1000)
    ] = 8,
) -> int:
    """Serve the terminal application to a browser; the printed address holds the secret that opens it."""
    if any(importlib.util.find_spec(name) is None for name in ("aiohttp", "textual_serve")):
        raise UserError("This needs one more package; install it with: pip install 'nanochat-tui[web]'")
    from nanochat_tui.web.guard import TOKEN_VARIABLE, Guard, make_token, public_address

    command = [sys.executable, "-m", "nanochat_tui", "tui"]
    if attach is None and model is not None:
        command.append(str(find_model(model).resolve()))
    elif attach is not None:
        from nanochat_tui.chat.remote.http import base_url

        base_url(attach)  # what is no address is said here and not in the page
        command += ["--attach", attach, *([] if model is None else [model])]
    token = make_token(os.environ.get(TOKEN_VARIABLE))
    public = public_address(public_url) if public_url is not None else None

    import asyncio

    from nanochat_tui.web.server import Settings, listen, serve

    listener = listen(host, port)
    guard = Guard(token, host, listener.getsockname()[1], public)

    def opened() -> None:
        _say(f"nanochat-tui in a browser: {guard.address}?token={token}")
        if public is not None:
            _say(f"behind the proxy: {public}?token={token}")
        _say("everyone who has the address can read and write files as you; Ctrl+C ends the server")
        if allow_commands:
            _say("warning: --allow-commands: everyone who has the address can run any program as you")
        if guard.open_to_others:
            _say(
                f"warning: other machines can reach {display_safe(host)}, and the connection is not encrypted; safer: "
                f"ssh -L {guard.port}:127.0.0.1:{guard.port} to this machine, or a proxy with TLS and --public-url"
            )

    settings = Settings(command, _say, max_visitors=max_visitors, allow_commands=allow_commands)
    number = asyncio.run(serve(listener, guard, settings, opened))
    return 130 if number == signal.SIGINT else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
