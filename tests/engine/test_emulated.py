"""The AArch64 kernels run, by qemu: the same bits as this machine's own.

The kernels are compiled to an object for AArch64 and linked with a few lines of C that read a block of memory, put
addresses into it, call one kernel, and write the block out again. Needs `aarch64-linux-gnu-gcc` (with its C library)
and `qemu-aarch64`, in Debian the packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_support import EVERY_NAME, kernels_for
from test_kernels import activations_of, floats_of, lay_out, scales_for
from test_tables import NESTED, PLAIN, random_blocks, some_of

from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import round_up
from nanochat_tui.engine.layout.slots import KV_F16, KV_F32, KV_INT8
from nanochat_tui.engine.simd.isa import ISAS
from nanochat_tui.engine.simd.library import KERNELS, Target, compile_object
from nanochat_tui.engine.simd.objects import symbol
from nanochat_tui.engine.weights.pack import Packed, pack_dense, pack_ternary
from nanochat_tui.engine.weights.pack_blocks import KIND_OF_TYPE, pack_blocks

COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="needs aarch64-linux-gnu-gcc (Debian: gcc-aarch64-linux-gnu)"),
    pytest.mark.skipif(EMULATOR is None, reason="needs qemu-aarch64 (Debian: qemu-user)"),
]
ATTEND = [f"attend_{n}_{kind}" for n in (1, 2) for kind in ("f32", "f16", "int8")]
CALLED = (
    *("matrix_product", "matrix_row", "quantise", "silu_multiply", "rope", "mix_write_2", "rms_norm"),
    *("block_statistics", "store_key", "store_value", "scale_query", "attend_begin", "attend_end", *ATTEND),
)
MOST = 18
MAIN = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef int64_t i;
typedef void (*kernel)(i, i, i, i, i, i, i, i, i, i, i, i, i, i, i, i, i, i, float);  /* which has a register apart */
%s
static const struct { const char *name; void (*address)(void); } kernels[] = { %s };
int main(int count, char **names) {
    i header[4 + 2 * 18], addresses[64];  /* bytes, arguments, addresses; pairs (is an address, value); a float */
    if (fread(header, 8, 40, stdin) != 40) return 2;
    float number;
    memcpy(&number, &header[39], 4);
    char *memory = aligned_alloc(64, header[0]);
    if (fread(addresses, 8, header[2], stdin) != (size_t)header[2]) return 3;
    if (fread(memory, 1, header[0], stdin) != (size_t)header[0]) return 4;
    for (i n = 0; n < header[2]; n++) *(i *)(memory + addresses[n]) += (i)memory;
    i a[18];
    for (i n = 0; n < 18; n++) a[n] = header[4 + 2 * n] + (header[3 + 2 * n] ? (i)memory : 0);
    for (size_t n = 0; n < sizeof kernels / sizeof *kernels; n++)
        if (!strcmp(kernels[n].name, names[1]))
            ((kernel)kernels[n].address)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11],
                                         a[12], a[13], a[14], a[15], a[16], a[17], number);
    fwrite(memory, 1, header[0], stdout);
    return 0;
}
"""


class Machine:
    """An AArch64 program with one instruction set's kernels for some kinds of matrices."""

    def __init__(self, folder: Path, name: str, some: frozenset[int]) -> None:
        self.isa, self.group = ISAS[name], 128
        features = "+neon,+dotprod" if name == "neon-dotprod" else "+neon"
        target = Target(self.isa, 128, "generic", features, some, "aarch64-unknown-linux-gnu")
        (folder / "kernels.o").write_bytes(compile_object(target))
        declared = "".join(f"void {symbol(kernel)}(void);\n" for kernel in CALLED)
        table = ", ".join(f'{{"{kernel}", {symbol(kernel)}}}' for kernel in CALLED)
        (folder / "main.c").write_text(MAIN % (declared, table))
        self.program = folder / "program"
        command = [str(COMPILER), "-O1", "-static", "-o", str(self.program), "main.c", "kernels.o", "-lm"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if "cannot find -lc" in done.stderr or "stdint.h: No such file" in done.stderr:
            pytest.skip("the AArch64 C library is missing (Debian: libc6-dev-arm64-cross)")
        assert done.returncode == 0, done.stderr

    def call(self, name: str, *arguments: np.ndarray | float, pointers: dict[int, np.ndarray] | None = None) -> None:
        """Call a kernel; arrays are changed in place. pointers: int64 of argument 0 that are addresses of arrays.

        One argument at most is a float, and it is the last.
        """
        number = np.zeros(2, np.float32)
        if isinstance(arguments[-1], float):
            number[0], arguments = arguments[-1], arguments[:-1]
        arrays: list[np.ndarray] = [a for a in arguments if isinstance(a, np.ndarray)]
        arrays += (pointers or {}).values()
        unique = list({id(a): a for a in arrays}.values())
        starts, size = {}, 64
        for array in unique:
            starts[id(array)] = size
            size += round_up(array.nbytes + 64, 64)
        header = np.zeros(4 + 2 * MOST, np.int64)
        header[-1] = number.view(np.int64)[0]
        header[:3] = size, len(arguments), len(pointers or {})
        for n, argument in enumerate(arguments):
            is_array = isinstance(argument, np.ndarray)
            header[3 + 2 * n : 5 + 2 * n] = is_array, starts[id(argument)] if is_array else argument
        memory = bytearray(size)
        for array in unique:
            memory[starts[id(array)] : starts[id(array)] + array.nbytes] = array.tobytes()
        places = []
        for slot, array in (pointers or {}).items():
            at = starts[id(arguments[0])] + 8 * slot
            memory[at : at + 8] = np.int64(starts[id(array)]).tobytes()
            places.append(at)
        sent = header.tobytes() + np.array(places, np.int64).tobytes() + bytes(memory)
        command = [str(EMULATOR), "-cpu", "max", str(self.program), name]
        done = subprocess.run(command, input=sent, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) == size
        for array in unique:
            if array.flags.writeable and not (pointers and array is arguments[0]):
                found = done.stdout[starts[id(array)] : starts[id(array)] + array.nbytes]
                array[...] = np.frombuffer(found, array.dtype).reshape(array.shape)


@pytest.fixture(scope="module", params=["neon-dotprod", "portable"])
def machines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Machine]:
    sets = {"plain": PLAIN | {*kinds.TERNARY_NAMES}, "nested": NESTED}
    return {name: Machine(tmp_path_factory.mktemp(name), request.param, some) for name, some in sets.items()}


def product(k, kind: int, packed: Packed, x: np.ndarray, a: np.ndarray, tile: int) -> np.ndarray:
    """Run `matrix_product` by a machine or this one's kernels."""
    blocks, rounded = round_up(packed.rows, 16) // 16, round_up(len(x), tile)
    y, a = np.zeros((rounded, blocks * 16), np.float32), scales_for(kind, x, a)
    floats = np.ascontiguousarray(floats_of(x, a), np.float32)
    matrix = np.zeros(s.MATRIX_SLOTS, np.int64)
    matrix[s.MATRIX_KIND], matrix[s.MATRIX_COLUMNS], matrix[s.MATRIX_PADDED] = kind, packed.columns, x.shape[1]
    scratch = np.zeros(1, np.int32)
    sums, scale = (scratch, scratch) if kind in kinds.DENSE else activations_of(k, kind, x, a, tile)
    arguments = (tile, lay_out(x, tile), sums, scale, floats, floats.strides[0], scratch, y, y.strides[0],
                 0, blocks, len(x), 0, rounded // tile, 1)  # fmt: skip
    if isinstance(k, Machine):
        pointers = {s.MATRIX_WEIGHTS: packed.weights, s.MATRIX_SCALES: packed.scales}
        k.call("matrix_product", matrix, *arguments, pointers=pointers)
    else:
        matrix[s.MATRIX_WEIGHTS], matrix[s.MATRIX_SCALES] = packed.weights.ctypes.data, packed.scales.ctypes.data
        k.matrix_product(matrix, *arguments)
    return y[: len(x), : packed.rows]


def matrix_of(kind: int, isa, columns: int) -> Packed:
    rng = np.random.default_rng(kind)
    if kind in kinds.DENSE:
        values = rng.normal(size=(37, columns)).astype(np.float16 if kind == kinds.F16 else np.float32)
        return pack_dense((values.view(np.uint32) >> 16).astype(np.uint16) if kind == kinds.BF16 else values, 16)
    if kind in kinds.TERNARY_NAMES:
        packed = pack_ternary(
            rng.integers(0, 4, (37, columns)).astype(np.uint8),
            rng.uniform(0.01, 0.2, (37, columns // 128)).astype(np.float16),
            128,
        )
        row_scales = rng.uniform(0.01, 0.2, 48).astype(np.float32)
        return packed if kind != kinds.TERNARY_ROW else Packed(packed.weights, row_scales, 37, columns)  # type: ignore[arg-type]
    name = next(name for name, number in KIND_OF_TYPE.items() if number == kind)
    return pack_blocks(name, random_blocks(name, 37, columns), columns, bias=isa.q8_bias)


@pytest.mark.parametrize("kind", sorted(kinds.ALL))
def test_products_have_the_same_bits(kind: int, machines: dict[str, Machine]) -> None:
    some = some_of(kind) | ({*kinds.TERNARY_NAMES} if kind not in NESTED else set())
    here, there = kernels_for(EVERY_NAME[0], some=frozenset(some)), machines["nested" if kind in NESTED else "plain"]
    rng = np.random.default_rng(1)
    for tile, tokens in ((1, 1), (2, 2), (4, 7)):
        x = rng.integers(-127, 128, (tokens, 512)).astype(np.int8)
        a = rng.uniform(
            0.001, 0.1, (tokens, 1 if kind in kinds.PER_TOKEN else 512 // kinds.scale_columns(kind))
        ).astype(np.float32)
        wanted = product(here, kind, matrix_of(kind, here.isa, 512), x, a, tile)
        found = product(there, kind, matrix_of(kind, there.isa, 512), x, a, tile)
        assert np.abs(wanted).max() > 0
        np.testing.assert_array_equal(wanted.view(np.int32), found.view(np.int32))


@pytest.mark.parametrize("kind", sorted(kinds.ALL))
def test_rows_have_the_same_bits(kind: int, machines: dict[str, Machine]) -> None:
    some = some_of(kind) | ({*kinds.TERNARY_NAMES} if kind not in NESTED else set())
    here, there = kernels_for(EVERY_NAME[0], some=frozenset(some)), machines["nested" if kind in NESTED else "plain"]
    results = []
    for k in (here, there):
        packed, out = matrix_of(kind, k.isa, 512), np.zeros(512, np.float32)
        matrix = np.zeros(s.MATRIX_SLOTS, np.int64)
        matrix[s.MATRIX_KIND], matrix[s.MATRIX_COLUMNS], matrix[s.MATRIX_PADDED] = kind, 512, 512
        if isinstance(k, Machine):
            pointers = {s.MATRIX_WEIGHTS: packed.weights, s.MATRIX_SCALES: packed.scales}
            k.call("matrix_row", matrix, 21, out, pointers=pointers)
        else:
            matrix[s.MATRIX_WEIGHTS], matrix[s.MATRIX_SCALES] = packed.weights.ctypes.data, packed.scales.ctypes.data
            k.matrix_row(matrix, 21, out)
        results.append(out)
    assert np.abs(results[0]).max() > 0
    np.testing.assert_array_equal(results[0].view(np.int32), results[1].view(np.int32))


def test_row_wise_kernels_have_the_same_bits(machines: dict[str, Machine]) -> None:
    here, there, rng = kernels_for(EVERY_NAME[0]), machines["plain"], np.random.default_rng(4)
    x = rng.normal(size=256).astype(np.float32)
    other = rng.normal(size=(2, 256)).astype(np.float32)
    for name in ("quantise", "silu_multiply", "rope", "mix_write_2"):
        results = []
        for k in (here, there):
            row, streams, out = x.copy(), other.copy(), np.zeros(256, np.float32)
            q, init, scale = np.zeros(256, np.int8), np.zeros(8, np.int32), np.zeros(16, np.float32)
            arguments = {
                "quantise": (row, 256, 256, q, 4, init, 4, 3, scale, 32),
                "silu_multiply": (row, streams, out, 256),
                "rope": (row[:64].copy(), streams, 64),
                "mix_write_2": (streams, row, np.linspace(0, 1, 24).astype(np.float32), 256),
            }[name]
            if isinstance(k, Machine):
                k.call(name, *arguments)
            else:
                getattr(k, name)(*arguments)
            results.append([a for a in arguments if isinstance(a, np.ndarray)])
        for wanted, found in zip(*results, strict=True):
            np.testing.assert_array_equal(wanted, found)


def call(k, name: str, *arguments: np.ndarray | float) -> None:
    """Call a kernel of a machine or of this one."""
    if isinstance(k, Machine):
        k.call(name, *arguments)
    else:
        getattr(k, name)(*arguments)


def test_norm_and_statistics_have_the_same_bits(machines: dict[str, Machine]) -> None:
    rng, results = np.random.default_rng(5), []
    x, weight = rng.normal(size=320).astype(np.float32), rng.uniform(0.5, 2, 320).astype(np.float32)
    for k in (kernels_for(EVERY_NAME[0]), machines["plain"]):
        normed, maxima, sums = (np.zeros(n, np.float32) for n in (320, 5, 5))
        call(k, "rms_norm", x, weight, normed, 320, 1e-5)
        call(k, "block_statistics", x, 0, 5, maxima, sums)
        results.append((normed, maxima, sums))
    for wanted, found in zip(*results, strict=True):
        np.testing.assert_array_equal(wanted.view(np.int32), found.view(np.int32))
    np.testing.assert_array_equal(results[0][1], x.reshape(5, 64).max(axis=1))


@pytest.mark.parametrize("kind", ["f32", "f16", "int8"])
def test_attention_has_the_same_bits(kind: str, machines: dict[str, Machine]) -> None:
    """Keys and values are stored in a page, some places of it, and two queries look at it, together and alone."""
    number, dtype = {"f32": (KV_F32, np.float32), "f16": (KV_F16, np.float16), "int8": (KV_INT8, np.int8)}[kind]
    head_dim, padded, shown, results = 24, 32, 19, []
    for k in (kernels_for(EVERY_NAME[0]), machines["plain"]):
        rng = np.random.default_rng(6)
        keys, values = np.zeros(64 * head_dim, dtype), np.zeros(64 * padded, dtype)
        key_scales, value_scales = np.zeros(64, np.float32), np.zeros(64, np.float32)
        for place in (0, 1, 7, 16, 18):
            key, value = (rng.normal(size=padded).astype(np.float32) for _ in range(2))
            call(k, "store_key", key, keys, place, head_dim, key_scales, number)
            call(k, "store_value", value, values, place, head_dim, padded, value_scales, number)
        page = np.concatenate([part.view(np.uint8) for part in (keys, values, key_scales, value_scales)])
        raw, queries = rng.normal(size=2 * head_dim).astype(np.float32), np.zeros(2 * head_dim, np.float32)
        call(k, "scale_query", raw, queries, 2 * head_dim, 0.2)
        outputs = []
        for together in (1, 2):
            limits = np.array([[0, 17], [0, 19]], np.int32)
            state, scratch = np.zeros((2, padded + 32), np.float32), np.zeros((2, 64), np.float32)
            call(k, "attend_begin", state, 2, padded)
            for first in range(0, 2, together):
                parts = [array[first : first + together].copy() for array in (limits, state)]
                q = queries[first * head_dim : (first + together) * head_dim].copy()
                call(k, f"attend_{together}_{kind}", q, *parts, scratch, page, 0, shown, head_dim, padded)
                for one in parts[1]:
                    out, own = np.zeros(head_dim, np.float32), one.copy()
                    call(k, "attend_end", own, out, head_dim)
                    outputs.append(out)
        results.append((page, queries, *outputs))
    for wanted, found in zip(*results, strict=True):
        assert np.any(wanted)
        np.testing.assert_array_equal(wanted.view(np.uint8), found.view(np.uint8))
    np.testing.assert_array_equal(results[0][2:4], results[0][4:6])


def test_every_called_kernel_takes_few_enough_arguments() -> None:
    assert all(len(KERNELS[name].signature) - 2 <= MOST for name in CALLED)
