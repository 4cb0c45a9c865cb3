"""Which crate a file belongs to: the package of the nearest Cargo.toml."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nanochat_tui.train.data_preparation.manifests import manifests, table

VENDORED = frozenset({"vendor", "vendored", "third_party", "third-party", "compile-benchmarks"})
"""Folders whose contents belong to others than the package around them (the last one: rustc-perf's)."""
_VENDORED_PAIR = "/include/cargo/"  # where maturin's users keep crates in a source distribution


@dataclass(frozen=True)
class Crate:
    """A crate as one source holds it."""

    name: str
    """As Cargo.toml has it, with `-` for `_`, which Cargo takes for the same."""
    version: str = ""
    folder: str = ""
    """Below the source's root."""
    private: bool = False
    """Never published, so that another crate of this name need not be the same."""


def plain_name(name: str) -> str:
    """Write a crate's name the one way it is compared: `serde_json` is `serde-json`."""
    return name.strip().lower().replace("_", "-")


@functools.lru_cache(maxsize=65536)
def find_crate(root: Path, folder: PurePosixPath, default: str) -> Crate:
    """Return the crate of files in `folder` (relative to `root`); without any Cargo.toml the source itself, `default`.

    A manifest without `[package]` only gathers a workspace: the search continues above it.
    """
    for manifest, place in manifests(folder, root):
        package = table(manifest, "package") or table(manifest, "project")
        name = package.get("name")
        if not isinstance(name, str):
            continue
        version = package.get("version")
        if not isinstance(version, str):
            version = _inherited_version(root, place)
        private = package.get("publish") is False or version in ("", "0.0.0")
        return Crate(plain_name(name), version, place.as_posix(), private)
    return Crate(plain_name(default), private=True)


def _inherited_version(root: Path, folder: PurePosixPath) -> str:
    for manifest, _ in manifests(folder, root):
        version = table(table(manifest, "workspace"), "package").get("version")
        if isinstance(version, str):
            return version
    return ""


def version_key(version: str) -> tuple[tuple[int, ...], bool]:
    """Order versions: by numbers, a release after its own previews."""
    plain, _, preview = version.partition("+")[0].partition("-")
    return tuple(int(number) for number in re.findall(r"\d+", plain)), not preview


def is_vendored(path: str) -> bool:
    """Say whether a path goes through a folder of vendored packages."""
    return not VENDORED.isdisjoint(path.split("/")[:-1]) or _VENDORED_PAIR in f"/{path}"
