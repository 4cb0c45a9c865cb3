"""Training a tokenizer on the files that data would be prepared from: byte-level BPE, as GPT-2's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.files import atomic_write
from nanochat_tui.model.text import spaces_to_tabs
from nanochat_tui.model.tokenizer import byte_level_bpe
from nanochat_tui.system import usable_cpu_count
from nanochat_tui.text import display_safe
from nanochat_tui.train.data_preparation import filters
from nanochat_tui.train.data_preparation.benchmarks import ngram_hashes
from nanochat_tui.train.data_preparation.options import PrepareOptions, Progress, ProgressCallback
from nanochat_tui.train.data_preparation.pipeline import find_sources, reasons, text_rules
from nanochat_tui.train.data_preparation.sources import FileRef, Source, list_files
from nanochat_tui.train.data_preparation.workers import CHUNK, Settings, Workers, read_bytes

SMALLEST = 257
"""The 256 bytes and the end-of-text token."""


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """What came of it."""

    path: Path
    vocab_size: int
    documents: int
    bytes: int
    left_out: dict[str, int]
    """Files left out, by reason."""
    bytes_per_token: float
    """On the texts it was trained on."""


def train_tokenizer(
    options: PrepareOptions, vocab_size: int, progress: ProgressCallback | None = None
) -> TrainedTokenizer:
    """Train a byte-level BPE tokenizer and write it to `options.output`, a tokenizer.json.

    The files are chosen as `prepare_data` chooses them (exact duplicates count once), and their text is seen with the
    same indentation; `options.tokenizer` is not used. The end-of-text token has the last id. The result depends on the
    files and options alone. Source: Sennrich et al. 2016 (BPE), Radford et al. 2019 (on bytes).
    Raises UserError when the vocabulary is too small or no file passes the filters.
    """
    report = progress or (lambda _: None)
    if vocab_size < SMALLEST:
        raise UserError(
            f"a vocabulary has at least {SMALLEST} tokens (256 bytes and the end of text), not {vocab_size}"
        )
    options.check()
    if options.output.exists() and not options.overwrite:
        raise UserError(f"{display_safe(str(options.output))} exists already; name another file or pass --overwrite")
    sources = find_sources(options)
    refs = [r for i, source in enumerate(sources) for r in list_files(i, source, options.extensions)]
    if not refs:
        endings = ", ".join(options.extensions)
        raise UserError(f"no file ending in {display_safe(endings)} was found; check the folders and extensions")
    chosen, left_out = _choose(options, sources, refs, report)
    if not chosen:
        raise UserError("no file passed the filters; their counts: " + reasons(left_out))
    tokenizer = _train(_texts(chosen, sources, options.indentation), vocab_size, options.eot_token)
    size = tokens = 0
    for text in _texts(chosen[:: max(1, len(chosen) // 200)], sources, options.indentation):
        size += len(text.encode())
        tokens += len(tokenizer.encode(text).ids)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        shown = display_safe(str(options.output))
        raise UserError(f"cannot write {shown}: {plain_reason(error)}; name another place") from None
    with atomic_write(options.output) as file:
        file.write(tokenizer.to_str().encode())
    return TrainedTokenizer(
        options.output,
        tokenizer.get_vocab_size(with_added_tokens=True),
        len(chosen),
        sum(ref.size for ref in chosen),
        left_out,
        size / max(1, tokens),
    )


def _choose(
    options: PrepareOptions, sources: tuple[Source, ...], refs: list[FileRef], report: ProgressCallback
) -> tuple[list[FileRef], dict[str, int]]:
    settings = Settings(
        sources=sources,
        rules=text_rules(options, {options.eot_token}),
        skip_folders=options.skip_folders,
        require_licence=options.require_licence,
        any_licence=options.any_licence,
        tokenizer=options.tokenizer,
        indentation=options.indentation,
        eot_id=-1,
        benchmarks=ngram_hashes(options.benchmarks),
    )
    seen: set[bytes] = set()
    chosen: list[FileRef] = []
    left_out: dict[str, int] = {}
    count = min(options.workers or usable_cpu_count(), math.ceil(len(refs) / CHUNK))
    with Workers(settings, count) as workers:
        for done, (ref, result) in enumerate(zip(refs, workers.scan(refs), strict=True), start=1):
            reason = result.reason or (filters.Reason.EXACT_DUPLICATE if result.digest in seen else None)
            if reason is None:
                seen.add(result.digest)
                chosen.append(ref)
            else:
                left_out[reason.value] = left_out.get(reason.value, 0) + 1
            report(Progress("scanning", done, len(refs)))
    return chosen, left_out


def _texts(refs: list[FileRef], sources: tuple[Source, ...], indentation: int) -> Iterator[str]:
    for ref in refs:
        text = filters.decode(read_bytes(sources[ref.source].folder / ref.path))
        if text is not None:
            yield spaces_to_tabs(text, indentation)


def _train(texts: Iterator[str], vocab_size: int, end: str) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(texts, trainer)
    ids = raw.get_vocab(with_added_tokens=False)
    ids.pop(end, None)
    names = [*sorted(ids, key=lambda name: ids[name]), end]
    pairs = json.loads(raw.to_str())["model"]["merges"]
    merges = [(pair[0], pair[1]) for pair in (p if isinstance(p, list) else p.split(" ") for p in pairs)]
    return byte_level_bpe({name: i for i, name in enumerate(names)}, merges, special=(end,))
