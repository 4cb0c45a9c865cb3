"""Messages of the train mode: from its threads to its screen, and between its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from textual.message import Message

from nanochat_tui.runs.compare import RunFigures
from nanochat_tui.runs.config import TrainConfig
from nanochat_tui.runs.discovery import FoundRun
from nanochat_tui.runs.watch import Snapshot
from nanochat_tui.tui.train.panels import Panel


@dataclass
class RunsFound(Message):
    """The search through the folder of runs is over."""

    runs: list[FoundRun]

    def can_replace(self, message: Message) -> bool:
        """Only the newest search counts."""
        return isinstance(message, RunsFound)


@dataclass
class RunEnded(Message):
    """A run that lived when it was looked at last does not any more, or its heart has stopped."""

    run: FoundRun


@dataclass
class RunSeen(Message):
    """A look at the open run; `panels` is None when no curve changed."""

    snapshot: Snapshot
    panels: Mapping[str, Panel] | None

    def can_replace(self, message: Message) -> bool:
        """A newer look replaces one that was not shown yet, unless that brought curves and this does not."""
        return isinstance(message, RunSeen) and (self.panels is not None or message.panels is None)


@dataclass
class WatchFailed(Message):
    """A run could not be read."""

    text: str


@dataclass
class RunsCompared(Message):
    """The marked runs, read."""

    runs: list[RunFigures]


@dataclass
class LaunchWanted(Message):
    """The form is valid and its button was pressed."""

    config: TrainConfig
    directory: Path
    prefix: list[str]


@dataclass
class CheckpointChosen(Message):
    """Something should be done with a checkpoint: `talk` or `export`."""

    path: Path
    what: str


@dataclass
class JobEnded(Message):
    """A task in the background is over; `error` says what went wrong."""

    job: str
    checkpoint: Path
    gguf: Path | None = None
    error: str | None = None
    report: list[str] = field(default_factory=list)


@dataclass
class ScrubProgress(Message):
    """The scrubber writes, or has written, the text of a checkpoint."""

    number: int
    checkpoint: Path
    text: str
    done: bool
    error: str | None = None


@dataclass
class ScrubEnded(Message):
    """All checkpoints were asked, or were stopped."""

    number: int
