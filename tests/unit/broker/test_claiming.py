"""One token, one database: a copy of a broker is noticed, whichever of the two begins first, and destroys nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.core.claiming import KEPT, LOOK_EVERY, MOST, QUIET, Claim, claim_call
from broker.core.errors import Unavailable, WrongState
from broker.core.kinds import KeyType, KeyUsage
from broker.core.ports import KeyRef
from broker.core.token_claim import NAME, TokenClaim
from tests.fakes.calls import Clock
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused


class Token:
    """A token, and the brokers on it; each begins by looking, as a process does at its start."""

    def __init__(self) -> None:
        self.hsm, self.clock = SoftwareHsm(), Clock()

    def broker(self, store: MemoryStore, place: str = "one:/srv/broker") -> Claim:
        claim = Claim(store, self.hsm, self.clock, place)
        claim.refuse_taken()
        return claim

    def look(self, claim: Claim, store: MemoryStore) -> None:
        claim.look(claim_call(store.fence, self.clock))

    def started(self, store: MemoryStore, place: str = "one:/srv/broker") -> Claim:
        claim = self.broker(store, place)
        store.fence += 1
        self.look(claim, store)
        return claim

    def wait(self, time: timedelta = QUIET) -> None:
        self.clock.forward(seconds=time.total_seconds())


def numbers(store: MemoryStore) -> tuple[str, ...]:
    row = store.get(TokenClaim, NAME)
    return row.numbers if row else ()


def copied(store: MemoryStore) -> MemoryStore:
    """What a copy of the folder has."""
    other = MemoryStore()
    other.rows[TokenClaim].update(store.rows[TokenClaim])
    return other


def taken(work: Callable[[], object]) -> str:
    return refused(work, WrongState, "TOKEN_CLAIMED").message


def test_a_fresh_token_is_claimed_and_things_can_be_destroyed_at_once() -> None:
    token, store = Token(), MemoryStore()
    claim = token.started(store)
    claim.refuse_doubt()
    (value,) = token.hsm.claims()
    assert value.decode().split() == [numbers(store)[0], f"{token.clock():%Y-%m-%dT%H:%M:%SZ}", "one:/srv/broker"]
    assert [(one.rpc, one.resource, one.outcome) for one in store.entries] == [("-/ClaimToken", "token/claim", "ok")]


def test_nothing_is_destroyed_before_it_is_claimed() -> None:
    token, store = Token(), MemoryStore()
    claim = token.broker(store)
    refused(claim.refuse_doubt, Unavailable, "TOKEN_CLAIM_NEW")
    claim.look(claim_call(0, token.clock))  # it does not lead
    refused(claim.refuse_doubt, Unavailable, "TOKEN_CLAIM_NEW")
    assert token.hsm.claims() == []


def test_a_broker_that_begins_again_claims_anew_and_waits_before_it_destroys() -> None:
    token, store = Token(), MemoryStore()
    token.started(store)
    again = token.started(store)
    assert len(token.hsm.claims()) == 1
    assert len(numbers(store)) == 2
    refused(again.refuse_doubt, Unavailable, "TOKEN_CLAIM_NEW")
    token.wait()
    again.refuse_doubt()
    token.look(again, store)
    assert len(numbers(store)) == 2  # a look that finds all well writes nothing


def test_a_copy_that_begins_later_than_the_true_one_does_not_start() -> None:
    token, store = Token(), MemoryStore()
    token.started(store)
    other = copied(store)
    token.started(store)
    said = taken(lambda: token.broker(other))
    assert "one:/srv/broker" in said
    assert "accept-restore" in said


def test_a_copy_that_begins_first_is_told_by_the_true_one_before_it_destroys_anything() -> None:
    token, store = Token(), MemoryStore()
    true = token.started(store)
    other = copied(store)
    second = token.started(other, place="two:/srv/copy")
    refused(second.refuse_doubt, Unavailable, "TOKEN_CLAIM_NEW")
    with capture_logs() as said:
        token.wait(LOOK_EVERY)
        taken(true.refuse_doubt)
        token.look(true, store)
        token.look(true, store)
    assert [one["reason"] for one in said if one["log_level"] == "error"] == ["TOKEN_CLAIMED"]
    assert "two:/srv/copy" in true.trouble
    token.look(second, other)
    assert "one:/srv/broker" in second.trouble
    token.wait()
    taken(true.refuse_doubt)
    taken(second.refuse_doubt)
    assert store.entries[-1].reason == "TOKEN_CLAIMED"
    assert len(token.hsm.claims()) == 2


def test_neither_of_two_starts_again_until_an_operator_has_said_which_is_the_true_one() -> None:
    token, store = Token(), MemoryStore()
    true = token.started(store)
    other = copied(store)
    token.started(other)
    token.look(true, store)
    taken(lambda: token.broker(store))
    taken(lambda: token.broker(other))
    accepting = Claim(store, token.hsm, token.clock, "one:/srv/broker")
    assert accepting.is_taken()
    accepting.take_over(claim_call(0, token.clock))
    taken(lambda: token.broker(other))
    again = token.started(store)
    token.wait()
    again.refuse_doubt()
    assert again.trouble == ""


def test_a_claim_is_contested_while_the_other_broker_still_runs() -> None:
    token, store = Token(), MemoryStore()
    true = token.started(store)
    other = copied(store)
    Claim(other, token.hsm, token.clock, "two").take_over(claim_call(0, token.clock))
    second = token.started(other)
    token.look(true, store)
    token.wait()
    taken(second.refuse_doubt)


def test_a_copy_of_a_database_that_never_claimed_the_token_does_not_start() -> None:
    token, store = Token(), MemoryStore()
    other = copied(store)
    token.started(store)
    taken(lambda: token.broker(other))


@pytest.mark.parametrize("fails", ["add_claim", "drop_claims"])
def test_a_start_that_is_killed_at_any_place_is_followed_by_one_that_goes_through(fails: str) -> None:
    token, store = Token(), MemoryStore()
    token.started(store)

    class Dying:
        """A token at which the process dies."""

        def __getattr__(self, name: str) -> Any:
            if name == fails:
                raise KeyboardInterrupt
            return getattr(token.hsm, name)

    store.fence += 1
    with pytest.raises(KeyboardInterrupt):
        token.look(Claim(store, Dying(), token.clock, "one"), store)
    again = token.started(store)
    assert len(token.hsm.claims()) == 1
    token.wait()
    again.refuse_doubt()


def test_a_leader_that_was_stopped_may_put_its_number_in_late() -> None:
    token, store = Token(), MemoryStore()
    token.started(store)
    leader = token.started(store)
    token.hsm.add_claim(f"{numbers(store)[0]} 2026-01-01T00:00:00Z one".encode())
    token.wait()
    leader.refuse_doubt()
    store.fence += 1
    token.look(leader, store)
    assert len(token.hsm.claims()) == 1


def test_another_process_on_the_same_database_need_not_lead_to_be_sure() -> None:
    token, store = Token(), MemoryStore()
    token.started(store)
    other = token.broker(store)
    other.look(claim_call(0, token.clock))
    other.refuse_doubt()
    assert len(numbers(store)) == 1


def test_what_is_in_the_token_stays_known_however_often_it_could_not_be_written() -> None:
    token, store = Token(), MemoryStore()
    token.started(store)
    first = numbers(store)[0]
    for _ in range(KEPT + 2):
        claim, store.fence = token.broker(store), store.fence + 1
        token.hsm.writable = False
        for _ in range(2):
            refused(partial(token.look, claim, store), Unavailable, "HSM_FAULT")
        token.hsm.writable = True
    assert first in numbers(store)
    assert len(numbers(store)) == KEPT + 2  # one for each start, not for each try
    token.started(store)
    token.started(store)
    assert len(numbers(store)) == KEPT + 1


def test_a_token_that_keeps_no_data_objects_serves_all_the_same() -> None:
    token, store = Token(), MemoryStore()
    token.hsm.keeps_data = False
    with capture_logs() as said:
        claim = token.started(store)
    assert [one["log_level"] for one in said] == ["warning"]
    assert not claim.kept()
    token.wait()
    claim.refuse_doubt()


@pytest.mark.parametrize("value", [b"", b"\xff" * 40, b"0" * 32, b"0" * 31 + b"g by somebody"])
def test_what_nobody_can_read_in_the_token_is_somebody_elses(value: bytes) -> None:
    token, store = Token(), MemoryStore()
    claim = token.started(store)
    token.hsm.add_claim(value)
    taken(claim.refuse_doubt)


def test_a_long_name_of_the_folder_does_not_make_the_claim_illegible() -> None:
    token, store = Token(), MemoryStore()
    claim = token.started(store, place="hôte:/" + "x" * 1000)
    claim.refuse_doubt()
    assert [len(one) for one in token.hsm.claims()] == [MOST]
    said = taken(lambda: token.broker(MemoryStore()))
    assert "h?te:/xx" in said


def test_no_key_is_destroyed_in_the_token_while_its_owner_is_in_doubt() -> None:
    token, store = Token(), MemoryStore()
    claim = token.started(store)
    token.hsm.guard(claim.refuse_doubt)
    key = KeyRef(hsm_id=b"x" * 16, type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=None, name="payments/1")
    token.hsm.generate(key, exportable=False)
    token.started(copied(store))
    taken(lambda: token.hsm.destroy(key))
    assert key.hsm_id in token.hsm.keys
