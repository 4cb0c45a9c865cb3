"""The loader of a run: one data set or several by weight, its batches made in the loop or ahead of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.train.data import BatchLoader, Dataset
from nanochat_tui.train.infill import Infill, make_infill
from nanochat_tui.train.mixture import Mixture
from nanochat_tui.train.prefetch import PrefetchLoader


class MixedLoader(BatchLoader):
    """Sequences of several data sets, each with epochs of its own, in the order of a `Mixture`."""

    def __init__(self, data: Dataset, config: TrainConfig, infills: list[Infill | None]) -> None:
        super().__init__(data.train, config, data.end, infills[0], roles=data.train_roles)
        others = [
            BatchLoader(
                other.train,
                config,
                other.end,
                infills[number],
                seed=_seed(config.seed, number),
                roles=other.train_roles,
            )
            for number, (other, _) in enumerate(data.mixed, 1)
        ]
        self.guard.add(*(part.guard for part in others))
        self.others = others
        self.mixture = Mixture([1.0, *(weight for _, weight in data.mixed)], config.seed)

    def sequence(self, position: int, start: int, length: int) -> NDArray[np.int64]:
        """See `BatchLoader`; the position is the run's, not that of a data set."""
        part, number = self.mixture.place(position)
        if part:
            return self.others[part - 1].sequence(number, start, length)
        return super().sequence(number, start, length)


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def open_loader(
    data: Dataset, config: TrainConfig, tokenizer: Tokenizer | None, *, cuda: bool = False, rank: int = 0
) -> BatchLoader | PrefetchLoader:
    """The loader of a run on `data`; `cuda`: its batches go to a GPU; `rank`: the process that reads them.

    Raises UserError where there is too little data, or it cannot be rearranged.
    """
    infills = [
        make_infill(
            tokenizer, part.train, part.end, (config.fim_rate, config.fim_spm_rate, _infill_seed(config, number))
        )
        for number, part in enumerate([data, *(other for other, _ in data.mixed)])
    ]
    loader = MixedLoader(data, config, infills) if data.mixed else _single(data, config, infills[0])
    loader.rank = rank
    if not config.loader_workers:
        return loader
    return PrefetchLoader(loader, workers=config.loader_workers, ahead=config.prefetch, pin=cuda)


def _single(data: Dataset, config: TrainConfig, infill: Infill | None) -> BatchLoader:
    return BatchLoader(data.train, config, data.end, infill, roles=data.train_roles)


def _infill_seed(config: TrainConfig, number: int) -> int:
    return _seed(config.seed, number) if number else config.seed
