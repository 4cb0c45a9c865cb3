"""A data set in one small file to carry to another machine: the training documents that fit, and the validation part.

The file is a tar of dataset.json, val_documents.json and the token files, each of those compressed by xz.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from nanochat_tui.errors import UserError
from nanochat_tui.files import atomic_folder, atomic_write
from nanochat_tui.formats.tokens import open_tokens
from nanochat_tui.text import display_safe

_STEP = 1 << 19
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 26}]
_HIGHEST_PART = 1 << 33
"""No token file of a pack may unpack to more bytes."""


def pack(data: Path, target: Path, limit: int) -> dict[str, Any]:
    """Write `target`, at most `limit` bytes, from the data set in `data`; returns the description packed.

    Training documents are taken in their order, which is random by crate, until the limit is reached.

    Raises:
        UserError: `data` is no data set, or `limit` leaves no room for the validation part.
    """
    try:
        info: dict[str, Any] = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        documents = (data / "val_documents.json").read_bytes()
        validation = lzma.compress((data / "val.bin").read_bytes(), filters=_FILTERS)
        train = open_tokens(data / "train.bin", info["dtype"])
        end = int(info["eot_id"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{display_safe(str(data))} is not a data set that can be packed: {error}") from None
    room = limit - len(validation) - len(documents) - 64 * 1024
    if room <= 0:
        raise UserError(f"{limit} bytes do not hold even the validation part; allow more")
    compressor = lzma.LZMACompressor(filters=_FILTERS)
    parts: list[bytes] = []
    size = taken = 0
    # xz keeps some megabytes back, at most what it was given last
    while taken < train.size and size + 2 * _STEP * train.itemsize < room:
        piece = np.asarray(train[taken : taken + _STEP])
        if taken + len(piece) < train.size:
            ends = np.flatnonzero(piece == end)
            piece = piece[: ends[-1]] if len(ends) and ends[-1] else piece
        parts.append(compressor.compress(piece.tobytes()))
        size += len(parts[-1])
        taken += len(piece)
    parts.append(compressor.flush())
    count = np.asarray(train[:taken])
    info["splits"]["train"] = {
        "documents": int((count == end).sum()),
        "tokens": taken,
        "sha256": hashlib.sha256(count.tobytes()).hexdigest(),
        "packed_from_tokens": int(train.size),
    }
    contents = {
        "dataset.json": json.dumps(info, indent=2).encode(),
        "val_documents.json": documents,
        "val.bin.xz": validation,
        "train.bin.xz": b"".join(parts),
    }
    with atomic_write(target) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return info


def unpack(source: Path, folder: Path) -> None:
    """Write the data set of a packed file to `folder`, which must not be there.

    Raises:
        UserError: the file is none of `pack`'s or damaged, or `folder` is there.
    """
    if folder.exists():
        raise UserError(f"{display_safe(str(folder))} is there already; name a new folder")
    try:
        with tarfile.open(source) as tar, atomic_folder(folder) as place:
            for name in ("dataset.json", "val_documents.json", "val.bin.xz", "train.bin.xz"):
                member = tar.extractfile(name)
                if member is None:
                    raise KeyError(name)
                content = member.read()
                if name.endswith(".xz"):
                    content = lzma.LZMADecompressor().decompress(content, _HIGHEST_PART)
                (place / name.removesuffix(".xz")).write_bytes(content)
            info = json.loads((place / "dataset.json").read_text(encoding="utf-8"))
            for split in ("train", "val"):
                found = hashlib.sha256((place / f"{split}.bin").read_bytes()).hexdigest()
                if found != info["splits"][split]["sha256"]:
                    raise KeyError(f"{split}.bin")
    except (OSError, tarfile.TarError, lzma.LZMAError, KeyError, ValueError) as error:
        raise UserError(f"{display_safe(str(source))} cannot be unpacked, it is damaged: {error}") from None
