"""How a call comes to its end: its change is made once, under its request id, and its outcome is on record.

No noun says by hand that a call is closed: it is when one of these has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from broker.core import receipts
from broker.core.call import Call
from broker.core.entries import AuditEntry
from broker.core.model import Receipt
from broker.core.ports import Store, Write

T = TypeVar("T")


def once(
    store: Store,
    call: Call,
    resource: str,
    change: Callable[[Write], T],
    again: Callable[[Write, Receipt], T],
    *,
    version: int = 0,
    values_mac: bytes | None = None,
) -> T:
    """Change something in one transaction, which ends the call: ``change`` does it, and its receipt is kept.

    A repetition of the request is answered by ``again`` instead, from what there is now. ``resource`` and ``version``
    are what the receipt says was changed.
    """
    with last_write(store, call) as write:
        receipt = receipts.replay(write, call)
        if receipt is not None:
            return again(write, receipt)
        changed = change(write)
        receipts.keep(write, call, resource, version, values_mac)
        return changed


@contextmanager
def last_write(store: Store, call: Call) -> Iterator[Write]:
    """The write that ends a call which has no receipt, or has kept it: the broker's own, or the last of several."""
    with closing(call), store.write(call.outcome()) as write:
        yield write


def record(store: Store, call: Call, *entries: AuditEntry) -> None:
    """End a call that changes nothing with these entries; with that of its outcome, if there are none."""
    with closing(call):
        store.record(*(entries or (call.outcome(),)))


@contextmanager
def closing(call: Call) -> Iterator[None]:
    """What is done in here makes the outcome of the call durable, or raises."""
    yield
    call.closed = True
