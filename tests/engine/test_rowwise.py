"""Row-wise kernels of the newer architectures against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_support import Kernels

from nanochat_tui.engine.kernels import rowwise

assert rowwise  # importing it registers its kernels
RNG = np.random.default_rng(5)


def row(n: int, spread: float = 2.0) -> np.ndarray:
    return RNG.normal(0, spread, n).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_products_of_rows(kernels: Kernels) -> None:
    x, y, out = row(96), row(96), np.zeros(96, np.float32)
    kernels.multiply(x, y, out, 96)
    np.testing.assert_array_equal(out, x * y)
    kernels.add(x, y, out, 96)
    np.testing.assert_array_equal(out, x + y)
    kernels.add_scaled(out, x, 0.75, 96)
    np.testing.assert_allclose(out, x + y + np.float32(0.75) * x, rtol=1e-6, atol=1e-6)
    kernels.sigmoid_multiply(x, y, out, 96)
    np.testing.assert_allclose(out, x * sigmoid(y), rtol=1e-6, atol=1e-7)


def test_activations(kernels: Kernels) -> None:
    gate, up, out = row(64, 3.0), row(64, 3.0), np.zeros(64, np.float32)
    kernels.relu2_multiply(gate, up, out, 64)
    np.testing.assert_array_equal(out, np.maximum(gate, 0) ** 2 * up)
    kernels.silu_multiply_clamped(gate, up, out, 64, 2.5)
    g, u = np.minimum(gate, 2.5), np.clip(up, -2.5, 2.5)
    np.testing.assert_allclose(out, g * sigmoid(g) * u, rtol=2e-6, atol=1e-7)
    assert (gate > 2.5).any() and (np.abs(up) > 2.5).any()


@pytest.mark.parametrize("block", [16, 32, 64, 256, 512, 1024, 2048, 4096])
def test_walsh_hadamard(block: int, kernels: Kernels) -> None:
    """Blocks of published files go up to 4096; the last ones are as wide as a whole row."""
    matrix = np.array([[1.0]])
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])  # Sylvester's construction
    width = max(512, 2 * block) if block < 2048 else block
    x = row(width)
    wanted = (x.astype(np.float64).reshape(-1, block) @ matrix).reshape(-1)
    kernels.walsh_hadamard(x, width, block.bit_length() - 1)
    # every output is a sum of `block` terms in float32
    np.testing.assert_allclose(x, wanted, atol=1e-6 * np.sqrt(block) * np.log2(block))


def test_rotation_of_the_worked_example(kernels: Kernels) -> None:
    """B = 4, s = [1, -1, 1, 1]: [1, 2, 3, 4] -> [3, 1, -4, 2], and an embedding [2, 0, 0, 1] -> [1.5, -.5, .5, 1.5].

    Four copies are a block of 16: Sylvester's matrix is the Kronecker product of two smaller ones, and that of the
    copies' places leaves only the first, times 4 / 2.
    """
    factors = np.tile(np.array([1, -1, 1, 1], np.float32), 4) / np.float32(4)
    x, z = (np.tile(np.array(v, np.float32), 4) for v in ([1, 2, 3, 4], [2, 0, 0, 1]))
    kernels.multiply(x, factors, x, 16)  # as `products.rotate_row` does
    kernels.walsh_hadamard(x, 16, 4)
    np.testing.assert_array_equal(x, [*(2 * np.array([3, 1, -4, 2])), *[0] * 12])
    kernels.walsh_hadamard(z, 16, 4)
    kernels.multiply(z, factors, z, 16)  # as an embedding is undone
    np.testing.assert_array_equal(z, [*(2 * np.array([1.5, -0.5, 0.5, 1.5])), *[0] * 12])


def test_l2_normalise(kernels: Kernels) -> None:
    x, out = row(64), np.zeros(64, np.float32)
    kernels.l2_normalise(x, out, 64, 1e-6)
    np.testing.assert_allclose(out, x / np.sqrt((x.astype(np.float64) ** 2).sum() + 1e-6), rtol=1e-6)


@pytest.mark.parametrize("taps", [2, 3, 4])
def test_convolution_remembers_its_inputs(taps: int, kernels: Kernels) -> None:
    channels, tokens, part = 64, 7, slice(16, 48)
    u, w = row(tokens * channels).reshape(tokens, channels), row(taps * channels).reshape(taps, channels)
    padded = np.concatenate([np.zeros((taps - 1, channels)), u])
    total = sum(padded[i : i + tokens] * w[i] for i in range(taps))
    wanted = total * sigmoid(total)
    state = np.zeros((taps - 1, channels), np.float32)
    for t in range(tokens):
        x = u[t].copy()
        kernels.convolve_silu(x.ctypes.data + 64, w.ctypes.data + 64, state.ctypes.data + 64, 32, taps, channels)
        np.testing.assert_allclose(x[part], wanted[t, part], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(x[:16], u[t, :16])
    np.testing.assert_array_equal(state[:, part], u[tokens - taps + 1 :, part])
    assert not state[:, :16].any()


def test_delta_rule(kernels: Kernels) -> None:
    width, steps = 64, 9
    state, out = np.zeros((width, width), np.float32), np.zeros(width, np.float32)
    m = np.zeros((width, width))  # [v][k], as the paper writes it
    for _ in range(steps):
        q, k, v = (row(width, 0.3) for _ in range(3))
        decay, beta = float(RNG.uniform(0.5, 1)), float(RNG.uniform(0, 1))
        kernels.delta_rule(state, q, k, v, out, width, decay, beta, 0.125)
        m *= decay
        m += np.outer(beta * (v - m @ k), k)
        np.testing.assert_allclose(out, m @ q / 8, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state, m.T, rtol=1e-4, atol=1e-6)


def test_delta_rule_of_the_worked_example(kernels: Kernels) -> None:
    """M = 2, exp(g) = .5, k = 1, v = 3, beta = .5 -> delta = 1, M = 2; q = 1 -> o = 2."""
    state = np.zeros((32, 32), np.float32)
    state[0, 0] = 2
    q, k, v, out = (np.zeros(32, np.float32) for _ in range(4))
    q[0], k[0], v[0] = 1, 1, 3
    kernels.delta_rule(state, q, k, v, out, 32, 0.5, 0.5, 1.0)
    assert out[0] == 2 and state[0, 0] == 2
