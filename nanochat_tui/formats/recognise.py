"""What a file is that should have been another: told by its first bytes, for error messages."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.text import display_safe

HEAD_BYTES = 512
"""Bytes from the start of a file that `recognise` looks at."""

_AGAIN = "download the file itself"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; run git lfs pull, or " + _AGAIN),
    (b"version https://hawser", "a Git LFS pointer in place of the file; run git lfs pull, or " + _AGAIN),
    (b"PK\x03\x04", "a ZIP archive or a PyTorch checkpoint; convert it to GGUF first"),
    (b"\x80\x02", "a pickled PyTorch checkpoint; convert it to GGUF first"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it first"),
    (b"FUGG", "big-endian GGUF; convert it with gguf_convert_endian"),
    (b"tjgg", "a GGML file from before August 2023; use a GGUF file of this model"),
    (b"fmgg", "a GGML file from before August 2023; use a GGUF file of this model"),
    (b"lmgg", "a GGML file from before August 2023; use a GGUF file of this model"),
    (b"GGUF", "a GGUF model"),
    (b"GUGF", "a model of the original nanochat-rs-ternary"),
    (b"!CHm", "an mHC sidecar (.mhc)"),
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
)


def recognise(head: bytes) -> str | None:
    """Return what a file is that begins so and what to do, as the end of "… is …"; None if it cannot be told.

    head: the first `HEAD_BYTES` bytes, or all of a shorter file.
    """
    if not head:
        return "empty; download it again"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return "a web page in place of the file (a login or error page?); " + _AGAIN
    if text.startswith(b"{") and b'"' in text:
        return "JSON text, perhaps a server's error message; " + _AGAIN
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file; convert it to GGUF first"
    if not head.strip(b"\0"):
        return "filled with zero bytes, as an interrupted download leaves it; download it again"
    return None


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise FormatError unless a path leads to a regular file: reading a pipe or a device may never end.

    Raises OSError as `stat` does.
    """
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise FormatError(f"{display_safe(str(path))} is {kind} and not a regular file; give the path of a file")
