"""A file that is not what it is called is named as what it is, and nothing but a regular file is opened."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat_tui.errors import UserError
from nanochat_tui.export.original import import_gugf
from nanochat_tui.formats.gguf import read_gguf
from nanochat_tui.formats.mhc import read_mhc
from nanochat_tui.formats.tokens import open_tokens
from nanochat_tui.model.tokenizer import load_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 16892736\n"
HEADS = {
    "git lfs pull": POINTER,
    "a web page": b"\xef\xbb\xbf\n<!DOCTYPE html><html><head><title>401</title>",
    "JSON text": b'{"error": "Repository not found"}',
    "ZIP archive": b"PK\x03\x04rest of it",
    "gzip": b"\x1f\x8b\x08\x00",
    "safetensors": struct.pack("<Q", 40) + b'{"__metadata__":{}}',
    "before August 2023": b"tjgg" + bytes(30),
    "zero bytes": bytes(64),
    "empty": b"",
    "1b 7c e3 4d": b"\x1b|\xe3M....",
}


@pytest.mark.parametrize("words", HEADS)
def test_a_model_that_is_something_else_is_named(words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HEADS[words])
    with pytest.raises(UserError, match=words) as caught:
        read_gguf(path)
    text = str(caught.value)
    assert "b'" not in text and "\\x" not in text and "\n" not in text
    with pytest.raises(UserError, match=words):
        import_gugf(path)


@pytest.mark.parametrize("read", [load_tokenizer, read_mhc])
def test_other_files_are_named_too(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "file"
    for words in ("git lfs pull", "a web page"):
        path.write_bytes(HEADS[words])
        with pytest.raises(UserError, match=words):
            read(path)


def test_a_tokenizer_of_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"\xff\xfe{\0")
    with pytest.raises(UserError, match="not UTF-8 JSON"):
        load_tokenizer(path)
    path.write_text(json.dumps({"model": {"type": "unheard of"}}))
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        load_tokenizer(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX's")
@pytest.mark.parametrize("read", [read_gguf, read_mhc, load_tokenizer, lambda p: open_tokens(p, "u16")])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_only_regular_files_are_opened(read: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    else:
        path.mkdir()
    with pytest.raises(UserError, match="not a regular file"):
        read(path)
