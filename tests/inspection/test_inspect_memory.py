"""A pass over a file leaves the process as large as it was."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from nanochat_tui.formats.gguf import GGUFFile, TensorData, read_gguf, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.inspection import compare, ternary_statistics
from nanochat_tui.inspection.mapped import forget
from nanochat_tui.inspection.tensor_stats import tensor_statistics

MIB = 1 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    rows, columns = 4096, 65_536  # 72 MiB as Q2_0
    blocks = np.full((rows * columns // 64, 18), 0x24, np.uint8)
    kind = TENSOR_TYPES["Q2_0"]
    plain = np.zeros((16 * MIB, 4), np.uint8)
    write_gguf(
        path,
        {},
        [TensorData("w", (rows, columns), kind, blocks), TensorData("f", (16 * MIB,), TENSOR_TYPES["F32"], plain)],
    )
    return path


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system cannot be told to let go")
@pytest.mark.parametrize(
    "work",
    [
        ternary_statistics,
        lambda file: tensor_statistics(file, "f"),
        lambda file: compare(file, file),
    ],
    ids=["trits", "values", "compare"],
)
def test_the_mapped_file_does_not_stay_in_memory(large: Path, work: Callable[[GGUFFile], object]) -> None:
    # the most is not looked at, only what stays: the pieces that are worked on need some megabytes for a moment
    with read_gguf(large) as file:
        work(file)  # what NumPy and the allocator keep is paid now
    process = psutil.Process()
    with read_gguf(large) as file:
        before = process.memory_info().rss
        work(file)
        assert process.memory_info().rss - before < 24 * MIB


def test_what_was_forgotten_is_read_again(large: Path) -> None:
    with read_gguf(large) as file:
        blocks = file.blocks("w")
        before = blocks[5000:5010].copy()
        forget(blocks)
        forget(np.zeros(10_000))  # no mapped file: nothing happens
        assert (blocks[5000:5010] == before).all()
