"""The trainer's roundings are the exporter's, value for value."""

import numpy as np
import torch

from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.model.activations import int8_blocks, int8_tokens
from nanochat_tui.model.ternary import MIN_SCALE, dequantise, ternarise
from nanochat_tui.train.quantise import int8_activation, int8_head_input, q8_0_table, ternary_scales, ternary_weight


def _matrices() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(96, 256) * 0.02,
        torch.randn(8, 768) * 30,
        torch.zeros(3, 128),
        torch.full((2, 256), 1e-7),
        torch.randn(5, 128) * torch.logspace(-6, 2, 5)[:, None],
    ]


def test_ternary_values_equal_the_exporters_on_every_group() -> None:
    for weight in _matrices():
        trits, scales = ternarise(weight.numpy(), 128)
        assert np.array_equal(ternary_scales(weight, 128).numpy(), scales)
        assert np.array_equal(ternary_weight(weight, 128).numpy(), dequantise(trits, scales))


def test_scales_never_fall_below_the_smallest_normal_half() -> None:
    assert ternary_scales(torch.zeros(1, 128), 128).item() == MIN_SCALE


def test_ternary_gradient_passes_straight_through() -> None:
    weight = torch.randn(4, 128, requires_grad=True)
    upstream = torch.randn(4, 128)
    ternary_weight(weight, 128).backward(upstream)
    assert torch.equal(weight.grad, upstream)


def test_q8_0_values_equal_the_formats() -> None:
    table = torch.randn(64, 256) * torch.logspace(-5, 1, 64)[:, None]
    table[3] = 0
    q8 = TENSOR_TYPES["Q8_0"]
    blocks = q8.encode(table.numpy().reshape(-1, 32))
    assert np.array_equal(q8_0_table(table).numpy(), q8.decode(blocks).reshape(64, 256))


def test_the_heads_input_has_a_scale_per_32_values() -> None:
    x = torch.randn(2, 5, 256) * torch.logspace(-3, 3, 256)
    x[1, 2] = 0
    assert np.array_equal(int8_head_input(x).numpy(), int8_blocks(x.numpy()))
    first = x.numpy()[0, 0, :32]
    scale = np.abs(first).max() / np.float32(127)
    assert np.array_equal(int8_head_input(x).numpy()[0, 0, :32], np.rint(first / scale) * scale)
    x.requires_grad_()
    upstream = torch.randn(2, 5, 256)
    int8_head_input(x).backward(upstream)
    assert torch.equal(x.grad, upstream)


def test_int8_activation_matches_its_definition() -> None:
    x = torch.randn(7, 256)
    x[2] = 0
    scale = np.maximum(np.abs(x.numpy()).max(-1, keepdims=True), np.float32(1e-8)) / np.float32(127)
    expected = np.rint(x.numpy() / scale) * scale
    assert np.array_equal(int8_activation(x).numpy(), expected)
    assert np.array_equal(int8_tokens(x.numpy()), expected)
    assert np.unique(np.rint(int8_activation(x).numpy() / scale)).size <= 255
