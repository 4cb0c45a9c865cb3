from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.train.data import BatchLoader, open_dataset, token_counts


def _config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"dataset": "synthetic", "seq_len": 16, "batch_size": 3, **changes})


def test_targets_are_the_next_tokens_and_come_from_the_file() -> None:
    tokens = np.arange(16 * 12 + 1, dtype=np.uint16)
    loader = BatchLoader(tokens, _config())
    for index in range(4):
        x, y = loader.batch_at(index)
        assert x.shape == y.shape == (3, 16)
        assert torch.equal(x[:, 1:], y[:, :-1])
        # the file is one document: only after its end comes its beginning again
        assert torch.equal(torch.where(x == 192, 0, x + 1), y)


def test_order_depends_on_seed_and_position_only() -> None:
    tokens = np.arange(16 * 120 + 1, dtype=np.uint16)
    a, b, c = (BatchLoader(tokens, _config(seed=s)) for s in (0, 0, 1))
    # b comes to the third epoch without having been through the first two
    later = 2 * a.plan(0).rows // 3 + 5
    for index in range(later):
        a.batch_at(index)
    assert torch.equal(a.batch_at(later)[0], b.batch_at(later)[0])
    assert a.place(3 * later)[0] == 2
    assert not torch.equal(a.batch_at(0)[0], c.batch_at(0)[0])


def test_the_next_epoch_follows_the_last_row_of_the_one_before() -> None:
    loader = BatchLoader(np.arange(999, dtype=np.uint16), _config())
    rows = [loader.plan(epoch).rows for epoch in range(3)]
    places = [loader.place(position) for position in range(sum(rows))]
    assert places == [(epoch, row) for epoch in range(3) for row in range(rows[epoch])]


def test_too_little_data_is_refused() -> None:
    with pytest.raises(UserError, match="fewer than one sequence"):
        BatchLoader(np.arange(16, dtype=np.uint16), _config())


def test_bare_file_is_read_as_the_type_given(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    np.arange(100, dtype="<u4").tofile(path)
    assert open_dataset(_config(dataset="tokens", data_path=path), 300).train.tolist() == list(range(100))
    np.arange(100, dtype="<u2").tofile(path)
    narrow = open_dataset(_config(dataset="tokens", data_path=path, token_dtype="u16"), 300)
    assert narrow.train.tolist() == list(range(100))
    with pytest.raises(UserError):
        open_dataset(_config(dataset="tokens", data_path=path), 300)


def test_counts() -> None:
    counts = token_counts(np.array([1, 1, 5], np.uint16), 8)
    assert counts.tolist() == [0, 2, 0, 0, 0, 1, 0, 0]
