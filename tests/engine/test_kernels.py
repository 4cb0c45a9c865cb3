"""Each kernel against NumPy, on every instruction set this machine has."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_support import EVERY_NAME, Kernels, kernels_for

from nanochat_tui.engine.kernels import activations
from nanochat_tui.engine.layout import kinds
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout.memory import aligned, round_up
from nanochat_tui.engine.weights.pack import pack_dense, pack_q8, pack_ternary
from nanochat_tui.model.activations import BLOCK, MIN_ABSMAX, int8_blocks

SHAPES = [(16, 128), (50, 256), (257, 384), (3, 640)]
F32 = np.float32


def lay_out(x: np.ndarray, tile: int) -> np.ndarray:
    """int8 [tokens, columns] -> tiles [columns / 4][tile][4]; missing tokens hold rubbish, as in the engine."""
    tokens, columns = x.shape
    out = np.full((round_up(tokens, tile), columns), 99, np.int8)
    out[:tokens] = x
    return np.ascontiguousarray(out.reshape(-1, tile, columns // 4, 4).transpose(0, 2, 1, 3))


def in_tiles(values: np.ndarray, tile: int, fill: float = 0) -> np.ndarray:
    """[tokens, blocks] -> tiles [blocks][tile]."""
    tokens, blocks = values.shape
    out = np.full((round_up(tokens, tile), blocks), fill, values.dtype)
    out[:tokens] = values
    return np.ascontiguousarray(out.reshape(-1, tile, blocks).transpose(0, 2, 1))


def sums_of(x: np.ndarray, block: int, tile: int, factor: int) -> np.ndarray:
    return in_tiles(factor * x.reshape(len(x), -1, block).sum(-1, dtype=np.int32), tile)


def scales_for(kind: int, x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Return scales [tokens] or [tokens, columns / 32] as the kind takes them: [tokens, scales]."""
    if kind in kinds.PER_TOKEN:
        return a.reshape(len(x), 1)
    units = x.shape[1] // kinds.scale_columns(kind)
    a = a.reshape(len(x), -1)
    return np.repeat(a, units // a.shape[1], axis=1)


def activations_of(k: Kernels, kind: int, x: np.ndarray, a: np.ndarray, tile: int) -> tuple[np.ndarray, np.ndarray]:
    """Return sums and scales of tokens int8 [tokens, columns] with scales [tokens, n], in tiles."""
    block = kinds.sum_columns(kind, k.group)
    factor = kinds.sums_factor(kind, k.isa.q8_bias)
    sums = x.reshape(len(x), -1, block).sum(-1, dtype=np.int32)
    if factor:
        return in_tiles(factor * sums, tile), in_tiles(a, tile, 1)
    each = np.repeat(a, x.shape[1] // block // a.shape[1], axis=1)
    return in_tiles(sums.astype(F32) * each, tile), in_tiles(a, tile, 1)


def floats_of(x: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Return what int8 [tokens, columns] with scales [tokens, n] stands for, float64."""
    return x * np.repeat(a.astype(np.float64), x.shape[1] // a.shape[1], axis=1)


def tile_for(k: Kernels, tokens: int) -> int:
    return next(t for t in (*kinds.TILES, k.isa.tile) if t >= tokens or t == k.isa.tile)


def multiply(k: Kernels, kind: int, packed, x: np.ndarray, a: np.ndarray, *, tile: int = 0, half=None) -> np.ndarray:
    """Run `matrix_product`; x int8 [tokens, columns] padded as the kernel wants, return float32 [tokens, rows].

    a: scales [tokens], or [tokens, columns / 32] for kinds that take several per token.
    """
    tile = tile or tile_for(k, len(x))
    blocks = round_up(packed.rows, 16) // 16
    y = aligned((round_up(len(x), tile), blocks * 16), F32, np.nan)
    a = scales_for(kind, x, a)
    floats = np.ascontiguousarray(floats_of(x, a)[:, : packed.columns], F32)
    matrix = np.zeros(s.MATRIX_SLOTS, np.int64)
    matrix[s.MATRIX_KIND], matrix[s.MATRIX_COLUMNS], matrix[s.MATRIX_PADDED] = kind, packed.columns, x.shape[1]
    matrix[s.MATRIX_WEIGHTS], matrix[s.MATRIX_SCALES] = packed.weights.ctypes.data, packed.scales.ctypes.data
    scratch = np.full(kinds.tile_scratch(x.shape[1]) // 4, 77, np.int32)
    sums, scale = (scratch, scratch) if kind in kinds.DENSE else activations_of(k, kind, x, a, tile)
    half = half or (0, blocks)
    k.matrix_product(
        matrix, tile, lay_out(x, tile), sums, scale, floats, floats.strides[0], scratch, y, y.strides[0],
        *half, len(x), 0, len(y) // tile, 1,
    )  # fmt: skip
    return y[: len(x), : packed.rows]


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 21])
@pytest.mark.parametrize("name", EVERY_NAME)
def test_ternary_integers_are_exact(name: str, group: int, shape: tuple[int, int], tokens: int) -> None:
    k = kernels_for(name, group)
    rng = np.random.default_rng(sum(shape) + tokens)
    codes = rng.integers(0, 4, shape).astype(np.uint8)  # 3 is legal in Q2_0 and means +2
    x = rng.integers(-127, 128, (tokens, shape[1])).astype(np.int8)
    packed = pack_ternary(codes, np.ones((shape[0], shape[1] // group), np.float16), group)
    for kind in (kinds.TERNARY, kinds.TERNARY_FINE):
        y = multiply(k, kind, packed, x, np.ones(tokens, F32))
        # scales of one: every float is an integer small enough to be exact
        np.testing.assert_array_equal(y, x.astype(np.int64) @ (codes.astype(np.int64) - 1).T)


@pytest.mark.parametrize("code", [0, 2, 3])
@pytest.mark.parametrize("value", [-127, 127])
def test_ternary_extremes_do_not_saturate(kernels: Kernels, code: int, value: int) -> None:
    codes = np.full((16, 256), code, np.uint8)
    packed = pack_ternary(codes, np.ones((16, 2), np.float16), 128)
    for tokens in (1, 3):
        x = np.full((tokens, 256), value, np.int8)
        for kind in (kinds.TERNARY, kinds.TERNARY_FINE):
            y = multiply(kernels, kind, packed, x, np.ones(tokens, F32))
            np.testing.assert_array_equal(y, np.full((tokens, 16), (code - 1) * value * 256, F32))


@pytest.mark.parametrize("shape", [(16, 32), (70, 256), (129, 96)])
@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("extreme", [False, True])
def test_q8_integers_are_exact(kernels: Kernels, shape: tuple[int, int], tokens: int, extreme: bool) -> None:
    rng = np.random.default_rng(sum(shape) + tokens)
    draw = (lambda size: rng.choice([-127, 127], size)) if extreme else (lambda size: rng.integers(-127, 128, size))
    w, x = draw(shape).astype(np.int8), draw((tokens, shape[1])).astype(np.int8)
    packed = pack_q8(w, np.ones((shape[0], shape[1] // 32), np.float16), kernels.isa.q8_bias, 64)
    assert packed.weights.shape[0] * 16 % 64 == 0
    y = multiply(kernels, kinds.Q8, packed, x, np.ones(tokens, F32))
    np.testing.assert_array_equal(y, x.astype(np.int64) @ w.astype(np.int64).T)


@pytest.mark.parametrize("what", ["ternary", "ternary_fine", "q8"])
def test_every_instruction_set_gives_the_same_floats(what: str) -> None:
    rng = np.random.default_rng(5)
    rows, columns, tokens = 83, 512, 9
    x = rng.integers(-127, 128, (tokens, columns)).astype(np.int8)
    a = rng.uniform(0.001, 0.1, (tokens, 1 if what == "ternary" else columns // 32)).astype(F32)
    codes = rng.integers(0, 3, (rows, columns)).astype(np.uint8)
    quants = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    results = []
    for name in EVERY_NAME:
        k = kernels_for(name)
        if what != "q8":
            scales = np.random.default_rng(1).uniform(0.01, 0.2, (rows, 4)).astype(np.float16)
            packed = pack_ternary(codes, scales, 128)
            kind = kinds.TERNARY if what == "ternary" else kinds.TERNARY_FINE
            matrix = (codes.astype(np.float64) - 1) * np.repeat(scales, 128, axis=1)
        else:
            scales = np.random.default_rng(1).uniform(0.01, 0.2, (rows, 16)).astype(np.float16)
            packed, kind = pack_q8(quants, scales, k.isa.q8_bias, 64), kinds.Q8
            matrix = quants.astype(np.float64) * np.repeat(scales, 32, axis=1)
        together = multiply(k, kind, packed, x, a)
        alone = [multiply(k, kind, packed, x[i : i + 1], a[i : i + 1])[0] for i in range(tokens)]
        np.testing.assert_array_equal(together, alone)
        for few in [n for n in (2, 4, 8) if n < k.isa.tile]:
            np.testing.assert_array_equal(multiply(k, kind, packed, x, a, tile=few), alone)
        np.testing.assert_allclose(together, floats_of(x, a) @ matrix.T, rtol=1e-4, atol=1e-3)
        results.append(together)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].view(np.int32), other.view(np.int32))


def test_dense(kernels: Kernels) -> None:
    rng = np.random.default_rng(2)
    w = rng.normal(size=(37, 96)).astype(F32)
    packed, x = pack_dense(w, 16), rng.normal(size=96).astype(F32)
    y = aligned(48, F32)
    kernels.dense_f32(packed.weights, x, y, 0, 3, 96)
    np.testing.assert_allclose(y[:37], w.astype(np.float64) @ x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [32, 160, 768])
def test_rms_norm(kernels: Kernels, n: int) -> None:
    rng = np.random.default_rng(n)
    x, w = rng.normal(size=n).astype(F32), rng.uniform(0.5, 2, n).astype(F32)
    y = np.empty(n, F32)
    kernels.rms_norm(x, w, y, n, 1e-6)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(y, wide / np.sqrt((wide**2).mean() + 1e-6) * w, rtol=2e-6)


@pytest.mark.parametrize(("n", "padded", "block"), [(256, 256, 128), (96, 128, 32), (192, 256, 64)])
@pytest.mark.parametrize("what", ["normal", "zero", "halves"])
def test_quantise(kernels: Kernels, n: int, padded: int, block: int, what: str) -> None:
    rng = np.random.default_rng(n)
    x = {
        "normal": rng.normal(size=n),
        "zero": np.zeros(n),
        # a = 1: every value lies half-way between two integers
        "halves": np.concatenate([[127.0], rng.integers(-126, 126, n - 1) + 0.5]),
    }[what].astype(F32)
    q, sums, scale = (
        np.full((padded // 4, 2, 4), 77, np.int8),
        np.zeros((padded // block, 2), np.int32),
        np.zeros(1, F32),
    )
    kernels.quantise(x, n, padded, q[:, 1:], 8, sums[:, 1:], 8, -3, scale, block)
    a = max(np.abs(x).max(), F32(1e-8)) / F32(127)
    wanted = np.zeros(padded, np.int64)
    wanted[:n] = np.rint(x / a)
    assert scale[0] == a
    np.testing.assert_array_equal(q[:, 1].reshape(-1), wanted)
    assert (q[:, 0] == 77).all()
    np.testing.assert_array_equal(sums[:, 1], -3 * wanted.reshape(-1, block).sum(1))


@pytest.mark.parametrize("kind", sorted(kinds.ALL - kinds.DENSE))
@pytest.mark.parametrize("tile", [1, 4])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", EVERY_NAME)
def test_tokens_are_rounded_into_the_tiles_that_products_read(name: str, kind: int, tile: int, whole: bool) -> None:
    """Normal values, zeros, ties and outliers; one maximum per token, or one per unit of columns."""
    k, rng = kernels_for(name, some=frozenset({kind})), np.random.default_rng(kind)
    columns, tokens = 96 if kind not in kinds.PER_TOKEN else 128, 6
    x = rng.normal(size=(tokens, columns)).astype(F32)
    x[1] = 0
    x[2] = np.concatenate([[127.0], rng.integers(-126, 126, columns - 1) + 0.5])
    x[3, 40], x[4, :32], x[5] = -500, 0, x[5] * np.geomspace(1e-3, 1e3, columns)
    matrix = np.zeros(s.MATRIX_SLOTS, np.int64)
    matrix[s.MATRIX_KIND], matrix[s.MATRIX_COLUMNS], matrix[s.MATRIX_PADDED] = kind, columns, 128
    padded = np.zeros((tokens, 128), F32)
    padded[:, :columns] = x
    width = 128 if kind in kinds.PER_TOKEN else kinds.scale_columns(kind)
    parts = padded.reshape(tokens, -1, width)
    top = np.abs(parts).max(-1)
    if whole:
        top[:, : -(-columns // width)] = np.abs(x).max(-1, keepdims=True)
    a = np.maximum(top, F32(1e-8)) / F32(127)
    q = np.rint(parts / a[..., None]).astype(np.int8).reshape(tokens, 128)
    sums, scales = activations_of(k, kind, q, a, tile)
    lanes = round_up(tokens, tile)
    x8, found_sums, found_scales = np.full((lanes, 128), 99, np.int8), np.zeros_like(sums), np.ones_like(scales)
    for token in range(tokens):
        k.quantise_for(matrix, x[token], tile, token, x8, found_sums, found_scales, int(whole))
    np.testing.assert_array_equal(x8.reshape(-1), lay_out(q, tile).reshape(-1))
    np.testing.assert_array_equal(found_sums, sums)
    np.testing.assert_array_equal(found_scales, scales)


def test_floats_are_rounded_as_the_definition_says(kernels: Kernels) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=64), np.zeros(32), rng.normal(size=32) * 300]).astype(F32)
    wanted = int8_blocks(x[None])[0]
    kernels.round_floats(x, len(x))
    np.testing.assert_array_equal(x, wanted)
    assert kinds.ACTIVATION_BLOCK == BLOCK
    assert np.float32(MIN_ABSMAX) == np.float32(activations.MIN_ABSMAX)


def test_silu_multiply(kernels: Kernels) -> None:
    gate = np.concatenate([np.linspace(-100, 100, 240), [0, -0.0, 1e-30, 88, -88, 1e30, -1e30] + [1.0] * 9]).astype(F32)
    up = np.linspace(-2, 2, len(gate)).astype(F32)
    out = np.empty_like(gate)
    kernels.silu_multiply(gate, up, out, len(gate))
    wide = gate.astype(np.float64)
    wanted = wide / (1 + np.exp(np.minimum(-wide, 700))) * up
    np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("head_dim", [4, 24, 64, 80])
def test_rope(kernels: Kernels, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    x, angle = rng.normal(size=head_dim).astype(F32), rng.uniform(0, 6, head_dim // 2)
    table = np.concatenate([np.cos(angle), np.sin(angle)]).astype(F32)
    turned = (x[: head_dim // 2] + 1j * x[head_dim // 2 :]) * np.exp(1j * angle)
    kernels.rope(x, table, head_dim)
    np.testing.assert_allclose(x, np.concatenate([turned.real, turned.imag]), atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_mixing(kernels: Kernels, n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 64)).astype(F32), rng.normal(size=64).astype(F32)
    p, q, matrix = rng.uniform(size=n), rng.uniform(size=n), rng.uniform(size=(n, n))
    record = np.full(s.MIX_FLOATS, np.nan, F32)
    record[s.MIX_READ : s.MIX_READ + n], record[s.MIX_WRITE : s.MIX_WRITE + n] = p, q
    for i in range(n):
        record[s.MIX_MATRIX + 4 * i : s.MIX_MATRIX + 4 * i + n] = matrix[i]
    read, wanted = np.empty(64, F32), matrix @ x + q[:, None] * y
    getattr(kernels, f"mix_read_{n}")(x, read, record, 64)
    np.testing.assert_allclose(read, p @ x, rtol=1e-5, atol=1e-6)
    getattr(kernels, f"mix_write_{n}")(x, y, record, 64)
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-6)


KV_KINDS = {"f32": s.KV_F32, "f16": s.KV_F16, "int8": s.KV_INT8}


def fill_pages(k: Kernels, keys: np.ndarray, values: np.ndarray, kind: str) -> list[np.ndarray]:
    """Write keys and values [positions, head_dim] of one head through the kernels; unwritten places are NaN."""
    positions, head_dim = keys.shape
    padded, size = round_up(head_dim, 16), {"f32": 4, "f16": 2, "int8": 1}[kind]
    pages = []
    row = np.full(padded + 16, 1e6, F32)
    for position in range(positions):
        if position % s.PAGE == 0:
            pages.append(aligned(s.PAGE * ((head_dim + padded) * size + 8), np.uint8, 0xFF))
        page, place = pages[-1].ctypes.data, position % s.PAGE
        value_rows = page + s.PAGE * head_dim * size
        scales = value_rows + s.PAGE * padded * size
        row[:head_dim] = keys[position]
        k.store_key(row, page, place, head_dim, scales, KV_KINDS[kind])
        row[:head_dim] = values[position]
        k.store_value(row, value_rows, place, head_dim, padded, scales + 4 * s.PAGE, KV_KINDS[kind])
    return pages


def rounded(rows: np.ndarray, kind: str) -> np.ndarray:
    """Rows [positions, head_dim] as a cache of that kind keeps them."""
    if kind == "int8":
        scale = np.abs(rows).max(1, keepdims=True) / F32(127)
        return np.rint(rows / scale) * scale.astype(np.float64)
    return rows.astype(np.float16 if kind == "f16" else F32).astype(np.float64)


def attend(k: Kernels, kind: str, q: np.ndarray, first: list[int], seen: list[int], pages: list[np.ndarray]):
    """Let queries [n, head_dim] walk the pages together; query i sees `seen[i]` positions from `first[i]` on."""
    n, head_dim = q.shape
    padded = round_up(head_dim, 16)
    limits = np.array([first, seen], np.int32).T.copy()
    state, weights = aligned((n, 32 + padded), F32, np.nan), aligned((n, s.PAGE), F32, np.nan)
    k.attend_begin(state, n, padded)
    end = first[-1] + seen[-1]
    for index, page in enumerate(pages):
        shown = min(s.PAGE, end - index * s.PAGE)
        if shown > 0 and (index + 1) * s.PAGE > min(first):
            getattr(k, f"attend_{n}_{kind}")(q, limits, state, weights, page, index * s.PAGE, shown, head_dim, padded)
    out = np.empty((n, head_dim), F32)
    for i in range(n):
        k.attend_end(state[i:], out[i:], head_dim)
    return out


@pytest.mark.parametrize("head_dim", [8, 40, 64, 96])
@pytest.mark.parametrize("positions", [1, 5, 33, 64, 150])
@pytest.mark.parametrize("kind", list(KV_KINDS))
@pytest.mark.parametrize("window", [None, 20])
def test_attention(kernels: Kernels, head_dim: int, positions: int, kind: str, window: int | None) -> None:
    rng = np.random.default_rng(positions)
    keys, values = (rng.normal(size=(positions, head_dim)).astype(F32) for _ in range(2))
    pages = fill_pages(kernels, keys, values, kind)
    keys, values = rounded(keys, kind), rounded(values, kind)
    queries = rng.normal(size=(8, head_dim)).astype(F32)
    ends = [max(1, positions - 7 + i) for i in range(8)]
    firsts = [max(0, end - window) if window else 0 for end in ends]
    alone = []
    for i, (first, end) in enumerate(zip(firsts, ends, strict=True)):
        alone.append(attend(kernels, kind, queries[i : i + 1], [first], [end - first], pages)[0])
        raw = keys[first:end] @ queries[i].astype(np.float64)
        weights = np.exp(raw - raw.max())
        np.testing.assert_allclose(alone[i], weights / weights.sum() @ values[first:end], rtol=1e-4, atol=1e-5)
    n = 2
    while n <= (2 if kind == "f32" else kernels.isa.queries):
        for i in range(0, 8, n):
            some = slice(i, i + n)
            seen = [end - first for first, end in zip(firsts[some], ends[some], strict=True)]
            together = attend(kernels, kind, queries[some].copy(), firsts[some], seen, pages)
            np.testing.assert_array_equal(together, alone[some])
        n *= 2


def test_half_precision_is_exact_both_ways(kernels: Kernels) -> None:
    every = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].astype(F32)
    between = np.concatenate([finite, np.nextafter(finite, F32(np.inf)), (finite[:-1] + finite[1:]) / 2])
    rng = np.random.default_rng(0)
    random = rng.integers(0, 2**32, 1 << 16, dtype=np.uint32).view(F32)
    x = np.concatenate([between, random[~np.isnan(random)], [np.inf, -np.inf, 65519.9, 65520, 1e-45]]).astype(F32)
    x = np.concatenate([x, np.zeros(-len(x) % 16, F32)])
    out = aligned(len(x), np.float16)
    kernels.store_value(x, out, 0, len(x), len(x), 0, s.KV_F16)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out.view(np.uint16), x.astype(np.float16).view(np.uint16))
    one, y = np.array([1, 0, 0, 0], F32), aligned(16, F32)
    for part in every[np.isfinite(every)].reshape(-1, 16)[::37]:
        w = aligned((4, 16), np.float16, 0)
        w[0] = part
        kernels.dense_f16(w, one, y, 0, 1, 4)
        np.testing.assert_array_equal(y, part.astype(F32))


def test_block_statistics(kernels: Kernels) -> None:
    logits = np.random.default_rng(3).normal(0, 5, 64 * 40).astype(F32)
    logits[-30:] = -np.inf
    maxima, sums = aligned(48, F32, -np.inf), aligned(48, F32, 0)
    kernels.block_statistics(logits, 0, 40, maxima, sums)
    blocks = logits.reshape(40, 64).astype(np.float64)
    np.testing.assert_array_equal(maxima[:40], blocks.max(1))
    np.testing.assert_allclose(sums[:40], np.exp(blocks - blocks.max(1, keepdims=True)).sum(1), rtol=1e-6)
    top = kernels.largest_of(maxima, 48)
    assert top == logits.max()
    total = kernels.sum_of_blocks(maxima, sums, 48, top)
    assert total == pytest.approx(np.exp(logits.astype(np.float64) - top).sum(), rel=1e-6)
    weights = aligned(40, F32)
    kernels.block_weights(logits, 40, weights, top, 0.5)
    np.testing.assert_allclose(weights, np.exp((blocks - top) / 2).sum(1), rtol=1e-5, atol=1e-30)
