"""Folders of source files in, token files out. Needs no torch."""

from nanochat_tui.train.data_preparation.options import PrepareOptions, PrepareReport, Progress
from nanochat_tui.train.data_preparation.pipeline import prepare_data
from nanochat_tui.train.data_preparation.sources import Source
from nanochat_tui.train.data_preparation.vocabulary import TrainedTokenizer, train_tokenizer

__all__ = [
    "PrepareOptions",
    "PrepareReport",
    "Progress",
    "Source",
    "TrainedTokenizer",
    "prepare_data",
    "train_tokenizer",
]
