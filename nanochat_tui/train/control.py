"""The run directory's control file, as the trainer obeys it."""

from __future__ import annotations

from collections.abc import Callable

from nanochat_tui.runs.directory import Control, RunDirectory
from nanochat_tui.text import display_safe
from nanochat_tui.train.checkpoint import SaveError


class ControlFile:
    """Commands given to a run; one of before the start was meant for an earlier trainer."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.done = run.last_control()
        """Id of the last command that was answered."""
        self.result = ""
        """What came of it."""

    def pending(self) -> Control | None:
        """The command that waits for an answer."""
        return self.run.pending_control(self.done)

    def obey(self, pending: Control | None, act: Callable[[str], str], log: Callable[[str], None]) -> bool:
        """Answer a command that waits; returns whether there was one.

        `act(command)` does it and returns the checkpoint's name. Raises SaveError when a stop cannot be saved.
        """
        if pending is None:
            return False
        if pending.command is None:
            self.result = "not understood"
            log(
                f"note: the control file says {display_safe(pending.text, 80)}, which is neither checkpoint nor stop; "
                "it was passed over"
            )
        else:
            try:
                self.result = act(pending.command)
            except SaveError as error:
                if pending.command == "stop":
                    raise
                self.result = f"failed: {error}"  # no work is lost by it, and the training continues
                log(f"note: {error}")
        self.done = pending.request
        return True
