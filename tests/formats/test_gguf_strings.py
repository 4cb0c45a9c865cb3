"""Strings of a GGUF file that are read many at a time are those that are read one by one, errors included."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from nanochat_tui.formats.gguf import header as gguf_header
from nanochat_tui.formats.gguf.header import Cursor
from nanochat_tui.formats.gguf.layout import LayoutError
from nanochat_tui.formats.gguf.strings import short_strings

PIECES = ("a", "b", "Ġ", "\0", "é", "中", "😀", "\x01", " ")


def packed(texts: list[str]) -> bytes:
    return b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in texts)


def one_by_one(cursor: Cursor, count: int) -> list[str]:
    found: list[str] = []
    try:
        cursor._texts_in_turn(count, "it", found)
    except UnicodeDecodeError:
        raise LayoutError("it holds text that is not UTF-8") from None
    return found


def together(cursor: Cursor, count: int) -> list[str]:
    return cursor.texts(count, "it")


def outcome(read: Callable[[Cursor, int], list[str]], data: bytes, count: int) -> tuple[object, int | None]:
    cursor = Cursor(data)
    try:
        return read(cursor, count), cursor.position
    except LayoutError as error:
        return str(error), None


def test_what_is_plain_is_read_at_once() -> None:
    texts = ["a", "Ġthe", "中文", "x" * 255, "z"]
    data = packed(texts)
    assert short_strings(data + packed(["follows"]), 5) == (texts, len(data))
    assert short_strings(data, 3) == (texts[:3], len(packed(texts[:3])))
    assert short_strings(data, 9) == (texts[:4], len(packed(texts[:4])))  # nothing proves where the last one ends


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 7, b"\0" * 30, b"\xff" * 30, packed(["x" * 256, "a"]), packed(["a\0b", "c"])]
)
def test_what_is_not_plain_is_left(data: bytes) -> None:
    assert short_strings(data, 10) == ([], 0)
    assert short_strings(packed(["a", "b"]), 0) == ([], 0)


@pytest.mark.parametrize("seed", range(20))
def test_every_mixture_reads_as_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    for _ in range(50):
        monkeypatch.setattr(gguf_header, "WINDOW", chance.choice([16, 40, 300, 1 << 16]))
        monkeypatch.setattr(gguf_header, "WORTHWHILE", chance.choice([1, 2, 8, 1024]))
        monkeypatch.setattr(gguf_header, "IN_TURN", chance.choice([1, 2, 5, 4096]))
        sizes = [1, 2, 3, 4, 5, 8] if chance.random() < 0.8 else [0, 1, 3, 8, 200, 255, 256, 257, 600]
        weights = [8, 8, 4, chance.choice([0, 0, 3]), 2, 1, 1, 1, 1]
        texts = ["".join(chance.choices(PIECES, weights, k=chance.choice(sizes))) for _ in range(chance.randrange(40))]
        data = bytearray(packed(texts) + chance.choice([b"", bytes(20), packed(["next"]), chance.randbytes(30)]))
        for _ in range(chance.choice([0, 0, 1, 2]) if data else 0):
            data[chance.randrange(len(data))] = chance.choice([0, 1, 255, 200])
        end = chance.randrange(len(data) + 1) if chance.random() < 0.3 else len(data)
        count = max(0, len(texts) + chance.choice([0, 0, 1, -2]))
        whole = bytes(data[:end])
        assert outcome(together, whole, count) == outcome(one_by_one, whole, count), (whole, count)
