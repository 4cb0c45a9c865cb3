"""Types of arguments that the library's callers give, checked in words before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real

from nanochat_tui.errors import UserError


class ArgumentError(UserError, TypeError):
    """An argument of a wrong type; a TypeError too, as Python's own functions raise it."""


def described(value: object) -> str:
    """Return what a value is, in words."""
    if value is None or isinstance(value, bool):
        return str(value)
    name = {"str": "text", "bytes": "bytes", "float": "a fraction", "int": "one number"}.get(type(value).__name__)
    return name or f"of the type {type(value).__name__}"


def whole(name: str, value: object, *, optional: bool = False) -> None:
    """Raise ArgumentError unless a value is an integer, of Python or NumPy, or None where that is allowed."""
    if isinstance(value, bool) or not (isinstance(value, Integral) or (optional and value is None)):
        raise ArgumentError(f"{name} is {described(value)} and must be a whole number{' or None' if optional else ''}")


def number(name: str, value: object) -> None:
    """Raise ArgumentError unless a value is a real number, of Python or NumPy."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"{name} is {described(value)} and must be a number")


def token_ids(name: str, value: object) -> list[int]:
    """Return token ids as a list of int. Raises ArgumentError unless they are a row of integers."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ArgumentError(f"{name} is {described(value)} and must be a sequence of token ids")
    found = list(value)
    for token in found:
        if not isinstance(token, Integral):
            raise ArgumentError(f"{name} holds something {described(token)} and must hold token ids, whole numbers")
    return [int(token) for token in found]
