"""`nanochat-tui [MODEL]`: the terminal application."""

from __future__ import annotations

import os
import sys

from nanochat_tui.cli.options import (
    MhcOption,
    ModelArgument,
    ThreadsOption,
    TokenizerOption,
    check_file,
    check_threads,
    find_model,
)
from nanochat_tui.errors import UserError


def open_tui(
    model: ModelArgument = None,
    mhc: MhcOption = None,
    tokenizer: TokenizerOption = None,
    threads: ThreadsOption = None,
) -> int:
    """Open the terminal application on a model; this is what happens without a command."""
    path = find_model(model)
    check_file(mhc, "mHC sidecar")
    check_file(tokenizer, "tokenizer")
    check_threads(threads)
    # Textual draws on stderr.
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):
        raise UserError("The application needs a terminal; in a pipe or script use: nanochat-tui chat -p TEXT")

    from nanochat_tui.chat.local import LocalBackend
    from nanochat_tui.tui.app import NanochatApp

    app = NanochatApp(LocalBackend(path, mhc=mhc, tokenizer=tokenizer, threads=threads))
    app.run()
    code = app.return_code or 0
    if app.is_working:
        # Somebody left while kernels compile or a big file loads, which cannot be interrupted. Waiting for it would
        # look like a hang, and files are only ever written under temporary names.
        sys.stdout.flush()
        os._exit(code)
    return code
