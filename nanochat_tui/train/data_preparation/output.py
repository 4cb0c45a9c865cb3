"""The data set on disk: train.bin, val.bin, val_documents.json, files.tsv, crates.tsv, dataset.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nanochat_tui.errors import UserError
from nanochat_tui.formats.tokens import DTYPES, TokenDtype, TokenWriter
from nanochat_tui.text import display_safe
from nanochat_tui.train.data_preparation.crates import Crate
from nanochat_tui.train.data_preparation.options import Count

DESCRIPTION = "dataset.json"
SPLITS = ("train", "val")


def check_output(output: Path, overwrite: bool, description: str = DESCRIPTION) -> None:
    """Refuse a place that holds something else, before hours of work; `description` is the file that a data set has.

    Raises:
        UserError: `output` is a file, a folder with other contents, or an earlier data set without `overwrite`.
    """
    name = display_safe(str(output))
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{name} is a file; name a folder for the data set")
    if not any(output.iterdir()):
        return
    if not (output / description).is_file():
        raise UserError(f"{name} is not empty and holds no data set; name a new folder")
    if not overwrite:
        raise UserError(f"{name} holds a data set already; name another folder or allow overwriting")


class TokenSpool:
    """Tokens of documents in a file without a name, until it is known which of them stay. A context manager."""

    def __init__(self, folder: Path, dtype: TokenDtype) -> None:
        self.dtype = DTYPES[dtype]
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.sizes: dict[int, int] = {}
        """Tokens of each document, in the order they were added."""
        self._starts: dict[int, int] = {}
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, document: int, ids: npt.NDArray[np.uint32]) -> None:
        """Append the tokens of a document."""
        self.file.write(ids.astype(self.dtype).tobytes())
        self.sizes[document], self._starts[document] = len(ids), self._end
        self._end += len(ids)

    def drop(self, document: int) -> None:
        """Forget a document."""
        del self.sizes[document]

    def documents(self) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
        """Yield the documents that were not dropped, with their tokens, in order."""
        width = np.dtype(self.dtype).itemsize
        for document, size in self.sizes.items():
            self.file.seek(self._starts[document] * width)
            yield document, np.frombuffer(self.file.read(size * width), self.dtype).astype(np.uint32)


class DatasetWriter:
    """Writes documents, each as the end-of-text token followed by its own, to the splits of a folder.

    Token files are headerless and little-endian, `dtype` u16 or u32. files.tsv has one line per document; control
    characters and bytes outside UTF-8 in paths are written as escapes. crates.tsv sums it up by crate.
    val_documents.json lists the validation documents in order with their first token's position, tokens (the
    end-of-text token included) and original bytes, so that bits per byte can be computed on any number of whole
    documents. A context manager.
    """

    def __init__(self, folder: Path, dtype: TokenDtype, vocabulary: int, eot_id: int) -> None:
        self.folder = folder
        self.dtype = DTYPES[dtype]
        self.eot_id = eot_id
        self.hashes = {split: hashlib.sha256() for split in SPLITS}
        self.writers = {split: TokenWriter(folder / f"{split}.bin", dtype, vocab_size=vocabulary) for split in SPLITS}
        self.validation: list[dict[str, Any]] = []
        self.crates: dict[tuple[str, str, str], Count] = {}
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        for writer in self.writers.values():
            self._open_files.enter_context(writer)
        table = (self.folder / "files.tsv").open("w", encoding="utf-8", newline="\n")
        self.table = self._open_files.enter_context(table)
        self.table.write("split\tsource\tpath\tlicence\tbytes\ttokens\tcrate\tversion\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.__exit__(kind, error, trace)

    def add(
        self, split: str, source: str, crate: Crate, path: str, licence: str, size: int, ids: npt.NDArray[np.uint32]
    ) -> int:
        """Append one document; return the number of tokens written."""
        document = np.concatenate(([np.uint32(self.eot_id)], ids))
        start = self.writers[split].count
        self.writers[split].write(document)
        self.hashes[split].update(document.astype(self.dtype).tobytes())
        count = len(document)
        path, source = _plain(path), _plain(source)
        name, version = _plain(crate.name), _plain(crate.version)
        if split == "val":
            self.validation.append(
                {"start": start, "tokens": count, "bytes": size, "source": source, "crate": name, "path": path}
            )
        self.crates.setdefault((split, name, version), Count()).add(size, count)
        self.table.write(f"{split}\t{source}\t{path}\t{_plain(licence)}\t{size}\t{count}\t{name}\t{version}\n")
        return count

    def finish(self, description: dict[str, Any]) -> None:
        """Write crates.tsv, val_documents.json and dataset.json, the last with the hashes of the token files."""
        for split in SPLITS:
            description["splits"][split]["sha256"] = self.hashes[split].hexdigest()
        rows = ["split\tcrate\tversion\tdocuments\tbytes\ttokens"]
        for (split, name, version), count in sorted(self.crates.items()):
            rows.append(f"{split}\t{name}\t{version}\t{count.documents}\t{count.bytes}\t{count.tokens}")
        (self.folder / "crates.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        (self.folder / "val_documents.json").write_text(json.dumps(self.validation, indent=0) + "\n", encoding="utf-8")
        (self.folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _plain(text: str) -> str:
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_json(counts: dict[str, Any]) -> dict[str, Any]:
    """Turn a mapping of `Count` dataclasses into plain JSON objects."""
    return {name: dataclasses.asdict(count) for name, count in counts.items()}
