"""From a checkpoint of LoRA to an adapter file, in the GGUF form of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_tui.export.checkpoint import load_adapter, starting_model
from nanochat_tui.export.errors import ExportError
from nanochat_tui.export.staging import staged
from nanochat_tui.formats.adapters import read_adapter, write_adapter
from nanochat_tui.text import display_safe


def export_adapter(checkpoint: Path, target: Path, check: Callable[[Path, Path], None]) -> dict[str, Any]:
    """Write what a checkpoint trained next to a model's weights, read it back and compare, bit for bit.

    check: is given the file before it takes its place, and the GGUF file that the run started from, where that is still
    there; it may refuse by raising. Returns bytes, parameters, rank, alpha and the model's path. Raises CheckpointError
    for a checkpoint that cannot be read, ExportError for a file that is not what was written.
    """
    found, _, _ = load_adapter(checkpoint)
    found = replace(found, name=target.stem)
    model = starting_model(checkpoint)
    with staged([target]) as (place,):
        size = write_adapter(place, found)
        again = read_adapter(place)
        if again.alpha != np.float32(found.alpha) or again.pairs.keys() != found.pairs.keys():
            raise ExportError(f"{display_safe(target.name)} read back is another adapter; the disk may be damaged")
        for name, pair in found.pairs.items():
            if not all(np.array_equal(a, b) for a, b in zip(pair, again.pairs[name], strict=True)):
                raise ExportError(f"{name} in {display_safe(target.name)} read back differs; the disk may be damaged")
        if model.is_file():
            check(place, model)
    rank = len(next(iter(found.pairs.values()))[0])
    return {
        "gguf": str(target),
        "gguf_bytes": size,
        "parameters": found.parameters,
        "rank": rank,
        "alpha": found.alpha,
        "model": str(model),
    }
