"""The program's functions with what is known of a model put in: constants in place of slots, no branch never taken.

Numba's time goes with the length of a function, so what a model has no use for is removed from its syntax tree before
Numba sees it. Arithmetic on floats is left alone: results do not change by a bit.
"""

from __future__ import annotations

import ast
import copy
import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from nanochat_tui.engine.kernels.table_check import READ, functions_of

_COMPARISONS: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt,
    ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
}  # fmt: skip


def _integer(node: ast.expr) -> int | None:
    """Return the value of an integer constant, None for any other expression."""
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


class _Folder(ast.NodeTransformer):
    """Put constants in place of slots' names, of known slots' values and of single assignments of such."""

    def __init__(self, names: Mapping[str, Any], known: Mapping[str, int], local: Mapping[str, int]) -> None:
        self._names, self._known, self._local = names, known, local

    def _place(self, node: ast.expr) -> tuple[str, int] | None:
        """Return name and number of a slot `module.NAME`."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = self._names.get(node.value.id)
            value = getattr(module, node.attr, None) if isinstance(module, ModuleType) else None
            if isinstance(value, int):
                return node.attr, int(value)
        return None

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        found = self._place(node)
        return node if found is None else ast.Constant(found[1])

    def visit_Name(self, node: ast.Name) -> ast.expr:
        value = self._local.get(node.id) if isinstance(node.ctx, ast.Load) else None
        return node if value is None else ast.Constant(value)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Name) and node.func.id == READ:
            found = self._place(node.args[1])
            if found is not None and found[0] in self._known:
                return ast.Constant(self._known[found[0]])
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        left, right, operation = _integer(node.left), _integer(node.right), _OPERATIONS.get(type(node.op))
        return node if left is None or right is None or operation is None else ast.Constant(operation(left, right))

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        left, right = _integer(node.left), _integer(node.comparators[0])
        compare = _COMPARISONS.get(type(node.ops[0]))
        if left is None or right is None or compare is None or len(node.ops) > 1:
            return node
        return ast.Constant(compare(left, right))

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        decisive, left = isinstance(node.op, ast.Or), []
        for value in node.values:
            constant = value.value if isinstance(value, ast.Constant) and type(value.value) is bool else None
            if constant is None:
                left.append(value)
            elif constant == decisive:
                # what stands before has no effects but reading
                return ast.Constant(decisive)
        if not left:
            return ast.Constant(not decisive)
        node.values = left
        return left[0] if len(left) == 1 else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse
        return node

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        if isinstance(node.test, ast.Constant):
            return (node.body if node.test.value else node.orelse) or ast.Pass()
        return node


def _constants(function: ast.FunctionDef) -> dict[str, int]:
    """Return the local names that are assigned once, an integer constant."""
    assigned: dict[str, list[ast.expr | None]] = {argument.arg: [None] for argument in function.args.args}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assigned.setdefault(node.id, []).append(None)
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        (target,), value = node.targets, node.value
        pairs: Iterable[tuple[ast.expr, ast.expr]] = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = zip(target.elts, value.elts, strict=True)
        for name, expression in pairs:
            if isinstance(name, ast.Name) and len(assigned[name.id]) == 1:
                assigned[name.id] = [expression]
    found = {}
    for local, expressions in assigned.items():
        only = expressions[0] if len(expressions) == 1 else None
        number = None if only is None else _integer(only)
        if number is not None:
            found[local] = number
    return found


def _folded(function: FunctionType, tree: ast.FunctionDef, known: Mapping[str, int], local: dict[str, int]) -> None:
    """Simplify a tree in place until nothing more is found; local: what arguments are known to be."""
    local = dict(local)
    while True:
        _Folder(function.__globals__, known, local).visit(tree)
        found = _constants(tree)
        if found.keys() <= local.keys():
            return
        local.update(found)


def _assigned(function: FunctionType) -> set[str]:
    """Return the names to which a function assigns, arguments among them."""
    nodes = ast.walk(functions_of(Path(inspect.getfile(function)))[function.__name__])
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _arguments(trees: Iterable[ast.FunctionDef], functions: Mapping[str, FunctionType]) -> dict[str, dict[str, int]]:
    """Return the arguments that are the same integer constant in every call, by function and name."""
    seen: dict[str, list[set[int | None]]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
                values = seen.setdefault(node.func.id, [set() for _ in node.args])
                for found, argument in zip(values, node.args, strict=True):
                    found.add(_integer(argument))
    known = {}
    for name, values in seen.items():
        code = functions[name].__code__
        pairs = zip(code.co_varnames[: code.co_argcount], values, strict=True)
        changed = _assigned(functions[name])
        known[name] = {
            argument: next(iter(v))
            for argument, v in pairs
            if len(v) == 1 and None not in v and argument not in changed
        }
    return known  # type: ignore[return-value]


def specialised(
    functions: Mapping[str, FunctionType], entry: str, known: Mapping[str, int]
) -> dict[str, ast.FunctionDef]:
    """Return the syntax trees of the functions that `entry` reaches in a model, in the order of `functions`.

    known: values of slots that are the same in all tables of the model, by the slots' names. Every read of such a slot
    by `get` becomes its value. Arguments stay, even those that are the same in every call and not read any more.
    """
    trees: dict[str, ast.FunctionDef] = {}
    arguments: dict[str, dict[str, int]] = {}
    while True:
        reached: dict[str, ast.FunctionDef] = {}
        waiting = [entry]
        while waiting:
            name = waiting.pop()
            if name in reached:
                continue
            if name not in trees:
                function = functions[name]
                # a copy: the original serves other models
                trees[name] = copy.deepcopy(functions_of(Path(inspect.getfile(function)))[name])
                trees[name].decorator_list = []
                _folded(function, trees[name], known, {})
            reached[name] = trees[name]
            waiting += names_called(trees[name]) & functions.keys()
        found = _arguments(reached.values(), functions)
        changed = [name for name, values in found.items() if values != arguments.get(name, {})]
        if not changed:
            return {name: ast.fix_missing_locations(reached[name]) for name in functions if name in reached}
        for name in changed:
            _folded(functions[name], trees[name], known, found[name])
        arguments = found


def names_called(tree: ast.FunctionDef) -> set[str]:
    """Return the names of what a function calls; a local variable may well be named like a function."""
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {called.id for called in calls if isinstance(called, ast.Name)}


def code_of(function: FunctionType, tree: ast.FunctionDef, namespace: dict[str, Any]) -> FunctionType:
    """Compile a syntax tree to a function whose globals are `namespace`."""
    module = ast.Module([tree], [])
    space: dict[str, Any] = {}
    exec(compile(module, inspect.getfile(function), "exec"), namespace, space)  # noqa: S102 - the engine's own source
    made: FunctionType = space[function.__name__]
    return made
