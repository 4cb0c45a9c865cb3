"""The data set on disk: train.bin, val.bin, val_documents.json, files.tsv, dataset.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nanochat_tui.errors import UserError, display_safe
from nanochat_tui.formats.tokens import DTYPES, TokenDtype, TokenWriter

DESCRIPTION = "dataset.json"
SPLITS = ("train", "val")


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a place that holds something else, before hours of work.

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
    if not (output / DESCRIPTION).is_file():
        raise UserError(f"{name} is not empty and holds no data set; name a new folder")
    if not overwrite:
        raise UserError(f"{name} holds a data set already; name another folder or allow overwriting")


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Give a temporary folder beside `output` that takes its place when the block ends without an error."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if output.exists():
            # A folder cannot be replaced in one step where it has contents: move the old one aside first.
            old = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent))
            output.rename(old / output.name)
            try:
                temporary.rename(output)
            except BaseException:
                (old / output.name).rename(output)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class DatasetWriter:
    """Writes documents, each as the end-of-text token followed by its own, to the splits of a folder.

    Token files are headerless and little-endian, `dtype` u16 or u32. files.tsv has one line per document; control
    characters and bytes outside UTF-8 in paths are written as escapes. val_documents.json lists the validation
    documents in order with their first token's position, tokens (the end-of-text token included) and original bytes,
    so that bits per byte can be computed on any number of whole documents. A context manager.
    """

    def __init__(self, folder: Path, dtype: TokenDtype, vocabulary: int, eot_id: int) -> None:
        self.folder = folder
        self.dtype = DTYPES[dtype]
        self.eot_id = eot_id
        self.hashes = {split: hashlib.sha256() for split in SPLITS}
        self.writers = {split: TokenWriter(folder / f"{split}.bin", dtype, vocab_size=vocabulary) for split in SPLITS}
        self.validation: list[dict[str, Any]] = []
        self._open_files = ExitStack()

    def __enter__(self) -> Self:
        for writer in self.writers.values():
            self._open_files.enter_context(writer)
        table = (self.folder / "files.tsv").open("w", encoding="utf-8", newline="\n")
        self.table = self._open_files.enter_context(table)
        self.table.write("split\tsource\tpath\tlicence\tbytes\ttokens\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open_files.__exit__(kind, error, trace)

    def add(self, split: str, source: str, path: str, licence: str, size: int, ids: npt.NDArray[np.uint32]) -> int:
        """Append one document; return the number of tokens written."""
        document = np.concatenate(([np.uint32(self.eot_id)], ids))
        start = self.writers[split].count
        self.writers[split].write(document)
        self.hashes[split].update(document.astype(self.dtype).tobytes())
        count = len(document)
        path = _plain(path)
        if split == "val":
            self.validation.append(
                {"start": start, "tokens": count, "bytes": size, "source": _plain(source), "path": path}
            )
        self.table.write(f"{split}\t{_plain(source)}\t{path}\t{_plain(licence)}\t{size}\t{count}\n")
        return count

    def finish(self, description: dict[str, Any]) -> None:
        """Write val_documents.json and dataset.json; the hashes of the token files are added to the latter's splits."""
        for split in SPLITS:
            description["splits"][split]["sha256"] = self.hashes[split].hexdigest()
        (self.folder / "val_documents.json").write_text(json.dumps(self.validation, indent=0) + "\n", encoding="utf-8")
        (self.folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _plain(text: str) -> str:
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_json(counts: dict[str, Any]) -> dict[str, Any]:
    """Turn a mapping of `Count` dataclasses into plain JSON objects."""
    return {name: dataclasses.asdict(count) for name, count in counts.items()}
