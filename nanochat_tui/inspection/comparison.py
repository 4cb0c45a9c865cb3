"""Two files side by side: what changed in their keys and tensors, and which trits flipped.

Tensors are compared by name. Two ternary ones are compared trit by trit, whatever their types; others that changed are
decoded. Everything is read in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.gguf import GGUFFile, GGUFValue, TensorInfo
from nanochat_tui.inspection.mapped import forget
from nanochat_tui.inspection.search import layer_of
from nanochat_tui.inspection.summary import plain_value
from nanochat_tui.inspection.tensor_stats import decoded
from nanochat_tui.inspection.trits import Tick, TritReader

Status = Literal["equal", "changed", "added", "removed", "reshaped", "unknown"]
"""Of a tensor; `unknown` where its bytes differ and a type cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Flips:
    """Trits of one tensor before and after."""

    weights: int
    table: tuple[tuple[int, ...], ...]
    """Weights that were code i - 1 and are code j - 1 now, [4][4]."""
    scale_change: float
    """Root of the mean squared change of the scales, as a share of the root of their mean square before."""

    @property
    def flipped(self) -> int:
        """Weights whose trit changed."""
        return self.weights - sum(self.table[i][i] for i in range(4))

    @property
    def share(self) -> float:
        """Flipped weights as a share of all."""
        return self.flipped / self.weights if self.weights else 0.0

    @property
    def to_zero(self) -> int:
        """Weights that became zero."""
        return sum(self.table[i][1] for i in (0, 2, 3))

    @property
    def from_zero(self) -> int:
        """Weights that were zero and are not any more."""
        return sum(self.table[1][j] for j in (0, 2, 3))

    @property
    def sign_flips(self) -> int:
        """Weights that went from one sign to the other."""
        return self.table[0][2] + self.table[0][3] + self.table[2][0] + self.table[3][0]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {
            "weights": self.weights,
            "flipped": self.flipped,
            "share": self.share,
            "to_zero": self.to_zero,
            "from_zero": self.from_zero,
            "sign_flips": self.sign_flips,
            "scale_change": self.scale_change,
            "table": [list(row) for row in self.table],
        }


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor in two files; a side that lacks it has None."""

    name: str
    status: Status
    before: TensorInfo | None
    after: TensorInfo | None
    flips: Flips | None = None
    rms: float | None = None
    """Root mean square of the difference of the values, where they were decoded; it is of the finite ones."""
    relative: float | None = None
    """The same as a share of the root mean square before."""

    def to_json(self) -> dict[str, Any]:
        """Return the change as JSON values."""
        return {
            "name": self.name,
            "status": self.status,
            "before": _described(self.before),
            "after": _described(self.after),
            "flips": None if self.flips is None else self.flips.to_json(),
            "rms": self.rms,
            "relative": self.relative,
        }


def _described(info: TensorInfo | None) -> dict[str, Any] | None:
    return None if info is None else {"type": info.type.name, "shape": list(info.shape), "bytes": info.nbytes}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from one file to another. Texts are as in the files; escape them before showing them."""

    before: Path | None
    after: Path | None
    metadata_added: dict[str, Any]
    metadata_removed: dict[str, Any]
    metadata_changed: dict[str, tuple[Any, Any]]
    tensors: tuple[TensorChange, ...]

    @property
    def same(self) -> bool:
        """Whether keys and tensors are all equal."""
        changed = self.metadata_added or self.metadata_removed or self.metadata_changed
        return not changed and all(tensor.status == "equal" for tensor in self.tensors)

    def count(self, status: Status) -> int:
        """Return how many tensors have this status."""
        return sum(tensor.status == status for tensor in self.tensors)

    @property
    def layers(self) -> dict[int | None, tuple[int, int]]:
        """Flipped trits and all trits by layer (None: outside of layers), for layers with ternary tensors."""
        found: dict[int | None, tuple[int, int]] = {}
        for tensor in self.tensors:
            if tensor.flips is not None:
                layer = layer_of(tensor.name)[0]
                flipped, weights = found.get(layer, (0, 0))
                found[layer] = (flipped + tensor.flips.flipped, weights + tensor.flips.weights)
        return dict(sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0]))

    @property
    def flipped(self) -> int:
        """Trits that flipped in all tensors."""
        return sum(tensor.flips.flipped for tensor in self.tensors if tensor.flips is not None)

    @property
    def trits(self) -> int:
        """Trits that were compared."""
        return sum(tensor.flips.weights for tensor in self.tensors if tensor.flips is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `inspect --compare --json` prints."""
        return {
            "before": None if self.before is None else str(self.before),
            "after": None if self.after is None else str(self.after),
            "same": self.same,
            "metadata": {
                "added": self.metadata_added,
                "removed": self.metadata_removed,
                "changed": {key: {"before": a, "after": b} for key, (a, b) in self.metadata_changed.items()},
            },
            "flipped": self.flipped,
            "trits": self.trits,
            "layers": [
                {"layer": layer, "flipped": flipped, "trits": trits, "share": flipped / trits if trits else 0.0}
                for layer, (flipped, trits) in self.layers.items()
            ],
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def compare(
    before: GGUFFile,
    after: GGUFFile,
    progress: Callable[[str], None] | None = None,
    tick: Tick | None = None,
) -> Comparison:
    """Compare two open files, calling `progress` with each tensor's name. Raises whatever `tick` raises."""
    a, b = before.metadata, after.metadata
    names = [*before.tensors, *(name for name in after.tensors if name not in before.tensors)]
    changes = []
    for name in names:
        if progress is not None:
            progress(name)
        changes.append(_tensor(before, after, name, tick))
    return Comparison(
        before=before.path,
        after=after.path,
        metadata_added={key: plain_value(value) for key, value in b.items() if key not in a},
        metadata_removed={key: plain_value(value) for key, value in a.items() if key not in b},
        metadata_changed=_changed(a, b),
        tensors=tuple(changes),
    )


def _changed(a: Mapping[str, GGUFValue], b: Mapping[str, GGUFValue]) -> dict[str, tuple[Any, Any]]:
    found = {}
    for key, old in a.items():
        new = b.get(key)
        if new is not None and old != new:
            found[key] = _pair(old, new)
    return found


def _pair(old: GGUFValue, new: GGUFValue) -> tuple[Any, Any]:
    """Return two values so that the difference shows: of long arrays, the first entries that differ."""
    pair = plain_value(old), plain_value(new)
    if pair[0] == pair[1] and isinstance(old.value, list | np.ndarray) and isinstance(new.value, list | np.ndarray):
        where = next((i for i, (x, y) in enumerate(zip(old.value, new.value, strict=False)) if x != y), 0)
        for side, value in zip(pair, (old.value, new.value), strict=True):
            side |= {"first_difference": where, "there": str(value[where])[:200]}
    return pair


def _tensor(before: GGUFFile, after: GGUFFile, name: str, tick: Tick | None) -> TensorChange:
    a, b = before.tensors.get(name), after.tensors.get(name)
    if a is None or b is None:
        return TensorChange(name, "added" if a is None else "removed", a, b)
    if a.shape != b.shape:
        return TensorChange(name, "reshaped", a, b)
    if a.type.has_trits and b.type.has_trits:
        flips = _flips(TritReader(before, name), TritReader(after, name), tick)
        equal = a.type.name == b.type.name and not flips.flipped and not flips.scale_change
        return TensorChange(name, "equal" if equal else "changed", a, b, flips)
    if a.type.name == b.type.name and _same_bytes(before.raw(name), after.raw(name), tick):
        return TensorChange(name, "equal", a, b)
    if not (a.type.is_decodable and b.type.is_decodable):
        return TensorChange(name, "unknown", a, b)
    rms, relative = _difference(before, after, name, tick)
    return TensorChange(name, "changed", a, b, None, rms, relative)


def _same_bytes(a: NDArray[np.uint8], b: NDArray[np.uint8], tick: Tick | None) -> bool:
    step = 1 << 24
    for start in range(0, len(a), step):
        first, second = a[start : start + step], b[start : start + step]
        if not np.array_equal(first, second):
            return False
        forget(first)
        forget(second)
        if tick is not None:
            tick(2 * min(step, len(a) - start))
    return True


def _difference(before: GGUFFile, after: GGUFFile, name: str, tick: Tick | None) -> tuple[float, float]:
    # blocks of every type divide 2^18 elements, so that the pieces of both files begin at the same ones
    squares, size, count = 0.0, 0.0, 0
    for (old, read), (new, also) in zip(decoded(before, name, 1 << 18), decoded(after, name, 1 << 18), strict=True):
        good = np.isfinite(old) & np.isfinite(new)
        first = old[good].astype(np.float64)
        squares += float(((new[good] - first) ** 2).sum())
        size += float((first**2).sum())
        count += first.size
        if tick is not None:
            tick(read + also)
    rms = float(np.sqrt(squares / count)) if count else 0.0
    return rms, float(np.sqrt(squares / size)) if size else 0.0


def _flips(a: TritReader, b: TritReader, tick: Tick | None) -> Flips:
    table = np.zeros((4, 4), np.int64)
    squares = size = 0.0
    for start, stop in a.steps():
        first, second = a.packed(start, stop), b.packed(start, stop)
        if first is not None and second is not None and a.order == b.order:
            table += _packed_table(first, second)
        else:
            pairs = a.codes(start, stop) * np.uint8(4) + b.codes(start, stop)
            table += np.bincount(pairs.reshape(-1), minlength=16).reshape(4, 4)
        old, new = _aligned(a.scales(start, stop), b.scales(start, stop))
        good = np.isfinite(old) & np.isfinite(new)
        squares += float(((new - old)[good] ** 2).sum())
        size += float((old[good] ** 2).sum())
        done = a.blocks(start, stop), b.blocks(start, stop)
        for blocks in done:
            forget(blocks)
        if tick is not None:
            tick(sum(blocks.nbytes for blocks in done))
    change = float(np.sqrt(squares / size)) if size else float(squares > 0)
    return Flips(a.info.elements, tuple(tuple(row) for row in table.tolist()), change)


def _aligned(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scales of two group sizes, one a multiple of the other, for the smaller groups."""
    groups = max(a.shape[1], b.shape[1])
    wide = [np.repeat(one, groups // one.shape[1], axis=1).astype(np.float64) for one in (a, b)]
    return wide[0], wide[1]


def _packed_table(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the table of codes before and after from two-bit codes in the same order, [4, 4]."""
    low = np.uint64(0x5555_5555_5555_5555)

    def masks(words: NDArray[np.uint64]) -> list[NDArray[np.uint64]]:
        odd, upper = words & low, (words >> np.uint64(1)) & low
        return [low & ~odd & ~upper, odd & ~upper, upper & ~odd, odd & upper]

    after = masks(b)
    return np.array([[int(np.bitwise_count(x & y).sum(dtype=np.int64)) for y in after] for x in masks(a)])
