"""The three layouts of I2_S, which nothing in a file tells apart.

microsoft/BitNet packs the same codes in another order on every kind of build. All published files are of x86 builds;
quantised on an ARM machine it has the second, and a build without parallel activations writes the third.
Source: microsoft/BitNet, src/ggml-bitnet-mad.cpp.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.plain_blocks import Blocks
from nanochat_tui.formats.ternary_blocks import I2_S_TAIL, join_i2_s

Layout = Literal["x86", "arm", "1x4"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

_SHIFTS = np.array([6, 4, 2, 0], np.uint8)


def to_x86(blocks: Blocks, layout: Layout, columns: int) -> Blocks:
    """Return a whole tensor's blocks, uint8 [n, 32], in the order of x86 builds.

    arm: 64 weights in 16 bytes, byte m holding elements m, 16 + m, 32 + m, 48 + m, the first in the highest bits.
    1x4: a byte holds four rows of one column, the first in the highest bits.
    Raises FormatError if rows of `columns` weights do not fill the layout.
    """
    if layout == "x86":
        return blocks
    rows = blocks.size * 4 // columns
    if layout == "arm":
        codes = (blocks.reshape(-1, 1, 16) >> _SHIFTS[:, None]) & 3
    elif rows % 4:
        raise FormatError(f"a matrix of {rows} rows cannot be I2_S in the layout 1x4, which puts four into a byte")
    else:
        codes = (blocks.reshape(rows // 4, 1, columns) >> _SHIFTS[:, None]) & 3
    flat = codes.reshape(-1, 128).astype(np.uint8)
    flat[flat == 3] = 1
    return join_i2_s(flat, np.float32(0))[:-I2_S_TAIL].reshape(-1, 32)
