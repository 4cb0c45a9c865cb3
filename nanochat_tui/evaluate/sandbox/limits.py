"""What a sandboxed program may use, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ended = Literal["exit", "timeout", "memory", "processes", "output"]
"""How a program ended: by itself, or killed because it used too much of one thing."""


@dataclass(frozen=True)
class Limits:
    """Upper bounds for all processes of a sandbox together.

    seconds: wall clock. memory: bytes resident, summed over the processes; files count too, for they lie in memory.
    address_space: bytes that one process may map, None for no bound (compilers map far more than they use). kept: bytes
    of each stream that an outcome holds.
    """

    seconds: float = 10.0
    memory: int = 512 << 20
    address_space: int | None = 1 << 30
    processes: int = 32
    output: int = 1 << 20
    files: int = 64 << 20
    kept: int = 64 << 10


@dataclass(frozen=True)
class Outcome:
    """How a program ended, its exit code (negative: a signal), and the first bytes of what it wrote."""

    ended: Ended
    code: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether the program ended by itself with exit code 0."""
        return self.ended == "exit" and self.code == 0
