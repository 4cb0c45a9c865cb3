"""`nanochat-tui web`: the terminal application in a browser."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from typing import Annotated

import typer

from nanochat_tui.cli.options import ModelArgument, find_model
from nanochat_tui.errors import UserError


def web(
    model: ModelArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other machines reach it only if you name one.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    attach: Annotated[str | None, typer.Option("--attach", help="Talk to this server instead of a file.")] = None,
) -> int:
    """Serve the terminal application to a browser; every visitor gets one of their own."""
    if importlib.util.find_spec("textual_serve") is None:
        raise UserError("This needs one more package; install it with: pip install 'nanochat-tui[web]'")
    words = [sys.executable, "-m", "nanochat_tui", "tui"]
    if attach is not None:
        words += ["--attach", attach]
    elif model is not None:
        words.append(str(find_model(model).resolve()))
    from textual_serve.server import Server

    print(f"nanochat-tui in a browser: http://{host}:{port}  (Ctrl+C ends it)", file=sys.stderr)
    Server(shlex.join(words), host=host, port=port, title="nanochat-tui").serve()
    return 0
