"""Which of the files that passed on their own stay: versions, duplicates, validation; and the shares of crates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanochat_tui.train.data_preparation.crates import Crate, is_vendored, plain_name, version_key
from nanochat_tui.train.data_preparation.dedup import WindowIndex
from nanochat_tui.train.data_preparation.filters import Reason
from nanochat_tui.train.data_preparation.minhash import MinHashIndex
from nanochat_tui.train.data_preparation.options import PrepareOptions, PrepareReport
from nanochat_tui.train.data_preparation.sources import FileRef, Source
from nanochat_tui.train.data_preparation.split import validation_files
from nanochat_tui.train.data_preparation.workers import Scanned


@dataclass(frozen=True)
class Selection:
    """Indices of the files kept, in order, and of the validation files among them."""

    kept: list[int]
    validation: set[int]


def crate_key(crate: Crate, source: Source) -> tuple[str, str]:
    """Return what tells crates apart: a published one by name, a private one by name within its project."""
    return (source.group or source.name if crate.private else "", crate.name)


def superseded(refs: Sequence[FileRef], scanned: Sequence[Scanned], sources: Sequence[Source]) -> set[int]:
    """Return the files of all copies of a crate but one: the newest version, of equals the earlier source."""
    best: dict[tuple[str, str], tuple[tuple[object, ...], tuple[int, str]]] = {}
    places: list[tuple[tuple[str, str], tuple[int, str]] | None] = []
    for ref, result in zip(refs, scanned, strict=True):
        if result.reason is not None:
            places.append(None)
            continue
        key, place = crate_key(result.crate, sources[ref.source]), (ref.source, result.crate.folder)
        places.append((key, place))
        rank = (version_key(result.crate.version), -ref.source, result.crate.folder)
        if key not in best or rank > best[key][0]:
            best[key] = rank, place
    return {i for i, found in enumerate(places) if found is not None and best[found[0]][1] != found[1]}


def select(
    refs: Sequence[FileRef],
    scanned: Sequence[Scanned],
    keys: Sequence[str],
    sources: Sequence[Source],
    options: PrepareOptions,
    report: PrepareReport,
) -> Selection:
    """Choose among the files that passed the filters, noting in `report` why the others go.

    Held-out crates and reserved files come first, so that their duplicates elsewhere are the ones to go.
    """
    hold_out = {plain_name(name) for name in options.hold_out}
    older = superseded(refs, scanned, sources) if options.one_version or hold_out else set()
    held: list[int] = []
    reserved: list[int] = []
    rest: list[int] = []
    for i, result in enumerate(scanned):
        if result.reason is not None:
            continue
        is_held = result.crate.name in hold_out
        if options.reserved is not None and options.reserved(keys[i]):
            reserved.append(i)
        elif i in older and (options.one_version or is_held):
            report.left_out[Reason.OTHER_VERSION].add(refs[i].size)
        else:
            (held if is_held else rest).append(i)
    single = _without_copies([*held, *reserved, *rest], refs, scanned, report)
    first = {*held, *reserved}
    index = WindowIndex([w for i in single if (w := scanned[i].windows) is not None])
    near = index.near_duplicates(
        options.max_duplicate,
        {position for position, i in enumerate(single) if i in first},
        options.validation_max_shared,
    )
    similar = MinHashIndex(options.max_similarity)
    positions: list[int] = []
    away = set(reserved)
    for position, (i, duplicate) in enumerate(zip(single, near, strict=True)):
        signature = scanned[i].signature
        if duplicate or signature is None:
            report.left_out[Reason.NEAR_DUPLICATE].add(refs[i].size)
        elif similar.seen(signature):
            report.left_out[Reason.SIMILAR].add(refs[i].size)
        else:
            similar.add(signature)
            if i in away:
                report.left_out[Reason.RESERVED].add(refs[i].size)
            else:
                positions.append(position)
    shared = {single[position]: share for position, share in index.shared(positions).items()}
    if hold_out:
        validation = {i for i in held if i in shared}
    else:
        validation, report.validation_moved = validation_files(
            keys, shared, options.validation_fraction, options.validation_max_shared
        )
    report.validation_shared = sum(shared[i] for i in validation) / max(1, len(validation))
    return Selection([single[position] for position in positions], validation)


def _without_copies(
    files: Sequence[int], refs: Sequence[FileRef], scanned: Sequence[Scanned], report: PrepareReport
) -> list[int]:
    seen: set[bytes] = set()
    single: list[int] = []
    for i in files:
        if scanned[i].digest in seen:
            report.left_out[Reason.EXACT_DUPLICATE].add(refs[i].size)
        else:
            seen.add(scanned[i].digest)
            single.append(i)
    return single


def over_share(
    order: Sequence[int],
    tokens: Mapping[int, int],
    crates: Mapping[int, tuple[str, str]],
    groups: Mapping[int, str],
    max_crate: float,
    max_group: float,
) -> dict[int, Reason]:
    """Return the files that must go so that no crate and no group has more than its share of the tokens that stay.

    `order` decides within a crate and a group: the first stay. `groups` gives "" for files of no group.
    """
    out: dict[int, Reason] = {}
    while True:
        total = sum(tokens[i] for i in order if i not in out)
        used: dict[tuple[str, ...], int] = {}
        removed: dict[int, Reason] = {}
        for i in order:
            if i in out:
                continue
            crate, group = ("crate", *crates[i]), ("group", groups[i])
            if used.get(crate, 0) + tokens[i] > max_crate * total:
                removed[i] = Reason.CRATE_SHARE
            elif groups[i] and used.get(group, 0) + tokens[i] > max_group * total:
                removed[i] = Reason.GROUP_SHARE
            else:
                used[crate] = used.get(crate, 0) + tokens[i]
                used[group] = used.get(group, 0) + tokens[i]
        if not removed:
            return out
        out |= removed


def group_of(ref: FileRef, source: Source) -> str:
    """Return the group a file counts for; vendored crates count for themselves."""
    return "" if is_vendored(ref.path) else source.group
