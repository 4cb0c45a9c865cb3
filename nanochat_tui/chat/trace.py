"""What happens inside a model at its last token: the streams after every sub-layer, and what each would say.

The engine keeps no hidden states, so this is computed on the side, by a second forward pass in NumPy with float32
activations. It is for looking, not for text: differences to the engine are those of the engine's int8 rounding.
The logit lens reads the mean of the streams through the model's own last norm and head (nostalgebraist, 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.model.architectures import nanochat
from nanochat_tui.model.mhc import StreamMatrices, record_names, stream_matrices
from nanochat_tui.model.plain_forward import read_out, stream_states
from nanochat_tui.text import display_safe

Floats = NDArray[np.float32]
MOST_PARAMETERS = 200_000_000
"""Larger models would need a gigabyte of floats for a panel."""
MOST_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Trace:
    """The last token's way through L sub-layers (attention and feed-forward in turn) over N streams."""

    norms: Floats
    """Length of every stream after each sub-layer [L, N]."""
    cosines: Floats
    """Mean cosine between different streams [L]; 1 where there is one stream."""
    tops: tuple[int, ...]
    """The likeliest next token as read after each sub-layer."""
    shares: Floats
    """Its probability [L]."""

    @property
    def depth(self) -> int:
        """The first sub-layer after which the final token is the likeliest one."""
        return self.tops.index(self.tops[-1])

    @property
    def settled(self) -> int:
        """The first sub-layer from which on it stays so."""
        place = len(self.tops) - 1
        while place and self.tops[place - 1] == self.tops[-1]:
            place -= 1
        return place


class Tracer:
    """A nanochat model as float32 arrays. Raises `UserError` for other architectures and for large models."""

    def __init__(self, path: Path, mhc: Path | None = None) -> None:
        with read_gguf(path) as file:
            if not nanochat.is_nanochat(file.metadata):
                named = file.metadata.get("general.architecture")
                kind = display_safe(str(named.value), 40) if named is not None else "of an unnamed kind"
                raise UserError(
                    "Streams and decision depth are computed by a second pass outside the engine, which exists for "
                    f"nanochat models alone; this one is {kind}, so there are none. F3 shows what is in the file."
                )
            self.config = config = nanochat.from_metadata(file.metadata, file.tensors)
            if config.parameters > MOST_PARAMETERS:
                raise UserError(
                    f"The model has {config.parameters / 1e6:.0f} million parameters; streams and decision depth are "
                    f"computed by a second pass in floats for up to {MOST_PARAMETERS / 1e6:.0f} million, so there are "
                    "none. F3 shows its hyper-connections."
                )
            self._w: dict[str, Floats] = {
                name: file.array(name) for name in nanochat.parts(config) if not name.endswith("_mhc")
            }
            self.matrices: StreamMatrices | None = None
            if config.n_streams > 1:
                if mhc is not None:
                    records = np.asarray(read_mhc(mhc).records, np.float32)
                else:
                    records = np.stack([file.array(name) for name in record_names(config.mhc_records)])
                self.matrices = stream_matrices(records, config.n_streams, config.mhc_version)

    def trace(self, ids: Sequence[int]) -> Trace:
        """Follow the last of `ids`. Raises `UserError` if there are none or too many."""
        c, w = self.config, self._w
        if not 0 < len(ids) <= MOST_TOKENS:
            raise UserError(f"The inside is shown for 1 to {MOST_TOKENS} tokens, not {len(ids)}.")
        # copies of the last token's: a view would keep the other tokens' in memory
        streams = np.stack([x[-1].copy() for x in stream_states(c, w, ids, self.matrices)])  # [L, N, dim]
        norms = np.linalg.norm(streams, axis=-1).astype(np.float32)
        unit = streams / np.maximum(norms[..., None], 1e-12)
        pairs = np.triu_indices(c.n_streams, 1)
        cosines = (
            np.einsum("lid,ljd->lij", unit, unit)[:, pairs[0], pairs[1]].mean(axis=-1) if c.n_streams > 1 else None
        )
        logits = read_out(c, w, streams)
        tops = logits.argmax(axis=-1)
        shares = 1.0 / np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
        flat = np.ones(len(streams), np.float32)
        return Trace(norms, flat if cosines is None else cosines.astype(np.float32), tuple(map(int, tops)), shares)
