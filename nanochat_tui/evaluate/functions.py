"""Function bodies to complete, from held-out Rust files, and whether a completion is a whole one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from nanochat_tui.errors import UserError

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

LEAST_STATEMENTS = 3


@dataclass(frozen=True)
class Function:
    """A function of a held-out file: what stands before its body, the brace included, and the body with its end."""

    crate: str
    path: str
    before: str
    header: str
    """The function alone, from its first word to the brace."""
    body: str


@dataclass(frozen=True)
class Verdict:
    """What a completion is: `closed` if the model wrote the end of the body, `valid` if it parses without error."""

    closed: bool
    valid: bool
    statements: int
    text: str
    """The completion up to the end of the body, or all of it."""


@lru_cache(maxsize=1)
def _parser() -> Parser:
    try:
        import tree_sitter_rust
        from tree_sitter import Language, Parser
    except ImportError:
        raise UserError("parsing Rust needs tree-sitter; install it with: pip install 'nanochat-tui[eval]'") from None
    return Parser(Language(tree_sitter_rust.language()))


def _functions(node: Node) -> Iterator[Node]:
    for child in node.children:
        if child.type == "function_item":
            yield child
        else:
            yield from _functions(child)


def _statements(body: Node) -> int:
    return sum(child.type not in ("line_comment", "block_comment") for child in body.named_children)


def find_functions(text: str, crate: str, path: str) -> list[Function]:
    """Return the functions of a file with at least three statements that parse without error."""
    data = text.encode()
    found = []
    for node in _functions(_parser().parse(data).root_node):
        body = node.child_by_field_name("body")
        if body is None or node.has_error or _statements(body) < LEAST_STATEMENTS:
            continue
        start = body.start_byte + 1
        found.append(
            Function(
                crate,
                path,
                data[:start].decode(),
                data[node.start_byte : start].decode(),
                data[start : body.end_byte].decode(),
            )
        )
    return found


def choose(functions: Sequence[Function], count: int) -> list[Function]:
    """Choose `count` functions by a hash of their place: the same ones whatever else the list holds."""

    def rank(function: Function) -> bytes:
        key = f"{function.crate}/{function.path}/{len(function.before)}"
        return hashlib.sha256(key.encode()).digest()

    return sorted(functions, key=rank)[:count]


def judge(header: str, completion: str) -> Verdict:
    """Say whether a completion of `header` (a function up to its brace) ends the body, and whether that parses.

    The body ends at the first brace after which header and completion are one function without ERROR or MISSING node.
    Where there is none, a text whose braces close counts as closed and not valid.
    """
    at = completion.find("}")
    while at >= 0:
        text = completion[: at + 1]
        root = _parser().parse((header + text).encode()).root_node
        items = [child for child in root.named_children if child.type not in ("line_comment", "block_comment")]
        if len(items) == 1 and items[0].type == "function_item" and not root.has_error:
            body = items[0].child_by_field_name("body")
            return Verdict(True, True, _statements(body) if body is not None else 0, text)
        at = completion.find("}", at + 1)
    depth = 1
    for place, character in enumerate(completion):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return Verdict(True, False, 0, completion[: place + 1])
    return Verdict(False, False, 0, completion)


def passes(verdict: Verdict, tokens: int, reference_tokens: int) -> bool:
    """Say whether a verdict counts: closed, valid, and three statements or half the reference's tokens."""
    enough = verdict.statements >= LEAST_STATEMENTS or 2 * tokens >= reference_tokens
    return verdict.closed and verdict.valid and enough
