"""What docs/records.md says of each kind of record is what is declared, and nothing says it a second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from broker.core import ports
from broker.core.model import Record
from broker.core.records import RECORDS, Declaration

ROOT = Path(__file__).resolve().parents[2]

HEAD = (
    "| record | table | primary key | also looked for by | due | in the audit | in the sums |\n"
    "|---|---|---|---|---|---|---|\n"
)


def named(fields: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in fields)


def due(one: Declaration) -> str:
    return f"`{one.due}`{f', while `{one.due_in}`' if one.due_in else ''}" if one.due else ""


def row(kind: type[Any], one: Declaration) -> str:
    told, summed = ("yes" if each else "no" for each in (one.told, one.summed))
    cells = (kind.__name__, f"`{one.table}`", named(one.key), named(one.filters), due(one), told, summed)
    return f"| {' | '.join(cells)} |"


def test_the_page_of_records_says_what_is_declared() -> None:
    wanted = HEAD + "".join(row(kind, one) + "\n" for kind, one in RECORDS.items())
    assert wanted in (ROOT / "docs/records.md").read_text(encoding="utf-8")


def test_every_record_is_declared_and_each_declaration_is_of_its_fields() -> None:
    assert set(RECORDS) == set(get_args(Record))
    for kind, one in RECORDS.items():
        indexed = {name for fields in one.indexes.values() for name in fields}
        said = {*one.key, *one.filters, *indexed, *filter(None, [one.due]), *(["state"] if one.due_in else [])}
        assert said <= set(kind.__dataclass_fields__), kind.__name__
        assert not set(one.key) & set(one.filters), "a part of the key may be looked for anyway"
        assert not one.due or any(one.due in fields for fields in one.indexes.values()), "due without an index"
    assert len({one.table for one in RECORDS.values()}) == len(RECORDS)


def test_no_port_lists_the_keys_of_records() -> None:
    said = f"{ports.Store.__doc__}{ports.Store.page.__doc__}{ports.Store.due.__doc__}"
    assert [kind.__name__ for kind in RECORDS if f"{kind.__name__} (" in said or f"{kind.__name__}s" in said] == []
