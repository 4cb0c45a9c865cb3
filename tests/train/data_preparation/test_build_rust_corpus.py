"""The script that rebuilds the corpus, on packages made here; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .corpus_tree import TOKENIZER, rust, write

SCRIPT = Path(__file__).parents[3] / "scripts" / "build_rust_corpus.py"
CONTROL = "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: test\n"


def make_package(folder: Path, name: str, tree: str, files: dict[str, str]) -> None:
    root = folder / "build" / name
    write(root / "DEBIAN/control", CONTROL.format(name=name))
    write(root / "usr/share/doc" / name / "copyright", "Files: *\nLicense: MIT or Apache-2.0\n")
    for path, text in files.items():
        write(root / tree / path, text)
    (folder / "debs").mkdir(exist_ok=True)
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(folder / "debs" / f"{name}_1_all.deb")]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg")
def test_packages_become_tokens_and_the_newer_package_wins(tmp_path: Path) -> None:
    same = rust(1)
    make_package(
        tmp_path, "rust-web-src", "usr/src/rustc-9.9.9", {"library/core/a.rs": same, "src/test/ui/x.rs": rust(2)}
    )
    make_package(tmp_path, "librust-x-dev", "usr/share/cargo/registry/x-1.0.0", {"src/a.rs": same, "src/b.rs": rust(3)})
    (tmp_path / "list.txt").write_text("# newest first\nrust-web-src\nlibrust-x-dev  # a crate\n", encoding="utf-8")
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--packages", str(tmp_path / "list.txt")]
    command += ["--tokenizer", str(TOKENIZER), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "MIT OR Apache-2.0" in done.stdout
    data = json.loads((tmp_path / "tokens/dataset.json").read_text(encoding="utf-8"))
    assert {name: count["documents"] for name, count in data["sources"].items()} == {
        "rust-web-src": 1,
        "librust-x-dev": 1,
    }
    assert data["left_out"]["skipped folder"]["files"] == 1
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: ")


def test_the_package_list_is_sound() -> None:
    spec = importlib.util.spec_from_file_location("build_rust_corpus", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    packages = script.read_packages(SCRIPT.with_name("rust_corpus_packages.txt"))
    assert len(packages) == len(set(packages)) == 70
    # the newest compiler wins over single crates, and both over the older compiler
    assert packages[0] == "rust-web-src"
    assert packages[-1] == "rust-src"
