"""Function bodies to complete, from held-out Rust files, and whether a completion is a whole one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat_tui.evaluate.rust_functions import rust_parser

if TYPE_CHECKING:
    from tree_sitter import Node

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
    for node in _functions(rust_parser().parse(data).root_node):
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


def judge(header: str, completion: str) -> Verdict:
    """Say whether a completion of `header` (a function up to its brace) ends the body, and whether that parses.

    The body ends at the first brace after which header and completion are one function without ERROR or MISSING node.
    Where there is none, a text whose braces close counts as closed and not valid.
    """
    at = completion.find("}")
    while at >= 0:
        text = completion[: at + 1]
        root = rust_parser().parse((header + text).encode()).root_node
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


def passes(verdict: Verdict, reference: str) -> bool:
    """Say whether a verdict counts: closed, valid, and three statements or half the length of the reference body."""
    enough = verdict.statements >= LEAST_STATEMENTS or 2 * len(verdict.text.strip()) >= len(reference.strip())
    return verdict.closed and verdict.valid and enough
