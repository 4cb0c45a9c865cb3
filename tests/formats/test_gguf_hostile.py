"""GGUF files that are wrong: refused in one sentence, at no cost."""

import json
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import gguf_samples as samples
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import GGUFFile, read_gguf, write_gguf

HUGE = 2**64 - 1
TWO = [samples.info("a", [8], 0, 0), samples.info("b", [8], 0, 32)]


def key_of(kind: int, payload: bytes) -> bytes:
    return samples.container(keys=[samples.key("k", kind, payload)])


def one(dims: list[int], kind: int = 0, offset: int = 0, data: int = 32) -> bytes:
    return samples.container(infos=[samples.info("a", dims, kind, offset)], data=bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a GGUF file"),
        (b"GGU", "not a GGUF file"),
        (b"PK\3\4" + bytes(100), "not a GGUF file"),
        (samples.container(magic=b"GUGF"), "begins with GUGF, as files of the original"),
        (b"GGUF", "header runs past"),
        (samples.container()[:23], "header runs past"),
        (samples.container(version=1), "version 1"),
        (samples.container(version=4), "version 4"),
        (samples.container(version=0), "version 0"),
        (samples.container(version=3 << 24), "big-endian"),
        # counts
        (samples.container(n_keys=1), "claims 1 keys"),
        (samples.container(n_keys=HUGE), f"claims {HUGE} keys"),
        (samples.container(n_tensors=HUGE), f"claims {HUGE} tensors"),
        (samples.container(infos=TWO, data=bytes(64), n_tensors=9), "claims 9 tensors"),
        # keys
        (samples.container(keys=[samples.key("", 8, samples.text("x"))]), "has no name"),
        (samples.container(keys=[samples.key("k", 7, b"\1")] * 2), "the key k appears twice"),
        (samples.container(keys=[samples.key(b"\xff\xfe", 7, b"\1")]), "key 0 is not UTF-8"),
        (samples.container(keys=[samples.key("k" * 70_000, 7, b"\1")]), "more than 65535"),
        (samples.container(keys=[struct.pack("<Q", HUGE) + bytes(20)]), "more than 65535"),
        (key_of(13, bytes(8)), "unknown value type 13"),
        (key_of(7, b"\2"), "truth value of 2"),
        (key_of(8, struct.pack("<Q", HUGE)), "key k runs past"),
        (key_of(8, struct.pack("<Q", 1 << 40) + b"abc"), "key k runs past"),
        (key_of(8, samples.text(b"\xc3")), "key k is not UTF-8"),
        (key_of(4, b"\1\2"), "key k runs past"),
        # arrays
        (key_of(9, struct.pack("<IQ", 9, 1) + bytes(20)), "array of arrays"),
        (key_of(9, struct.pack("<IQ", 99, 1) + bytes(20)), "unknown value type 99"),
        (key_of(9, struct.pack("<IQ", 4, HUGE)), f"claims {HUGE} elements"),
        (key_of(9, struct.pack("<IQ", 4, 1 << 61)), "elements in the key k"),
        (key_of(9, struct.pack("<IQ", 12, 3) + bytes(23)), "claims 3 elements"),
        (key_of(9, struct.pack("<IQ", 8, 1 << 60)), "strings in the key k"),
        (key_of(9, struct.pack("<IQQ", 8, 1, HUGE)), "key k runs past"),
        (key_of(9, struct.pack("<IQ", 8, 2) + samples.text("12345678")), "key k runs past"),
        (key_of(9, struct.pack("<IQ", 8, 1) + samples.text(b"\xff")), "not UTF-8"),
        (key_of(9, struct.pack("<IQ", 7, 2) + b"\1\3"), "neither 0 nor 1"),
        # alignment
        (samples.container(keys=[samples.key("general.alignment", 4, struct.pack("<I", 0))]), "power of two"),
        (samples.container(keys=[samples.key("general.alignment", 4, struct.pack("<I", 48))]), "power of two"),
        (samples.container(keys=[samples.key("general.alignment", 4, struct.pack("<I", 1 << 31))]), "power of two"),
        (samples.container(keys=[samples.key("general.alignment", 10, struct.pack("<Q", 32))]), "type u64"),
        # tensors
        (samples.container(infos=[samples.info("", [8], 0, 0)], data=bytes(32)), "has no name"),
        (samples.container(infos=[TWO[0], TWO[0]], data=bytes(64)), "the tensor a appears twice"),
        (samples.container(infos=[samples.info(b"\xff", [8], 0, 0)], data=bytes(32)), "tensor 0 is not UTF-8"),
        (samples.container(infos=[samples.info("a" * 300, [8], 0, 0)], data=bytes(32)), "more than 255"),
        (one([]), "0 dimensions"),
        (one([1, 1, 1, 1, 8]), "5 dimensions"),
        (one([8, 0]), "impossible dimensions"),
        (one([2**32, 2**32]), "impossible dimensions"),
        (one([HUGE]), "impossible dimensions"),
        (one([2**62]), "takes 18446744073709551616 bytes"),
        (one([9]), "takes 36 bytes and has 32"),
        (one([30], 8), "rows of tensor a have 30 elements"),
        (one([2**40], 999), "claims 1099511627776 elements in 32 bytes"),
        # offsets
        (one([8], offset=1 << 63), "begins 9223372036854775808 bytes into the data"),
        (one([8], offset=32, data=64), "begins 32 bytes into the data"),
        (samples.container(infos=TWO, data=bytes(63)), "takes 32 bytes and has 31"),
        (samples.container(infos=TWO, data=bytes(32)), "beyond the end of the file"),
        (samples.container(infos=TWO), "beyond the end of the file"),
        (samples.container(infos=[TWO[0], samples.info("b", [8], 0, 0)], data=bytes(64)), "a and b overlap"),
        (samples.container(infos=[samples.info("a", [9], 0, 0), TWO[1]], data=bytes(64)), "takes 36 bytes and has 32"),
        (samples.container(infos=[TWO[0], samples.info("b", [8], 0, 40)], data=bytes(96)), "not a multiple of 32"),
        (samples.container(infos=[TWO[0], samples.info("b", [8], 0, 64)], data=bytes(96)), "takes 32 bytes and has 64"),
        (samples.container(infos=[TWO[0], samples.info("b", [8], 0, HUGE - 31)], data=bytes(96)), "beyond the end"),
        # what a foreign meaning of an id looks like: 100 bytes per 256 elements is no Q8_0
        (one([256], 8, data=100), "Q8_0 takes 272 bytes and has 100"),
    ],
)  # fmt: skip
def test_refused_in_one_sentence_without_allocating(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reason in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert peak < (1 << 20)


def test_control_characters_in_names_are_not_printed() -> None:
    name = "a\x1b[31m\n\u202e"
    with pytest.raises(FormatError) as caught:
        GGUFFile(samples.container(infos=[samples.info(name, [0], 0, 0)], data=bytes(32)))
    assert all(c.isprintable() for c in str(caught.value))


def test_things_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(FormatError, match="not a regular file"):
        read_gguf(tmp_path)
    with pytest.raises(FormatError, match="null byte"):
        read_gguf("a\0b")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would wait for ever
    with pytest.raises(FormatError, match="not a regular file"):
        read_gguf(pipe)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    for prefix in (b"", b"GGUF", b"GGUF" + struct.pack("<I", 3), b"GGUF" + struct.pack("<IQQ", 3, 1, 1)):
        try:
            file = GGUFFile(prefix + data)
        except FormatError:
            continue
        assert file.size == len(prefix + data)


@given(
    keys=st.lists(
        st.builds(
            samples.key,
            st.binary(max_size=4),
            st.integers(0, 14),
            st.one_of(
                st.binary(max_size=12),
                st.builds(
                    lambda element, count, tail: struct.pack("<IQ", element, count) + tail,
                    st.integers(0, 14),
                    st.integers(0, 6) | st.integers(0, HUGE),
                    st.binary(max_size=24),
                ),
            ),
        ),
        max_size=3,
    ),
    infos=st.lists(
        st.builds(
            samples.info,
            st.binary(max_size=4),
            st.lists(st.integers(0, 600) | st.sampled_from([2048, 4096]) | st.integers(0, HUGE), max_size=5),
            st.integers(0, 45) | st.sampled_from([42, 142, 143, 253, 2**32 - 1]),
            st.integers(0, 20).map(lambda n: 32 * n) | st.integers(0, HUGE),
        ),
        max_size=4,
    ),
    data=st.binary(max_size=600),
    counts=st.tuples(st.none() | st.integers(0, HUGE), st.none() | st.integers(0, HUGE)),
)
def test_well_formed_nonsense_raises_nothing_else(
    keys: list[bytes], infos: list[bytes], data: bytes, counts: tuple[int | None, int | None]
) -> None:
    whole = samples.container(keys=keys, infos=infos, data=data, n_keys=counts[0], n_tensors=counts[1])
    try:
        file = GGUFFile(whole)
        for name in file.tensors:
            file.raw(name)
            file.array(name)
    except FormatError:
        pass


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(path, samples.metadata(5), samples.tensors(["F32", "Q8_0", "PQ2_0"]))
    whole = path.read_bytes()
    padding = -samples.tensors(["PQ2_0"])[0].data.nbytes % 32  # may be lost without harm
    header = whole.index(b"blk.0.PQ2_0") + 60
    for length in (*range(header), *range(header, len(whole) - padding, 97), len(whole) - padding - 1):
        with pytest.raises(FormatError):
            GGUFFile(whole[:length])


def mutants(folder: Path, count: int, seed: int) -> dict[str, float]:
    """Read mutants in a process of their own, under limits; see gguf_mutations."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", here / "gguf_mutations.py", folder, str(count), str(seed)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
@pytest.mark.parametrize("count", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_mutants_of_a_real_file(tmp_path: Path, count: int) -> None:
    found = mutants(tmp_path, count, seed=count)
    assert found["loaded"] + found["refused"] == count
    # the aim is good only if mutants die of many causes and some live
    assert found["loaded"] > count // 50
    assert found["reasons"] > 60
    assert found["grown_bytes"] < 200 << 20
