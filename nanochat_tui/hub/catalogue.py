"""Ternary models that can be fetched by a short name.

Names of repositories, sizes and types are those of the publishers' pages and of threads about them; no entry stands for
a file that this project has run unless it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nanochat_tui.errors import UserError
from nanochat_tui.text import display_safe

NOT_OPENED = "not opened by us"


@dataclass(frozen=True, slots=True)
class Entry:
    """A published model. `gigabytes` is the size of the file that is taken, 0 where it is not known."""

    name: str
    repo: str
    wanted: str | None
    gigabytes: float
    architecture: str
    types: str
    context: int
    licence: str
    note: str = ""
    opened: bool = False
    """Whether a test of this project has run the published file."""

    @property
    def memory_gigabytes(self) -> float:
        """Memory to begin with: the weights as they are, and half a gigabyte for the program and a short context."""
        return round(self.gigabytes + 0.5, 1) if self.gigabytes else 0.0

    @property
    def state(self) -> str:
        """What is known of the published file here."""
        return "opened by us" if self.opened else NOT_OPENED

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON values."""
        return asdict(self) | {"memory_gigabytes": self.memory_gigabytes, "state": self.state}


_BONSAI2 = "rotated weights; thinks, calls tools; its vision tower is left out"

CATALOGUE: tuple[Entry, ...] = (
    Entry("bonsai-1.7b", "prism-ml/Ternary-Bonsai-1.7B-gguf", "Q2_0", 0.46, "qwen3", "Q2_0 g128", 32_768, "Apache-2.0"),
    Entry("bonsai-4b", "prism-ml/Ternary-Bonsai-4B-gguf", "Q2_0", 1.07, "qwen3", "Q2_0 g128", 32_768, "Apache-2.0"),
    Entry("bonsai-8b", "prism-ml/Ternary-Bonsai-8B-gguf", "Q2_0", 2.18, "qwen3", "Q2_0 g128", 65_536, "Apache-2.0"),
    Entry("bonsai-27b", "prism-ml/Ternary-Bonsai-27B-gguf", None, 7.17, "qwen35", "Q2_0, PQ2_0", 262_144, "Apache-2.0"),
    Entry(
        "bonsai-2-2b",
        "prism-ml/Ternary-Bonsai-2-2B-gguf",
        "PTQ1_0",
        0.43,
        "qwen35",
        "PTQ1_0, PQ2_0, Q2_0",
        262_144,
        "Apache-2.0",
        _BONSAI2,
    ),
    Entry(
        "bonsai-2-9b",
        "prism-ml/Ternary-Bonsai-2-9B-gguf",
        "PTQ1_0",
        2.0,
        "qwen35",
        "PTQ1_0, PQ2_0, Q2_0",
        262_144,
        "Apache-2.0",
        _BONSAI2,
    ),
    Entry(
        "bonsai-2-27b",
        "prism-ml/Ternary-Bonsai-2-27B-gguf",
        "PTQ1_0",
        5.95,
        "qwen35",
        "PTQ1_0, PQ2_0, Q2_0",
        262_144,
        "Apache-2.0",
        _BONSAI2,
    ),
    Entry(
        "maple",
        "deepgrove/maple-preview-GGUF",
        None,
        5.9,
        "maple",
        "TQ2_0, TQ1_0",
        128_000,
        "MIT",
        "20 billion weights in 256 experts, of which 1.2 billion compute a token",
    ),
    Entry("bitnet-2b4t", "microsoft/bitnet-b1.58-2B-4T-gguf", "i2_s", 1.19, "bitnet-b1.58", "I2_S", 4096, "MIT"),
    Entry(
        "falcon-e-1b",
        "tiiuae/Falcon-E-1B-Instruct-GGUF",
        "i2_s",
        0.67,
        "llama",
        "I2_S",
        32_768,
        "Falcon-LLM",
        "context as its publisher says, not confirmed",
    ),
    Entry(
        "falcon-e-3b",
        "tiiuae/Falcon-E-3B-Instruct-GGUF",
        "i2_s",
        1.0,
        "llama",
        "I2_S",
        32_768,
        "Falcon-LLM",
        "context as its publisher says, not confirmed",
    ),
    Entry(
        "trilm",
        "Ayushk44/TriLMggufs",
        None,
        0.35,
        "llama",
        "TQ1_0",
        2048,
        "Apache-2.0",
        "base models of 560M (352 MB) to 3.9B (1.4 GB): the smallest is taken, or name a file",
    ),
)
"""Sizes: the publishers' of the file that is taken; what was not published as a file of its own is left out."""


def find(name: str) -> Entry:
    """Return the entry of a name. Raises UserError, with the nearest names."""
    from difflib import get_close_matches

    names = [entry.name for entry in CATALOGUE]
    for entry in CATALOGUE:
        if entry.name == name.lower():
            return entry
    near = get_close_matches(name.lower(), names, n=3)
    hint = f"did you mean {' or '.join(near)}? Else" if near else "nanochat-tui pull --list shows it;"
    raise UserError(f"{display_safe(name)} is not in the catalogue; {hint} give a repository as user/repo:quantisation")


def table(present: Sequence[str] = ()) -> list[str]:
    """Return the catalogue as lines; present: names whose files are on this machine."""
    rows = [("name", "file", "memory", "architecture", "types", "licence", "")]
    for entry in CATALOGUE:
        state = f"on this machine, {entry.state}" if entry.name in present else entry.state
        rows.append(
            (
                entry.name,
                f"{entry.gigabytes:.2f} GB",
                f"{entry.memory_gigabytes:.1f} GB",
                entry.architecture,
                entry.types,
                entry.licence,
                state,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    found = lines[:1]
    for entry, line in zip(CATALOGUE, lines[1:], strict=True):
        whole = f"{entry.repo}:{entry.wanted}" if entry.wanted else entry.repo
        found += [line, f"    {whole}" + (f"; {entry.note}" if entry.note else "")]
    return found
