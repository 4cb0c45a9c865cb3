"""What a model will take in memory, reckoned from its header before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat_tui.engine.cache import KEPT_STATES
from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.packing import round_up
from nanochat_tui.engine.packing_tables import KIND_OF_TYPE
from nanochat_tui.engine.paging import CacheType, PagePool, pages_for
from nanochat_tui.engine.plan import CHUNK
from nanochat_tui.engine.plan_matrices import is_ternary
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.model.architectures.description import Architecture, Part

LEAST_CONTEXT = 512
"""A model that has no room for this many tokens is refused."""
RESERVE = 1 << 28
"""Bytes that are left to the rest of the program: tokenizer, compiled code, interpreter."""
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes by what they are for. cache: keys and values at `context` tokens, and a recurrent state if there is one."""

    weights: int
    cache: int
    work: int
    context: int
    available: int
    """Bytes that the machine (or the limit that this process runs under) still has."""
    largest_context: int
    """The longest context that fits, at most the model's own; 0 if not even the weights do."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.work

    @property
    def fits(self) -> bool:
        """Whether that much is free."""
        return self.total + RESERVE <= self.available

    def to_json(self) -> dict[str, int | bool]:
        """Return the forecast as JSON values, in bytes and tokens."""
        return asdict(self) | {"total": self.total, "fits": self.fits}

    def __str__(self) -> str:
        return (
            f"memory: {self.weights / GIGA:.2f} GB weights + {self.cache / GIGA:.2f} GB for {self.context} tokens of "
            f"context + {self.work / GIGA:.2f} GB = {self.total / GIGA:.2f} GB, of {self.available / GIGA:.2f} GB free"
        )


def available_memory() -> int:
    """Return the bytes that can still be taken: the machine's, or less under a control group's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such limit here
    return max(0, free)


def _part_bytes(file: GGUFFile, part: Part, as_float: bool) -> int:
    info = file.tensor(part.name)
    exact = any(name in part.name for name in ("ssm_alpha", "ssm_beta", "ffn_gate_inp"))
    if part.role not in ("table", "ternary") or exact or as_float:
        return 4 * info.elements
    columns = info.shape[-1]
    rows = round_up(info.elements // columns, s.STATISTICS_BLOCK if part.role == "table" else s.ROW_BLOCK)
    if is_ternary(file, part.name):
        group = 128 if info.type.name == "I2_S" else min(128, max(64, info.type.block_elements))
        padded = round_up(columns, group)
        scales = 4 * rows if info.type.name == "I2_S" else 2 * rows * (padded // group)
        return rows * padded // 4 + scales
    if info.type.name in KIND_OF_TYPE:
        return info.nbytes * rows // max(1, info.elements // columns)
    return rows * columns * (4 if info.type.name == "F32" else 2)


def _work_bytes(shape: Architecture) -> int:
    """Return the bytes of a job's buffers for one thread, roughly: rows of activations and of logits."""
    widest = max(shape.dim, *(max(1, layer.ffn.used) * layer.ffn.hidden * 3 for layer in shape.layers))
    return 4 * (CHUNK * 6 * widest + (s.HEAD_ROWS + 3) * shape.vocab_size)


def forecast(
    file: GGUFFile,
    shape: Architecture,
    context: int | None = None,
    kv: CacheType = "f16",
    *,
    as_float: bool = False,
    available: int | None = None,
) -> Forecast:
    """Return what loading a described file takes; context: None is the model's own. available: None asks the system."""
    weights = sum(_part_bytes(file, part, as_float) for part in shape.parts())
    page = PagePool(shape, 0, kv).page_bytes
    fixed = 4 * (1 + KEPT_STATES) * shape.state_floats
    work = _work_bytes(shape)
    free = available_memory() if available is None else available
    asked = shape.context_length if context is None else context
    room = (free - RESERVE - weights - work - fixed) // page if page else 0
    largest = min(shape.context_length, max(0, int(room) - 1) * s.PAGE)
    return Forecast(weights, (pages_for(asked) + 1) * page + fixed, work, asked, free, largest)


def require_memory(found: Forecast, *, asked: bool) -> None:
    """Raise UserError, naming the largest context that fits, if a model does not fit.

    asked: the context was asked for; else only a model without room for a short one is refused, because pages are taken
    as they are used.
    """
    if found.fits or (not asked and found.largest_context >= min(LEAST_CONTEXT, found.context)):
        return
    needs, free = f"{found.total / GIGA:.1f} GB", f"{found.available / GIGA:.1f} GB"
    if found.largest_context < 1:
        raise UserError(
            f"the model needs {(found.weights + found.work) / GIGA:.1f} GB to begin with, and {free} of memory "
            "are free; choose a smaller model or close something"
        )
    raise UserError(
        f"with a context of {found.context} tokens the model needs {needs}, and {free} of memory are free; the largest "
        f"context that fits is {found.largest_context} tokens"
    )
