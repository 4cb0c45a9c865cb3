"""Speed of the matrix kernels alone: kind x shape, in GB/s of packed weights and scales, next to read bandwidth.

    python benchmarks/kernels.py [--kernel avx512-vnni] [--threads 1,2] [--tokens 1,16] [--only ternary,q6_k] [--json]

"cached" repeats one matrix; "memory" walks through copies of it that together are far larger than any cache, as a
model's layers are. "read" is a test that only adds up the same number of bytes, with the same threads, in the same
round; shares are of it. Medians of several rounds. With more than one token, GOPS (two per weight and token) matter.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanochat_tui.engine.compile.choose import choose_kernel
from nanochat_tui.engine.compile.targets import compiled_for, cpu_name
from nanochat_tui.engine.kernels import program
from nanochat_tui.engine.kernels.matrices import matrix_product
from nanochat_tui.engine.kernels.tiles import call_kernel
from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned
from nanochat_tui.engine.simd.emitter import VI32
from nanochat_tui.engine.simd.intrinsics import kernel
from nanochat_tui.engine.simd.isa import ISAS
from nanochat_tui.engine.simd.library import KERNELS, Target, compile_object, load_object
from nanochat_tui.engine.simd.objects import symbol

MEMORY_BYTES = 1 << 29
LINEAR = ((256, 256), (768, 256), (2560, 2560), (6912, 2560))
HEADS = ((50304, 256), (128256, 2560))
NAMES = {
    "ternary": k.TERNARY,
    "ternary_fine": k.TERNARY_FINE,
    "ternary_row": k.TERNARY_ROW,
    "q8": k.Q8,
    "q6_k": k.Q6_K,
    "q5_k": k.Q5_K,
    "q4_k": k.Q4_K,
    "q4_0": k.Q4_0,
    "f16": k.F16,
}
GROUP = 128
assert program
assert matrix_product


@kernel("v:iiiiiiiiiiiiiiiii")
def repeat_product(e, target, times, *arguments):
    """Call `matrix_product` some times."""
    e.loop(0, times, 1, [], lambda _: call_kernel(e, "matrix_product", arguments))


@kernel("v:iii")
def read_bytes(e, target, start, size, out):
    """Add up all bytes of a buffer as int32, eight cache lines at a time."""

    def lines(at, *sums):
        for line in range(8):
            e.prefetch(e.add(start, at), 4096 + 64 * line)
        return [e.b.add(total, e.load(VI32, start, e.add(at, 64 * i))) for i, total in enumerate(sums)]

    sums = e.loop(0, size, 512, [e.constant(VI32, 0)] * 8, lines)
    for i, total in enumerate(sums):
        e.store(total, out, 64 * i)


@dataclass
class Case:
    """A matrix and the buffers around it."""

    name: str
    rows: int
    columns: int
    tokens: int
    where: str
    blocks: int
    times: int
    nbytes: int
    buffers: list[np.ndarray]
    matrix: np.ndarray


def random_bytes(count: int) -> np.ndarray:
    pattern = np.random.default_rng(0).integers(0, 256, 1 << 20).astype(np.uint8)
    out = aligned(count, np.uint8)
    for start in range(0, count, len(pattern)):
        out[start : start + len(pattern)] = pattern[: count - start]
    return out


def sizes(kind: int, rows: int, columns: int) -> tuple[int, int]:
    """Return bytes of weights and of scales."""
    if kind in k.DENSE:
        return rows * columns * (4 if kind == k.F32 else 2), 64
    if kind == k.TERNARY_ROW:
        return rows * columns // 4, 4 * rows
    if kind in k.TERNARY_NAMES:
        return rows * columns // 4, rows * columns // GROUP * 2
    layout = k.LAYOUTS[kind]
    parts = rows * columns // layout.columns
    return parts * layout.words * 4, parts * layout.scale_bytes // 16


def make_case(name: str, rows: int, columns: int, tokens: int, where: str, tile: int) -> Case:
    kind, rows = NAMES[name], (rows + 15) // 16 * 16
    single = sum(sizes(kind, rows, columns))
    copies = max(1, MEMORY_BYTES // single) if where == "memory" else 1
    total = rows * copies
    weight_bytes, scale_bytes = sizes(kind, total, columns)
    weights, scales = random_bytes(weight_bytes), aligned(scale_bytes, np.uint8, 0)
    rounded = -(-tokens // tile) * tile
    matrix = np.zeros(s.MATRIX_SLOTS, np.int64)
    matrix[s.MATRIX_KIND], matrix[s.MATRIX_COLUMNS], matrix[s.MATRIX_PADDED] = kind, columns, columns
    matrix[s.MATRIX_WEIGHTS], matrix[s.MATRIX_SCALES] = weights.ctypes.data, scales.ctypes.data
    x8 = random_bytes(rounded * columns).view(np.int8)
    init, scale = aligned(rounded * columns // 16, np.int32, 0), aligned(rounded * columns // 32, np.float32, 0.01)
    source = aligned((rounded, columns), np.float32, 0.5)
    y = aligned((rounded, total), np.float32, 0.0)
    buffers = [weights, scales, x8, init, scale, source, y]
    work = total * columns * (tokens if tokens > 1 else 1)
    times = 1 if where == "memory" else max(1, int(4e8 * (8 if tokens > 1 else 1) / work))
    return Case(name, rows, columns, tokens, where, total // 16, times, weight_bytes + scale_bytes, buffers, matrix)


def parallel(threads: int, call: Callable[[int], None]) -> float:
    """Run call(thread number) on all threads at once and return the seconds from first start to last end."""
    barrier, times = threading.Barrier(threads), [(0.0, 0.0)] * threads

    def one(number: int) -> None:
        barrier.wait()
        began = time.perf_counter()
        call(number)
        times[number] = (began, time.perf_counter())

    others = [threading.Thread(target=one, args=(n,)) for n in range(1, threads)]
    for thread in others:
        thread.start()
    one(0)
    for thread in others:
        thread.join()
    return max(end for _, end in times) - min(start for start, _ in times)


def functions(target: Target) -> dict[str, Any]:
    names = ["repeat_product", "read_bytes"]
    addresses = load_object(target, compile_object(target), [symbol(name) for name in names])
    made = {}
    for name in names:
        count = len(KERNELS[name].signature) - 2
        made[name] = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * count)(addresses[symbol(name)])
    return made


def run(case: Case, call: Any, threads: int, tile: int) -> float:
    """Return seconds of one pass over the whole matrix with all tokens."""
    _, _, x8, init, scale, source, y = (b.ctypes.data for b in case.buffers)
    tiles = -(-case.tokens // tile)
    own = k.tile_scratch(case.columns)  # of each thread, where there are tile registers
    scratch = aligned(threads * own, np.uint8, 0)

    def part(number: int) -> None:
        first, last = case.blocks * number // threads, case.blocks * (number + 1) // threads
        place = scratch.ctypes.data + number * own
        call(case.times, case.matrix.ctypes.data, tile, x8, init, scale, source, 4 * case.columns, place,
             y, 64 * case.blocks, first, last, case.tokens, 0, tiles, 1)  # fmt: skip

    return parallel(threads, part) / case.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default=choose_kernel().name)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--tokens", default="1")
    parser.add_argument("--only", default="ternary,q8,q6_k,q4_k,q4_0,f16")
    parser.add_argument("--where", default="cached,memory")
    parser.add_argument("--shapes", default="", help="for example 2560x2560,6912x2560; default: a model's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names, isa = options.only.split(","), ISAS[options.kernel]
    target = Target(isa, GROUP, *compiled_for(choose_kernel(options.kernel)), frozenset(NAMES[name] for name in names))
    made = functions(target)
    chosen = tuple(tuple(map(int, text.split("x"))) for text in options.shapes.split(",") if text)
    buffer, sums = random_bytes(2 * MEMORY_BYTES), aligned(512 * 64, np.uint8)
    cases = []
    for name in names:
        for rows, columns in chosen or (LINEAR if name.startswith("ternary") else HEADS):
            for tokens in map(int, options.tokens.split(",")):
                for where in options.where.split(","):
                    tile = next((t for t in k.TILES if tokens <= t <= isa.tile), isa.tile)
                    cases.append((make_case(name, rows, columns, tokens, where, tile), tile))
    rows = []
    for threads in map(int, options.threads.split(",")):
        found: list[list[tuple[float, float]]] = [[] for _ in cases]
        for _ in range(options.rounds):
            share = len(buffer) // threads // 512 * 512

            def read(number: int, share: int = share) -> None:
                made["read_bytes"](buffer.ctypes.data + number * share, share, sums.ctypes.data + 512 * number)

            for (case, tile), list_ in zip(cases, found, strict=True):
                speed = share * threads / parallel(threads, read) / 1e9
                list_.append((case.nbytes / run(case, made["repeat_product"], threads, tile) / 1e9, speed))
        for (case, _), list_ in zip(cases, found, strict=True):
            speed, read_speed = (statistics.median(values) for values in zip(*list_, strict=True))
            share_of = statistics.median(a / b for a, b in list_)
            passes = speed * 1e9 / case.nbytes
            rows.append({
                "kind": case.name, "rows": case.rows, "columns": case.columns, "tokens": case.tokens,
                "where": case.where, "threads": threads, "gbps": speed, "read_gbps": read_speed,
                "share": share_of, "gops": passes * case.blocks * 16 * case.columns * 2 * case.tokens / 1e9,
            })  # fmt: skip
    if options.json:
        print(json.dumps({"kernel": options.kernel, "rows": rows}))
        return
    print(f"{options.kernel} on {cpu_name()}\n\n| kind | shape | tokens | from | threads | GB/s | of read | GOPS |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        shape, share_text = f"{row['rows']} x {row['columns']}", f"{row['share']:.0%} of {row['read_gbps']:.1f}"
        print(f"| {row['kind']} | {shape} | {row['tokens']} | {row['where']} | {row['threads']} | {row['gbps']:.1f} "
              f"| {share_text} | {row['gops']:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
