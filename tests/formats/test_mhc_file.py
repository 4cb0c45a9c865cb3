import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nanochat_tui.errors import UserError
from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.mhc import read_mhc, write_mhc


def sidecar(version: int = 2, records: int = 2, streams: int = 2, floats: int | None = None) -> bytes:
    size = floats if floats is not None else records * {2: 9, 4: 40}.get(streams, 9)
    return struct.pack("<IIII", 0x6D484321, version, records, streams) + np.arange(size, dtype="<f4").tobytes()


def test_d20_has_448_bytes_and_the_layout_of_the_sheet(tmp_path: Path) -> None:
    records = np.arange(12 * 9, dtype=np.float32).reshape(12, 9)
    path = tmp_path / "d20.mhc"
    write_mhc(path, 2, records)
    data = path.read_bytes()
    assert len(data) == 448
    assert data[:16] == b"!CHm" + struct.pack("<III", 2, 12, 2)
    assert struct.unpack_from("<9f", data, 16 + 36 * 5) == tuple(range(45, 54))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("streams", "floats"), [(2, 9), (4, 40)])
def test_both_versions_and_stream_counts_are_read(version: int, streams: int, floats: int) -> None:
    found = read_mhc(sidecar(version, 3, streams))
    assert (found.version, found.n_streams, found.records.shape) == (version, streams, (3, floats))
    assert found.records.dtype == np.float32
    assert found.records[2, 1] == 2 * floats + 1


@given(
    streams=st.sampled_from([2, 4]),
    data=st.data(),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, streams: int, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 6)), {2: 9, 4: 40}[streams])
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    records = data.draw(hnp.arrays(np.float32, shape, elements=finite))
    path = tmp_path_factory.getbasetemp() / "round.mhc"
    write_mhc(path, streams, records)
    found = read_mhc(path)
    assert found.version == 2
    assert found.records.tobytes() == records.tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "less than the header"),
        (b"!CHm" + bytes(11), "less than the header"),
        (b"mHC!" + sidecar()[4:], "21 43 48 6d"),
        (sidecar(version=3), "version is 3"),
        (sidecar(version=0), "version is 0"),
        (sidecar(streams=3), "3 streams"),
        (sidecar(records=0), "0 records"),
        (sidecar(records=10_001, floats=9), "10001 records"),
        (sidecar(records=0xFFFFFFFF, floats=9), "4294967295 records"),
        (sidecar()[:-1], "take 88 bytes and the file has 87"),
        (sidecar() + b"\0", "take 88 bytes and the file has 89"),
        (sidecar()[:-4] + struct.pack("<f", float("nan")), "record 1 holds NaN"),
        (sidecar()[:16] + struct.pack("<f", float("-inf")) + sidecar()[20:], "record 0 holds NaN or infinity"),
    ],
)
def test_refusals(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.mhc"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(FormatError, match=reason) as caught:
            read_mhc(source)
        assert caught.value.exit_code == 2


def test_unreadable_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        read_mhc(tmp_path / "none.mhc")
    with pytest.raises(FormatError, match="is a folder"):
        read_mhc(tmp_path)
    huge = tmp_path / "huge.mhc"
    with huge.open("wb") as handle:  # sparse: reading it whole would take 8 GB
        handle.write(sidecar())
        handle.truncate(8 << 30)
    with pytest.raises(FormatError, match="larger than any can be"):
        read_mhc(huge)


@given(st.binary(max_size=200).map(lambda tail: b"!CHm" + tail) | st.binary(max_size=100))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    try:
        found = read_mhc(data)
    except UserError:
        return
    assert np.isfinite(found.records).all()


@pytest.mark.parametrize(
    ("streams", "records"),
    [
        (3, np.zeros((2, 9))),
        (2, np.zeros((2, 40))),
        (2, np.zeros(9)),
        (2, np.zeros((0, 9))),
        (4, np.zeros((10_001, 40))),
    ],
)
def test_writer_refuses_wrong_shapes(tmp_path: Path, streams: int, records: np.ndarray) -> None:
    with pytest.raises(FormatError):
        write_mhc(tmp_path / "a.mhc", streams, records)


def test_writer_refuses_what_is_not_finite(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(FormatError, match="NaN or infinity"):
            write_mhc(tmp_path / "a.mhc", 2, [[0, 0, 0, 0, bad, 0, 0, 0, 0]])
    assert not list(tmp_path.iterdir())
