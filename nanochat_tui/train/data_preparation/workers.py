"""The two parallel steps, file -> verdict and hashes, file -> tokens, and the pool that runs them.

Processes are spawned, not forked: the caller may hold threads (a progress bar, PyTorch, the tokenizer's own).
Results come back in the order of the jobs, whatever the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from nanochat_tui.errors import UserError, plain_reason
from nanochat_tui.model.text import spaces_to_tabs
from nanochat_tui.text import display_safe
from nanochat_tui.train.data_preparation import filters
from nanochat_tui.train.data_preparation.benchmarks import holds_any
from nanochat_tui.train.data_preparation.crates import Crate, find_crate
from nanochat_tui.train.data_preparation.dedup import Hashes, content_digest, line_windows
from nanochat_tui.train.data_preparation.filters import Reason, TextRules
from nanochat_tui.train.data_preparation.licences import UNKNOWN, file_licence
from nanochat_tui.train.data_preparation.minhash import Signature, shingles, signature
from nanochat_tui.train.data_preparation.sources import FileRef, Source, in_skipped_folder

CHUNK = 64
_SPDX_HEAD = 1000


@dataclass(frozen=True)
class Settings:
    """What every process needs to know; sent once."""

    sources: tuple[Source, ...]
    rules: TextRules
    skip_folders: tuple[str, ...]
    require_licence: bool
    any_licence: bool
    tokenizer: Path
    indentation: int
    eot_id: int
    benchmarks: Hashes
    """Sorted hashes of the 13-grams that a file must not hold."""


@dataclass(frozen=True)
class Scanned:
    """Verdict on one file; the text's hashes if it passed every filter that looks at it alone."""

    reason: Reason | None
    licence: str = UNKNOWN
    size: int = 0
    """UTF-8 bytes of the text."""
    digest: bytes = b""
    windows: Hashes | None = None
    signature: Signature | None = None
    crate: Crate = Crate("")  # noqa: RUF009


@dataclass(frozen=True)
class Tokenised:
    """Token ids (uint32, without the end-of-text token), or None if decoding them does not give the text back."""

    ids: npt.NDArray[np.uint32] | None


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json for whole documents: no truncation, no padding.

    Raises:
        UserError: the file is not a tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{display_safe(str(path))} is not a tokenizer.json: {display_safe(str(error))}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return a file's content, or its first `limit` bytes. Raises UserError."""
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise UserError(f"cannot read {display_safe(str(path))}: {plain_reason(error)}") from error


def scan_file(ref: FileRef, settings: Settings) -> Scanned:
    """Run the filters that need one file only, in the order of the report."""
    source = settings.sources[ref.source]
    if in_skipped_folder(ref.path, settings.skip_folders):
        return Scanned(Reason.FOLDER)  # unread: half the files of a compiler's tree
    too = filters.check_size(ref.size, settings.rules)
    # What is left out for its size is read no further than its licence line.
    data = read_bytes(source.folder / ref.path, None if too is None else _SPDX_HEAD)
    head = data[:_SPDX_HEAD].decode("utf-8", "replace")
    licence = file_licence(source.folder, ref.path, head, source.copyright, source.licence)
    if not settings.any_licence:
        if licence.known and not licence.permissive:
            return Scanned(Reason.LICENCE, licence.name)
        if not licence.known and settings.require_licence:
            return Scanned(Reason.NO_LICENCE)
    if too is not None:
        return Scanned(too, licence.name)
    text = filters.decode(data)
    if text is None:
        return Scanned(Reason.ENCODING, licence.name)
    if (reason := filters.check_text(text, settings.rules)) is not None:
        return Scanned(reason, licence.name)
    if holds_any(text, settings.benchmarks):
        return Scanned(Reason.BENCHMARK, licence.name)
    suffix = os.path.splitext(ref.path)[1]  # noqa: PTH122
    return Scanned(
        None,
        licence.name,
        len(text.encode()),
        content_digest(text),
        line_windows(text, suffix),
        signature(shingles(text)),
        find_crate(source.folder, PurePosixPath(ref.path).parent, source.name),
    )


def tokenise_file(job: tuple[FileRef, bytes], settings: Settings, tokenizer: Tokenizer) -> Tokenised:
    """Encode a file that `scan_file` let pass; `job` carries the digest it had then.

    Raises:
        UserError: the file has changed in between.
    """
    ref, digest = job
    path = settings.sources[ref.source].folder / ref.path
    text = filters.decode(read_bytes(path))
    if text is None or content_digest(text) != digest:
        raise UserError(f"{display_safe(str(path))} changed while it was being prepared; start again")
    text = spaces_to_tabs(text, settings.indentation)
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # the library raises bare Exception, as for a Unigram model without an unknown token
        raise UserError(
            f"the tokenizer cannot encode {display_safe(str(path))} ({display_safe(str(error))}); "
            "use one that knows every character, such as a byte-level BPE (nanochat-train tokenizer makes one)"
        ) from None
    if settings.eot_id in ids or tokenizer.decode(ids, skip_special_tokens=False) != text:
        return Tokenised(None)
    return Tokenised(np.array(ids, np.uint32))


class _Process:
    """State of one worker process, set by its initialiser."""

    settings: Settings
    tokenizer: Tokenizer | None = None


class WorkerError(UserError):
    """A process of the pool died."""

    exit_code = 1


def _initialise(settings: Settings) -> None:
    # Ctrl+C reaches the whole group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One thread per process: the processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _Process.settings = settings


def _scan_chunk(refs: list[FileRef]) -> list[Scanned]:
    return [scan_file(ref, _Process.settings) for ref in refs]


def _tokenise_chunk(jobs: list[tuple[FileRef, bytes]]) -> list[Tokenised]:
    if _Process.tokenizer is None:
        _Process.tokenizer = load_tokenizer(_Process.settings.tokenizer)
    return [tokenise_file(job, _Process.settings, _Process.tokenizer) for job in jobs]


Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers:
    """A pool of processes for both steps, or none at all for `count` 1. A context manager."""

    def __init__(self, settings: Settings, count: int) -> None:
        self.settings = settings
        self.pool: ProcessPoolExecutor | None = None
        if count > 1:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(count, context, _initialise, (settings,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def _map(self, work: Callable[[list[Job]], list[Result]], jobs: Sequence[Job]) -> Iterator[Result]:
        chunks = (list(jobs[at : at + CHUNK]) for at in range(0, len(jobs), CHUNK))
        results: Iterable[list[Result]]
        try:
            if self.pool is not None:
                results = self.pool.map(work, chunks)
            else:
                _Process.settings, _Process.tokenizer = self.settings, None
                results = map(work, chunks)
            for chunk in results:
                yield from chunk
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process died, perhaps for want of memory; try fewer workers "
                "(a script calls prepare_data under if __name__ == '__main__')"
            ) from error

    def scan(self, refs: Sequence[FileRef]) -> Iterator[Scanned]:
        """Yield the verdict on each file, in order."""
        return self._map(_scan_chunk, refs)

    def tokenise(self, jobs: Sequence[tuple[FileRef, bytes]]) -> Iterator[Tokenised]:
        """Yield the tokens of each file, in order."""
        return self._map(_tokenise_chunk, jobs)
