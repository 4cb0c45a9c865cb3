"""Typed values of GGUF metadata: how they are carried, made and asked for."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.text import display_safe

Scalar = bool | int | float | str
ArrayValue = list[str] | NDArray[Any]


class ValueType(IntEnum):
    """GGUF's numbering of value types."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


FIXED: Final[dict[ValueType, np.dtype[Any]]] = {
    ValueType.U8: np.dtype("u1"),
    ValueType.I8: np.dtype("i1"),
    ValueType.U16: np.dtype("<u2"),
    ValueType.I16: np.dtype("<i2"),
    ValueType.U32: np.dtype("<u4"),
    ValueType.I32: np.dtype("<i4"),
    ValueType.F32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),  # one byte, 0 or 1
    ValueType.U64: np.dtype("<u8"),
    ValueType.I64: np.dtype("<i8"),
    ValueType.F64: np.dtype("<f8"),
}
"""Value types of fixed width and their layout on disk."""

_FLOATS = (ValueType.F32, ValueType.F64)
_F32_MAX = float(np.finfo(np.float32).max)
_INTEGERS = tuple(t for t in FIXED if t not in _FLOATS and t is not ValueType.BOOL)


@dataclass(frozen=True, slots=True, eq=False)
class GGUFValue:
    """One metadata value with its type on disk.

    `value` is bool, int, float or str; for an array (`type` ARRAY) it is a list of str when `element` is
    STRING, else a 1-D array of the element's dtype (bool for BOOL). Raises FormatError if value and type
    disagree.
    """

    type: ValueType
    value: Scalar | ArrayValue
    element: ValueType | None = None

    def __post_init__(self) -> None:
        problem = _problem(self.type, self.value, self.element)
        if problem:
            raise FormatError(f"a GGUF value of type {self.type.name} cannot hold this: {problem}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GGUFValue):
            return NotImplemented
        if (self.type, self.element) != (other.type, other.element):
            return False
        if isinstance(self.value, np.ndarray):
            return bool(np.array_equal(self.value, cast("NDArray[Any]", other.value)))
        return bool(self.value == other.value)

    __hash__ = None  # type: ignore[assignment]  # arrays have none

    @property
    def type_name(self) -> str:
        """The type in words: `u32`, `string`, `array of i32`."""
        if self.element is not None:
            return f"array of {self.element.name.lower()}"
        return self.type.name.lower()


def _problem(kind: ValueType, value: Scalar | ArrayValue, element: ValueType | None) -> str | None:
    """Say what is wrong with a value of this type, or None."""
    if kind is ValueType.ARRAY:
        if element is ValueType.STRING:
            return None if isinstance(value, list) else "an array of strings is a list"
        if element not in FIXED:
            return "an array holds strings or values of fixed width"
        dtype = np.dtype(bool) if element is ValueType.BOOL else FIXED[element]
        if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == dtype:
            return None
        return f"an array of {element.name} is a 1-D {dtype} array"
    if element is not None:
        return "only arrays have an element type"
    if kind is ValueType.STRING:
        return None if isinstance(value, str) else "it is not text"
    if kind is ValueType.BOOL:
        return None if isinstance(value, bool) else "it is not true or false"
    if kind in _FLOATS:
        if not isinstance(value, float):
            return "it is not a float"
        too_large = kind is ValueType.F32 and math.isfinite(value) and abs(value) > _F32_MAX
        return f"{value} is beyond float32" if too_large else None
    if not isinstance(value, int) or isinstance(value, bool):
        return "it is not an integer"
    limits = np.iinfo(FIXED[kind])
    return None if limits.min <= value <= limits.max else f"{value} is outside {limits.min} to {limits.max}"


def u32(value: int) -> GGUFValue:
    """Make an unsigned 32-bit value."""
    return GGUFValue(ValueType.U32, int(value))


def i32(value: int) -> GGUFValue:
    """Make a signed 32-bit value."""
    return GGUFValue(ValueType.I32, int(value))


def u64(value: int) -> GGUFValue:
    """Make an unsigned 64-bit value."""
    return GGUFValue(ValueType.U64, int(value))


def f32(value: float) -> GGUFValue:
    """Make a float32 value; it is rounded at once, so that what is carried is what is stored."""
    try:
        return GGUFValue(ValueType.F32, struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError as error:
        raise FormatError(f"{value} does not fit a float32 GGUF value") from error


def boolean(value: bool) -> GGUFValue:
    """Make a truth value."""
    return GGUFValue(ValueType.BOOL, bool(value))


def string(value: str) -> GGUFValue:
    """Make a text value (UTF-8 on disk)."""
    return GGUFValue(ValueType.STRING, value)


def array(values: Sequence[str] | Sequence[int] | NDArray[Any], element: ValueType | None = None) -> GGUFValue:
    """Make an array: of strings, of a NumPy array's own dtype, or of numbers with `element` given.

    Raises FormatError if the element type cannot be told or a number does not fit it.
    """
    if not isinstance(values, np.ndarray):
        items = list(values)
        if element in (None, ValueType.STRING) and all(isinstance(item, str) for item in items):
            if element is ValueType.STRING or items:
                return GGUFValue(ValueType.ARRAY, cast("list[str]", items), ValueType.STRING)
            raise FormatError("an empty GGUF array needs its element type")
        if element is None:
            raise FormatError("a GGUF array of numbers needs its element type")
        values = np.array(items)
    if element is None:
        fits = [kind for kind, dtype in FIXED.items() if dtype == values.dtype]
        if values.dtype == np.dtype(bool):
            fits = [ValueType.BOOL]
        if not fits:
            raise FormatError(f"a GGUF array cannot hold {values.dtype}")
        element = fits[0]
    if element not in FIXED:
        raise FormatError("a GGUF array holds strings or values of fixed width")
    dtype = np.dtype(bool) if element is ValueType.BOOL else FIXED[element]
    try:
        stored = values.astype(dtype)
    except (OverflowError, TypeError, ValueError) as error:
        raise FormatError(f"these values do not fit a GGUF array of {element.name}") from error
    if element not in _FLOATS and values.size and not np.array_equal(stored, values):
        raise FormatError(f"a number does not fit a GGUF array of {element.name}")
    return GGUFValue(ValueType.ARRAY, stored, element)


Default = TypeVar("Default")


class _Required(Enum):
    """The mark of a key without which a file is of no use."""

    KEY = 0


_REQUIRED: Final = _Required.KEY


def _find(metadata: Mapping[str, GGUFValue], key: str, default: object, wanted: str) -> GGUFValue | None:
    found = metadata.get(key)
    if found is None and default is _REQUIRED:
        raise FormatError(f"the file has no {wanted} {display_safe(key)}, which this model needs; export it again")
    return found


def _mistyped(key: str, found: GGUFValue, wanted: str) -> FormatError:
    return FormatError(
        f"the file's {display_safe(key)} is of type {found.type_name} and should be {wanted}; export it again"
    )


def metadata_int(
    metadata: Mapping[str, GGUFValue],
    key: str,
    default: Default | _Required = _REQUIRED,
    *,
    minimum: int = 0,
    maximum: int = 2**31 - 1,
) -> int | Default:
    """Return an integer of any width within limits, or `default` if the key is absent.

    Raises FormatError if it is absent without a default, of another type, or outside the limits.
    """
    found = _find(metadata, key, default, "integer")
    if found is None:
        return cast("Default", default)
    if found.type not in _INTEGERS or not isinstance(found.value, int):
        raise _mistyped(key, found, "an integer")
    if not minimum <= found.value <= maximum:
        raise FormatError(
            f"the file's {display_safe(key)} is {found.value}, outside {minimum} to {maximum}; it is damaged"
        )
    return found.value


def metadata_float(
    metadata: Mapping[str, GGUFValue], key: str, default: Default | _Required = _REQUIRED
) -> float | Default:
    """Return a finite float. Raises FormatError if absent without default, of another type or not finite."""
    found = _find(metadata, key, default, "number")
    if found is None:
        return cast("Default", default)
    if found.type not in _FLOATS or not isinstance(found.value, float):
        raise _mistyped(key, found, "a float")
    if not math.isfinite(found.value):
        raise FormatError(f"the file's {display_safe(key)} is not a finite number; it is damaged")
    return found.value


def metadata_bool(
    metadata: Mapping[str, GGUFValue], key: str, default: Default | _Required = _REQUIRED
) -> bool | Default:
    """Return a truth value. Raises FormatError if it is absent without a default or of another type."""
    found = _find(metadata, key, default, "switch")
    if found is None:
        return cast("Default", default)
    if not isinstance(found.value, bool):
        raise _mistyped(key, found, "true or false")
    return found.value


def metadata_string(
    metadata: Mapping[str, GGUFValue], key: str, default: Default | _Required = _REQUIRED
) -> str | Default:
    """Return a text. Raises FormatError if it is absent without a default or of another type."""
    found = _find(metadata, key, default, "text")
    if found is None:
        return cast("Default", default)
    if not isinstance(found.value, str):
        raise _mistyped(key, found, "text")
    return found.value


def metadata_strings(metadata: Mapping[str, GGUFValue], key: str) -> list[str]:
    """Return a list of texts. Raises FormatError if it is absent or of another type."""
    found = _find(metadata, key, _REQUIRED, "list")
    if found is None or not isinstance(found.value, list):
        raise _mistyped(key, cast("GGUFValue", found), "an array of strings")
    return found.value


def metadata_integers(metadata: Mapping[str, GGUFValue], key: str) -> NDArray[np.int64]:
    """Return an array of integers as int64. Raises FormatError if it is absent or of another type."""
    found = _find(metadata, key, _REQUIRED, "list")
    if found is None or not isinstance(found.value, np.ndarray) or found.element not in _INTEGERS:
        raise _mistyped(key, cast("GGUFValue", found), "an array of integers")
    return found.value.astype(np.int64)
