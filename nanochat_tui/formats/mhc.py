"""The `.mhc` sidecar: the hyper-connection parameters of a model, one fixed record per sub-layer.

Little-endian, no padding, no checksum: u32 magic 0x6D484321 (the bytes `!CHm`), u32 version, u32 number of
records, u32 number of streams, then the records as float32. A record is, for N = 2 streams, 9 floats:
alpha_logit, pre_logits[2], pre_bias[2], post_logits[2], post_bias[2]; for N = 4 it is 40 floats:
res_logits[24], pre_logits[4], pre_bias[4], post_logits[4], post_bias[4]. Records run block 0 attention,
block 0 feed-forward, block 1 attention and so on. Versions 1 and 2 have the same bytes and differ in
meaning for N = 4 (whether the write is mixed too, and the factor of q), which is the model's affair.
Source: nanochat-rs-ternary.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nanochat_tui.files import atomic_write
from nanochat_tui.formats.errors import FormatError, unreadable
from nanochat_tui.formats.recognise import HEAD_BYTES, recognise, require_regular
from nanochat_tui.text import display_safe

MAGIC = b"!CHm"
HEADER = struct.Struct("<4s3I")
RECORD_FLOATS = {2: 9, 4: 40}
"""Floats of one record by number of streams."""
MAX_RECORDS = 10_000
"""More than any model has; the original's own limit."""


@dataclass(frozen=True, slots=True, eq=False)
class MhcFile:
    """What a `.mhc` file holds: records is float32 [n_records, 9 or 40], finite, in the file's order."""

    version: int
    n_streams: int
    records: NDArray[np.float32]


def read_mhc(source: str | os.PathLike[str] | bytes) -> MhcFile:
    """Read a `.mhc` file from a path or from its bytes.

    Raises FormatError if it is not one: wrong magic, version, stream or record count, size, NaN, infinity.
    """
    if isinstance(source, bytes):
        return _parse(source, "the mHC data")
    label = display_safe(str(source))
    limit = HEADER.size + MAX_RECORDS * 4 * max(RECORD_FLOATS.values())
    try:
        require_regular(source)
        with Path(source).open("rb") as handle:
            data = handle.read(limit + 1)
    except (OSError, ValueError) as error:
        raise unreadable(source, error) from error
    if len(data) > limit:
        raise FormatError(f"{label} is not an .mhc file: it is larger than any can be; check which file was given")
    return _parse(data, label)


def _parse(data: bytes, label: str) -> MhcFile:
    def refuse(what: str) -> FormatError:
        return FormatError(f"{label} is not a sound .mhc file: {what}; export it again with the model")

    if len(data) < HEADER.size:
        raise refuse(f"its {len(data)} bytes are less than the header of {HEADER.size}")
    magic, version, n_records, n_streams = HEADER.unpack_from(data)
    if magic != MAGIC:
        what = recognise(data[:HEAD_BYTES]) or f"it begins with {magic.hex(' ')} and not with {MAGIC.hex(' ')}"
        raise refuse(what)
    if version not in (1, 2):
        raise refuse(f"its version is {version} and only 1 and 2 are known")
    if n_streams not in RECORD_FLOATS:
        raise refuse(f"it claims {n_streams} streams and only 2 and 4 exist")
    if not 1 <= n_records <= MAX_RECORDS:
        raise refuse(f"it claims {n_records} records, which is outside 1 to {MAX_RECORDS}")
    floats = RECORD_FLOATS[n_streams]
    expected = HEADER.size + 4 * floats * n_records
    if len(data) != expected:
        raise refuse(f"{n_records} records of {n_streams} streams take {expected} bytes and the file has {len(data)}")
    records = np.frombuffer(data, "<f4", offset=HEADER.size).reshape(n_records, floats).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(records).all(axis=1))
    if bad.size:
        raise refuse(f"record {bad[0]} holds NaN or infinity")
    return MhcFile(version, n_streams, records)


def write_mhc(path: str | os.PathLike[str], n_streams: int, records: ArrayLike) -> None:
    """Write version 2 of the sidecar, atomically: 16 + 4·9·n bytes for two streams (448 for d20).

    Parameters: n_streams 2 or 4; records [n, 9 or 40], stored as float32.
    Raises FormatError for a wrong shape, count or a value that is not finite; WriteError from the system.
    """
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinity, which is refused below
        rows = np.asarray(records, dtype=np.float64).astype("<f4")
    floats = RECORD_FLOATS.get(n_streams)
    if floats is None:
        raise FormatError(f"an .mhc file holds 2 or 4 streams, not {n_streams}; a plain residual needs no file")
    if rows.ndim != 2 or rows.shape[1] != floats or not 1 <= rows.shape[0] <= MAX_RECORDS:
        raise FormatError(
            f"mHC records of {n_streams} streams are 1 to {MAX_RECORDS} rows of {floats} floats, not {list(rows.shape)}"
        )
    if not np.isfinite(rows).all():
        raise FormatError("an mHC record holds NaN or infinity; the training run it comes from has diverged")
    with atomic_write(path) as handle:
        handle.write(HEADER.pack(MAGIC, 2, rows.shape[0], n_streams))
        handle.write(rows.tobytes())
