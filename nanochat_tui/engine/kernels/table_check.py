"""Follow the addresses of tables through a function of the program, and refuse a slot that is not of the table read.

The compiler cannot tell tables from each other: their addresses are int64. A signature can (see `layout.table`), and a
function's source says the rest: `get` of a slot that holds another table's address is such a table, and so is a row or
a record that begins a known way behind an address. So a mistake is a TypeError when the function is defined, and the
machine code is the same as without types.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import NoReturn

from nanochat_tui.engine.layout.table import TABLES, Slot, Table, Width

READ, WRITE = "get", "put"
"""Names of the functions whose first argument is a table and whose second is a slot of it."""
Known = Table | Width | None
"""What is known of a value: the table it is the address of; that it counts slots of a table; nothing."""


@cache
def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    """Return the functions of a source file."""
    tree = ast.parse(path.read_bytes(), str(path))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def check(function: FunctionType, signature: str, signatures: Mapping[str, str]) -> None:
    """Raise TypeError if a function, defined at the top of its file, takes a table or a slot for another.

    signatures: those of the functions that it may call, by name, with the letters of tables.
    """
    path = Path(inspect.getfile(function))
    _Check(function, signature, signatures, path).visit(functions_of(path)[function.__name__])


class _Check:
    """The statements of one function, in their order: a name keeps the table that it was first given."""

    def __init__(self, function: FunctionType, signature: str, signatures: Mapping[str, str], path: Path) -> None:
        self._function, self._path, self._signatures = function, path, signatures
        result, self._parameters = signature.split(":")
        self._result = TABLES.get(result)
        self._names: dict[str, Known] = {}

    def visit(self, tree: ast.FunctionDef) -> None:
        names = [argument.arg for argument in tree.args.args]
        if len(names) != len(self._parameters):
            self._refuse(tree, f"has {len(names)} parameters and a signature of {len(self._parameters)}")
        self._names = {name: TABLES.get(letter) for name, letter in zip(names, self._parameters, strict=True)}
        for statement in tree.body:
            self._statement(statement)

    def _refuse(self, node: ast.AST, what: str) -> NoReturn:
        line = getattr(node, "lineno", 0)
        raise TypeError(f"{self._path.name}:{line}: {self._function.__name__} {what}")

    # ---- statements

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[target], value=value):
                self._assign(target, value)
            case ast.AugAssign(target=ast.Name(name) as target, op=op, value=value):
                read = ast.copy_location(ast.Name(name, ast.Load()), target)
                self._bind(target, self._value(ast.copy_location(ast.BinOp(read, op, value), node)))
            case ast.For(target=target, iter=iterated):
                self._bind(target, self._counted(iterated))
                self._block(node.body + node.orelse)
            case ast.While(test=test) | ast.If(test=test):
                self._value(test)
                self._block(node.body + node.orelse)
            case ast.Return(value=value):
                found = None if value is None else self._value(value)
                if found is not self._result:
                    self._refuse(node, f"returns {_said(found)} and is to return {_said(self._result)}")
            case ast.Expr(value=value):
                self._value(value)
            case ast.Pass() | ast.Break() | ast.Continue():
                pass
            case _:
                self._refuse(node, f"has a statement whose tables cannot be followed: {ast.unparse(node)}")

    def _block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            found = [self._value(one) for one in value.elts]
            for name, known in zip(target.elts, found, strict=True):
                self._bind(name, known)
        else:
            self._bind(target, self._value(value))

    def _bind(self, target: ast.expr, known: Known) -> None:
        if isinstance(target, ast.Tuple):
            for name in target.elts:
                self._bind(name, None)
            return
        if not isinstance(target, ast.Name):
            self._refuse(target, f"assigns to {ast.unparse(target)}, not to a name")
        before = self._names.setdefault(target.id, known)
        if _table(before) is not _table(known):
            self._refuse(target, f"uses {target.id} for {_said(before)} and for {_said(known)}")

    def _counted(self, iterated: ast.expr) -> Known:
        """Return what is known of a loop's variable: `range` of a table's width counts its slots."""
        match iterated:
            case ast.Call(func=ast.Name("range"), args=[ast.Attribute() as end]):
                width = self._constant(end)
                if isinstance(width, Width):
                    return width
        self._value(iterated)
        return None

    # ---- expressions

    def _value(self, node: ast.expr) -> Known:
        """Return what is known of a value, after looking at all that it is made of."""
        match node:
            case ast.Name(name):
                return self._names.get(name)
            case ast.Attribute():
                if isinstance(self._constant(node), Slot):
                    self._refuse(node, f"uses the slot {ast.unparse(node)} apart from its table")
                return None
            case ast.Call():
                return self._call(node)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
                base = self._value(left)
                if isinstance(base, Table):
                    return self._behind(base, right)
                self._not_a_table(right)
                return None
            case ast.IfExp(test=test, body=body, orelse=other):
                self._value(test)
                first, second = self._value(body), self._value(other)
                if _table(first) is not _table(second):
                    self._refuse(node, f"chooses between {_said(first)} and {_said(second)}")
                return first
            case _:
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self._value(child)
                return None

    def _not_a_table(self, node: ast.expr) -> None:
        found = self._value(node)
        if isinstance(found, Table):
            self._refuse(node, f"computes with the address of {_said(found)} behind an offset; put the address first")

    def _behind(self, base: Table, offset: ast.expr) -> Table | None:
        """Return the table that begins so far behind a table's address: a row of the same kind, or a record in it."""
        slots: list[Slot] = []
        widths: list[Width] = []
        self._collect(offset, slots, widths)
        begin: Table | None = base if widths else None
        if len(slots) > 1:
            self._refuse(offset, f"adds more than one slot to the address of {_said(base)}: {ast.unparse(offset)}")
        for slot in slots:
            if slot.table is not base:
                self._refuse(offset, f"adds a slot of {_said(slot.table)} to {_said(base)}: {ast.unparse(offset)}")
            begin = slot.record
        for width in widths:
            if width.table is not begin:
                self._refuse(offset, f"counts rows of {_said(width.table)} in {_said(begin)}: {ast.unparse(offset)}")
        return begin

    def _collect(self, node: ast.expr, slots: list[Slot], widths: list[Width]) -> None:
        """Add the slots and widths of an offset to the lists."""
        if isinstance(node, ast.BinOp):
            self._collect(node.left, slots, widths)
            self._collect(node.right, slots, widths)
            return
        constant = self._constant(node)
        if isinstance(constant, Slot):
            slots.append(constant)
        elif isinstance(constant, Width):
            widths.append(constant)
        else:
            self._not_a_table(node)

    def _call(self, node: ast.Call) -> Known:
        if not isinstance(node.func, ast.Name):
            for argument in node.args:
                self._value(argument)
            return None
        name = node.func.id
        if name in (READ, WRITE):
            return self._access(node)
        found = [self._value(argument) for argument in node.args]
        signature = self._signatures.get(name)
        if signature is not None:
            result, parameters = signature.split(":")
            if len(found) != len(parameters):
                self._refuse(node, f"calls {name} with {len(found)} arguments instead of {len(parameters)}")
            for argument, known, letter in zip(node.args, found, parameters, strict=True):
                if _table(known) is not TABLES.get(letter):
                    wanted = _said(TABLES.get(letter))
                    self._refuse(node, f"gives {name} {_said(known)} for {wanted}: {ast.unparse(argument)}")
            return TABLES.get(result)
        if name not in self._function.__globals__ and not hasattr(builtins, name):
            self._refuse(node, f"calls {name}, which is not defined before it")
        return None

    def _access(self, node: ast.Call) -> Table | None:
        """Check `get(table, slot)` or `put(table, slot, value)`; return the table whose address the slot holds."""
        where, place, *values = node.args
        table, said = self._value(where), f"{ast.unparse(place)} of {ast.unparse(where)}"
        if not isinstance(table, Table):
            self._refuse(node, f"reads or writes {said}, which is the address of no table")
        slot = self._constant(place)
        if isinstance(place, ast.Name):
            counted = self._names.get(place.id)
            if isinstance(counted, Width) and counted.table is table:
                for value in values:
                    self._value(value)
                return None
        if not isinstance(slot, Slot):
            self._refuse(node, f"reads or writes {said}, which is no slot of {table}")
        if slot.table is not table or slot.record is not None:
            kind = f"a slot of {slot.table}" if slot.record is None else f"a record of {slot.record}"
            self._refuse(node, f"reads or writes {said}: {kind}, not a number in {table}")
        for value in values:
            found = self._value(value)
            if _table(found) is not slot.holds:
                self._refuse(node, f"writes {_said(found)} where {said} holds {_said(slot.holds)}")
        return slot.holds

    def _constant(self, node: ast.expr) -> object:
        """Return the value of `module.NAME`, None for any other expression."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = self._function.__globals__.get(node.value.id)
            if isinstance(module, ModuleType):
                return getattr(module, node.attr, None)
        return None


def _table(known: Known) -> Table | None:
    return known if isinstance(known, Table) else None


def _said(known: Known) -> str:
    return f"a {known} table" if isinstance(known, Table) else "a plain number"
