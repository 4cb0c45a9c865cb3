"""mHC-lite in PyTorch: records, the coefficients they stand for, and what a sub-layer does to the streams.

`nanochat_tui.model.mhc` has the mathematics in NumPy.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_tui.model.config import MHC_RECORD_FLOATS


def initial_record(n_streams: int, index: int) -> Tensor:
    """Initial mHC record of sub-layer `index`: near-identity mixing, streams told apart from the start.

    Read and write biases are +1 for stream `index mod n` and -1 for the others (mHC-lite's own
    initialisation), so the streams differ after the first sub-layer and the mixing gets a gradient.
    """
    bias = torch.full((n_streams,), -1.0)
    bias[index % n_streams] = 1.0
    zeros = torch.zeros(n_streams)
    if n_streams == 2:
        residual = torch.tensor([3.0])
    else:
        residual = torch.zeros(math.factorial(n_streams))
        residual[0] = 6.0
    return torch.cat([residual, zeros, bias, zeros, bias])


def permutation_matrices(n: int) -> Tensor:
    """All permutation matrices in lexicographic order, float32 [n!, n, n]; row i has its one in column perm[i]."""
    permutations = torch.tensor(list(itertools.permutations(range(n))))
    return F.one_hot(permutations, n).float()


def mix_coefficients(records: Tensor, n_streams: int, version: int) -> tuple[Tensor, Tensor, Tensor]:
    """Read weights [r, n], doubly stochastic matrices [r, n, n] and write weights [r, n] of float32 records."""
    n = n_streams
    n_residual = MHC_RECORD_FLOATS[n] - 4 * n
    residual, pre, pre_bias, post, post_bias = torch.split(records, [n_residual, n, n, n, n], dim=-1)
    if n == 2:
        stay = torch.sigmoid(residual)
        move = 1 - stay
        matrices = torch.cat([stay, move, move, stay], dim=-1).view(-1, 2, 2)
    else:
        table = permutation_matrices(n).to(records).view(-1, n * n)
        matrices = (residual.softmax(dim=-1) @ table).view(-1, n, n)
    gain = 4.0 if n == 4 and version == 2 else 2.0
    return torch.sigmoid(pre + pre_bias), matrices, gain * torch.sigmoid(post + post_bias)


def records_of(mixing: tuple[Tensor, Tensor, Tensor] | None, block: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The coefficients of one block's two records, of those of all; None for a plain residual."""
    if mixing is None:
        return None
    read, matrix, write = mixing
    both = slice(2 * block, 2 * block + 2)
    return read[both], matrix[both], write[both]


def weighted(weights: Tensor, streams: list[Tensor]) -> Tensor:
    """Sum of streams of one shape, each times its weight [n]."""
    total = weights[0] * streams[0]
    for i in range(1, len(streams)):
        total = total + weights[i] * streams[i]
    return total


def write_streams(
    streams: list[Tensor], y: Tensor, matrix: Tensor, write: Tensor, *, mix_first: bool = False
) -> list[Tensor]:
    """The streams after a sub-layer with output `y`: coefficients matrix [n, n] and write [n] of its record.

    `mix_first` mixes before `y` is added, as version 1 of four streams does.
    """
    n = range(len(streams))
    source = streams if mix_first else [streams[i] + write[i] * y for i in n]
    mixed = [weighted(matrix[i], source) for i in n]
    return [mixed[i] + write[i] * y for i in n] if mix_first else mixed
