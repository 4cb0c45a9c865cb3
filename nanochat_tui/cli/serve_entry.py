"""Where `nanochat-serve` begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from nanochat_tui.cli.entry import begin


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    code = begin("nanochat-serve", _dispatch)
    sys.stdout.flush()
    sys.stderr.flush()
    # a model that is still being loaded or compiled would keep the process, or crash in an interpreter being taken down
    os._exit(code)


def _dispatch(arguments: Sequence[str]) -> int:
    import typer

    from nanochat_tui.cli.serve import serve

    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(serve)
    result = app(args=list(arguments), standalone_mode=False, prog_name="nanochat-serve")
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
