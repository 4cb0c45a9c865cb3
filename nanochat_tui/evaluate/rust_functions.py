"""Rust functions as data: what a file declares, what a reply declares, and whether they are what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

_COMMENTS = ("line_comment", "block_comment")
_PLACES = ("mod_item", "declaration_list")
WIDTH = 100
"""Characters up to which a signature is written on one line, as rustfmt does."""
_WORKS = ("call_expression", "macro_invocation", "field_expression", "index_expression", "closure_expression")
"""Expressions by which a body does more than name a value."""


@dataclass(frozen=True, slots=True)
class RustFunction:
    """A free function, without what stands before it."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    """Pattern and type of each, white space folded."""
    returns: str
    """The type after the arrow; "" for none."""
    signature: str
    """From `fn` up to the body, on one line, without visibility."""
    documentation: str
    """Text of its documentation comment; "" for none."""
    source: str
    """The function from `fn` on, its own indentation taken away; a short signature stands on one line."""
    constant: bool
    """Whether the body does nothing but name a value: no call, no operator on a parameter, no statement."""
    uses: tuple[str, ...] = ()
    """Declarations of the file that bring names of the standard library into scope which the function mentions."""


@lru_cache(maxsize=1)
def rust_parser() -> Parser:
    """The grammar of Rust. Raises UserError where tree-sitter is not installed."""
    try:
        import tree_sitter_rust
        from tree_sitter import Language, Parser
    except ImportError:
        raise UserError("parsing Rust needs tree-sitter; install it with: pip install 'nanochat-tui[eval]'") from None
    return Parser(Language(tree_sitter_rust.language()))


def free_functions(text: str) -> list[RustFunction]:
    """Return the free functions of a text that parse without error, in order; methods and tests are none."""
    root = rust_parser().parse(text.encode()).root_node
    brought = _std_names(text)
    found = []
    for node in _items(root):
        before = _before(node)
        if node.has_error or any("test" in attribute for attribute in before.attributes):
            continue
        found.append(_function(node, before.documentation, brought))
    return found


def first_function(text: str) -> RustFunction | None:
    """Return the first function of a text that parses as Rust as a whole; None for any other text."""
    root = rust_parser().parse(text.encode()).root_node
    if root.has_error:
        return None
    for node in _items(root):
        return _function(node, "", {})
    return None


def same_call(one: RustFunction, other: RustFunction) -> bool:
    """Whether two functions have the same name and parameters, in name, type and order."""
    return one.name == other.name and [_plain(p) for p in one.parameters] == [_plain(p) for p in other.parameters]


def _plain(parameter: tuple[str, str]) -> tuple[str, str]:
    pattern, kind = parameter
    return pattern.removeprefix("mut ").strip(), re.sub(r"\s+", "", kind)


def _items(node: Node) -> Iterator[Node]:
    for child in node.named_children:
        if child.type == "function_item":
            yield child
        elif child.type in _PLACES:
            yield from _items(child)


def _text(node: Node | None) -> str:
    return "" if node is None or node.text is None else node.text.decode()


def _folded(node: Node | None) -> str:
    return " ".join(_text(node).split())


@dataclass(frozen=True, slots=True)
class _Before:
    documentation: str
    attributes: list[str]


def _before(node: Node) -> _Before:
    """Documentation and attributes directly before an item."""
    lines: list[str] = []
    attributes: list[str] = []
    sibling = node.prev_named_sibling
    while sibling is not None and sibling.type in (*_COMMENTS, "attribute_item"):
        text = _text(sibling).rstrip("\n")
        if sibling.type == "attribute_item":
            attributes.append(text)
        elif text.startswith("///") and not text.startswith("////"):
            lines.append(text[3:].removeprefix(" "))
        else:
            break
        sibling = sibling.prev_named_sibling
    return _Before("\n".join(reversed(lines)), attributes)


def _function(node: Node, documentation: str, brought: dict[str, str]) -> RustFunction:
    body = node.child_by_field_name("body")
    data = node.text or b""
    start = next((c.start_byte - node.start_byte for c in node.children if c.type != "visibility_modifier"), 0)
    end = len(data) if body is None else body.start_byte - node.start_byte
    head = " ".join(data[start:end].decode().split()).replace("( ", "(").replace(", )", ")").replace(" )", ")")
    written = head + " " if len(head) <= WIDTH else data[start:end].decode()
    # a function inside a module is indented with it
    source = re.sub(rf"(?m)^[ ]{{0,{node.start_point.column}}}", "", written + data[end:].decode())
    mentioned = set(re.findall(r"\w+", source))
    return RustFunction(
        _text(node.child_by_field_name("name")),
        tuple(_parameters(node.child_by_field_name("parameters"))),
        _folded(node.child_by_field_name("return_type")),
        head,
        documentation,
        source,
        body is not None and _is_constant(body),
        tuple(sorted({path for name, path in brought.items() if name in mentioned})),
    )


def _parameters(node: Node | None) -> Iterator[tuple[str, str]]:
    for child in () if node is None else node.named_children:
        if child.type == "parameter":
            yield _folded(child.child_by_field_name("pattern")), _folded(child.child_by_field_name("type"))
        elif child.type == "self_parameter":
            yield "self", _folded(child)


def _is_constant(body: Node) -> bool:
    inner = [child for child in body.named_children if child.type not in _COMMENTS]
    if len(inner) > 1:
        return False
    if not inner:
        return True
    only = inner[0]
    function = body.parent
    names = {
        _text(parameter.child_by_field_name("pattern"))
        for parameter in (function.child_by_field_name("parameters").named_children if function is not None else ())  # type: ignore[union-attr]
        if parameter.type == "parameter"
    }
    return not any(
        found.type in _WORKS or (found.type == "identifier" and _text(found) in names) for found in _descendants(only)
    )


def _descendants(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _descendants(child)


_USE = re.compile(r"(?m)^use\s+((?:std|core|alloc)(?:::\w+)*)::(\{[^{}]*\}|\w+)\s*;")


def _std_names(text: str) -> dict[str, str]:
    """Names of the standard library that a file's plain `use` declarations bring, with a declaration of each."""
    found: dict[str, str] = {}
    for path, last in _USE.findall(text):
        for name in re.findall(r"\w+(?:\s+as\s+\w+)?", last):
            if " as " not in name and name != "self":
                found[name] = f"use {path}::{name};"
            elif name == "self":
                found[path.rpartition("::")[2]] = f"use {path};"
    return found
