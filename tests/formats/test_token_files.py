from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat_tui.formats import tokens as token_files
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.tokens import TokenWriter, open_tokens


@given(
    dtype=st.sampled_from(["u16", "u32"]),
    pieces=st.lists(st.lists(st.integers(0, 65_535)), min_size=1).filter(any),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, dtype: Literal["u16", "u32"], pieces: list[list[int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.bin"
    with TokenWriter(path, dtype) as out:
        for piece in pieces:
            out.write(piece)
    flat = [token for piece in pieces for token in piece]
    assert out.count == len(flat)
    assert path.stat().st_size == len(flat) * {"u16": 2, "u32": 4}[dtype]
    found = open_tokens(path, dtype, vocab_size=65_536)
    assert found.tolist() == flat
    assert not found.flags.writeable


def test_bytes_are_bare_little_endian(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with TokenWriter(path, "u32") as out:
        out.write(np.array([50_256, 1]))
    assert path.read_bytes() == bytes.fromhex("50c40000 01000000")


def test_sizes_that_do_not_divide_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"123456")
    assert open_tokens(path, "u16").size == 3
    with pytest.raises(FormatError, match="6 bytes, which is not a whole number of u32"):
        open_tokens(path, "u32")
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="holds no tokens"):
        open_tokens(path, "u16")
    with pytest.raises(FormatError, match="cannot be read"):
        open_tokens(tmp_path / "none.bin", "u16")
    with pytest.raises(FormatError, match="u16 or u32"):
        open_tokens(path, "u8")  # type: ignore[arg-type]


def test_ids_outside_the_vocabulary_are_found_in_any_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "_SCAN", 4)
    path = tmp_path / "a.bin"
    np.array([1, 2, 3, 4, 5, 6, 99, 7, 8], dtype="<u2").tofile(path)
    with pytest.raises(FormatError, match="id 99 at position 6"):
        open_tokens(path, "u16", vocab_size=99)
    assert open_tokens(path, "u16", vocab_size=100).size == 9


@pytest.mark.parametrize("ids", [[-1], [65_536], [[1]], [0.5]])
def test_writer_refuses_ids_that_do_not_fit_and_leaves_nothing(tmp_path: Path, ids: list[object]) -> None:
    with pytest.raises(FormatError), TokenWriter(tmp_path / "a.bin", "u16") as out:
        out.write([1, 2])
        out.write(ids)
    assert not list(tmp_path.iterdir())


def test_writer_knows_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="token id 257"), TokenWriter(tmp_path / "a", "u16", vocab_size=257) as out:
        out.write([256, 257])
