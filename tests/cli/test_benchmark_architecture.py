"""The figures of the source's structure, from a package small enough to count by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from architecture import measure, measure_commit

FILES = {
    "__init__.py": [],
    "a.py": ["from nanochat_tui import b"],
    "b.py": ["def late():", "    from nanochat_tui.c import x"],
    "c.py": ["import nanochat_tui.a", "x = 1"],
    "types_only.py": ["from typing import TYPE_CHECKING", "if TYPE_CHECKING:", "    from nanochat_tui.user import top"],
    "user.py": ["import nanochat_tui.types_only", "class Settings:", "    top_p: float = 1.0", "def top(top_p): ..."],
    "wide.py": [
        "def nine(a, b, c, d, e, f, g, h, *, i): ...",
        "class X:",
        "    def eight(self, a, b, c, d, e, f, g, h): ...",
    ],
    "tui/chat/screen.py": [
        "from nanochat_tui.tui.chat.base import Base",
        "class ChatScreen(Base[int]):",
        "    def a(self): ...",
    ],
    "tui/chat/base.py": [
        "class Base:",
        "    def b(self): ...",
        "    async def c(self): ...",
        "class Other:",
        "    def d(self): ...",
    ],
}


def test_every_figure(tmp_path: Path) -> None:
    for name, lines in FILES.items():
        path = tmp_path / "nanochat_tui" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    found = measure(tmp_path)
    assert found.details["circles"] == [["nanochat_tui.a", "nanochat_tui.b", "nanochat_tui.c"]]
    assert [line.partition(" ")[2] for line in found.details["wide"]] == ["nine() 9"]
    assert [line.rpartition(" ")[2] for line in found.details["declared"]] == ["top()", "Settings"]
    assert found.details["chat_screen"] == ["ChatScreen", "Base"]
    numbers = found.numbers
    assert (numbers["files"], numbers["lines"], numbers["largest file"]) == (9, 23, 5)
    assert (numbers["methods of the chat screen"], numbers["methods of the largest other class"]) == (3, 1)


def test_an_unknown_commit_is_said() -> None:
    with pytest.raises(SystemExit, match="git"):
        measure_commit("no-such-commit")
