#!/usr/bin/env python3
"""Pack a data set into one file of at most 60 MiB for a run elsewhere, or unpack it there.

python scripts/pack_tokens.py pack DATA tokens.pack [--mib 60]
python scripts/pack_tokens.py unpack tokens.pack DATA
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.train.data_preparation.packing import pack, unpack


def main() -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["pack", "unpack"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--mib", type=float, default=60)
    arguments = parser.parse_args()
    try:
        if arguments.command == "unpack":
            unpack(arguments.source, arguments.target)
        else:
            train = pack(arguments.source, arguments.target, int(arguments.mib * 2**20))["splits"]["train"]
            size = arguments.target.stat().st_size
            print(f"{train['tokens']:,} of {train['packed_from_tokens']:,} training tokens in {size / 2**20:.1f} MiB")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
