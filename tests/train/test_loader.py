"""Batches made ahead and data sets mixed by weight: the same batches for any number of threads, from any position."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_tokenizer
from trained import losses, on_data, train, write_data

from nanochat_tui.errors import UserError
from nanochat_tui.runs.config import TrainConfig, parse_config
from nanochat_tui.train.data import BatchLoader, open_dataset
from nanochat_tui.train.infill import Infill, InfillSettings
from nanochat_tui.train.loading import MixedLoader, open_loader
from nanochat_tui.train.mixture import BLOCK, Mixture
from nanochat_tui.train.prefetch import PrefetchLoader
from nanochat_tui.train.recovery import DataLostError

END = 250


def configured(**changes: Any) -> TrainConfig:
    return parse_config({"config": "tiny", "dataset": "synthetic", "seq_len": 32, "batch_size": 4, **changes})


def documents(count: int = 3000) -> np.ndarray:
    ids = np.random.default_rng(0).integers(32, 120, count).astype(np.uint16)
    ids[np.sort(np.random.default_rng(1).choice(count, count // 40, replace=False))] = END
    return ids


def loader(infill: bool = False) -> BatchLoader:
    rearranged = None
    if infill:
        from nanochat_tui.model.tokenizer.infill import choose_marks

        tokenizer = tiny_tokenizer(300)
        rearranged = Infill(tokenizer, choose_marks(tokenizer), InfillSettings(0.5, 0.5, END, 7))
    return BatchLoader(documents(), configured(), END, rearranged)


VISITS = [*range(30), 12, 13, 14, 100, 101, 3]
"""Indexes as a run asks for them: in order over several epochs, after going back, far ahead, back again."""


@pytest.mark.parametrize("infill", [False, True])
@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 12), (6, 12), (16, 3)])
def test_the_number_of_threads_changes_nothing(infill: bool, workers: int, ahead: int) -> None:
    plain, threaded = loader(infill), PrefetchLoader(loader(infill), workers=workers, ahead=ahead)
    try:
        for visit, index in enumerate(VISITS):
            length = 16 if 5 <= visit < 9 else None
            if visit == 20:
                plain.origin = threaded.origin = 7
            expected, found = plain.batch_at(index, length), threaded.batch_at(index, length)
            assert torch.equal(expected[0], found[0]) and torch.equal(expected[1], found[1]), (visit, index)
    finally:
        threaded.close()


def test_batches_are_made_ahead_and_not_further(monkeypatch: pytest.MonkeyPatch) -> None:
    made: set[int] = set()
    all_there = threading.Event()
    inner = loader()
    batch_from = inner.batch_from

    def watch(origin: int, index: int, length: int | None = None) -> Any:
        found = batch_from(origin, index, length)
        made.add(index)
        if len(made) == 6:
            all_there.set()
        return found

    monkeypatch.setattr(inner, "batch_from", watch)
    threaded = PrefetchLoader(inner, workers=2, ahead=5)
    threaded.batch_at(0)
    assert all_there.wait(120)  # without anybody asking for them
    threaded.close()
    assert made == set(range(6))


def test_what_goes_wrong_is_raised_where_the_batch_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "t.bin"
    documents().tofile(file)
    threaded = PrefetchLoader(BatchLoader(np.memmap(file, np.uint16, "r"), configured()), workers=2, ahead=1)
    threaded.batch_at(0)
    file.unlink()
    with pytest.raises(DataLostError, match="is gone"):
        for index in range(1, 4):
            threaded.batch_at(index)
    threaded.close()


def test_a_run_is_the_same_with_any_number_of_threads_and_resumes_with_another(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 2000)
    options = on_data(data, steps=12, eval_interval=6, sample_tokens=0, short_seq_len=16, short_fraction=0.5)
    whole = losses(train(tmp_path / "whole", **options, loader_workers=0))
    part = tmp_path / "part"
    assert losses(train(part, **options, loader_workers=6, prefetch=12)) == whole
    for late in ("step_10", "final"):
        for file in (part / late).iterdir():
            file.unlink()
        (part / late).rmdir()
    assert losses(train(part, resume=part / "step_5", **options, loader_workers=3, prefetch=2)) == whole
    weights = [(tmp_path / run / "final" / "model.safetensors").read_bytes() for run in ("whole", "part")]
    assert weights[0] == weights[1]


SPARSE = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from nanochat_tui.runs.config import parse_config
from nanochat_tui.train.data import BatchLoader
from nanochat_tui.train.prefetch import PrefetchLoader
tokens = np.memmap(sys.argv[1], "<u2", "r")
# memory of the process's own may not reach an eighth of the file
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
config = parse_config({"config": "tiny", "dataset": "synthetic", "context_length": 8192, "batch_size": 2})
loader = PrefetchLoader(BatchLoader(tokens, config), workers=2, ahead=4)
for index in (0, 1, 2, 50_000):
    inputs, targets = loader.batch_at(index)
    assert inputs.shape == targets.shape == (2, 8192)
loader.close()
try:
    np.ones(1 << 28).sum()
except MemoryError:
    print("limited")
"""


def test_a_file_larger_than_the_memory_is_read(tmp_path: Path) -> None:
    """8 GiB of tokens, a file of holes, with 1 GiB of memory allowed."""
    file = tmp_path / "t.bin"
    with file.open("wb") as handle:
        handle.truncate(8 << 30)
    done = subprocess.run(
        [sys.executable, "-c", SPARSE, str(file)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "limited"


# several data sets


@pytest.mark.parametrize("weights", [[1.0, 3.0], [1.0, 1.0, 1.0], [0.5, 1e-6, 20.0, 0.01], [1.0], [1.0] * 100])
def test_a_mixture_keeps_its_shares_and_leaves_nothing_out(weights: list[float]) -> None:
    mixture = Mixture(weights, seed=3)
    positions = 10 * BLOCK + 100
    found = [mixture.place(position) for position in range(positions)]
    shares = np.array(weights) / sum(weights)
    for block in range(10):
        counts = np.bincount([part for part, _ in found[: (block + 1) * BLOCK]], minlength=len(weights))
        assert np.abs(counts - (block + 1) * BLOCK * shares).max() <= len(weights)
    for part in range(len(weights)):
        numbers = sorted(number for owner, number in found[: 10 * BLOCK] if owner == part)
        assert numbers == list(range(len(numbers)))
    assert [Mixture(weights, seed=3).place(p) for p in (9999, 5, 2048)] == [found[p] for p in (9999, 5, 2048)]
    if len(weights) > 1 and min(shares) > 0.1:
        assert found != [Mixture(weights, seed=4).place(position) for position in range(positions)]


def test_batches_come_from_all_data_sets_by_weight(tmp_path: Path) -> None:
    folders = [write_data(tmp_path / name, 3000) for name in ("a", "b")]
    for number, folder in enumerate(folders):
        ids = np.full(3000, 10 + number, "<u2")
        ids.tofile(folder / "train.bin")
    config = parse_config(
        {"config": "tiny", "vocab_size": 300, "seq_len": 32, "batch_size": 64, "verify_data": False}
        | {"data_path": folders[0], "data_mix": f"{folders[1]}=3", "loader_workers": 0}
    )
    mixed = open_loader(open_dataset(config, 300), config, None)
    assert isinstance(mixed, MixedLoader)
    rows = torch.cat([mixed.batch_at(index)[0] for index in range(16)])
    assert rows.shape == (1024, 32)
    assert int((rows[:, 0] == 11).sum()) == 768 and int((rows[:, 0] == 10).sum()) == 256
    assert bool((rows == rows[:, :1]).all())  # no row is of two sets


def test_a_mixed_run_resumes_bit_for_bit_and_says_what_it_was_trained_on(tmp_path: Path) -> None:
    a, b = write_data(tmp_path / "a", 2000), write_data(tmp_path / "b", 1500)
    options = on_data(a, steps=12, sample_tokens=0, data_mix=f"{b}=0.5")
    whole = losses(train(tmp_path / "run", **options))
    assert losses(train(tmp_path / "alone", **options | {"data_mix": None})) != whole
    description = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert [(m["path"], m["weight"], m["train_tokens"]) for m in description["mix"]] == [(str(b), 0.5, 1500)]
    for late in ("step_10", "final"):
        for file in (tmp_path / "run" / late).iterdir():
            file.unlink()
        (tmp_path / "run" / late).rmdir()
    assert losses(train(tmp_path / "run", resume=tmp_path / "run" / "step_5", **options)) == whole
    train(tmp_path / "run", resume=tmp_path / "run" / "final", **options | {"data_mix": f"{b}=2", "steps": 14})
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "note: the training data are others" in log


def test_what_cannot_be_mixed_is_refused(tmp_path: Path) -> None:
    a, b = write_data(tmp_path / "a"), write_data(tmp_path / "b", vocabulary=280)
    config = parse_config({"config": "tiny", "vocab_size": 300, "data_path": a, "data_mix": f"{b}=1"})
    with pytest.raises(UserError, match="was tokenised with 280 ids, the model has 300"):
        open_dataset(config, 300)
    info = json.loads((a / "dataset.json").read_text())
    c = write_data(tmp_path / "c")
    (c / "dataset.json").write_text(json.dumps({**info, "tokenizer_sha256": "0" * 64}))
    config = parse_config({"config": "tiny", "vocab_size": 300, "data_path": a, "data_mix": f"{c}=1"})
    with pytest.raises(UserError, match="made with another tokenizer than"):
        open_dataset(config, 300)
    for text in ("x", "x=", "=3", "x=-1", "x=0", "x=nan"):
        with pytest.raises(UserError, match="data_mix must be PATH=WEIGHT, PATH=WEIGHT with weights above 0"):
            parse_config({"data_path": a, "data_mix": text})
    with pytest.raises(UserError, match="data_mix needs dataset 'tokens'"):
        parse_config({"dataset": "synthetic", "data_mix": "x=1"})
