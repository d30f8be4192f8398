"""The broker's own keys: rotated with an overlap, one at a time, retired once nothing needs them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from broker.core.audit.handover import FORMER, related
from broker.core.audit.heads import signed_by
from broker.core.authorities.known import MOST, ref
from broker.core.authorities.plans import MOST_AT_ONCE, OVERLAP
from broker.core.entries import Phase
from broker.core.errors import BrokerError, WrongState
from broker.core.holding import Holding
from broker.core.kinds import OperationState, Own, OwnKeyState
from broker.core.model import AuditHead
from broker.core.own_key import OwnKey
from broker.own_ends import OLD, ages, ending
from broker.rpc.pages import PageTokens
from broker.setup import make_request
from tests.crash.scenes_authorities import OwnWorld, Patient, whole
from tests.fakes.background import carry_on
from tests.fakes.calls import operator
from tests.fakes.refusals import ending as refusal
from tests.fakes.refusals import refused

REQUEST = "0d7c2f5e-51c7-4f39-9d36-0b6c7d9c5c0e"
HSM_OWN = [Own.AUDIT, Own.OPERATOR_CA, Own.SERVER_CA]


def rotate(world: Any, name: str = Own.AUDIT, **how: Any) -> Any:
    return world.authorities.rotate(world.asked("AuthorityService/RotateAuthority", digest="d", **how), name)


def retire(world: Any, name: str = Own.AUDIT, **how: Any) -> Any:
    return world.authorities.retire(world.asked("AuthorityService/RetireAuthority", digest="r", **how), name)


def background(world: Any) -> list[str]:
    """A round of it; what was done or tried."""
    done = []
    for resource, work in world.authorities.chores():
        done.append(resource)
        with suppress(BrokerError):  # as the loop does, which logs it and tries again
            work(world.own(resource))
    carry_on(world.operations, world.clock)
    return done


def states(world: Any, name: Own) -> list[str]:
    world.own_keys.refresh()
    return [one.state.value for one in world.own_keys.versions(name)]


@pytest.mark.parametrize("name", Own)
def test_a_rotated_key_has_an_overlap_and_then_the_former_one_is_gone(name: Own) -> None:
    world = OwnWorld()
    assert rotate(world, name).version == 2
    assert states(world, name) == ["former", "active"]
    assert [one.version for one in world.own_keys.taken(name)] == [2, 1]
    assert background(world) == [], "nothing is destroyed before its time"
    world.clock.time += OVERLAP[name]
    assert [one.version for one in world.own_keys.taken(name)] == [2]
    background(world)
    assert states(world, name) == ["destroyed", "active"]
    whole(world)


def test_every_process_takes_a_new_version_before_it_is_in_force() -> None:
    world = Patient()
    begun = rotate(world, Own.OPERATOR_CA)
    other = world.elsewhere()
    assert begun.operation.state is OperationState.RUNNING
    assert states(world, Own.OPERATOR_CA) == ["active", "next"]
    other.own_keys.refresh()
    assert [one.version for one in other.own_keys.taken(Own.OPERATOR_CA)] == [1, 2]
    signer = other.own_keys.authority(Own.OPERATOR_CA).certificate
    assert signer == other.own_keys.versions(Own.OPERATOR_CA)[0].certificate.encode()
    world.clock.time += Patient.lead
    background(world)
    assert states(world, Own.OPERATOR_CA) == ["former", "active"]
    other.own_keys.refresh()
    assert other.own_keys.authority(Own.OPERATOR_CA).certificate != signer, "without a restart"


def test_heads_are_signed_by_the_key_in_force_and_the_hand_over_is_in_every_journal() -> None:
    world = OwnWorld()
    old = world.own_keys.active(Own.AUDIT).public_key or b""
    rotate(world)
    new = world.own_keys.active(Own.AUDIT).public_key or b""
    world.store.record(world.own("x").outcome())
    [head] = world.heads.sign_due()
    assert (signed_by(old)(head), signed_by(new)(head)) == (False, True)
    told = [dict(one.facts) for one in world.store.entries if one.resource == "audit/handover"]
    assert told == [dict(one) for one in world.own_keys.handovers()]
    assert related([old], told) == related([new], told) == {old, new}
    world.heads.sign_due()
    assert len([one for one in world.store.entries if one.resource == "audit/handover"]) == 1


@pytest.mark.parametrize(
    "part", ["former_key", "successor_key", "handover_time", "former_signature", "successor_signature"]
)
def test_A_10_a_hand_over_that_either_key_has_not_signed_leads_nowhere(part: str) -> None:
    world, other = OwnWorld(), OwnWorld()
    other.clock.time += timedelta(seconds=1)
    for one in (world, other):
        rotate(one)
    [sound], [strange] = world.own_keys.handovers(), other.own_keys.handovers()
    old = bytes.fromhex(sound[FORMER])
    assert related([old], [{**sound, part: strange[part]}]) == {old}
    assert related([old], [{name: value for name, value in sound.items() if name != part}]) == {old}


def test_a_rotation_while_one_runs_says_which_and_the_same_request_is_the_same_one() -> None:
    world = Patient()
    begun = rotate(world, request_id=REQUEST)
    assert refusal(lambda: rotate(world)) == refusal(lambda: rotate(world, validate_only=True)) == "ROTATION_RUNNING"
    assert rotate(world, request_id=REQUEST).operation.number == begun.operation.number
    assert rotate(world, Own.PAGE).version == 2, "another key is another matter"
    world.clock.time += Patient.lead
    background(world)
    assert rotate(world, request_id=REQUEST).operation.state is OperationState.DONE
    assert rotate(world).version == 3


def test_a_dry_run_changes_nothing_and_names_are_checked() -> None:
    world = OwnWorld()
    assert rotate(world, validate_only=True).version == 2
    assert world.rows(OwnKey) == []
    assert refusal(lambda: rotate(world, "rows")) == "OWN_KEY_UNKNOWN"
    assert refusal(lambda: retire(world)) == "OWN_KEY_NOT_FORMER"
    assert refusal(lambda: retire(world, validate_only=True)) == "OWN_KEY_NOT_FORMER"
    nobody = operator("bob")
    assert refusal(lambda: rotate(world, principal=nobody)) == "POLICY_DENIED"
    assert refusal(lambda: rotate(world, "rows", principal=nobody)) == "POLICY_DENIED"


def test_a_token_without_room_leaves_everything_as_it_was() -> None:
    world = OwnWorld()
    world.ground.make_no_keys()
    for name in HSM_OWN:
        assert refusal(lambda name=name: rotate(world, name)) == "HSM_MECHANISM_MISSING"  # type: ignore[misc]
        assert states(world, name) == ["active"]
    world.ground.hsm.refuses = False
    assert rotate(world).version == 2


def test_a_host_that_cannot_follow_keeps_the_rotation_from_being_put_in_force() -> None:
    def publish() -> None:
        raise WrongState("CERTIFICATE_NOT_WRITTEN", "Nothing can be written there.")

    world = OwnWorld()
    world.restart(publish=publish)
    assert refusal(lambda: rotate(world, Own.SERVER_CA)) == "CERTIFICATE_NOT_WRITTEN"
    assert states(world, Own.SERVER_CA) == ["active"]
    assert len(world.ground.keys_of(Own.SERVER_CA.purpose)) == 1


def test_one_that_was_given_up_is_taken_back_and_its_key_destroyed() -> None:
    world = Patient()
    begun = rotate(world, Own.SERVER_CA)
    world.oversight.abort(world.asked("OperationService/AbortOperation", digest="a"), f"{begun.operation.subject}/1")
    world.clock.time += timedelta(minutes=2)
    background(world)
    assert states(world, Own.SERVER_CA) == ["active"]
    assert len(world.ground.keys_of(Own.SERVER_CA.purpose)) == 1


def test_O_12_the_overlap_can_be_ended_and_the_former_one_is_refused_at_once() -> None:
    world = OwnWorld()
    rotate(world, Own.OPERATOR_CA)
    assert world.own_keys.certificates(Own.OPERATOR_CA).count(b"BEGIN") == 2
    assert [one.version for one in retire(world, Own.OPERATOR_CA, request_id=REQUEST).versions] == [1]
    assert world.own_keys.certificates(Own.OPERATOR_CA).count(b"BEGIN") == 1
    background(world)
    assert states(world, Own.OPERATOR_CA) == ["destroyed", "active"]
    assert [one.version for one in retire(world, Own.OPERATOR_CA, request_id=REQUEST).versions] == [1]


def test_the_former_audit_key_stays_while_a_process_signs_with_it() -> None:
    world = OwnWorld()
    old = world.own_keys.active(Own.AUDIT)
    rotate(world)
    world.clock.time += OVERLAP[Own.AUDIT]
    straggler = world.elsewhere()
    straggler.heads._key = lambda: ref(old)  # noqa: SLF001 - a process that has missed a day
    straggler.heads.sign_due()
    background(world)
    assert states(world, Own.AUDIT) == ["former", "active"]
    [row] = [row for row in world.rows(AuditHead) if signed_by(old.public_key or b"")(row)]
    assert row.signed_at == world.clock()
    world.clock.time += timedelta(minutes=2)
    background(world)
    waits = world.operations.live(world.store, "own/audit/1")
    assert waits is not None
    assert waits.failure == "OWN_KEY_IN_USE"
    world.store.record(world.own("x").outcome())
    world.heads.sign_due()
    world.clock.time += timedelta(minutes=2)
    background(world)
    assert states(world, Own.AUDIT) == ["destroyed", "active"]


def test_nothing_is_destroyed_whose_successor_the_token_has_lost() -> None:
    world = OwnWorld()
    rotate(world, Own.SERVER_CA)
    active = world.own_keys.active(Own.SERVER_CA)
    world.ground.hsm.keyring(Own.SERVER_CA.purpose).destroy(ref(active))
    world.clock.time += OVERLAP[Own.SERVER_CA]
    background(world)
    assert states(world, Own.SERVER_CA) == ["former", "active"]
    assert len(world.ground.keys_of(Own.SERVER_CA.purpose)) == 1


def test_the_destruction_is_announced_by_an_intent_that_names_the_version() -> None:
    world = OwnWorld()
    rotate(world)
    world.clock.time += OVERLAP[Own.AUDIT]
    background(world)
    intents = [one for one in world.store.entries if one.phase is Phase.INTENT and one.resource == "own/audit"]
    assert intents[-1].facts["version"] == 1


def test_a_row_that_somebody_removes_takes_no_key_from_a_process_that_serves() -> None:
    world = OwnWorld()
    rotate(world)
    active = world.own_keys.active(Own.AUDIT)
    for row in world.rows(OwnKey):
        with world.store.write(world.own("x").outcome()) as write:
            write.delete(row)
    world.own_keys.refresh()
    assert world.own_keys.active(Own.AUDIT) == active


def test_too_many_at_a_time_are_refused() -> None:
    world = OwnWorld()
    for _ in range(MOST_AT_ONCE - 1):
        rotate(world, Own.PAGE)
    assert refusal(lambda: rotate(world, Own.PAGE)) == "OWN_KEYS_MANY"
    assert refusal(lambda: rotate(world, Own.PAGE, validate_only=True)) == "OWN_KEYS_MANY"


def test_after_the_last_version_that_there_may_be_nothing_is_said_of_waiting() -> None:
    world = OwnWorld()
    rotate(world, Own.PAGE)
    with world.store.write(world.own("x").outcome()) as write:
        newest = write.get(OwnKey, Own.PAGE, 2)
        assert newest
        write.delete(newest)
        write.add(replace(newest, version=MOST))
    world.clock.time += OVERLAP[Own.PAGE]
    background(world)
    assert states(world, Own.PAGE) == ["destroyed", "active"]
    assert refusal(lambda: rotate(world, Own.PAGE, validate_only=True)) == "OWN_KEY_SPENT"
    message = refused(lambda: rotate(world, Own.PAGE), reason="OWN_KEY_SPENT").message
    assert (str(MOST) in message, "Rotate again" in message) == (True, False)
    assert states(world, Own.PAGE) == ["destroyed", "active"]


def test_after_a_restore_a_rotation_is_closed_and_the_next_one_clears_up_after_it() -> None:
    world = Patient()
    rotate(world, Own.SERVER_CA)
    Holding(world.store, lambda resource: replace(world.own(resource), rpc="-/AcceptRestore")).hold()
    world.clock.time += timedelta(hours=1)
    background(world)
    assert states(world, Own.SERVER_CA) == ["active", "next"], "nothing goes on by itself"
    rotate(world, Own.SERVER_CA)
    world.clock.time += timedelta(hours=1)
    for _ in range(3):
        background(world)
    assert states(world, Own.SERVER_CA) == ["former", "destroyed", "active"]


def test_O_14_a_ca_is_rotated_by_the_broker_itself_a_year_before_it_ends_and_clients_follow_its_link() -> None:
    world = OwnWorld()
    assert list(world.authorities.chores()) == []
    world.clock.time += timedelta(days=3652 - 364)
    assert {resource for resource, _ in world.authorities.chores()} == {"own/operator-ca", "own/server-ca"}
    background(world)
    assert states(world, Own.SERVER_CA) == ["former", "active"]
    first, second = (
        x509.load_pem_x509_certificate(one.certificate.encode()) for one in world.own_keys.versions(Own.SERVER_CA)
    )
    link = x509.load_pem_x509_certificate(world.own_keys.active(Own.SERVER_CA).link.encode())
    link.verify_directly_issued_by(first)
    assert (link.public_key(), link.subject) == (second.public_key(), first.subject)
    assert link.not_valid_after_utc == first.not_valid_after_utc < second.not_valid_after_utc
    assert "server-ca alone" in " ".join(ending(world.own_keys.all(), world.clock()))


def test_O_14_a_ca_that_has_ended_is_replaced_without_a_link_and_without_waiting() -> None:
    world = Patient()
    world.clock.time += timedelta(days=3653)
    background(world)
    assert states(world, Own.SERVER_CA) == ["former", "active"]
    assert world.own_keys.active(Own.SERVER_CA).link == ""


def test_what_is_old_is_told_with_what_to_do() -> None:
    world = OwnWorld()
    assert ending(world.own_keys.all(), world.clock()) == []
    assert "audit version 1: 0 days old" in ages(world.own_keys.all(), world.clock())
    world.clock.time += OLD
    told = ending(world.own_keys.all(), world.clock())
    assert [sentence.split()[1] for sentence in told] == ["audit", "page"]
    assert all("broker authority rotate" in sentence for sentence in told)
    rotate(world)
    assert len(ending(world.own_keys.all(), world.clock())) == 1


def test_page_tokens_go_on_over_a_rotation_and_end_with_the_overlap() -> None:
    world = OwnWorld()
    asked = world.asked("KeyService/ListKeys")
    pages = PageTokens(*world.pages())
    token = pages.token(asked, (), ("a",))
    rotate(world, Own.PAGE)
    pages.use(world.pages())
    assert pages.open(asked, (), token) == ("a",)
    fresh = pages.token(asked, (), ("b",))
    world.clock.time += OVERLAP[Own.PAGE]
    pages.use(world.pages())
    assert refusal(lambda: pages.open(asked, (), token)) == "PAGE_TOKEN_INVALID"
    assert pages.open(asked, (), fresh) == ("b",)
    assert world.own_keys.active(Own.PAGE).state is OwnKeyState.ACTIVE


def test_who_is_locked_out_by_the_end_of_a_ca_is_told_before_and_after() -> None:
    world = OwnWorld()
    _, csr = make_request()
    for name in ("erin", "fay", "gus"):
        world.operators.add(world.asked("OperatorService/AddOperator"), name, [], csr, None)
    rotate(world, Own.OPERATOR_CA)
    world.operators.issue(world.asked("OperatorService/IssueCertificate"), "fay", csr, None)
    world.operators.remove(world.asked("OperatorService/RemoveOperator"), "gus")
    world.operators.add(world.asked("OperatorService/AddOperator"), "hal", [], csr, None)
    assert retire(world, Own.OPERATOR_CA, validate_only=True).locked_out == ["erin"]
    assert retire(world, Own.OPERATOR_CA).locked_out == ["erin"]


def test_whose_certificate_has_run_out_is_locked_out_by_no_ca() -> None:
    world = OwnWorld()
    _, csr = make_request()
    world.operators.add(world.asked("OperatorService/AddOperator"), "erin", [], csr, timedelta(hours=1))
    rotate(world, Own.OPERATOR_CA)
    world.clock.forward(hours=2)
    assert retire(world, Own.OPERATOR_CA, validate_only=True).locked_out == []
    rotate(world, Own.AUDIT)
    assert retire(world, Own.AUDIT, validate_only=True).locked_out == []
