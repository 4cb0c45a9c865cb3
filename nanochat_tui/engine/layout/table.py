"""Types of the tables in `slots`: which table a slot belongs to, and what lies there.

In the program a table is an address, an int64 like all others. So that a kernel cannot read a slot of one table from
another, its signature names the tables it takes (see `Table.letter`) and `kernels.table_check` follows them through its
source. In machine code and for numpy slots are the integers that they are.
"""

from __future__ import annotations

from collections.abc import Iterable


class Slot(int):
    """The place of an int64 in a table, or where a record begins in it.

    holds: the table whose address is in the slot; record: the table that begins there; None for any other number.
    """

    table: Table
    holds: Table | None
    record: Table | None

    def __new__(cls, place: int, table: Table, record: Table | None = None) -> Slot:
        """Make the slot number `place` of a table."""
        made = super().__new__(cls, place)
        made.table, made.record, made.holds = table, record, None
        return made


class Width(int):
    """How many int64 one row of a table has."""

    table: Table


class Table:
    """A kind of table of int64. letter: stands for its address in the signatures of kernels."""

    def __init__(self, name: str, letter: str) -> None:
        self.name = name
        self.letter = letter
        self._taken: set[int] = set()
        TABLES[letter] = self

    def __repr__(self) -> str:
        return self.name

    def slots(self, places: Iterable[int]) -> tuple[Slot, ...]:
        """Return slots at places. Raises ValueError for a place that is another slot's."""
        return self._made(places, None)

    def records(self, record: Table, places: Iterable[int]) -> tuple[Slot, ...]:
        """Return slots where records of another table begin. Raises ValueError as `slots`."""
        return self._made(places, record)

    def _made(self, places: Iterable[int], record: Table | None) -> tuple[Slot, ...]:
        made = tuple(Slot(place, self, record) for place in places)
        if not self._taken.isdisjoint(made):
            raise ValueError(f"a place of the table {self.name} is given to two slots")
        self._taken.update(made)
        return made

    def width(self, count: int) -> Width:
        """Return the table's width. Raises ValueError if a slot lies beyond it."""
        if max(self._taken) >= count:
            raise ValueError(f"the table {self.name} has slots beyond its width of {count}")
        made = Width(count)
        made.table = self
        return made


TABLES: dict[str, Table] = {}
"""The tables by their letters."""
MODEL = Table("MODEL", "M")
MATRIX = Table("MATRIX", "X")
ADAPTER = Table("ADAPTER", "A")
LAYER = Table("LAYER", "L")
THREAD = Table("THREAD", "T")
CONTROL = Table("CONTROL", "C")
FACTS = Table("FACTS", "F")
SHARE = Table("SHARE", "H")
JOB = Table("JOB", "J")
ROW = Table("ROW", "R")
SEQUENCE = Table("SEQUENCE", "S")


def plain(signature: str) -> str:
    """Return a signature as the compiler knows it: the addresses of tables are int64, "i"."""
    return "".join("i" if letter in TABLES else letter for letter in signature)
