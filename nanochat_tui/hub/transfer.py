"""One file from a hub into Hugging Face's cache: continued where it stopped, compared, and only then named.

The library's own download begins again after a kill, and names a file before anyone has compared it. So the bytes are
fetched by its `http_get` into a file of ours next to the blob, which becomes the blob when its checksum is right; the
library then makes the link. Repositories with Xet answer the same requests over plain HTTP, which can be continued.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from nanochat_tui.hub.choice import RepoFile
from nanochat_tui.hub.library import HubError, cache_folder, endpoint, headers, quiet, translated
from nanochat_tui.hub.records import digest_of, is_sound, kind_of, remember
from nanochat_tui.hub.reference import Reference
from nanochat_tui.text import display_safe

PARTIAL = ".nanochat.incomplete"
"""Ending of a blob that is on its way."""


class Watcher(Protocol):
    """Is told how a download gets on."""

    def begin(self, what: str, done: int, size: int) -> None:
        """Take note of a step ("fetching NAME", "checking NAME") of so many bytes, some of them there already."""

    def moved(self, done: int, size: int) -> None:
        """Take note of the bytes done by now."""

    def note(self, text: str) -> None:
        """Take note of something worth a line."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file of a commit lies in the cache: the link in its snapshot, and the folder of the blobs."""

    storage: Path
    commit: str
    name: str

    @property
    def pointer(self) -> Path:
        """The path that programs open."""
        return self.storage.joinpath("snapshots", self.commit, *self.name.split("/"))

    def blob(self, etag: str) -> Path:
        """The file with the bytes."""
        return self.storage / "blobs" / etag

    def partial(self, etag: str) -> Path:
        """The file with the bytes that have arrived so far."""
        return self.storage / "blobs" / f"{etag}{PARTIAL}"


def storage_of(repo: str) -> Path:
    """Return a repository's folder in the cache."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def missing_bytes(place: Place, file: RepoFile) -> int:
    """Return how much of a file has still to come."""
    etag = file.sha256 or file.git_sha1 or ""
    if place.pointer.exists() or place.blob(etag).exists():
        return 0
    try:
        return max(0, file.size - place.partial(etag).stat().st_size)
    except OSError:
        return file.size


def fetch(reference: Reference, place: Place, file: RepoFile, watcher: Watcher) -> Path:
    """Bring one file of a commit into the cache, unless it is there; return its path. Raises HubError or UserError."""
    if place.pointer.exists():
        watcher.begin(f"checking {file.name}", 0, file.size)
        if is_sound(place.pointer, watcher.moved):
            return place.pointer
        watcher.note(f"{display_safe(file.name)} in the cache is damaged and is fetched again")
        _forget(place)
    try:
        return _fetch(reference, place, file, watcher)
    except Exception as error:
        said = translated(error, reference, file.name)
        if said is error:
            raise
        raise said from error


def _fetch(reference: Reference, place: Place, file: RepoFile, watcher: Watcher) -> Path:
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import get_hf_file_metadata

    quiet()
    url = hf_hub_url(reference.repo, file.name, revision=place.commit)
    told = get_hf_file_metadata(url, headers=headers(), retry_on_errors=True)
    etag = told.etag or ""
    kind = kind_of(etag)
    name = display_safe(file.name)
    if kind is None:
        raise HubError(f"{endpoint()} gives no checksum of {name}, so it could not be compared; fetch it another way")
    if etag != (file.sha256 if kind == "sha256" else file.git_sha1):
        raise HubError(
            f"{endpoint()} says two things about {name}: its list and the file differ; run the command again"
        )
    blob, partial = place.blob(etag), place.partial(etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place.storage, etag, watcher, name):
        if blob.exists() and digest_of(blob, kind) != etag:
            watcher.note(f"{name} in the cache is damaged and is fetched again")
            blob.unlink()
        if not blob.exists():
            _receive(url, file, partial, watcher)
            watcher.begin(f"checking {file.name}", 0, file.size)
            if digest_of(partial, kind, watcher.moved) != etag:
                partial.unlink()
                raise HubError(
                    f"{name} arrived with another checksum than {endpoint()} announced and was deleted; run the "
                    "command again, and if that does not help tell its publisher"
                )
            partial.replace(blob)
    pointer = Path(hf_hub_download(reference.repo, file.name, revision=place.commit))
    remember(pointer)
    return pointer


def _receive(url: str, file: RepoFile, partial: Path, watcher: Watcher) -> None:
    from huggingface_hub.file_download import http_get

    with partial.open("ab") as made:
        made.seek(0, os.SEEK_END)
        arrived = made.tell()
        if arrived > file.size:
            made.truncate(0)
            arrived = 0
    with partial.open("r+b") as handle:
        handle.seek(arrived)
        watcher.begin(f"fetching {file.name}", arrived, file.size)
        counted = cast(BinaryIO, _Counting(handle, arrived, file.size, watcher))
        http_get(url, counted, resume_size=arrived, headers=headers(), expected_size=file.size)
        handle.flush()
        os.fsync(handle.fileno())


class _Counting(RawIOBase):
    """A file that tells how long it has become."""

    def __init__(self, handle: BinaryIO, done: int, size: int, watcher: Watcher) -> None:
        super().__init__()
        self._handle, self._done, self._size, self._watcher = handle, done, size, watcher

    def write(self, data: Any) -> int:
        """Write, and tell."""
        written = self._handle.write(data)
        self._done += written
        self._watcher.moved(self._done, self._size)
        return written

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move."""
        self._done = self._handle.seek(offset, whence)
        return self._done

    def tell(self) -> int:
        """Return the place."""
        return self._handle.tell()

    def truncate(self, size: int | None = None) -> int:
        """Cut."""
        return self._handle.truncate(size)


@contextmanager
def _alone(storage: Path, etag: str, watcher: Watcher, name: str) -> Iterator[None]:
    """Hold the lock that the library has for a blob, so that two programs never write the same one."""
    from filelock import FileLock, Timeout

    path = storage.parent / ".locks" / storage.name / f"{etag}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        watcher.note(f"another program is fetching {name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _forget(place: Place) -> None:
    """Delete a damaged file, and the blob it leads to within its own repository."""
    blob = Path(os.path.realpath(place.pointer))
    place.pointer.unlink(missing_ok=True)
    if blob.parent == Path(os.path.realpath(place.storage)) / "blobs":
        blob.unlink(missing_ok=True)
