import math

import numpy as np
import pytest

from nanochat_tui.formats.errors import FormatError
from nanochat_tui.formats.gguf import (
    GGUFValue,
    ValueType,
    array,
    boolean,
    f32,
    i32,
    metadata_bool,
    metadata_float,
    metadata_int,
    metadata_integers,
    metadata_string,
    metadata_strings,
    string,
    u32,
    u64,
)


def test_f32_is_rounded_when_made() -> None:
    assert f32(1e-6).value == float(np.float32(1e-6)) != 1e-6
    with pytest.raises(FormatError):
        f32(1e300)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ValueType.U32, -1),
        (ValueType.U32, 2**32),
        (ValueType.I8, 128),
        (ValueType.U32, 1.0),
        (ValueType.U32, True),
        (ValueType.BOOL, 1),
        (ValueType.F32, 1),
        (ValueType.F32, 1e300),
        (ValueType.STRING, b"x"),
        (ValueType.ARRAY, [1]),
    ],
)
def test_values_that_their_type_cannot_hold(kind: ValueType, value: object) -> None:
    with pytest.raises(FormatError, match=kind.name):
        GGUFValue(kind, value)  # type: ignore[arg-type]


def test_arrays_take_their_element_type_from_numpy_or_the_caller() -> None:
    assert array(["a", "b"]).type_name == "array of string"
    assert array(np.zeros(2, np.int32)).element is ValueType.I32
    assert array(np.zeros(2, np.uint8)).element is ValueType.U8
    assert array(np.zeros(2, bool)).element is ValueType.BOOL
    assert array([1, 2], ValueType.U16).value.dtype == np.uint16  # type: ignore[union-attr]
    assert array([], ValueType.F32) == array(np.zeros(0, np.float32))
    assert array([1], ValueType.I32) != array([2], ValueType.I32)
    assert array([1], ValueType.I32) != array([1], ValueType.U32)


@pytest.mark.parametrize(
    ("values", "element"),
    [
        ([1, 2], None),
        ([], None),
        ([-1], ValueType.U32),
        ([2**70], ValueType.U64),
        ([256], ValueType.U8),
        ([1.5], ValueType.I32),
        (["a"], ValueType.I32),
        ([1], ValueType.ARRAY),
        (np.zeros(2, np.complex64), None),
        (np.zeros((2, 2), np.int32), None),
    ],
)
def test_arrays_that_cannot_be_made(values: list[int], element: ValueType | None) -> None:
    with pytest.raises(FormatError):
        array(values, element)


METADATA = {
    "u32": u32(7),
    "u64": u64(2**40),
    "i32": i32(-3),
    "f32": f32(0.5),
    "nan": f32(math.nan),
    "yes": boolean(True),
    "text": string("x"),
    "words": array(["a"]),
    "numbers": array(np.array([1, -2], np.int32)),
    "floats": array(np.array([0.5], np.float32)),
}


def test_getters_return_the_value_or_the_default() -> None:
    assert metadata_int(METADATA, "u32") == 7
    assert metadata_int(METADATA, "i32", minimum=-5) == -3
    assert metadata_int(METADATA, "absent", 4) == 4
    assert metadata_int(METADATA, "absent", None) is None
    assert metadata_float(METADATA, "f32") == 0.5
    assert metadata_bool(METADATA, "yes") is True
    assert metadata_bool(METADATA, "absent", False) is False
    assert metadata_string(METADATA, "text") == "x"
    assert metadata_strings(METADATA, "words") == ["a"]
    assert metadata_integers(METADATA, "numbers").tolist() == [1, -2]


@pytest.mark.parametrize(
    ("getter", "key", "reason"),
    [
        (metadata_int, "absent", "has no integer absent"),
        (metadata_int, "text", "type string and should be an integer"),
        (metadata_int, "yes", "type bool"),
        (metadata_int, "u64", "outside 0 to"),
        (metadata_int, "i32", "outside 0 to"),
        (metadata_float, "u32", "type u32"),
        (metadata_float, "nan", "not a finite number"),
        (metadata_bool, "u32", "type u32"),
        (metadata_string, "words", "array of string"),
        (metadata_string, "absent", "has no text"),
        (metadata_strings, "numbers", "array of i32"),
        (metadata_strings, "absent", "has no list"),
        (metadata_integers, "floats", "array of f32"),
        (metadata_integers, "words", "array of string"),
    ],
)
def test_getters_refuse_in_words(getter: object, key: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        getter(METADATA, key)  # type: ignore[operator]
