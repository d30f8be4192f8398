"""What rows are looked for by: as the statement says it, and as each answer is held to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from broker.core.records import RECORDS, check_asked

Value = str | int

NOTHING: Mapping[str, Value] = MappingProxyType({})


class Asked(NamedTuple):
    """``cells``: those that equal, by name. ``field``: the text that starts with ``begins``; "": none need."""

    cells: Mapping[str, Value]
    field: str = ""
    begins: str = ""

    @property
    def behind(self) -> str:
        """The first text, by its bytes, behind all that start with ``begins``."""
        return self.begins[:-1] + chr(ord(self.begins[-1]) + 1)

    def fits(self, row: Sequence[Any], places: Mapping[str, int]) -> bool:
        """Whether a row is what was asked for; ``places`` is where each field stands in it."""
        if any(row[places[name]] != value for name, value in self.cells.items()):
            return False
        return not self.field or str(row[places[self.field]]).startswith(self.begins)


def asked(
    kind: type[Any], where: Mapping[str, Value] | None = None, under: Sequence[Value] = (), begins: str = ""
) -> Asked:
    """The port's ``where``, ``under`` and ``begins``; ValueError for what no such record is looked for by."""
    where = where or NOTHING
    named = check_asked(kind, where, under, begins)
    cells = {**dict(zip(named, under, strict=True)), **where} if under else where
    return Asked(cells, RECORDS[kind].key[len(under)] if begins else "", begins)
