"""What pyproject.toml declares is what the package imports, and private names it uses of others exist."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nanochat_tui"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ABSENT = {
    "aiohttp": "aiohttp",
    "httpx2": "httpx2",
    "keyring": "keyring",
    "llama_cpp": "llama-cpp-python",
    "mcp": "mcp",
    "pynvml": "nvidia-ml-py",
    "pyppmd": "pyppmd",
    "textual_serve": "textual-serve",
    "torch": "torch",
    "tree_sitter": "tree-sitter",
    "tree_sitter_rust": "tree-sitter-rust",
    "zstandard": "zstandard",
}
"""Distributions of modules that need not be installed."""
ELSEWHERE = {"torchtitan", "spmd_types"}
"""Modules of an environment of its own, whose versions go with none of ours; `.ci/peers` makes it."""
PRIVATE = {
    "numba": (
        "numba:config.OPT",
        "numba.core.compiler:Flags",
        "numba.core.compiler:compile_extra",
        "numba.core.sigutils:normalize_signature",
        "numba.core.compiler_lock:global_compiler_lock",
        "numba.core.registry:cpu_target.typing_context.refresh",
        "numba.core.registry:cpu_target.target_context.refresh",
        "numba.core.typing.templates:ConcreteTemplate",
        "numba.core.typing.templates:infer_global",
        "numba.core.typing.templates:signature",
    ),
    "uvicorn": tuple(
        f"uvicorn.protocols.http.h11_impl:H11Protocol{name}"
        for name in (
            "",
            ".connection_made",
            ".connection_lost",
            ".data_received",
            ".on_response_complete",
            ".shutdown",
            ".pause_writing",
            ".resume_writing",
            ".timeout_keep_alive_handler",
            ".send_400_response",
        )
    ),
    "textual": (
        "textual._styles_cache:StylesCache.get_inner_outer",
        "textual.app:App._handle_exception",
        "textual.app:App._close_messages_no_wait",
        "textual._xterm_parser:XTermParser",
        "textual._xterm_parser:BRACKETED_PASTE_START",
        "textual._xterm_parser:BRACKETED_PASTE_END",
    ),
    "textual-serve": ("textual_serve._binary_encode:load",),
    "huggingface-hub": (
        "huggingface_hub.file_download:http_get",
        "huggingface_hub.file_download:get_hf_file_metadata",
        "huggingface_hub.utils:build_hf_headers",
        "huggingface_hub.utils.tqdm:are_progress_bars_disabled",
    ),
}
"""Names without a promise of their authors (module:name), by distribution."""
FLAGS = ("no_compile", "no_cpython_wrapper", "no_cfunc_wrapper", "no_rewrites", "error_model")


Import = tuple[Path, str, tuple[str, ...]]
"""A file, a module that it imports, and the names taken from it."""


@cache
def imports() -> list[Import]:
    """Every absolute import of the package."""
    return list(_imports())


def _imports() -> Iterator[Import]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name, ()) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module, tuple(alias.name for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                yield from ((path, arg.value, ()) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", name)[0]).lower()


def users(wanted: str) -> str:
    """The files that import a module."""
    found = {path for path, module, names in imports() if wanted in (module, *(f"{module}.{name}" for name in names))}
    return ", ".join(sorted(str(path.relative_to(ROOT)) for path in found))


DEPENDENCIES: list[str] = PROJECT["dependencies"]
EXTRAS: list[str] = [one for group in PROJECT["optional-dependencies"].values() for one in group]


def test_every_import_is_declared() -> None:
    declared = {normalised(one) for one in (*DEPENDENCIES, *EXTRAS)}
    known = packages_distributions()
    missing = {}
    for path, module, _ in imports():
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top == PACKAGE.name or top in ELSEWHERE:
            continue
        found = {normalised(name) for name in known.get(top, [ABSENT.get(top, top)])}
        if not found & declared:
            missing[top] = f"{path.relative_to(ROOT)} imports {top} ({', '.join(found)})"
    assert not missing, f"declare in pyproject.toml, with the reason: {'; '.join(missing.values())}"


def test_what_lives_elsewhere_is_imported_in_one_place() -> None:
    found = {path.parent for path, module, _ in imports() if module.partition(".")[0] in ELSEWHERE}
    assert found == {PACKAGE / "train" / "titan"}
    assert "torchtitan==" in (ROOT / ".ci" / "peers").read_text()


def test_every_dependency_is_imported() -> None:
    known = packages_distributions()
    used = {normalised(name) for _, module, _ in imports() for name in known.get(module.partition(".")[0], [])}
    unused = {normalised(one) for one in DEPENDENCIES} - used
    assert not unused, "nothing imports these dependencies; take them out of pyproject.toml"


@pytest.mark.parametrize("distribution", PRIVATE)
def test_private_names_exist(distribution: str) -> None:
    gone = [f"{place}: nothing uses it" for place in PRIVATE[distribution] if not users(place.partition(":")[0])]
    assert not gone, "take them out of PRIVATE"
    for place in PRIVATE[distribution]:
        module, _, name = place.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            gone.append(f"{place}, used by {users(module)}")
    remedy = "put the ceiling in pyproject.toml below it, or make the file work with both and then raise the ceiling"
    assert not gone, f"{distribution} {version(distribution)} has no {'; '.join(gone)}: {remedy}"


@pytest.mark.parametrize("distribution", PRIVATE)
def test_private_names_need_a_ceiling(distribution: str) -> None:
    declared = next(one for one in (*DEPENDENCIES, *EXTRAS) if normalised(one) == distribution)
    assert "<" in declared, f"{distribution}'s private names may go with any release: set a ceiling"


def test_the_list_of_private_names_is_complete() -> None:
    """Imports of modules that are private by their name or by their authors' word stand in PRIVATE."""
    private = re.compile(r"numba\.core\b|uvicorn\.protocols\b|(^|\.)_[a-z]")
    listed = {place for names in PRIVATE.values() for place in names}
    unlisted = set()
    for path, module, names in imports():
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top == PACKAGE.name:
            continue
        for name in names:
            # of `from numba.core import compiler` the names within it are listed
            place, inside = f"{module}:{name}", f"{module}.{name}:"
            known = any(one == place or one.startswith((f"{place}.", inside)) for one in listed)
            if (private.search(module) or name.startswith("_")) and not known:
                unlisted.add(f"{path.relative_to(PACKAGE)}: {place}")
    assert not unlisted


def test_numba_lowers_a_function_as_the_registry_calls_it() -> None:
    from numba.core import compiler

    flags = compiler.Flags()
    assert [name for name in FLAGS if not hasattr(flags, name)] == []
    wanted = ["typingctx", "targetctx", "func", "args", "return_type", "flags", "locals"]
    assert list(inspect.signature(compiler.compile_extra).parameters)[: len(wanted)] == wanted


def test_uvicorns_connection_has_the_attributes_the_deadlines_use() -> None:
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.h11_impl import H11Protocol

    source = inspect.getsource(H11Protocol)
    text = (PACKAGE / "serve" / "protocol.py").read_text()
    used = set(re.findall(r"self\.(conn|config|transport|flow|loop)\b", text))
    assert used == {"conn", "config", "transport", "flow", "loop"}
    assert [name for name in sorted(used) if not re.search(rf"self\.{name}\b.* = ", source)] == []
    assert FlowControl(asyncio.Transport()).write_paused is False
