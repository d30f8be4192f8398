"""Rows that are damaged or in doubt: what is read all the same, and what must be true before anything is destroyed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from broker.core.errors import WrongState
from broker.core.ports import Store
from broker.core.reasons import Reason

T = TypeVar("T")


def refuse_doubt(store: Store, tables: frozenset[str], name: str) -> None:
    """WrongState ``STORE_ALTERED`` if a row of these tables that may be about ``name`` is not as brokers left it.

    Asked between the intent, which is durable by then, and the destruction: a row that says "destroy" and was put back
    as it once was still shows in the sum of its table, however new it looks since the intent was written.
    """
    for one in store.inspect(tables):
        if not one.name or one.name.split("/")[0] == name:
            raise WrongState(
                Reason.STORE_ALTERED,
                f"Nothing of {name} is destroyed while the database is not as brokers left it ({one.table}: "
                f"{one.name or 'one or more rows'} {one.how}); the broker's log lists what was changed.",
            )


def readable(read: Callable[[], T], otherwise: T) -> T:
    """What was read, or ``otherwise`` where a row is damaged."""
    try:
        return read()
    except WrongState as error:
        if error.reason not in {Reason.ROW_DAMAGED, Reason.ROW_FORGED}:
            raise
        return otherwise
