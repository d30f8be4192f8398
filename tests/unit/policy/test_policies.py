from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from broker.core.entries import AuditEntry
from broker.core.errors import (
    AlreadyExists,
    BrokerError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
    WrongState,
)
from broker.core.kinds import KeyState, KeyType, KeyUsage, OperatorState
from broker.core.model import Key, Operator, PolicyDocument, Principal, Target
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import BROKER, Guard, of_unknown_key
from tests.fakes.calls import ADMIN, call, document, operator
from tests.fakes.refusals import refused
from tests.worlds.world import World

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
LATER = FIRST_POLICY + '@id("bob") permit (principal == Operator::"bob", action == Action::"Sign", resource);\n'
NOW = datetime(2026, 5, 4, tzinfo=UTC)


class House(World):
    """A world with the first policy, some operators, a key and a target."""

    def __init__(self) -> None:
        super().__init__()
        with self.store.write(call("-", Principal(kind="", name=""), self.clock).outcome()) as write:
            write.add(document())
            for name, groups, state in (
                ("alice", ("admins",), OperatorState.ENABLED),
                ("bob", (), OperatorState.ENABLED),
                ("gone", ("admins",), OperatorState.REMOVED),
            ):
                write.add(Operator(name=name, groups=groups, state=state, not_before=NOW, created_at=NOW))
            write.add(
                Key(
                    name="payments",
                    type=KeyType.EC_P256,
                    usage=KeyUsage.SIGN,
                    exportable=False,
                    labels={},
                    owner="operator/bob",
                    state=KeyState.ENABLED,
                    primary=1,
                    latest=1,
                    created_at=NOW,
                )
            )
            write.add(Target(name="vault", kind="vault", settings={}, kek_id="", kek_thumbprint="", created_at=NOW))
        self.store.entries.clear()

    def set(self, text: str, expected: int = 1, principal: Principal = ADMIN, request_id: str = "") -> PolicyDocument:
        asked = call("PolicyService/SetPolicy", principal, self.clock, request_id=request_id)
        return self.policies.set(asked, text, expected)

    def not_set(self, kind: type[BrokerError], text: str, expected: int = 1) -> str:
        before = dict(self.store.rows[PolicyDocument])
        error = refused(lambda: self.set(text, expected), kind)
        assert self.store.rows[PolicyDocument] == before
        assert self.guard.document.version == len(before)
        return error.reason

    def explain(self, who: str, action: str, kind: str, name: str, asker: Principal = ADMIN) -> tuple[bool, str]:
        found = self.policies.explain(call("PolicyService/ExplainPolicy", asker, self.clock), who, action, kind, name)
        assert found.policy_version == self.guard.document.version
        return found.allowed, found.sentence


@pytest.fixture
def house() -> House:
    return House()


def test_a_new_text_is_stored_recorded_and_in_force(house: House) -> None:
    asked = call("PolicyService/SetPolicy", ADMIN, house.clock)
    stored = house.policies.set(asked, LATER, 1)
    assert (stored.version, stored.author, stored.text) == (2, "operator/alice", LATER)
    assert house.store.get(PolicyDocument, 2) == stored == house.guard.document
    assert asked.closed
    [entry] = house.store.entries
    assert (entry.outcome, entry.facts, entry.policies, entry.policy_version) == (
        "ok", {"policy_version": 2}, ("admins",), 1,
    )  # fmt: skip


def test_the_history_can_be_read_and_0_is_the_one_in_force(house: House) -> None:
    house.set(LATER)
    asked = call("PolicyService/GetPolicy", operator("carol", "auditors"), house.clock)
    assert house.policies.get(asked, 0).text == LATER
    assert house.policies.get(asked, 1).text == FIRST_POLICY
    assert not asked.closed
    for version in (3, -1, 2**31 - 1):
        with pytest.raises(NotFound):
            house.policies.get(asked, version)


def test_a_text_made_from_an_older_version_is_refused(house: House) -> None:
    house.set(LATER)
    assert house.not_set(WrongState, LATER, expected=1) == "CHANGED_MEANWHILE"
    assert house.not_set(WrongState, LATER, expected=3) == "CHANGED_MEANWHILE"
    assert house.not_set(InvalidRequest, LATER, expected=0) == "VERSION_INVALID"
    assert house.not_set(InvalidRequest, LATER, expected=2**31 - 1) == "VERSION_INVALID"


class Blind:
    """A store, and what is written in it, in which a look finds no second version of the policy."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get(self, kind: type[Any], *key: str | int) -> Any:
        return None if (kind, key) == (PolicyDocument, (2,)) else self._real.get(kind, *key)

    @contextmanager
    def write(self, entry: AuditEntry) -> Iterator[Any]:
        with self._real.write(entry) as write:
            yield Blind(write)


def test_of_two_that_are_set_at_once_one_is_refused(house: House) -> None:
    """On a database whose check lets both through, the primary key decides."""
    house.set(LATER)
    house.policies = house.elsewhere(store=Blind(house.store)).policies
    assert house.not_set(WrongState, LATER, expected=1) == "CHANGED_MEANWHILE"


def test_a_text_that_is_not_valid_is_refused(house: House) -> None:
    assert house.not_set(InvalidRequest, "permit (") == "POLICY_INVALID"


@pytest.mark.parametrize("text", ["", FIRST_POLICY.replace('"admins"', '"admin"')])
def test_a_text_that_locks_its_author_out_is_refused(house: House, text: str) -> None:
    assert house.not_set(WrongState, text) == "POLICY_LOCKS_YOU_OUT"


def test_who_may_not_set_the_policy_learns_nothing_of_it(house: House) -> None:
    with pytest.raises(PermissionDenied):
        house.set("not a policy", principal=operator("carol", "auditors"))
    assert house.store.entries == []


def test_the_same_request_again_sets_nothing_again(house: House) -> None:
    first = house.set(LATER, request_id=REQUEST)
    assert house.set(LATER, request_id=REQUEST) == first
    assert house.guard.document.version == 2
    assert [entry.facts.get("replayed") for entry in house.store.entries] == [None, 1]
    house.set(FIRST_POLICY, expected=2)
    assert house.set(LATER, request_id=REQUEST) == first
    assert house.guard.document.version == 3, "a repetition must not put the older text in force again"


def test_a_request_id_of_another_request_is_refused(house: House) -> None:
    house.set(LATER, request_id=REQUEST)
    other = call("PolicyService/SetPolicy", ADMIN, house.clock, request_id=REQUEST)
    other.digest = "1" * 64
    with pytest.raises(AlreadyExists) as refused:
        house.policies.set(other, FIRST_POLICY, 2)
    assert refused.value.reason == "REQUEST_ID_REUSED"


def test_validating_only_checks_everything_and_changes_nothing(house: House) -> None:
    def validate(text: str, expected: int) -> PolicyDocument:
        asked = call("PolicyService/SetPolicy", ADMIN, house.clock, validate_only=True)
        document = house.policies.set(asked, text, expected)
        assert not asked.closed
        assert asked.facts == {"validate_only": 1}
        return document

    assert validate(LATER, 1).version == 2
    for text, expected in (("permit (", 1), ("", 1), (LATER, 2)):
        with pytest.raises((InvalidRequest, WrongState)):
            validate(text, expected)
    assert house.store.entries == []
    assert house.guard.document.version == 1


def test_a_text_that_cannot_be_recorded_does_not_come_into_force(house: House) -> None:
    house.store.journal_full = True
    with pytest.raises(BrokerError):
        house.set(LATER)
    assert house.guard.document.version == 1
    assert house.store.get(PolicyDocument, 2) is None


def test_AZ_14_what_another_replica_sets_comes_into_force_at_the_next_look(house: House) -> None:
    replica = house.elsewhere(guard=Guard(document())).policies
    house.set(LATER)
    house.set(FIRST_POLICY, expected=2)
    replica.refresh()
    asked = call("PolicyService/GetPolicy", ADMIN, house.clock)
    assert replica.get(asked, 0).version == 3


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (("alice", "SetPolicy", "Broker", "broker"), (True, "Allowed by admins.")),
        (("bob", "Sign", "Key", "payments"), (True, "Allowed by owners.")),
        (("bob", "RotateKey", "Key", "payments"), (False, "Denied: no policy permits it.")),
        (("bob", "Sign", "Key", "nothing"), (False, "Denied: no policy permits it.")),
        (("alice", "Sign", "Key", "nothing"), (True, "Allowed by admins.")),
        (("alice", "GetTarget", "Target", "vault"), (True, "Allowed by admins.")),
        (("alice", "GetTarget", "Target", "nowhere"), (True, "Allowed by admins.")),
        (("alice", "SetOperatorGroups", "Operator", "bob"), (True, "Allowed by admins.")),
        (("bob", "RenewCertificate", "Operator", "bob"), (True, "Allowed by self.")),
        (("gone", "SetPolicy", "Broker", "broker"), (False, "Denied: the operator has been removed.")),
    ],
)
def test_it_is_explained_who_may_do_what(
    house: House, question: tuple[str, str, str, str], answer: tuple[bool, str]
) -> None:
    assert house.explain(*question) == answer


def test_a_forbid_and_a_policy_that_fails_are_named(house: House) -> None:
    forbid = '@id("no-sign") forbid (principal, action == Action::"Sign", resource);'
    fails = '@id("fails") forbid (principal, action == Action::"GetKey", resource) '
    house.set(FIRST_POLICY + forbid + fails + "when { 9223372036854775807 + 1 == 0 };")
    assert house.explain("alice", "Sign", "Key", "payments") == (False, "Denied: no-sign forbids it.")
    allowed, sentence = house.explain("alice", "GetKey", "Key", "payments")
    assert not allowed
    assert "fails in fails" in sentence


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (("alice", "Nope", "Key", "payments"), "ACTION_UNKNOWN"),
        (("alice", "sign", "Key", "payments"), "ACTION_UNKNOWN"),
        (("alice", "Sign", "Broker", "broker"), "RESOURCE_KIND_WRONG"),
        (("alice", "Sign", "Robot", "x"), "RESOURCE_KIND_WRONG"),
        (("alice", "Sign", "", ""), "RESOURCE_KIND_WRONG"),
        (("alice", "Sign", "Key", "../x"), "NAME_INVALID"),
        (("Alice", "Sign", "Key", "payments"), "NAME_INVALID"),
        (("nobody", "Sign", "Key", "payments"), "OPERATOR_NOT_FOUND"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    house: House, question: tuple[str, str, str, str], reason: str
) -> None:
    with pytest.raises(BrokerError) as refused:
        house.explain(*question)
    assert refused.value.reason == reason


def test_everybody_may_ask_about_themselves_and_auditors_about_all(house: House) -> None:
    house.explain("bob", "Sign", "Key", "payments", asker=operator("bob"))
    house.explain("alice", "Sign", "Key", "payments", asker=operator("carol", "auditors"))
    for other in ("alice", "nobody"):
        with pytest.raises(PermissionDenied):
            house.explain(other, "Sign", "Key", "payments", asker=operator("bob"))


def test_AZ_14_a_text_that_this_release_cannot_read_denies_everything_until_one_that_it_can(house: House) -> None:
    def set_elsewhere(version: int, text: str) -> None:
        asked = call("PolicyService/SetPolicy", ADMIN, house.clock)
        with house.store.write(asked.outcome()) as write:
            write.add(document(text, version))

    set_elsewhere(2, '@id("new") forbid (principal, action == Action::"OfANewerRelease", resource);')
    with pytest.raises(InvalidRequest):
        house.policies.refresh()
    assert not house.guard.permits(ADMIN, "SetPolicy", BROKER)
    set_elsewhere(3, FIRST_POLICY)
    house.policies.refresh()
    assert house.guard.document.version == 3
    assert house.guard.permits(ADMIN, "SetPolicy", BROKER)


PIPELINE_RULE = (
    '@id("deploy") permit (principal == Pipeline::"deploy", action == Action::"FetchSecrets", '
    'resource in Folder::"team/app");\n'
)


def test_it_is_explained_what_a_pipeline_may_fetch(house: House) -> None:
    house.set(FIRST_POLICY + PIPELINE_RULE)
    assert house.explain("pipeline/deploy", "FetchSecrets", "Secret", "team/app/db") == (True, "Allowed by deploy.")
    assert not house.explain("pipeline/deploy", "FetchSecrets", "Secret", "team/apps/db")[0]
    assert not house.explain("pipeline/other", "FetchSecrets", "Secret", "team/app/db")[0]
    assert house.explain("pipeline/deploy", "Login", "Broker", "")[0]
    assert house.explain("operator/alice", "GetTrustRule", "TrustRule", "rule")[0]
    house.explain("pipeline/deploy", "Login", "Broker", "", asker=operator("carol", "auditors"))
    with pytest.raises(PermissionDenied):
        house.explain("pipeline/deploy", "Login", "Broker", "", asker=operator("bob"))


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (("pipeline/deploy", "Sign", "Key", "payments"), "RESOURCE_KIND_WRONG"),
        (("pipeline/", "Login", "Broker", ""), "NAME_INVALID"),
        (("pipeline", "Sign", "Key", "payments"), "OPERATOR_NOT_FOUND"),
        (("robot/deploy", "Login", "Broker", ""), "NAME_INVALID"),
        (("pipeline/deploy", "FetchSecrets", "Secret", "a//b"), "NAME_INVALID"),
    ],
)
def test_a_question_about_a_pipeline_that_makes_no_sense_is_refused(
    house: House, question: tuple[str, str, str, str], reason: str
) -> None:
    with pytest.raises(BrokerError) as refused:
        house.explain(*question)
    assert refused.value.reason == reason


def test_a_policy_that_another_process_has_set_is_not_missed_while_the_background_is_held_up() -> None:
    house, ticks = House(), [0.0]
    elsewhere = Guard(document())
    there = house.elsewhere(guard=elsewhere, ticks=lambda: ticks[0]).policies
    elsewhere.watch(there.refresh_when_late)
    house.set(LATER)
    bob = operator("bob")
    asked = call("KeyService/Sign", bob, house.clock)
    ticks[0] = 1.0
    with pytest.raises(PermissionDenied):  # it may be seen a little late
        elsewhere.check(asked, of_unknown_key("payments"))
    ticks[0] = 3600.0  # as if it had been stopped for an hour
    elsewhere.check(call("KeyService/Sign", bob, house.clock), of_unknown_key("payments"))


def test_a_policy_that_cannot_be_looked_for_in_time_permits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    house, ticks = House(), [0.0]
    policies = house.elsewhere(ticks=lambda: ticks[0]).policies
    house.guard.watch(policies.refresh_when_late)
    ticks[0] = 2.0
    # Patched: memory is never away.
    monkeypatch.setattr(house.store, "get", unavailable)
    with pytest.raises(Unavailable):
        house.guard.check(house.asked("KeyService/Sign"), of_unknown_key("payments"))


def unavailable(*_: object) -> None:
    raise Unavailable("STORE_UNAVAILABLE", "Away.")
