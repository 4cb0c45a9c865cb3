"""Whether the residual streams of a run are alive, judged by the mHC records of a row of metrics.jsonl."""

from __future__ import annotations

import math

from nanochat_tui.runs.directory import Json

EQUAL_COSINE = 1 - 1e-6
"""Cosine of two streams from which they are copies of each other, up to float32 rounding of its sum."""
NO_GRADIENT = 1e-10
"""Norm of the gradient of a record's mixing logits below which nothing trains it."""
NUMBERS = ("alpha", "entropy", "gain", "cosine", "rms", "grad", "grad_mix")
"""Keys of a record that hold one number; `p` and `q` hold one for each stream."""


def record_name(index: int) -> str:
    """How a record is named in texts: record 3 is the feed-forward part of block 1."""
    return f"block {index // 2} {('attention', 'feed-forward')[index % 2]}"


def mhc_problems(records: list[Json]) -> list[str]:
    """Return what is wrong with the records of one row, worst first, a sentence each; none when all is well.

    A value that is no finite number (written as null); mixing that is dead, because the streams are copies of each
    other or because no gradient reaches the mixing logits. The last record's mixing never has one: the mean over the
    streams follows it.
    """
    broken = [i for i, record in enumerate(records) if not _is_finite(record)]
    if broken:
        return [f"mHC: a value of {record_name(broken[0])} is not a number{_more(broken)}"]
    found = []
    equal = [i for i, record in enumerate(records) if record.get("cosine", 0.0) >= EQUAL_COSINE]
    if equal:
        found.append(f"mHC: the streams are equal after {record_name(equal[0])}{_more(equal)}, so mixing does nothing")
    still = [i for i, record in enumerate(records[:-1]) if record.get("grad_mix", 1.0) < NO_GRADIENT]
    if still:
        found.append(f"mHC: the mixing of {record_name(still[0])}{_more(still)} has no gradient and cannot learn")
    return found


def _more(indices: list[int]) -> str:
    return f" and {len(indices) - 1} more" if len(indices) > 1 else ""


def _is_finite(record: Json) -> bool:
    values = [record[key] for key in NUMBERS if key in record]
    for key in ("p", "q"):
        entries = record.get(key, [])
        values += entries if isinstance(entries, list) else [entries]
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
