from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from broker.core.call import Call
from broker.core.entries import encode
from broker.core.errors import BrokerError, NotFound, PermissionDenied, WrongState
from broker.core.kinds import OperatorState, Own
from broker.core.model import Operator, Principal
from broker.core.operators.authority import Authority
from broker.core.operators.register import Issued, operator_uri
from broker.core.policy.cedar import FIRST_POLICY
from tests.fakes.calls import ADMIN, Clock, operator
from tests.fakes.memory_store import MemoryStore
from tests.fakes.signer import Signer
from tests.worlds.world import World, founded

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
CSR = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(x509.Name([]))
    .sign(ec.generate_private_key(ec.SECP256R1()), SHA256())
    .public_bytes(Encoding.PEM)
)


class House(World):
    """Alice the admin, and whom she adds."""

    store: MemoryStore

    def __init__(self, text: str = FIRST_POLICY) -> None:
        self.signer, clock = Signer(), Clock()
        key, pem = Authority.create(self.signer.hsm, b"operator-ca-0001", "Operators", clock())
        own = {name: founded(name, key, pem) for name in (Own.OPERATOR_CA, Own.SERVER_CA)}
        super().__init__(hsm=self.signer, clock=clock, policy=text, founding=own, trust_domain="broker.example")
        now = self.clock().replace(microsecond=0) - timedelta(days=1)
        first = Operator(name="alice", groups=("admins",), state=OperatorState.ENABLED, not_before=now, created_at=now)
        with self.store.write(self.call("-", Principal(kind="", name="")).outcome()) as write:
            write.add(first)
        self.store.entries.clear()

    def call(self, method: str, who: Principal = ADMIN, *, request_id: str = "", validate_only: bool = False) -> Call:
        return self.asked(f"OperatorService/{method}", who, request_id=request_id, validate_only=validate_only)

    def add(self, name: str, *groups: str, request_id: str = "") -> tuple[Operator, Issued]:
        asked = self.call("AddOperator", request_id=request_id)
        added = self.operators.add(asked, name, list(groups), CSR, None)
        assert asked.closed
        return added

    def stored(self, name: str) -> Operator:
        found = self.store.get(Operator, name)
        assert found is not None
        return found

    def refuses(self, issued: Issued, name: str) -> bool:
        """As the authenticator does."""
        starts = x509.load_pem_x509_certificate(issued.pem).not_valid_before_utc
        return self.stored(name).state is OperatorState.REMOVED or starts < self.stored(name).not_before


@pytest.fixture
def house() -> House:
    return House()


def test_an_operator_is_added_with_a_first_certificate(house: House) -> None:
    added, issued = house.add("bob", "team-b", "team-a", "team-b")
    assert house.stored("bob") == added
    assert (added.groups, added.state, added.revision) == (("team-a", "team-b"), OperatorState.ENABLED, 1)
    leaf = x509.load_pem_x509_certificate(issued.pem)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(issued.ca_pem))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://broker.example/operator/bob"]
    assert issued.expires_at == house.clock().replace(microsecond=0) + timedelta(hours=12)
    assert leaf.not_valid_before_utc == house.clock().replace(microsecond=0) - timedelta(seconds=60)
    assert not house.refuses(issued, "bob")
    [entry] = house.store.entries
    assert entry.facts == {"operator": "bob", "groups": "team-a,team-b", "certificate_serial": issued.serial}


def test_the_same_request_again_gives_the_operator_and_a_fresh_certificate(house: House) -> None:
    first, old = house.add("bob", request_id=REQUEST)
    house.clock.forward(minutes=10)
    again, new = house.add("bob", request_id=REQUEST)
    assert again == first
    assert old.serial != new.serial
    assert house.store.entries[-1].facts["replayed"] == 1
    assert house.store.entries[-1].facts["certificate_serial"] == new.serial
    assert old.expires_at == new.expires_at
    house.clock.forward(hours=12)
    with pytest.raises(WrongState) as refused:
        house.add("bob", request_id=REQUEST)
    assert refused.value.reason == "REQUEST_TOO_OLD"


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("SetOperatorGroups", "CHANGED_MEANWHILE"),
        ("RevokeCertificates", "CHANGED_MEANWHILE"),
        ("RemoveOperator", "OPERATOR_REMOVED"),
    ],
)
def test_AZ_05_a_repeated_request_to_add_gives_no_certificate_for_what_others_have_made_of_the_operator(
    house: House, method: str, expected: str
) -> None:
    house.add("bob", request_id=REQUEST)
    asked = house.call(method)
    if method == "SetOperatorGroups":
        house.operators.set_groups(asked, "bob", ["admins"])
    else:
        (house.operators.revoke if method == "RevokeCertificates" else house.operators.remove)(asked, "bob")
    with pytest.raises(WrongState) as refused:
        house.add("bob", request_id=REQUEST)
    assert refused.value.reason == expected


def test_an_operator_is_not_added_when_the_certificate_cannot_be_made(house: House) -> None:
    house.signer.broken = True
    asked = house.call("AddOperator")
    with pytest.raises(BrokerError):
        house.operators.add(asked, "bob", [], CSR, None)
    assert house.store.get(Operator, "bob") is None
    assert not asked.closed
    assert house.store.entries == []


@pytest.mark.parametrize(
    ("name", "groups", "csr", "ttl", "expected"),
    [
        ("Bob", [], CSR, None, "NAME_INVALID"),
        ("bob", ["Admins"], CSR, None, "NAME_INVALID"),
        ("bob", ["a,b"], CSR, None, "NAME_INVALID"),
        ("bob", ["g"] * 17, CSR, None, "GROUPS_INVALID"),
        ("bob", [], b"x", None, "CSR_INVALID"),
        ("bob", [], CSR, timedelta(minutes=5, seconds=-1), "TTL_INVALID"),
        ("bob", [], CSR, timedelta(days=7, seconds=1), "TTL_INVALID"),
        ("bob", [], CSR, timedelta(seconds=-1), "TTL_INVALID"),
        ("alice", [], CSR, None, "NAME_TAKEN"),
    ],
)
def test_what_cannot_be_added_is_refused_and_so_it_is_when_only_validated(
    house: House, name: str, groups: list[str], csr: bytes, ttl: timedelta | None, expected: str
) -> None:
    for validate_only in (False, True):
        with pytest.raises(BrokerError) as refused:
            house.operators.add(house.call("AddOperator", validate_only=validate_only), name, groups, csr, ttl)
        assert refused.value.reason == expected
    assert house.store.entries == []


def test_validating_only_makes_no_certificate_and_changes_nothing(house: House) -> None:
    signed = len(house.signer.signed)
    before = house.store.rows[Operator].copy()
    asked = house.call("AddOperator", validate_only=True)
    added, issued = house.operators.add(asked, "bob", ["x"], CSR, timedelta(hours=1))
    assert (added.name, issued.pem, issued.serial) == ("bob", b"", "")
    house.add("carol")
    before[("carol",)] = house.stored("carol")

    def only(method: str) -> Call:
        return house.call(method, validate_only=True)

    assert house.operators.set_groups(only("SetOperatorGroups"), "carol", ["y"]).groups == ("y",)
    assert house.operators.remove(only("RemoveOperator"), "carol").state is OperatorState.REMOVED
    house.operators.revoke(only("RevokeCertificates"), "carol")
    with pytest.raises(NotFound):
        house.operators.remove(only("RemoveOperator"), "nobody")
    assert house.store.rows[Operator] == before
    assert len(house.signer.signed) == signed + 1
    assert not asked.closed


def test_an_operator_renews_their_own_certificate_and_no_other(house: House) -> None:
    house.add("bob")
    asked = house.call("RenewCertificate", operator("bob"))
    issued = house.operators.renew(asked, CSR, timedelta(minutes=5))
    assert issued.expires_at == house.clock().replace(microsecond=0) + timedelta(minutes=5)
    recorded = house.store.entries[-1]
    assert (recorded.resource, recorded.facts["certificate_serial"]) == ("operator/bob", issued.serial)
    with pytest.raises(PermissionDenied):
        house.operators.issue(house.call("IssueCertificate", operator("bob")), "bob", CSR, None)
    with pytest.raises(BrokerError):
        house.operators.renew(house.call("RenewCertificate", Principal(kind="pipeline", name="bob")), CSR, None)


def test_an_admin_issues_a_certificate_for_another(house: House) -> None:
    house.add("bob")
    issued = house.operators.issue(house.call("IssueCertificate"), "bob", CSR, timedelta(days=7))
    assert not house.refuses(issued, "bob")
    with pytest.raises(NotFound) as refused:
        house.operators.issue(house.call("IssueCertificate"), "nobody", CSR, None)
    assert refused.value.reason == "OPERATOR_NOT_FOUND"


def test_AN_28_revoked_certificates_are_refused_and_later_ones_taken(house: House) -> None:
    _, first = house.add("bob")
    for _ in range(3):  # within one second
        revoked = house.operators.revoke(house.call("RevokeCertificates"), "bob")
        assert revoked.not_before.microsecond == 0
        assert house.refuses(first, "bob")
        first = house.operators.issue(house.call("IssueCertificate"), "bob", CSR, None)
        assert not house.refuses(first, "bob")
    house.clock.forward(seconds=5)
    late = house.operators.issue(house.call("IssueCertificate"), "bob", CSR, None)
    starts = x509.load_pem_x509_certificate(late.pem).not_valid_before_utc
    assert starts == house.stored("bob").not_before


def test_AZ_12_a_removed_operator_is_refused_for_good_and_the_name_is_not_given_again(house: House) -> None:
    _, issued = house.add("bob", "admins")
    house.operators.remove(house.call("RemoveOperator"), "bob")
    assert house.refuses(issued, "bob")
    attempts: list[Callable[[], object]] = [
        lambda: house.add("bob"),
        lambda: house.operators.issue(house.call("IssueCertificate"), "bob", CSR, None),
        lambda: house.operators.renew(house.call("RenewCertificate", operator("bob", "admins")), CSR, None),
        lambda: house.operators.set_groups(house.call("SetOperatorGroups"), "bob", []),
        lambda: house.operators.revoke(house.call("RevokeCertificates"), "bob"),
        lambda: house.operators.remove(house.call("RemoveOperator"), "bob"),
    ]
    found = []
    for attempt in attempts:
        with pytest.raises(BrokerError) as refused:
            attempt()
        found.append(refused.value.reason)
    assert found == ["NAME_TAKEN"] + ["OPERATOR_REMOVED"] * 5


def test_AZ_14_changed_groups_count_for_the_next_call(house: House) -> None:
    added, _ = house.add("bob")
    changed = house.operators.set_groups(house.call("SetOperatorGroups"), "bob", ["b", "a", "a"])
    assert (changed.groups, changed.revision) == (("a", "b"), added.revision + 1)
    assert house.stored("bob") == changed


def test_AZ_15_who_changed_after_the_decision_is_left_alone(house: House) -> None:
    house.add("bob")
    house.guard.then = lambda: house.operators.set_groups(house.call("SetOperatorGroups"), "bob", ["admins"])
    with pytest.raises(WrongState) as refused:
        house.operators.remove(house.call("RemoveOperator"), "bob")
    assert refused.value.reason == "CHANGED_MEANWHILE"
    assert house.stored("bob").state is OperatorState.ENABLED


@pytest.mark.parametrize("method", ["SetOperatorGroups", "RevokeCertificates", "RemoveOperator"])
def test_a_repeated_request_changes_nothing_again(house: House, method: str) -> None:
    house.add("bob")

    def change() -> Operator:
        asked = house.call(method, request_id=REQUEST)
        if method == "SetOperatorGroups":
            return house.operators.set_groups(asked, "bob", ["x"])
        act = house.operators.revoke if method == "RevokeCertificates" else house.operators.remove
        return act(asked, "bob")

    first = change()
    house.clock.forward(hours=1)
    assert change() == first == house.stored("bob")


def test_nobody_takes_the_right_to_set_the_policy_from_themselves(house: House) -> None:
    house.add("bob", "admins")
    attempts: list[Callable[[], object]] = [
        lambda: house.operators.set_groups(house.call("SetOperatorGroups"), "alice", []),
        lambda: house.operators.set_groups(house.call("SetOperatorGroups"), "alice", ["auditors"]),
        lambda: house.operators.remove(house.call("RemoveOperator"), "alice"),
    ]
    for attempt in attempts:
        with pytest.raises(WrongState) as refused:
            attempt()
        assert refused.value.reason == "POLICY_LOCKS_YOU_OUT"
    assert house.stored("alice").groups == ("admins",)
    house.operators.set_groups(house.call("SetOperatorGroups"), "alice", ["admins", "auditors"])
    house.operators.remove(house.call("RemoveOperator", operator("bob", "admins")), "alice")


def test_a_stolen_key_can_be_revoked_by_its_owner_unless_nobody_else_is_left(house: House) -> None:
    house.add("bob", "auditors")
    house.add("carol", "admins")
    house.operators.remove(house.call("RemoveOperator"), "carol")
    with pytest.raises(WrongState) as refused:
        house.operators.revoke(house.call("RevokeCertificates"), "alice")
    assert refused.value.reason == "POLICY_LOCKS_YOU_OUT"
    house.add("dora", "admins")
    house.operators.revoke(house.call("RevokeCertificates"), "alice")


def test_AZ_04_a_list_shows_only_what_the_policy_lets_one_list() -> None:
    text = FIRST_POLICY + (
        '@id("lists") permit (principal == Operator::"bob", action == Action::"ListOperators", resource) '
        'when { resource is Broker || resource in Group::"team-a" };'
    )
    house = House(text)
    for name, groups in (("bob", ()), ("c1", ("team-a",)), ("c2", ("team-abc",)), ("c3", ("team-a", "x"))):
        house.add(name, *groups)
    seen: list[str] = []
    after: tuple[str | int, ...] = ()
    while True:
        page = house.operators.page(house.call("ListOperators", operator("bob")), after, 2)
        seen += [row.name for row in page.items]
        after = page.next
        if not after:
            break
    assert seen == ["c1", "c3"]
    everybody = house.operators.page(house.call("ListOperators"), (), 100)
    assert ([row.name for row in everybody.items], everybody.next) == (["alice", "bob", "c1", "c2", "c3"], ())


def test_a_caller_without_the_right_learns_nothing_of_who_exists(house: House) -> None:
    house.add("bob")
    said = []
    for name in ("bob", "nobody"):
        with pytest.raises(PermissionDenied) as denied:
            house.operators.remove(house.call("RemoveOperator", operator("carol")), name)
        said.append((denied.value.reason, denied.value.message))
    assert said[0] == said[1]
    assert len(house.store.entries) == 1


def test_everybody_may_ask_who_they_are(house: House) -> None:
    asked = house.call("WhoAmI", operator("nobody-special"))
    house.operators.whoami(asked)
    assert (asked.decision, asked.policies, asked.closed) == ("allow", ("whoami",), False)


def test_the_uri_is_the_spiffe_id() -> None:
    assert operator_uri("broker.example", "alice") == "spiffe://broker.example/operator/alice"


def test_AU_14_the_record_names_every_group_however_long_the_names_are(house: House) -> None:
    groups = sorted([*(f"a{number:02}".ljust(63, "x") for number in range(15)), "z-keepers-of-the-policy"])
    house.add("bob", *groups)
    line, _ = encode(house.store.entries[-1], "chain", 1, "0" * 64)
    assert json.loads(line)["facts"]["groups"].split(",") == groups
