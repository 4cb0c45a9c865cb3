#!/usr/bin/env python3
"""Write a model between two of one shape, of what a run gained and what it forgot:

    python scripts/interpolate_models.py START TRAINED SHARE OUT.gguf

Each latent weight is START + SHARE (TRAINED - START) (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903), and then made
ternary as ever. START and TRAINED are GGUF files or checkpoints; text conventions and chat template are those of START.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.export.gguf_export import write_weights
from nanochat_tui.export.start import starting_metadata, starting_weights
from nanochat_tui.text import display_safe


def interpolate(start: Path, trained: Path, share: float, out: Path) -> None:
    """Write the model. Raises UserError where the two are not of one shape, or OUT is there."""
    if out.exists():
        raise UserError(f"there is a file {display_safe(str(out))} already; give another name")
    config, first = starting_weights(start)
    other, second = starting_weights(trained)
    if other != config:
        raise UserError("the two models are not of one shape; give a model and what was trained from it")
    between = {name: value + share * (second[name] - value) for name, value in first.items()}
    write_weights(out, starting_metadata(start), config, between)


def main() -> int:
    """Run the command; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description="Write a model between two of one shape.")
    parser.add_argument("start", type=Path)
    parser.add_argument("trained", type=Path)
    parser.add_argument("share", type=float, help="0 is START, 1 is TRAINED")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    try:
        interpolate(arguments.start, arguments.trained, arguments.share, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
