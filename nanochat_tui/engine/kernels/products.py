"""Products of a layer's activations with its matrices, of any kind, and what an architecture does around them."""

from __future__ import annotations

from nanochat_tui.engine.kernels.activations import quantise_for
from nanochat_tui.engine.kernels.dense import dense_f32
from nanochat_tui.engine.kernels.linear import tile_of
from nanochat_tui.engine.kernels.matrices import matrix_product
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.rowwise import add, multiply, relu2_multiply, silu_multiply_clamped, walsh_hadamard
from nanochat_tui.engine.kernels.vectors import silu_multiply
from nanochat_tui.engine.layout import kinds as k
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.simd.intrinsics import f32_from_bits, get


@compiled("i:X")
def takes_floats(matrix):
    """Return whether a matrix is multiplied by floats and not by int8 tiles."""
    kind = get(matrix, s.MATRIX_KIND)
    return 1 if kind in (k.F32, k.F16, k.BF16) else 0


@compiled("v:TAiiiii")
def add_adapter(thread, adapter, columns, source, y, first, last):
    """Add what an adapter makes of one token, a row of floats, to row blocks first..last of its outputs."""
    rank, sums, rows = get(adapter, s.ADAPTER_RANK), get(thread, s.ADAPTED), get(thread, s.ADAPTED_ROWS)
    dense_f32(get(adapter, s.ADAPTER_DOWN), source, sums, 0, rank // 16, columns)
    dense_f32(get(adapter, s.ADAPTER_UP), sums, rows, first, last, rank)
    add(y + first * 64, rows + first * 64, y + first * 64, (last - first) * 16)


@compiled("v:MTXiiiiiiiii")
def product(model, thread, matrix, source, y, y_stride, first, last, count, t0, tiles, step):
    """Multiply tiles of tokens by row blocks first..last of a matrix, with its factors and biases of rows and adapter.

    matrix: address of its record. source: the tokens as floats, [token][columns], for adapters and for kinds that take
    floats; the others take the thread's int8 tiles.
    """
    tile = tile_of(model, count)
    matrix_product(
        matrix, tile, get(thread, s.X8), get(thread, s.INIT), get(thread, s.SCALE), source,
        get(matrix, s.MATRIX_COLUMNS) * 4, get(thread, s.SUMS), y, y_stride, first, last, count, t0, tiles, step,
    )  # fmt: skip
    factors, bias, adapter = get(matrix, s.MATRIX_FACTORS), get(matrix, s.MATRIX_BIAS), get(matrix, s.MATRIX_ADAPTER)
    if factors == 0 and bias == 0 and adapter == 0:
        return
    for t in range(t0, tiles, step):
        for token in range(t * tile, min(t * tile + tile, count)):
            row = y + token * y_stride + first * 64
            if factors != 0:
                multiply(row, factors + first * 64, row, (last - first) * 16)
            if bias != 0:
                add(row, bias + first * 64, row, (last - first) * 16)
            if adapter != 0:
                columns = get(matrix, s.MATRIX_COLUMNS)
                add_adapter(thread, adapter, columns, source + token * columns * 4, y + token * y_stride, first, last)


@compiled("v:Miii")
def rotate_row(model, row, factors, n):
    """Apply the signed Walsh-Hadamard transform to a row in place; factors: signs / sqrt(block), or 0 for none."""
    if factors != 0:
        multiply(row, factors, row, n)
        walsh_hadamard(row, n, get(model, s.ROTATION_BITS))


@compiled("v:MTiiX")
def round_single(model, thread, row, place, matrix):
    """Quantise a row as a tile of one token, at place `place` of the thread's buffers, for a matrix."""
    quantise_for(
        matrix, row, 1, place, get(thread, s.X8), get(thread, s.INIT), get(thread, s.SCALE), get(model, s.TOKEN_SCALES)
    )


@compiled("v:Liiii")
def activate(layer_row, gate, up, out, n):
    """Write activation(gate) · up, by the layer's kind of activation; n floats, a multiple of 16."""
    kind = get(layer_row, s.ACTIVATION)
    if kind == s.RELU2:
        relu2_multiply(gate, up, out, n)
    elif get(layer_row, s.CLAMP_BITS) != 0:
        silu_multiply_clamped(gate, up, out, n, f32_from_bits(get(layer_row, s.CLAMP_BITS)))
    else:
        silu_multiply(gate, up, out, n)
