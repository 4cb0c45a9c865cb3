"""Where `nanochat-train` begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from nanochat_tui.cli.entry import begin


def main() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    sys.exit(begin("nanochat-train", _dispatch))


def _dispatch(arguments: Sequence[str]) -> int:
    from nanochat_tui.cli.train_app import app

    result = app(args=list(arguments), standalone_mode=False, prog_name="nanochat-train")
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
