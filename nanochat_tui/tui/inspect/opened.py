"""One file that is being looked at, and everything that was computed of it so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nanochat_tui.inspection import GGUFFile
from nanochat_tui.inspection.original import is_original
from nanochat_tui.inspection.summary import Summary, inspect_file, open_whole, summarise
from nanochat_tui.inspection.tensor_stats import TensorStatistics
from nanochat_tui.inspection.ternary_stats import TernaryStatistics
from nanochat_tui.inspection.trits import TritReader, ternary_tensors
from nanochat_tui.inspection.vocabulary import Vocabulary


@dataclass(eq=False)
class Opened:
    """An open file. `file` is None for one of the original nanochat-rs-ternary, which is only described."""

    path: Path
    summary: Summary
    file: GGUFFile | None
    ternary: dict[str, TernaryStatistics] = field(default_factory=dict)
    """Statistics of ternary tensors, as far as they were computed."""
    values: dict[str, TensorStatistics] = field(default_factory=dict)
    """Distributions of values, as far as they were computed."""
    _readers: dict[str, TritReader] = field(default_factory=dict)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokenizer; building it takes a moment, so ask in a thread."""
        return None if self.file is None else Vocabulary(self.file.metadata)

    @cached_property
    def trits(self) -> list[str]:
        """Names of the ternary tensors."""
        return [] if self.file is None else ternary_tensors(self.file)

    def reader(self, name: str) -> TritReader:
        """Return the reader of a ternary tensor, always the same."""
        if name not in self._readers:
            if self.file is None:
                raise KeyError(name)
            self._readers[name] = TritReader(self.file, name)
        return self._readers[name]

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()


def open_path(path: Path) -> Opened:
    """Open and summarise a file. Raises FormatError if it cannot be read or is not sound."""
    if is_original(path):
        return Opened(path, inspect_file(path), None)
    file = open_whole(path)
    try:
        return Opened(path, summarise(file), file)
    except BaseException:
        file.close()
        raise
