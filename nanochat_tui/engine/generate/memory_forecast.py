"""What a model will take in memory, estimated from its header before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.run.kv_cache import KEPT_STATES
from nanochat_tui.engine.run.paging import CacheType, PagePool, pages_for
from nanochat_tui.engine.run.tables import CHUNK
from nanochat_tui.engine.weights.load import matrix_names, plan_weights
from nanochat_tui.engine.weights.matrices import largest_group
from nanochat_tui.engine.weights.screening import is_screened, screen_bytes
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.model.architectures.description import Architecture
from nanochat_tui.system import GROUPS, OWN_GROUPS, group_folders

LEAST_CONTEXT = 512
"""A model that has no room for this many tokens is refused."""
RESERVE = 1 << 28
"""Bytes that are left to the rest of the program: tokenizer, compiled code, interpreter."""
GIGA = 1e9
LIMITS = (
    ("memory.max", "memory.current", ""),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Files of a control group's limit and of what is used, prefix of the keys of what for: version 2, version 1."""
MEMORY = Path("/proc/meminfo")
FILE_CACHE = ("active_file", "inactive_file")
"""Keys of bytes that count as used and are given back when memory is short, such as a model file just read."""


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


def machine_memory(statistics: Path = MEMORY) -> int:
    """Return the bytes that the machine still has. statistics: where Linux counts them, in units of 1024 bytes.

    psutil says the same everywhere, and the import of it takes longer than the rest of a forecast.
    """
    try:
        counted = dict(line.split()[:2] for line in statistics.read_text().splitlines())
        free = int(counted["MemAvailable:"])
        if 0 < free <= int(counted["MemTotal:"]):  # some containers mix their own numbers with the host's
            return free * 1024
    except (OSError, ValueError, KeyError):
        pass
    import psutil

    return int(psutil.virtual_memory().available)


def available_memory(root: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """Return the bytes that can still be taken: the machine's, or less under the limit of a control group.

    root, own: where control groups are mounted and which are this process's, see `processors.group_folders`. Without a
    limit version 1 names a number larger than any memory.
    """
    free = machine_memory()
    for folder in group_folders("memory", root, own):
        for limit, usage, prefix in LIMITS:
            try:
                most = (folder / limit).read_text().strip()
                if most == "max":
                    continue
                left = int(most) - int((folder / usage).read_text())
            except (OSError, ValueError):
                continue  # no such limit here
            free = min(free, left + _file_cache(folder / "memory.stat", prefix))
    return max(0, free)


def _file_cache(statistics: Path, prefix: str) -> int:
    """Return the bytes of a control group's use that are given back when memory is short; 0 if that is not known."""
    try:
        counted = dict(line.split() for line in statistics.read_text().splitlines())
        return sum(int(counted.get(prefix + key, 0)) for key in FILE_CACHE)
    except (OSError, ValueError):
        return 0


def _weight_bytes(file: GGUFFile, shape: Architecture, as_float: bool) -> int:
    """Return the bytes of all weights: the matrices' plans, the screen of the head, and small tensors in float32."""
    group = largest_group(file.tensor(name).type for name in matrix_names(shape))
    plan = plan_weights(file, shape, group=group, as_float=as_float)
    small = sum(4 * file.tensor(part.name).elements for part in shape.parts() if part.role not in ("ternary", "table"))
    head = plan.head
    screen = screen_bytes(head.rows, head.columns) if is_screened(head.kind, head.rows, head.columns) else 0
    return plan.nbytes + small + screen


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
    kv_tokens: int | None = None,
    sequences: int = 1,
    added: int = 0,
) -> Forecast:
    """Return what loading a described file takes; context: None is the model's own. available: None asks the system.

    kv_tokens: positions of a cache that several replies share, in place of a context; it may be longer than one reply
    can be. sequences: replies at a time, each with a recurrent state if the model has one. added: bytes of adapters.
    """
    weights = _weight_bytes(file, shape, as_float) + added
    page = PagePool(shape, 0, kv).page_bytes
    fixed = 4 * (1 + KEPT_STATES) * shape.state_floats * sequences
    work = _work_bytes(shape)
    free = available_memory() if available is None else available
    most = kv_tokens or shape.context_length
    asked = most if context is None else context
    room = (free - RESERVE - weights - work - fixed) // page if page else 0
    largest = min(most, max(0, int(room) - 1) * s.PAGE)
    return Forecast(weights, (pages_for(asked) + 1) * page + fixed, work, asked, free, largest)


def _enough(found: Forecast, asked: bool) -> bool:
    return found.fits or (not asked and found.largest_context >= min(LEAST_CONTEXT, found.context))


def require_memory(found: Forecast, *, asked: bool, smaller: Forecast | None = None, what: str = "context") -> None:
    """Raise UserError, naming the largest context that fits, if a model does not fit.

    asked: the context was asked for; else only a model without room for a short one is refused, because pages are taken
    as they are used. smaller: the same with an int8 cache, which is told about if that fits. what: the name of what
    holds the tokens.
    """
    if _enough(found, asked):
        return
    remedy = ", or give --kv int8" if smaller is not None and _enough(smaller, asked) else ""
    needs, free = f"{found.total / GIGA:.1f} GB", f"{found.available / GIGA:.1f} GB"
    if found.largest_context < 1:
        raise UserError(
            f"the model needs {(found.weights + found.work) / GIGA:.1f} GB to begin with, and {free} of memory "
            f"are free; choose a smaller model or close something{remedy}"
        )
    raise UserError(
        f"with a {what} of {found.context} tokens the model needs {needs}, and {free} of memory are free; the largest "
        f"{what} that fits is {found.largest_context} tokens{remedy}"
    )
