"""From folders of source files to token files: scan, de-duplicate, split, tokenise, write."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.files import atomic_folder
from nanochat_tui.formats.checksums import file_sha256
from nanochat_tui.formats.tokens import TokenDtype
from nanochat_tui.model.tokenizer.identity import TOKENIZER_FILE
from nanochat_tui.system import usable_cpu_count
from nanochat_tui.text import display_safe
from nanochat_tui.train.data_preparation.benchmarks import ngram_hashes
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
    TokenSpool,
    as_json,
    check_output,
)
from nanochat_tui.train.data_preparation.selection import Selection, crate_key, group_of, over_share, select
from nanochat_tui.train.data_preparation.sources import FileRef, Source, folder_source, list_files
from nanochat_tui.train.data_preparation.split import path_fraction
from nanochat_tui.train.data_preparation.workers import CHUNK, Scanned, Settings, Workers, load_tokenizer


def prepare_data(options: PrepareOptions, progress: ProgressCallback | None = None) -> PrepareReport:
    """Turn folders of source files into a data set for the trainer.

    Writes to `options.output`, all or nothing: train.bin and val.bin (headerless little-endian ids, u16 where the
    vocabulary allows it; every document is the end-of-text token followed by the file's tokens), dataset.json,
    files.tsv, crates.tsv and val_documents.json. The bytes written depend on the files and options alone, not on the
    number of processes. Processes are spawned: call it from under `if __name__ == "__main__":` in a script.

    Raises:
        UserError: no such folder, not a tokenizer, no file passed the filters, or the output holds something else.
    """
    try:
        return _prepare(options, progress or (lambda _: None))
    except OSError as error:
        place = f" ({display_safe(str(error.filename))})" if error.filename else ""
        raise PrepareError(
            f"preparing the data failed{place}: {plain_reason(error)}; fix that and start again"
        ) from error


class PrepareError(UserError):
    """The system refused to read or write something on the way."""

    exit_code = 1


def _prepare(options: PrepareOptions, report_progress: ProgressCallback) -> PrepareReport:
    options.check()
    check_output(options.output, options.overwrite)
    sources = find_sources(options)
    settings, dtype, vocabulary = _settings(options, sources)
    refs = [r for i, source in enumerate(sources) for r in list_files(i, source, options.extensions)]
    if not refs:
        endings = ", ".join(options.extensions)
        raise UserError(f"no file ending in {endings} was found; check the folders and extensions")
    report = PrepareReport(options.output, dtype)
    report.left_out = {reason.value: Count() for reason in Reason}

    # A process that would get less than one chunk of work costs more than it brings.
    count = min(options.workers or usable_cpu_count(), math.ceil(len(refs) / CHUNK))
    with Workers(settings, count) as workers:
        scanned: list[Scanned] = []
        for result in workers.scan(refs):
            ref = refs[len(scanned)]
            report.found.add(ref.size)
            if result.reason is not None:
                report.left_out[result.reason].add(ref.size)
            scanned.append(result)
            report_progress(Progress("scanning", len(scanned), len(refs)))
        keys = [f"{sources[ref.source].name}/{ref.path}" for ref in refs]
        selection = select(refs, scanned, keys, sources, options, report)
        if not selection.kept:
            counts = {reason: count.documents for reason, count in report.left_out.items() if count.documents}
            raise UserError("no file passed the filters; their counts: " + reasons(counts))
        if options.hold_out and not selection.validation:
            raise UserError("no file of the crates to hold out is in the sources; check their names")
        order = sorted(selection.kept, key=lambda i: (path_fraction(keys[i], f"order-{options.seed}"), keys[i]))

        report.splits = {split: Count() for split in SPLITS}
        report.crates = {split: {} for split in SPLITS}
        report.sources = {source.name: Count() for source in sources}
        with (
            atomic_folder(options.output) as folder,
            TokenSpool(folder, dtype) as spool,
            DatasetWriter(folder, dtype, vocabulary, settings.eot_id) as writer,
        ):
            documents = workers.tokenise([(refs[i], scanned[i].digest) for i in order])
            for done, (i, document) in enumerate(zip(order, documents, strict=True), start=1):
                report_progress(Progress("tokenising", done, len(order)))
                if document.ids is None:
                    report.left_out[Reason.ROUND_TRIP].add(refs[i].size)
                else:
                    spool.add(i, document.ids)
            for i, reason in _over_share(order, spool, refs, scanned, selection, sources, options).items():
                report.left_out[reason].add(refs[i].size)
                spool.drop(i)
            for i, ids in spool.documents():
                split = "val" if i in selection.validation else "train"
                name, crate, result = sources[refs[i].source].name, scanned[i].crate, scanned[i]
                tokens = writer.add(split, name, crate, refs[i].path, result.licence, result.size, ids)
                of_licence = report.licences.setdefault(result.licence, Count())
                of_crate = report.crates[split].setdefault(crate.name, Count())
                for total in (report.splits[split], report.sources[name], of_licence, of_crate):
                    total.add(result.size, tokens)
            by_frequency = sorted(report.licences.items(), key=lambda item: (-item[1].documents, item[0]))
            report.licences = dict(by_frequency)
            report.sources = {name: count for name, count in report.sources.items() if count.documents}
            # the tokenizer belongs to the data: the trainer and the export look for it here
            shutil.copyfile(options.tokenizer, folder / TOKENIZER_FILE)
            writer.finish(_description(options, report, settings, vocabulary))
    return report


def find_sources(options: PrepareOptions) -> tuple[Source, ...]:
    """Return the folders to read. Raises UserError when one is not there."""
    sources = tuple(s if isinstance(s, Source) else folder_source(s) for s in options.sources)
    if not sources:
        raise UserError("no folder given; name at least one folder of source files")
    for source in sources:
        if not source.folder.is_dir():
            raise UserError(f"{display_safe(str(source.folder))} is not a folder; name a folder of source files")
        if source.copyright is not None and not source.copyright.is_file():
            raise UserError(f"there is no copyright file {display_safe(str(source.copyright))}")
    return sources


def text_rules(options: PrepareOptions, special: set[str]) -> TextRules:
    """Return the limits that each text is held to; `special` are tokens that may not stand in one."""
    return TextRules(
        min_bytes=options.min_bytes,
        max_bytes=options.max_bytes,
        max_line=options.max_line,
        max_mean_line=options.max_mean_line,
        min_letters=options.min_letters,
        special_tokens=tuple(sorted(special)),
        indentation=options.indentation if options.tabs_filter is None else options.tabs_filter,
    )


def _settings(options: PrepareOptions, sources: tuple[Source, ...]) -> tuple[Settings, TokenDtype, int]:
    tokenizer = load_tokenizer(options.tokenizer)
    eot_id: int | None = tokenizer.token_to_id(options.eot_token)
    if eot_id is None:
        raise UserError(_no_end(options, tokenizer))
    vocabulary: int = tokenizer.get_vocab_size(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special} | {options.eot_token}
    rules = text_rules(options, special)
    settings = Settings(
        sources=sources,
        rules=rules,
        skip_folders=options.skip_folders,
        require_licence=options.require_licence,
        any_licence=options.any_licence,
        tokenizer=options.tokenizer,
        indentation=options.indentation,
        eot_id=eot_id,
        benchmarks=ngram_hashes(options.benchmarks),
    )
    return settings, "u16" if vocabulary <= 1 << 16 else "u32", vocabulary


def _over_share(
    order: Sequence[int],
    spool: TokenSpool,
    refs: Sequence[FileRef],
    scanned: Sequence[Scanned],
    selection: Selection,
    sources: Sequence[Source],
    options: PrepareOptions,
) -> dict[int, Reason]:
    if options.max_crate_share == 1 and options.max_group_share == 1:
        return {}
    training = [i for i in order if i in spool.sizes and i not in selection.validation]
    return over_share(
        training,
        {i: spool.sizes[i] + 1 for i in training},
        {i: crate_key(scanned[i].crate, sources[refs[i].source]) for i in training},
        {i: group_of(refs[i], sources[refs[i].source]) for i in training},
        options.max_crate_share,
        options.max_group_share,
    )


def _no_end(options: PrepareOptions, tokenizer: Tokenizer) -> str:
    marks = [t.content for _, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special][:6]
    known = f" (its special tokens are {', '.join(map(display_safe, marks))})" if marks else ""
    token, name = display_safe(options.eot_token), display_safe(options.tokenizer.name)
    return f"{name} has no token {token}; name its end-of-text token with --eot-token{known}"


def reasons(counts: dict[str, int]) -> str:
    """Say why files stayed out, and what to do where there is something."""
    words = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    if counts.get(Reason.TABS.value):
        words += "; --indentation 0 keeps files that are indented with tabs"
    return words


def _description(options: PrepareOptions, report: PrepareReport, settings: Settings, vocabulary: int) -> dict[str, Any]:
    rules = dataclasses.asdict(settings.rules)
    return {
        "format": 1,
        "dtype": report.dtype,
        "vocab_size": vocabulary,
        "eot_id": settings.eot_id,
        "eot_token": options.eot_token,
        "tokenizer_sha256": file_sha256(options.tokenizer),
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
            "held_out_crates": {name: count.tokens for name, count in sorted(report.crates["val"].items())}
            if options.hold_out
            else None,
        },
        "options": {
            **rules,
            "extensions": list(options.extensions),
            "skip_folders": list(options.skip_folders),
            "max_duplicate": options.max_duplicate,
            "max_similarity": options.max_similarity,
            "one_version": options.one_version,
            "max_crate_share": options.max_crate_share,
            "max_group_share": options.max_group_share,
            "benchmark_ngrams": len(settings.benchmarks),
            "require_licence": options.require_licence,
            "any_licence": options.any_licence,
            "seed": options.seed,
        },
    }
