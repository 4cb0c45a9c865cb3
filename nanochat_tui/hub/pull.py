"""A model by its name: found in the cache, or fetched into it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.files import atomic_write_text
from nanochat_tui.hub.choice import Candidate, RepoFile, candidates, choose
from nanochat_tui.hub.library import cache_folder, endpoint, listing
from nanochat_tui.hub.records import is_sound
from nanochat_tui.hub.reference import MAIN, Reference
from nanochat_tui.hub.transfer import Place, Watcher, fetch, missing_bytes, storage_of
from nanochat_tui.text import display_safe

SPARE = 256 << 20
"""Bytes that a download leaves free on the disk."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model in the cache: the file to open (the first, if it is split), all its files, and what they are."""

    path: Path
    paths: tuple[Path, ...]
    commit: str
    model: Candidate


def pull(reference: Reference, watcher: Watcher) -> Pulled:
    """Fetch a model, or what is missing of it, and return where it lies.

    Every file is compared with its checksum before it is in its place. Raises HubError or UserError.
    """
    commit, files = listing(reference)
    model = choose(files, reference.wanted, f"{reference.repo} on {endpoint()}")
    storage = storage_of(reference.repo)
    places = [Place(storage, commit, file.name) for file in model.files]
    _require_space(sum(missing_bytes(place, file) for place, file in zip(places, model.files, strict=True)))
    others = len(candidates(files)) - 1
    if reference.wanted is None and others:
        watcher.note(f"taking {display_safe(model.name)}; the repository has {others} more, named as user/repo:file")
    paths = tuple(fetch(reference, place, file, watcher) for place, file in zip(places, model.files, strict=True))
    if reference.revision != commit:
        reference_file = storage.joinpath("refs", *reference.revision.split("/"))
        reference_file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(reference_file, commit)
    return Pulled(paths[0], paths, commit, model)


def present(reference: Reference, watcher: Watcher | None = None) -> Pulled | None:
    """Return a model that is in the cache, whole and compared with its checksums, without asking anyone; else None."""
    storage = storage_of(reference.repo)
    commit = _commit(storage, reference.revision)
    if commit is None:
        return None
    folder = storage / "snapshots" / commit
    files = [
        RepoFile(path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    try:
        model = choose(files, reference.wanted, reference.repo)
    except UserError:
        return None
    paths = tuple(folder.joinpath(*file.name.split("/")) for file in model.files)
    for path, file in zip(paths, model.files, strict=True):
        if watcher is not None:
            watcher.begin(f"checking {file.name}", 0, file.size)
        if not (is_sound(path, watcher.moved) if watcher is not None else is_sound(path)):
            return None
    return Pulled(paths[0], paths, commit, model)


def _commit(storage: Path, revision: str) -> str | None:
    try:
        return storage.joinpath("refs", *revision.split("/")).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return revision if revision != MAIN and (storage / "snapshots" / revision).is_dir() else None


def _require_space(wanted: int) -> None:
    folder = cache_folder()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if wanted and wanted + SPARE > free:
        raise UserError(
            f"the model needs {wanted / 1e9:.2f} GB on the disk of {display_safe(str(folder))}, and "
            f"{free / 1e9:.2f} GB are free; make room, or set HF_HUB_CACHE to a folder on another disk"
        )


def names_present(names: Sequence[str]) -> list[str]:
    """Return those entries of the catalogue whose files are in the cache; their checksums are not looked at."""
    from nanochat_tui.hub.catalogue import find

    found = []
    for name in names:
        entry = find(name)
        storage = storage_of(entry.repo)
        commit = _commit(storage, MAIN)
        folder = storage / "snapshots" / commit if commit else None
        if folder is not None and any(path.suffix == ".gguf" for path in folder.rglob("*") if path.is_file()):
            found.append(name)
    return found
