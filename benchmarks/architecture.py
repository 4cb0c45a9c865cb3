"""Figures of the source's structure, for comparing before and after a change of the architecture.

    python benchmarks/architecture.py [--against COMMIT] [--json]

For the working tree, and with `--against` for a commit next to it (read with `git archive`; nothing is checked out):

- files, lines, the median and the largest file of the package
- functions with more than 8 parameters
- declarations of `top_p`: parameters of functions, and fields of classes
- import circles: groups of files that import each other, inside functions too; imports for types only do not count
- methods of the chat screen's classes: of `ChatScreen` with all its bases in the package, and of the largest other
  class of `tui/chat`
- files under 25 lines, packages' own `__init__` apart

Prints one row per figure; `--json` prints what they consist of too.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nanochat_tui"
MOST_PARAMETERS = 8
SMALL_LINES = 25
SETTING = "top_p"
"""The sampling setting whose declarations are counted, for all of them."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Source:
    """One file, parsed."""

    name: str
    path: Path
    tree: ast.Module
    lines: int


@dataclass
class Figures:
    """What is printed, and what it consists of."""

    numbers: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def read_sources(root: Path) -> dict[str, Source]:
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Source(name, path.relative_to(root), ast.parse(text), len(text.splitlines()))
    return found


def parameters(function: Function) -> list[str]:
    """The names of a function's parameters, without self and cls."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def fields_of(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield line.target.id


def declarations(sources: dict[str, Source], name: str) -> list[str]:
    """Where a setting is declared: as a parameter or as a field of a class."""
    found = []
    for source in sources.values():
        found += [f"{source.path}:{f.lineno} {f.name}()" for f in functions(source.tree) if name in parameters(f)]
        classes = (node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef))
        found += [f"{source.path}:{node.lineno} {node.name}" for node in classes if name in fields_of(node)]
    return found


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports in a piece of code, those inside functions too, but not those for types only."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
        return
    children: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = [*node.orelse]
    for child in children:
        yield from _imports(child)


def import_graph(sources: dict[str, Source]) -> dict[str, set[str]]:
    """The files that each file imports; a package's `__init__` counts only where it is named."""
    graph: dict[str, set[str]] = {name: set() for name in sources}
    for name, source in sources.items():
        for node in _imports(source.tree):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names if alias.name in sources}
            elif node.module is not None and node.level == 0:
                for alias in node.names:
                    member = f"{node.module}.{alias.name}"
                    graph[name] |= {one for one in (member if member in sources else node.module,) if one in sources}
        graph[name].discard(name)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other, the largest first: strongly connected components (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(found, key=len, reverse=True)


def methods(sources: dict[str, Source], package: str, top: str) -> tuple[list[str], dict[str, int]]:
    """The classes that class `top` consists of, by inheritance within `package`, and the methods of every class."""
    counts: dict[str, int] = {}
    bases: dict[str, list[str]] = {}
    for source in sources.values():
        if not source.name.startswith(package):
            continue
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                counts[node.name] = sum(isinstance(line, Function) for line in node.body)
                bases[node.name] = [ast.unparse(base).partition("[")[0] for base in node.bases]
    chain, waiting = [], [top]
    while waiting:
        name = waiting.pop(0)
        if name in counts and name not in chain:
            chain.append(name)
            waiting += bases[name]
    return chain, counts


def measure(root: Path) -> Figures:
    sources = read_sources(root)
    lines = [source.lines for source in sources.values()]
    wide = [
        f"{source.path}:{function.lineno} {function.name}() {len(parameters(function))}"
        for source in sources.values()
        for function in functions(source.tree)
        if len(parameters(function)) > MOST_PARAMETERS
    ]
    declared = declarations(sources, SETTING)
    rings = circles(import_graph(sources))
    chain, counts = methods(sources, f"{PACKAGE}.tui.chat", "ChatScreen")
    others = {name: count for name, count in counts.items() if name not in chain}
    small = [str(s.path) for s in sources.values() if s.lines < SMALL_LINES and s.path.name != "__init__.py"]
    return Figures(
        {
            "files": len(lines),
            "lines": sum(lines),
            "median of a file": statistics.median(lines),
            "largest file": max(lines),
            f"files under {SMALL_LINES} lines": len(small),
            f"functions with more than {MOST_PARAMETERS} parameters": len(wide),
            f"declarations of {SETTING}": len(declared),
            "import circles": len(rings),
            "files in import circles": sum(map(len, rings)),
            "classes of the chat screen": len(chain),
            "methods of the chat screen": sum(counts[name] for name in chain),
            "methods of the largest other class": max(others.values(), default=0),
        },
        {"wide": wide, "declared": declared, "circles": rings, "chat_screen": chain, "small": small},
    )


def measure_commit(commit: str) -> Figures:
    """Measure a commit. Raises SystemExit if git does not know it."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit, PACKAGE], capture_output=True, check=False)
    if packed.returncode:
        raise SystemExit(f"error: git knows no commit {commit} with {PACKAGE}; give one of git log.")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        tar.extractall(folder, filter="data")
        return measure(Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="a commit to compare with")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    options = parser.parse_args()
    now = measure(ROOT)
    before = measure_commit(options.against) if options.against else None
    if options.json:
        print(json.dumps({"now": vars(now), "before": before and vars(before)}, indent=1))
        return 0
    if before is not None:
        print(f"{'':<42}{options.against[:12]:>12}{'now':>10}")
    for name, value in now.numbers.items():
        print(f"{name:<42}" + (f"{before.numbers[name]:>12g}" if before else "") + f"{value:>10g}")
    for ring in now.details["circles"]:
        print(f"circle of {len(ring)}: {', '.join(one.removeprefix(f'{PACKAGE}.') for one in ring)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
