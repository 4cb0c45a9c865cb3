"""What a command does, and when that is possible: a part of the chat offers such acts by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Act:
    """One thing the chat can do. `run` gets the command's argument, '' if it has none, and may be a coroutine
    function.
    """

    run: Callable[[str], object]
    possible: Callable[[], bool | None] = _always
    """Whether it makes sense now: None shows its key dimmed, False not at all."""
    concerns: Callable[[], bool] = _always
    """Whether it is about this kind of model and session, and so worth a line in the palette."""
    value: Callable[[], str] = str
    """What stands in the dialog that asks for the argument."""
    blank: bool = False
    """Whether an empty argument is one."""


def plain(function: Callable[[], object]) -> Callable[[str], object]:
    """Return `function`, which takes no argument, as an act's `run`."""

    def run(_: str) -> object:
        return function()

    return run
