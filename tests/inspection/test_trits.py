"""Trits as readers of them see them, against the matrices that were written and NumPy's own counting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from samples import TERNARY, write_matrix

from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import TensorData, read_gguf, tensor_from_array, write_gguf
from nanochat_tui.formats.tensor_types import TENSOR_TYPES
from nanochat_tui.inspection import TritReader, ternary_statistics, ternary_tensors
from nanochat_tui.inspection.ternary_stats import QUANTILES, SCALE_BINS
from nanochat_tui.inspection.trit_map import SAMPLED_ROWS, fitting_zoom, picture, weight_at


@pytest.mark.parametrize("kind", TERNARY)
def test_codes_scales_and_packed_counts(tmp_path: Path, kind: str) -> None:
    trits, scales = write_matrix(tmp_path / "m.gguf", kind)
    with read_gguf(tmp_path / "m.gguf") as file:
        assert ternary_tensors(file) == ["w"]
        reader = TritReader(file, "w")
        assert (reader.rows, reader.columns) == trits.shape
        codes = reader.codes(0, 6)
        assert (codes.astype(np.int8) - 1 == trits).all()
        group = reader.group
        part = reader.codes(2, 4, 1, 2)
        assert (part == codes[2:4, group : 2 * group]).all()
        blocks = codes.reshape(-1, group)
        counted = np.stack([(blocks == code).sum(axis=1) for code in range(4)], axis=1)
        assert (reader.counts(reader.blocks(0, 6)) == counted).all()
        found = reader.scales(0, 6)
        assert found.shape == (6, 512 // group)
        expected = np.full_like(found, scales.flat[0]) if kind == "I2_S" else np.repeat(scales, 256 // group, axis=1)
        assert (found == expected).all()
        # what the engine would compute with is the product of the two
        assert (file.array("w") == trits * np.repeat(found, group, axis=1)).all()


@pytest.mark.parametrize("kind", TERNARY)
def test_statistics_of_every_type(tmp_path: Path, kind: str) -> None:
    trits, _ = write_matrix(tmp_path / "m.gguf", kind, rows=9, columns=768)
    with read_gguf(tmp_path / "m.gguf") as file:
        (found,) = ternary_statistics(file)
        stored = TritReader(file, "w").scales(0, 9)
    assert found.counts == (int((trits == -1).sum()), int((trits == 0).sum()), int((trits == 1).sum()), 0)
    flat = stored.reshape(-1) if kind != "I2_S" else stored.reshape(-1)[:1]
    assert found.scales == flat.size
    assert found.scale_quantiles == pytest.approx(np.quantile(flat.astype(np.float64), QUANTILES))
    assert sum(found.scale_histogram) == flat.size and len(found.scale_histogram) == SCALE_BINS
    assert sum(found.zero_histogram) == trits.size // TENSOR_TYPES[kind].block_elements
    if flat.size > 1:
        assert found.scale_edges[0] == pytest.approx(flat.min()) and found.scale_edges[-1] == pytest.approx(flat.max())


def test_dead_rows_and_groups_are_found_where_they_are(tmp_path: Path) -> None:
    trits = np.ones((20, 256), np.int8)
    trits[[3, 17]] = 0
    trits[5, :64] = 0
    scales = np.full((20, 4), 0.5, np.float16)
    scales[8] = 0
    blocks = np.zeros((80, 18), np.uint8)
    blocks[:, :2] = scales.reshape(-1, 1).view(np.uint8)
    blocks[:, 2:] = np.bitwise_or.reduce(
        (trits.reshape(-1, 16, 4) + 1).astype(np.uint8) << np.array([0, 2, 4, 6], np.uint8), axis=2
    )
    write_gguf(tmp_path / "m.gguf", {}, [TensorData("w", (20, 256), TENSOR_TYPES["Q2_0"], blocks)])
    with read_gguf(tmp_path / "m.gguf") as file:
        (found,) = ternary_statistics(file)
    assert found.dead_rows == 3 and found.listed_dead_rows == (3, 8, 17)
    assert found.dead_groups == 4 + 4 + 4 + 1
    assert found.zero_histogram[0] == 80 - 9 and found.zero_histogram[-1] == 9


def test_code_3_of_i2_s_is_counted_as_the_zero_it_reads_as(tmp_path: Path) -> None:
    data = np.concatenate([np.full(32, 0xFF, np.uint8), np.zeros(32, np.uint8)])
    data[32:36] = np.array([0.5], "<f4").view(np.uint8)
    write_gguf(tmp_path / "m.gguf", {}, [TensorData("w", (1, 128), TENSOR_TYPES["I2_S"], data)])
    with read_gguf(tmp_path / "m.gguf") as file:
        (found,) = ternary_statistics(file)
        assert (file.array("w") == 0).all()
    assert found.counts == (0, 128, 0, 0) and found.dead_rows == 1


def test_a_tick_can_end_the_counting_and_sees_every_byte(tmp_path: Path) -> None:
    write_matrix(tmp_path / "m.gguf", "Q2_0", rows=64)
    read: list[int] = []
    with read_gguf(tmp_path / "m.gguf") as file:
        ternary_statistics(file, tick=read.append)
        assert sum(read) == file.tensor("w").nbytes

        def stop(_size: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ternary_statistics(file, tick=stop)


def test_what_is_not_ternary_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, [tensor_from_array("w", np.ones((2, 32)), TENSOR_TYPES["F32"])])
    with read_gguf(tmp_path / "m.gguf") as file:
        assert ternary_tensors(file) == []
        for name in ("w", "absent"):
            with pytest.raises(UserError):
                TritReader(file, name)


@pytest.mark.parametrize("kind", ["Q2_0", "TQ1_0", "I2_S"])
@pytest.mark.parametrize(("row", "column", "zoom"), [(0, 0, 1), (3, 70, 1), (0, 0, 4), (1, 130, 8), (0, 500, 2)])
def test_the_picture_is_the_mean_of_the_trits(tmp_path: Path, kind: str, row: int, column: int, zoom: int) -> None:
    trits, _ = write_matrix(tmp_path / "m.gguf", kind, rows=20)
    with read_gguf(tmp_path / "m.gguf") as file:
        reader = TritReader(file, "w")
        found = picture(reader, row, column, 5, 7, zoom)
        dense = picture(reader, row, column, 5, 7, zoom, density=True)
    for y in range(5):
        for x in range(7):
            cell = trits[row + y * zoom : row + (y + 1) * zoom, column + x * zoom : column + (x + 1) * zoom]
            if cell.size:
                assert found[y, x] == pytest.approx(cell.mean(), abs=1e-6)
                assert dense[y, x] == pytest.approx((cell != 0).mean(), abs=1e-6)
            else:
                assert np.isnan(found[y, x]) and np.isnan(dense[y, x])


def test_a_coarse_picture_samples_rows_evenly(tmp_path: Path) -> None:
    trits, _ = write_matrix(tmp_path / "m.gguf", "Q2_0", rows=128)
    with read_gguf(tmp_path / "m.gguf") as file:
        found = picture(TritReader(file, "w"), 0, 0, 2, 8, 64)
    rows = np.unique(np.linspace(64, 127, SAMPLED_ROWS).round().astype(int))
    assert found[1, 3] == pytest.approx(trits[rows, 192:256].mean(), abs=1e-6)


def test_single_weights_and_the_zoom_that_fits(tmp_path: Path) -> None:
    trits, scales = write_matrix(tmp_path / "m.gguf", "PQ2_0", rows=20)
    with read_gguf(tmp_path / "m.gguf") as file:
        reader = TritReader(file, "w")
        assert weight_at(reader, 7, 300) == (int(trits[7, 300]), float(scales[7, 1]))
        assert weight_at(reader, 20, 0) is None and weight_at(reader, 0, -1) is None
        assert fitting_zoom(reader, 20, 512) == 1
        assert fitting_zoom(reader, 20, 100) == 8


def test_experts_are_one_matrix_below_the_other(tmp_path: Path) -> None:
    trits, scales = write_matrix(tmp_path / "flat.gguf", "TQ2_0", rows=6)
    with read_gguf(tmp_path / "flat.gguf") as file:
        data = file.blocks("w").copy()
    write_gguf(tmp_path / "m.gguf", {}, [TensorData("w", (3, 2, 512), TENSOR_TYPES["TQ2_0"], data)])
    with read_gguf(tmp_path / "m.gguf") as file:
        reader = TritReader(file, "w")
        assert (reader.rows, reader.columns) == (6, 512)
        assert (reader.codes(0, 6).astype(np.int8) - 1 == trits).all()
        assert (reader.scales(4, 5) == scales[4:5]).all()
