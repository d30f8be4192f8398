"""The end of a call: done once under its request id, and closed when that is durable and not before."""

from __future__ import annotations

import pytest

from broker.core.call import Call
from broker.core.errors import AlreadyExists, Unavailable, WrongState
from broker.core.model import Operator, Receipt
from broker.core.once import closing, last_write, once, record
from broker.core.ports import Write
from tests.fakes.calls import Clock, call, operator
from tests.fakes.memory_store import MemoryStore

REQUEST = "7a0d7b1e-93b5-4a3c-8a53-0a6f1f5c1e2d"
CLOCK = Clock()


def made(digest: str = "0" * 64) -> Call:
    return call("OperatorService/CreateOperator", operator("alice"), CLOCK, request_id=REQUEST, digest=digest)


def refuse(_write: Write) -> str:
    raise WrongState("CHANGED_MEANWHILE", "It was changed.")


def run(store: MemoryStore, asked: Call) -> str:
    return once(
        store, asked, "operator/bob", lambda _: "done", lambda _, receipt: f"again {receipt.version}", version=7
    )


def test_a_change_is_made_once_and_its_repetition_is_answered_from_what_there_is() -> None:
    store, first, second = MemoryStore(), made(), made()
    assert (run(store, first), run(store, second)) == ("done", "again 7")
    assert (first.closed, second.closed) == (True, True)
    assert [entry.facts.get("replayed") for entry in store.entries] == [None, 1]
    (receipt,) = store.page(Receipt, limit=9)
    assert (receipt.resource, receipt.version, receipt.operation) == ("operator/bob", 7, None)


def test_a_request_id_of_another_request_changes_nothing_and_settles_nothing() -> None:
    store, other = MemoryStore(), made(digest="1" * 64)
    run(store, made())
    with pytest.raises(AlreadyExists):
        run(store, other)
    assert (other.closed, len(store.entries)) == (False, 1)


def test_a_refused_change_leaves_no_receipt_and_is_not_settled() -> None:
    store, asked = MemoryStore(), made()
    with pytest.raises(WrongState):
        once(store, asked, "operator/bob", refuse, lambda _write, _receipt: "again")
    assert (asked.closed, store.entries, store.page(Receipt, limit=9)) == (False, [], [])
    assert run(store, asked) == "done"


def test_what_could_not_be_recorded_is_not_settled() -> None:
    store, asked = MemoryStore(), made()
    store.journal_full = True
    for end in (lambda: run(store, asked), lambda: record(store, asked)):
        with pytest.raises(Unavailable):
            end()
    with pytest.raises(Unavailable), last_write(store, asked) as write:
        write.note(count=1)
    assert (asked.closed, store.page(Operator, limit=9)) == (False, [])
    store.journal_full = False
    record(store, asked)
    assert (asked.closed, len(store.entries)) == (True, 1)


def test_a_refusal_within_settles_nothing() -> None:
    asked = made()
    with pytest.raises(KeyError), closing(asked):
        raise KeyError
    assert not asked.closed
    with closing(asked):
        pass
    assert asked.closed
