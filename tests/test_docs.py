"""What the documents for contributors name exists, and their commands are those that the checks run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nanochat_tui"
PLACES = (ROOT, PACKAGE, PACKAGE / "formats", PACKAGE / "model", PACKAGE / "engine")
"""Folders that the paths in a document begin in."""


@pytest.mark.parametrize("name", ["docs/architecture.md", "docs/style.md", "CONTRIBUTING.md"])
def test_every_path_that_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    named = {word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()}
    paths = {word.rstrip(",;.") for word in named if re.fullmatch(r"[\w./-]+(\.py|\.md|\.toml|/)|\.ci/\w+", word)}
    assert paths
    missing = [path for path in sorted(paths) if not any((place / path).exists() for place in PLACES)]
    assert not missing, f"{name} names what is not there"


def test_the_architecture_names_every_package() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    layers = text.split("```")[1]
    packages = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    for package in packages:
        assert re.search(rf"\b{package}\b", layers), f"the picture of layers lacks {package}"
        assert f"| `nanochat_tui/{package}/` |" in text, f"the table lacks {package}"
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    declared = [
        [name.strip().removeprefix("nanochat_tui.") for name in layer.split("|")] for layer in contracts[0]["layers"]
    ]
    drawn = [re.split(r" \| ", line.split("  ")[0]) for line in layers.strip().splitlines()]
    assert drawn[: len(declared)] == declared


def test_checks_call_one_script() -> None:
    for name in (".ci/run", ".pre-commit-config.yaml", ".github/workflows/ci.yml"):
        assert ".ci/lint" in (ROOT / name).read_text(encoding="utf-8"), f"{name} has commands of its own"
