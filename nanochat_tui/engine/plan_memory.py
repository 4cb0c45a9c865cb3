"""What a model will take in memory, reckoned from its header before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from nanochat_tui.engine.cache import KEPT_STATES
from nanochat_tui.engine.kernels import kinds as k
from nanochat_tui.engine.kernels import slots as s
from nanochat_tui.engine.packing import round_up
from nanochat_tui.engine.packing_tables import KIND_OF_TYPE, packed_bytes
from nanochat_tui.engine.paging import CacheType, PagePool, pages_for
from nanochat_tui.engine.plan import CHUNK
from nanochat_tui.engine.plan_matrices import Rows, all_rows, is_ternary, names_of, route_of
from nanochat_tui.engine.processors import GROUPS, OWN_GROUPS, group_folders
from nanochat_tui.engine.screening import is_screened, screen_bytes
from nanochat_tui.engine.weights import layer_stacks
from nanochat_tui.errors import UserError
from nanochat_tui.formats.gguf import GGUFFile
from nanochat_tui.model.architectures.description import Architecture

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
    """Return the bytes of a control group's use that are given back when memory is short; 0 if nobody says."""
    try:
        counted = dict(line.split() for line in statistics.read_text().splitlines())
        return sum(int(counted.get(prefix + key, 0)) for key in FILE_CACHE)
    except (OSError, ValueError):
        return 0


def _stack_bytes(file: GGUFFile, rows: list[Rows], group: int, as_float: bool, multiple: int = s.ROW_BLOCK) -> int:
    """Return the bytes of a stack of tensors as `plan_matrices.load_matrix` packs it."""
    names = names_of(rows)
    info = file.tensor(names[0])
    columns, total = info.shape[-1], round_up(sum(len(wanted) for _, wanted in rows), multiple)
    match route_of(file, names, as_float=as_float):
        case "ternary":
            padded = round_up(columns, group)
            return total * padded // 4 + 2 * total * (padded // group)
        case "ternary by row":
            return total * round_up(columns, group) // 4 + 4 * total
        case "blocks":
            return packed_bytes(info.type.name, total, columns)
        case "F32":
            return 4 * total * columns
        case _:
            return 2 * total * columns


def _weight_bytes(file: GGUFFile, shape: Architecture, as_float: bool) -> int:
    """Return the bytes of all weights: matrices as they will be stacked, and small tensors in float32."""
    found = 0
    named = [part.name for part in shape.parts() if part.role in ("ternary", "table")]
    types = [file.tensor(name).type for name in named if is_ternary(file, name)]
    # neighbours may share their scales, but that is not known before the tensors are read
    group = 64 if any(kind.block_elements < 128 for kind in types if kind.name != "I2_S") else 128
    for number in range(shape.n_layers):
        rows = layer_stacks(file, shape, number)
        for stack in (rows.qkv, rows.output, rows.gate_up, rows.down):
            found += _stack_bytes(file, stack, group, as_float)
        for stack in (rows.small, rows.router):
            found += _stack_bytes(file, stack, group, True) if stack else 0
    for part in shape.parts():
        if part.role == "table":
            found += _stack_bytes(file, [all_rows(file, part.name)], group, as_float, s.STATISTICS_BLOCK)
            if shape.tied or part.name == "output.weight":
                found += _screen_bytes(file, part.name, as_float)
        elif part.role != "ternary":
            found += 4 * file.tensor(part.name).elements
    return found


def _screen_bytes(file: GGUFFile, name: str, as_float: bool) -> int:
    """Return the bytes of what is made of an output table to read less of it, 0 if that is never made."""
    info = file.tensor(name)
    columns, rows = info.shape[-1], round_up(info.elements // info.shape[-1], s.STATISTICS_BLOCK)
    kind = KIND_OF_TYPE.get(info.type.name, k.F32)
    return screen_bytes(rows, columns) if is_screened(kind, rows, columns) and not as_float else 0


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
) -> Forecast:
    """Return what loading a described file takes; context: None is the model's own. available: None asks the system.

    kv_tokens: positions of a cache that several replies share, in place of a context; it may be longer than one reply
    can be. sequences: replies at a time, each with a recurrent state if the model has one.
    """
    weights = _weight_bytes(file, shape, as_float)
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
