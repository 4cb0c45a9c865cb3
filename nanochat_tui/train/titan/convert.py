"""A checkpoint of torchtitan becomes one of ours, which `nanochat-train export` makes a GGUF file of.

    python -m nanochat_tui.train.titan.convert outputs/checkpoint/step-500 runs/7b/step_500 --config 7b --data data/code

It needs torch and memory for the model in float32, not torchtitan.
"""

from __future__ import annotations

import argparse
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.export.checkpoint import TERNARY
from nanochat_tui.model.config import PRESETS, ModelConfig
from nanochat_tui.text import display_safe
from nanochat_tui.train.checkpoint import save_checkpoint
from nanochat_tui.train.model import NanochatModel
from nanochat_tui.train.titan.names import our_names
from nanochat_tui.train.titan.shape import shape_on

_STEP = "train_state.step"
_TOKENS = "dataloader.tokens"


def read_weights(folder: Path, shape: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint of torchtitan: weights by our names, float32, and what it says of the training.

    Raises UserError if it cannot be read, or is not of this shape.
    """
    shown = display_safe(str(folder))
    try:
        reader = FileSystemReader(folder)
        stored = reader.read_metadata().state_dict_metadata
    except OSError as error:
        raise UserError(
            f"{shown} cannot be read as a checkpoint of torchtitan ({plain_reason(error)}); give a folder step-N"
        ) from None
    names = our_names(shape)
    with torch.device("meta"):
        sizes = {name: tensor.shape for name, tensor in NanochatModel(shape).state_dict().items()}
    for theirs, ours in names.items():
        found = getattr(stored.get(theirs), "size", None)
        if found is None:
            raise UserError(f"{shown} has no tensor {theirs}; it is of another shape, name the right one with --config")
        if tuple(found) != tuple(sizes[ours]):
            raise UserError(
                f"{theirs} in {shown} is {list(found)} and should be {list(sizes[ours])}; it is of another shape"
            )
    weights = {theirs: torch.empty(sizes[ours]) for theirs, ours in names.items()}
    training: dict[str, Any] = {name: 0 for name in (_STEP, _TOKENS) if name in stored}
    whole: dict[str, Any] = {**weights, **training}
    try:
        with warnings.catch_warnings(action="ignore"):  # that this is one process
            load(whole, storage_reader=reader, no_dist=True)
    except (OSError, CheckpointException) as error:
        reason = plain_reason(error) if isinstance(error, OSError) else "a file is missing or damaged"
        raise UserError(f"the checkpoint {shown} cannot be read: {reason}; use another one") from None
    return {ours: whole[theirs] for theirs, ours in names.items()}, {name: whole[name] for name in training}


def convert(folder: Path, target: Path, flavor: str, data: Path) -> ModelConfig:
    """Write the checkpoint folder `target`, without moments: export, eval and `--init-from` read it.

    Raises UserError.
    """
    shape, identity = shape_on(flavor, data)
    weights, training = read_weights(folder, shape)
    numbered = re.search(r"\d+$", folder.name)
    state = {
        "step": training.get(_STEP, int(numbered[0]) if numbered else 0),
        "tokens": training.get(_TOKENS, 0),
        "model": asdict(shape),
        "config": {"data_path": str(data.resolve())},
        "tokenizer": identity.to_json(),
        TERNARY: True,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, weights, {}, state)
    return shape


def main() -> None:
    """Run the command; exit code 2 for bad input, 1 where writing failed."""
    parser = argparse.ArgumentParser(prog="python -m nanochat_tui.train.titan.convert", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder step-N of torchtitan")
    parser.add_argument("target", type=Path, help="checkpoint folder to write")
    parser.add_argument("--config", required=True, choices=sorted(PRESETS), help="named shape that was trained")
    parser.add_argument("--data", required=True, type=Path, help="folder of the data, made by prepare-data")
    given = parser.parse_args()
    try:
        shape = convert(given.checkpoint, given.target, given.config, given.data)
    except UserError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(f"{display_safe(str(given.target))}: {shape.parameters:,} parameters")


if __name__ == "__main__":
    main()
