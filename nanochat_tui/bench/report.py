"""What was measured, as a table for people or Markdown."""

from __future__ import annotations

from nanochat_tui.bench.measure import Result, Row


def _cells(row: Row, ratio: float | None) -> list[str]:
    return [
        row.engine,
        row.kind,
        str(row.threads),
        str(row.tokens),
        str(row.context),
        f"{row.tps:.1f}" if row.tps < 1000 else f"{row.tps:.0f}",
        f"{100 * (row.tps_max - row.tps_min) / row.tps:.0f}%",
        "" if not row.bytes_per_token else f"{row.bytes_per_token / 1e6:.1f}",
        "" if not row.bytes_per_token else f"{row.tps * row.bytes_per_token / 1e9:.1f}",
        "" if row.bandwidth_share is None else f"{row.bandwidth_share:.0%}",
        "" if not row.drafted else f"{row.accepted} of {row.drafted}",
        "" if ratio is None else f"{ratio:.2f} x",
    ]


HEADS = [
    "engine",
    "kind",
    "threads",
    "tokens",
    "context",
    "tok/s",
    "spread",
    "MB/token",
    "GB/s",
    "of read",
    "draft tokens accepted",
    "against peer",
]


def ratios(result: Result) -> list[float | None]:
    """Return for every row of the first engine how many times faster it is than the other; None where there is none."""
    ours = result.loaded[0].engine
    found: list[float | None] = []
    for row in result.rows:
        peer = next(
            (
                other.tps
                for other in result.rows
                if other.engine != ours
                and (other.kind, other.threads) == (row.kind, row.threads)
                and _asked(other) == _asked(row)
            ),
            None,
        )
        found.append(row.tps / peer if row.engine == ours and peer else None)
    return found


def _asked(row: Row) -> int:
    """The size that was asked for: a decoding run fills the context further."""
    return row.context if row.kind == "prompt" else row.context - row.tokens


def table(result: Result) -> list[list[str]]:
    """Return the rows of the table, its head first, without columns in which nothing stands."""
    rows = [_cells(row, ratio) for row, ratio in zip(result.rows, ratios(result), strict=True)]
    whole = [HEADS, *rows]
    used = [index for index in range(len(HEADS)) if any(row[index] for row in rows)]
    if len({row.engine for row in result.rows}) < 2:
        used.remove(0)
    return [[row[index] for index in used] for row in whole]


def as_text(result: Result) -> str:
    """Return what a terminal shows."""
    lines = [*_loading(result)]
    whole = table(result)
    widths = [max(len(row[i]) for row in whole) for i in range(len(whole[0]))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in whole]
    return "\n".join([*lines, *_bandwidths(result), *result.skipped])


def as_markdown(result: Result) -> str:
    """Return a Markdown table, with what was loaded above it."""
    head, *rows = table(result)
    lines = [*_loading(result), "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n\n".join(["\n".join(lines), *_bandwidths(result), *result.skipped])


def _loading(result: Result) -> list[str]:
    return [
        f"{one.model} in {one.engine} ({one.kernel}), {one.threads} thread{'s' if one.threads > 1 else ''}: loaded in "
        f"{one.load_seconds:.2f} s, {one.rss_bytes / 2**20:.0f} MiB resident, {one.peak_rss_bytes / 2**20:.0f} at most"
        for one in result.loaded
    ]


def _bandwidths(result: Result) -> list[str]:
    speeds = {row.threads: row.bandwidth_gbps for row in result.rows}
    shown = ", ".join(f"{speed:.1f} GB/s with {threads}" for threads, speed in speeds.items())
    return [f"memory is read at {shown} thread{'s' if list(speeds) != [1] else ''}; tok/s are medians"]
