"""A slot of one table read from another is a TypeError when the function is defined; slots know their tables."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import pytest
from support import TINY

from nanochat_tui.engine.compile import builders
from nanochat_tui.engine.generate.model import Model
from nanochat_tui.engine.kernels import registry
from nanochat_tui.engine.kernels.registry import compiled
from nanochat_tui.engine.kernels.table_check import check
from nanochat_tui.engine.layout import slots as s
from nanochat_tui.engine.layout import table as t
from nanochat_tui.engine.run.tables import Tables
from nanochat_tui.engine.simd.emitter import Emitter
from nanochat_tui.engine.simd.library import KERNELS, SIGNATURES

# ---- functions that are never run: their source is what is looked at

get: Callable[..., Any] = NotImplemented
put: Callable[..., Any] = NotImplemented
load_i64: Callable[..., Any] = NotImplemented
row_of: Callable[..., Any] = NotImplemented
takes_floats: Callable[..., Any] = NotImplemented


def right(model, job, layers, thread):  # type: ignore[no-untyped-def]
    row = layers + get(model, s.LAYERS) * 8 * s.LAYER_SLOTS
    row += 8 * s.LAYER_SLOTS
    matrix, first = row + 8 * s.QKV_MATRIX, get(get(model, s.HEAD_MATRIX), s.MATRIX_KIND)
    for slot in range(s.MATRIX_SLOTS):
        put(get(thread, s.EXPERT_MATRIX), slot, get(matrix, slot))
    other = thread - get(thread, s.NUMBER) * 8 * s.THREAD_SLOTS
    facts = get(model, s.CONTROL) + 8 * (s.PASS_FACTS + first % 2 * s.FACT_SLOTS)
    while takes_floats(matrix) == load_i64(facts + 8 * s.FACT_BEST) or get(other, s.CREW) > 1:
        put(row_of(job, first), s.TOKEN, get(get(job, s.SEQUENCES) + 8 * s.SEQUENCE_SLOTS, s.LAST_TOKEN))
    return matrix


def slot_of_another(model, thread):  # type: ignore[no-untyped-def]
    return get(thread, s.DIM)


def slot_of_another_in_a_branch(model, thread):  # type: ignore[no-untyped-def]
    if get(model, s.DIM) > 0:
        for i in range(3):
            put(thread, s.SEED, get(thread, s.X) + i)


def slot_of_the_holder(model, thread):  # type: ignore[no-untyped-def]
    return get(get(model, s.HEAD_MATRIX), s.HIDDEN)


def plain_number(model, thread):  # type: ignore[no-untyped-def]
    return get(get(model, s.QKV), s.DIM)


def bare_integer(model, thread):  # type: ignore[no-untyped-def]
    return get(model, 3)


def wrong_row(model, thread):  # type: ignore[no-untyped-def]
    return get(thread + 8 * s.LAYER_SLOTS, s.X)


def wrong_record(model, thread):  # type: ignore[no-untyped-def]
    return takes_floats(model + 8 * s.QKV_MATRIX)


def a_record_is_no_number(model, thread):  # type: ignore[no-untyped-def]
    return get(get(model, s.CONTROL), s.SHARES)


def wrong_argument(model, thread):  # type: ignore[no-untyped-def]
    return takes_floats(thread)


def number_for_a_table(model, thread):  # type: ignore[no-untyped-def]
    return get(row_of(get(model, s.DIM), 3), s.TOKEN)


def one_name_for_two(model, thread):  # type: ignore[no-untyped-def]
    row = thread
    row = model
    return get(row, s.DIM)


def chosen_of_two(model, thread):  # type: ignore[no-untyped-def]
    return get(thread if get(model, s.DIM) > 1 else model, s.X)


def another_table_written(model, thread):  # type: ignore[no-untyped-def]
    put(thread, s.EXPERT_MATRIX, model)


def wrong_result(model, thread):  # type: ignore[no-untyped-def]
    return thread


def slot_as_a_number(model, thread):  # type: ignore[no-untyped-def]
    return load_i64(8 * s.DIM)


def two_slots(model, thread):  # type: ignore[no-untyped-def]
    return load_i64(model + 8 * (s.DIM + s.HIDDEN))


def slots_of_another_counted(model, thread):  # type: ignore[no-untyped-def]
    for slot in range(s.LAYER_SLOTS):
        put(thread, slot, 0)


def not_defined_yet(model, thread):  # type: ignore[no-untyped-def]
    return unheard_of(model)  # noqa: F821


def too_many_parameters(model, thread, job):  # type: ignore[no-untyped-def]
    return 0


def not_followed(model, thread):  # type: ignore[no-untyped-def]
    with model:
        return 0


WRONG: list[tuple[Callable[..., Any], str]] = [
    (slot_of_another, "s.DIM of thread: a slot of MODEL, not a number in THREAD"),
    (slot_of_another_in_a_branch, "s.SEED of thread: a slot of SEQUENCE, not a number in THREAD"),
    (slot_of_the_holder, "s.HIDDEN of get.model, s.HEAD_MATRIX.: a slot of MODEL, not a number in MATRIX"),
    (plain_number, "s.DIM of get.model, s.QKV., which is the address of no table"),
    (bare_integer, "3 of model, which is no slot of MODEL"),
    (wrong_row, "counts rows of a LAYER table in a THREAD table|counts rows of a LAYER table in a plain number"),
    (wrong_record, "adds a slot of a LAYER table to a MODEL table"),
    (a_record_is_no_number, "a record of SHARE, not a number in CONTROL"),
    (wrong_argument, "gives takes_floats a THREAD table for a MATRIX table: thread"),
    (number_for_a_table, "gives row_of a plain number for a JOB table"),
    (one_name_for_two, "uses row for a THREAD table and for a MODEL table"),
    (chosen_of_two, "chooses between a THREAD table and a MODEL table"),
    (another_table_written, "writes a MODEL table where s.EXPERT_MATRIX of thread holds a MATRIX table"),
    (wrong_result, "returns a THREAD table and is to return a plain number"),
    (slot_as_a_number, "uses the slot s.DIM apart from its table"),
    (two_slots, "adds more than one slot"),
    (slots_of_another_counted, "slot of thread, which is no slot of THREAD"),
    (not_defined_yet, "calls unheard_of, which is not defined before it"),
    (too_many_parameters, "has 3 parameters and a signature of 2"),
    (not_followed, "a statement whose tables cannot be followed"),
]


def test_tables_are_followed_through_a_function() -> None:
    assert isinstance(right, FunctionType)
    check(right, "X:MJLT", SIGNATURES)


@pytest.mark.parametrize(("function", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_mistake_is_an_error_when_the_function_is_defined(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(TypeError, match=rf"test_table_check.py:\d+: {function.__name__} .*({message})"):
        compiled("i:MT")(function)
    assert function.__name__ not in registry.PROGRAM and function.__name__ not in SIGNATURES


def test_every_function_that_takes_a_table_says_so() -> None:
    """One letter in place of another anywhere in the program is refused: by its own body or by a caller's."""
    assert builders.BUILDERS
    program = {name: SIGNATURES[name] for name in registry.PROGRAM}
    noticed = tried = 0
    for name, signature in program.items():
        for place, letter in enumerate(signature):
            if letter not in t.TABLES:
                continue
            other = "J" if letter != "J" else "M"
            changed = program | {name: signature[:place] + other + signature[place + 1 :]}
            everything = SIGNATURES | changed
            tried += 1
            try:
                for checked, own in changed.items():
                    check(registry.PROGRAM[checked][0], own, everything)
            except TypeError:
                noticed += 1
    assert tried > 200
    # no call checks the parameters of an entry, and not every one of them is read there
    assert tried - noticed <= 2


def test_the_compiler_sees_integers_only() -> None:
    assert builders.BUILDERS
    for name, (_, signature) in registry.PROGRAM.items():
        assert set(signature) <= set("ifdv:"), name
        assert signature == t.plain(SIGNATURES[name])
    assert all(set(kernel.signature) <= set("ifdv:") for kernel in KERNELS.values())


def test_an_emitted_kernel_reads_its_own_table_only() -> None:
    with pytest.raises(TypeError, match="other tables from a MATRIX table"):
        Emitter.read(NotImplemented, t.MATRIX, None, s.MATRIX_KIND, s.DIM)


class Watched(np.ndarray[Any, np.dtype[Any]]):
    """A table that refuses the slots of others; rows and records of it are watched too."""

    table: t.Table | None

    def __array_finalize__(self, other: Any) -> None:
        self.table = getattr(other, "table", None)

    def _look(self, key: Any) -> t.Table | None:
        table = self.table
        for one in key if isinstance(key, tuple | list) else (key,):
            place = one.start if isinstance(one, slice) else one
            if isinstance(place, t.Slot) and table is not None:
                assert place.table is table, f"a slot of {place.table} in a table {table}"
                table = place.record or table
        return table

    def __getitem__(self, key: Any) -> Any:
        table, found = self._look(key), super().__getitem__(key)
        if isinstance(found, Watched):
            found.table = table
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        self._look(key)
        super().__setitem__(key, value)


def test_python_writes_and_reads_slots_of_the_tables_own(
    make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Tables.keep
    widths = {
        s.MODEL_SLOTS: t.MODEL, s.LAYER_SLOTS: t.LAYER, s.THREAD_SLOTS: t.THREAD, s.JOB_SLOTS: t.JOB,
        s.SEQUENCE_SLOTS: t.SEQUENCE, s.MATRIX_SLOTS: t.MATRIX, s.ROW_SLOTS: t.ROW,
    }  # fmt: skip
    seen = set()

    def watched(self: Tables, array: Any, name: object = None) -> Any:
        kept = keep(self, array, name)
        if array.dtype != np.int64:
            return kept
        table = widths.get(array.shape[-1], t.CONTROL)
        made = kept.view(Watched)
        made.table = table
        seen.add(table)
        return made

    monkeypatch.setattr(Tables, "keep", watched)
    model = make_model(TINY, threads=2, speculation="on")
    tokens = list(model.generate([1, 2, 3], max_tokens=20, temperature=0))
    table = model.executor._tables.model
    with pytest.raises(AssertionError, match="a slot of LAYER in a table MODEL"):
        table[s.WINDOW]
    with pytest.raises(AssertionError, match="a slot of MODEL in a table MATRIX"):
        model.executor._tables.layers[0][s.QKV_MATRIX : s.QKV_MATRIX + s.MATRIX_SLOTS][s.DIM] = 3
    model.close()
    assert seen == set(t.TABLES.values()) - {t.FACTS, t.SHARE, t.ADAPTER}
    monkeypatch.undo()
    plain = make_model(TINY, threads=2, speculation="on")
    assert list(plain.generate([1, 2, 3], max_tokens=20, temperature=0)) == tokens


def test_no_two_slots_share_a_place_and_none_lies_outside() -> None:
    table = t.Table("TRIAL", "Ω")
    try:
        table.slots(range(4))
        with pytest.raises(ValueError, match="TRIAL is given to two slots"):
            table.records(t.MATRIX, (3,))
        with pytest.raises(ValueError, match="beyond its width of 3"):
            table.width(3)
        assert table.width(4) == 4
    finally:
        del t.TABLES["Ω"]


def test_names_of_slots_are_unique() -> None:
    """`compile.specialise` knows slots by their names."""
    named = [value for value in vars(s).values() if isinstance(value, t.Slot)]
    for table in t.TABLES.values():
        assert sum(slot.table is table for slot in named) == len(table._taken)
