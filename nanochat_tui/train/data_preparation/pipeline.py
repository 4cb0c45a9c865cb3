"""From folders of source files to token files: scan, de-duplicate, split, tokenise, write."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.formats.tokens import TokenDtype
from nanochat_tui.train.data_preparation.dedup import WindowIndex
from nanochat_tui.train.data_preparation.filters import Reason, TextRules
from nanochat_tui.train.data_preparation.options import (
    Count,
    PrepareOptions,
    PrepareReport,
    Progress,
    ProgressCallback,
)
from nanochat_tui.train.data_preparation.output import (
    SPLITS,
    DatasetWriter,
    as_json,
    atomic_folder,
    check_output,
)
from nanochat_tui.train.data_preparation.sources import FileRef, Source, folder_source, list_files
from nanochat_tui.train.data_preparation.split import path_fraction, validation_files
from nanochat_tui.train.data_preparation.workers import CHUNK, Scanned, Settings, Workers, load_tokenizer


def prepare_data(options: PrepareOptions, progress: ProgressCallback | None = None) -> PrepareReport:
    """Turn folders of source files into a data set for the trainer.

    Writes to `options.output`, all or nothing: train.bin and val.bin (headerless little-endian ids, u16 where the
    vocabulary allows it; every document is the end-of-text token followed by the file's tokens), dataset.json,
    files.tsv and val_documents.json. The bytes written depend on the files and options alone, not on the number of
    processes. Processes are spawned: call it from under `if __name__ == "__main__":` in a script.

    Raises:
        UserError: no such folder, not a tokenizer, no file passed the filters, or the output holds something else.
    """
    try:
        return _prepare(options, progress or (lambda _: None))
    except OSError as error:
        place = f" ({display_safe(str(error.filename))})" if error.filename else ""
        raise PrepareError(
            f"preparing the data failed{place}: {error.strerror or error}; mend it, start again"
        ) from error


class PrepareError(UserError):
    """The system refused to read or write something on the way."""

    exit_code = 1


def available_cpus() -> int:
    """Return the number of CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare(options: PrepareOptions, report_progress: ProgressCallback) -> PrepareReport:
    options.check()
    check_output(options.output, options.overwrite)
    sources = _sources(options)
    settings, dtype, vocabulary = _settings(options, sources)
    refs = [r for i, source in enumerate(sources) for r in list_files(i, source, options.extensions)]
    if not refs:
        endings = ", ".join(options.extensions)
        raise UserError(f"no file ending in {endings} was found; check the folders and extensions")
    report = PrepareReport(options.output, dtype)
    report.left_out = {reason.value: Count() for reason in Reason}

    # A process that would get less than one chunk of work costs more than it brings.
    count = min(options.workers or available_cpus(), math.ceil(len(refs) / CHUNK))
    with Workers(settings, count) as workers:
        scanned: list[Scanned] = []
        for result in workers.scan(refs):
            ref = refs[len(scanned)]
            report.found.add(ref.size)
            if result.reason is not None:
                report.left_out[result.reason].add(ref.size)
            scanned.append(result)
            report_progress(Progress("scanning", len(scanned), len(refs)))
        shared = _deduplicate(refs, scanned, options, report)
        if not shared:
            raise UserError("no file passed the filters; their counts: " + _reasons(report))
        keys = [f"{sources[ref.source].name}/{ref.path}" for ref in refs]
        validation, report.validation_moved = validation_files(
            keys, shared, options.validation_fraction, options.validation_max_shared
        )
        report.validation_shared = sum(shared[i] for i in validation) / max(1, len(validation))
        order = sorted(shared, key=lambda i: (path_fraction(keys[i], f"order-{options.seed}"), keys[i]))

        report.splits = {split: Count() for split in SPLITS}
        report.sources = {source.name: Count() for source in sources}
        with (
            atomic_folder(options.output) as folder,
            DatasetWriter(folder, dtype, vocabulary, settings.eot_id) as writer,
        ):
            documents = workers.tokenise([(refs[i], scanned[i].digest) for i in order])
            for done, (i, document) in enumerate(zip(order, documents, strict=True), start=1):
                report_progress(Progress("tokenising", done, len(order)))
                if document.ids is None:
                    report.left_out[Reason.ROUND_TRIP].add(refs[i].size)
                    continue
                split = "val" if i in validation else "train"
                name, licence, size = sources[refs[i].source].name, scanned[i].licence, scanned[i].size
                tokens = writer.add(split, name, refs[i].path, licence, size, document.ids)
                of_licence = report.licences.setdefault(licence, Count())
                for total in (report.splits[split], report.sources[name], of_licence):
                    total.add(size, tokens)
            by_frequency = sorted(report.licences.items(), key=lambda item: (-item[1].documents, item[0]))
            report.licences = dict(by_frequency)
            writer.finish(_description(options, report, settings, vocabulary))
    return report


def _sources(options: PrepareOptions) -> tuple[Source, ...]:
    sources = tuple(s if isinstance(s, Source) else folder_source(s) for s in options.sources)
    if not sources:
        raise UserError("no folder given; name at least one folder of source files")
    for source in sources:
        if not source.folder.is_dir():
            raise UserError(f"{display_safe(str(source.folder))} is not a folder; name a folder of source files")
        if source.copyright is not None and not source.copyright.is_file():
            raise UserError(f"there is no copyright file {display_safe(str(source.copyright))}")
    return sources


def _settings(options: PrepareOptions, sources: tuple[Source, ...]) -> tuple[Settings, TokenDtype, int]:
    tokenizer = load_tokenizer(options.tokenizer)
    eot_id: int | None = tokenizer.token_to_id(options.eot_token)
    if eot_id is None:
        token = display_safe(options.eot_token)
        raise UserError(f"the tokenizer has no token {token}; name its end-of-text token")
    vocabulary: int = tokenizer.get_vocab_size(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special} | {options.eot_token}
    rules = TextRules(
        min_bytes=options.min_bytes,
        max_bytes=options.max_bytes,
        max_line=options.max_line,
        max_mean_line=options.max_mean_line,
        min_letters=options.min_letters,
        special_tokens=tuple(sorted(special)),
        indentation=options.indentation if options.tabs_filter is None else options.tabs_filter,
    )
    settings = Settings(
        sources=sources,
        rules=rules,
        skip_folders=options.skip_folders,
        require_licence=options.require_licence,
        any_licence=options.any_licence,
        tokenizer=options.tokenizer,
        indentation=options.indentation,
        eot_id=eot_id,
    )
    return settings, "u16" if vocabulary <= 1 << 16 else "u32", vocabulary


def _deduplicate(
    refs: Sequence[FileRef], scanned: Sequence[Scanned], options: PrepareOptions, report: PrepareReport
) -> dict[int, float]:
    """Return the files kept, in order, and for each the share of its windows that other kept files hold, too."""
    seen: set[bytes] = set()
    single: list[int] = []
    for i, result in enumerate(scanned):
        if result.reason is not None:
            continue
        if result.digest in seen:
            report.left_out[Reason.EXACT_DUPLICATE].add(refs[i].size)
            continue
        seen.add(result.digest)
        single.append(i)
    index = WindowIndex([w for i in single if (w := scanned[i].windows) is not None])
    positions: list[int] = []
    for position, duplicate in enumerate(index.near_duplicates(options.max_duplicate)):
        if duplicate:
            report.left_out[Reason.NEAR_DUPLICATE].add(refs[single[position]].size)
        else:
            positions.append(position)
    shares = index.shared(positions)
    return {single[position]: share for position, share in shares.items()}


def _reasons(report: PrepareReport) -> str:
    counts = {reason: count.documents for reason, count in report.left_out.items() if count.documents}
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def _description(options: PrepareOptions, report: PrepareReport, settings: Settings, vocabulary: int) -> dict[str, Any]:
    rules = dataclasses.asdict(settings.rules)
    return {
        "format": 1,
        "dtype": report.dtype,
        "vocab_size": vocabulary,
        "eot_id": settings.eot_id,
        "tokenizer_sha256": _sha256(options.tokenizer),
        "transform": {"indentation": options.indentation},
        "documents": report.documents,
        "splits": as_json(report.splits),
        "sources": as_json(report.sources),
        "licences": as_json(report.licences),
        "found": {"files": report.found.documents, "bytes": report.found.bytes},
        "left_out": {
            reason: {"files": count.documents, "bytes": count.bytes} for reason, count in report.left_out.items()
        },
        "validation": {
            "fraction": options.validation_fraction,
            "max_shared": options.validation_max_shared,
            "moved_to_train": report.validation_moved,
            "mean_shared": round(report.validation_shared, 6),
        },
        "options": {
            **rules,
            "extensions": list(options.extensions),
            "skip_folders": list(options.skip_folders),
            "max_duplicate": options.max_duplicate,
            "require_licence": options.require_licence,
            "any_licence": options.any_licence,
            "seed": options.seed,
        },
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
