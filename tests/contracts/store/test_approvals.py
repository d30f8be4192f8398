"""On every store: an approval is used once, with the change that it is used for, or not at all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from broker.core.approval import Approval
from broker.core.clearance import ApprovalRequired, Clearance
from broker.core.kinds import ApprovalState
from broker.core.ports import Store
from tests.contracts.store.grounds import ground, store
from tests.contracts.store.places import database
from tests.contracts.store.samples import LAST, T0, entry, put, sample

__all__ = ["database", "ground", "store"]  # fixtures

CALLERS = 4


def clearance(number: int = 1) -> Clearance:
    made = Clearance(
        call_id=f"call-{number}", rpc="KeyService/SealKey", requester="operator/alice", now=lambda: T0, facts={},
        exact=lambda: b"name=pay", details=dict, count=lambda _write, row: len(row.grants),
    )  # fmt: skip
    made.need(1)
    return made


def approved(store: Store) -> Approval:
    with pytest.raises(ApprovalRequired), store.write(entry()) as write:
        (first := clearance()).spend(write)
    grants = sample(Approval, full=True).grants
    row = replace(
        sample(Approval), digest=first.digest, requester="operator/alice", grants=grants, expires_at=LAST, due_at=LAST
    )
    put(store, row)
    return row


def test_an_approval_is_used_by_one_of_many_at_once(store: Store) -> None:
    row, barrier = approved(store), threading.Barrier(CALLERS)

    def use(number: int) -> str:
        barrier.wait(60)
        try:
            with store.write(entry()) as write:
                (mine := clearance(number)).spend(write)
        except ApprovalRequired:
            return ""
        return mine.spent

    with ThreadPoolExecutor(CALLERS) as callers:
        found = sorted(callers.map(use, range(CALLERS)))
    assert found == [""] * (CALLERS - 1) + [row.id]
    assert store.get(Approval, row.id).state is ApprovalState.USED  # type: ignore[union-attr]  # it is there


def test_a_change_that_fails_leaves_the_approval_whole(store: Store) -> None:
    row = approved(store)
    mine: Any = clearance()

    def fail() -> None:
        with store.write(entry()) as write:
            mine.spend(write)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.get(Approval, row.id) == row
    for _ in range(2):  # the same call may come to several writes, each of which asks
        with store.write(entry()) as write:
            mine.spend(write)
    used = store.get(Approval, row.id)
    assert (used.state, used.call, mine.lacking) == (ApprovalState.USED, "call-1", False)  # type: ignore[union-attr]
