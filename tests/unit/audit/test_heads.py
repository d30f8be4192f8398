from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.audit.heads import Heads, signed_by
from broker.core.entries import head_statement
from broker.core.errors import InvalidRequest, PermissionDenied
from broker.core.kinds import KeyType, KeyUsage, Own
from broker.core.model import AuditHead
from broker.core.ports import KeyRef
from tests.fakes.calls import call, operator
from tests.fakes.signer import Signer
from tests.worlds.world import World, founded

AUDITOR = operator("carol", "auditors")


class House(World):
    def __init__(self) -> None:
        self.signer = Signer()
        key = KeyRef(hsm_id=b"audit-key-000001", type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=None, name="")
        self.key = replace(key, public_key=self.signer.generate(key, exportable=False))
        super().__init__(hsm=self.signer, founding={Own.AUDIT: founded(Own.AUDIT, self.key)})

    def record(self, count: int = 1) -> None:
        for _ in range(count):
            self.store.record(call("KeyService/Sign", AUDITOR, self.clock).outcome())

    def verify(self, head: AuditHead) -> None:
        public_key = load_der_public_key(self.key.public_key or b"")
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        statement = head_statement(head.chain, head.sequence, head.hash, head.signed_at)
        public_key.verify(head.signature, statement, ec.ECDSA(SHA256()))

    def keep(self, chain: str, sequence: int) -> AuditHead:
        head = AuditHead(chain=chain, sequence=sequence, hash="0" * 64, signed_at=self.clock(), signature=b"s")
        self.store.save_head(head)
        return head


@pytest.fixture
def house() -> House:
    return House()


def test_AU_04_a_head_is_signed_by_the_audit_key_over_how_far_the_chain_has_come(house: House) -> None:
    house.record(3)
    [head] = house.heads.sign_due()
    house.verify(head)
    assert (head.chain, head.sequence, head.signed_at) == (
        "memory",
        4,
        house.clock(),
    )  # its first record is the chain's own
    assert house.store.get(AuditHead, "memory", 4) == head
    for forged in (
        replace(head, sequence=2),
        replace(head, hash="0" * 64),
        replace(head, chain="other"),
        replace(head, signed_at=head.signed_at.replace(microsecond=1)),
    ):
        with pytest.raises(InvalidSignature):
            house.verify(forged)


def test_AU_04_a_head_counts_by_the_audit_keys_signature_and_by_nothing_else(house: House) -> None:
    house.record(3)
    [head] = house.heads.sign_due()
    genuine = signed_by(house.key.public_key or b"")
    assert genuine(head)
    for forged in (
        replace(head, sequence=2),
        replace(head, hash="0" * 64),
        replace(head, chain="other"),
        replace(head, chain="übel"),
        replace(head, signed_at=head.signed_at.replace(microsecond=1)),
        replace(head, signature=b""),
        replace(head, signature=head.signature[:-1]),
    ):
        assert not genuine(forged)


def test_a_process_that_answers_nobody_signs_all_the_same(house: House) -> None:
    house.record()
    [head] = Heads.unasked(house.store, house.signer.hsm, house.key, house.clock).sign_due()
    house.verify(head)


def test_AU_03_what_came_after_a_head_gets_the_next_one_and_nothing_is_signed_twice(house: House) -> None:
    assert house.heads.sign_due() == []
    house.record()
    [first] = house.heads.sign_due()
    assert house.heads.sign_due() == []
    house.record(2)
    [second] = house.heads.sign_due()
    assert second.sequence > first.sequence
    assert house.store.page(AuditHead, limit=9) == [first, second]


def test_the_loop_and_callers_never_sign_one_head_twice(house: House) -> None:
    house.record(5)
    threads = [threading.Thread(target=house.heads.sign_due) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(house.store.page(AuditHead, limit=9)) == len(house.signer.signed) == 1


def test_an_auditor_asks_for_a_head_and_gets_what_stands_when_nothing_moved(house: House) -> None:
    house.record()
    asked = call("AuditService/SignAuditHead", AUDITOR, house.clock)
    [head] = house.heads.sign(asked)
    assert house.heads.sign(call("AuditService/SignAuditHead", AUDITOR, house.clock)) == [head]
    assert (asked.facts, asked.closed) == ({"count": 1}, False)


def test_the_state_is_the_key_and_the_newest_head_of_each_chain(house: House) -> None:
    newest = []
    for chain, sequences in (
        ("a", [7]),
        ("a-2", [1, 2, 3]),
        ("b", [*range(1, 400, 7), 2**40]),
        ("c", [2**n for n in range(41)]),
        ("d", [5, 2**53 - 1]),
    ):
        newest.append([house.keep(chain, sequence) for sequence in sequences][-1])
    public_key, heads, _ = house.heads.state(call("AuditService/GetAuditState", AUDITOR, house.clock))
    assert public_key == house.key.public_key
    assert heads == newest


def test_heads_are_listed_in_pages_of_one_chain_or_of_all(house: House) -> None:
    kept = [house.keep(chain, sequence) for chain in ("a", "b") for sequence in range(1, 6)]

    def listed(chain: str) -> list[AuditHead]:
        found: list[AuditHead] = []
        after: tuple[str | int, ...] = ()
        while True:
            page = house.heads.page(call("AuditService/ListAuditHeads", AUDITOR, house.clock), chain, after, 3)
            found += page.items
            after = page.next
            if not after:
                return found

    assert listed("") == kept
    assert listed("b") == kept[5:]
    assert listed("c") == []
    with pytest.raises(InvalidRequest):
        listed("x" * 129)


def test_who_may_not_see_the_audit_gets_nothing_signed(house: House) -> None:
    house.record()
    bob = operator("bob")
    with pytest.raises(PermissionDenied):
        house.heads.sign(call("AuditService/SignAuditHead", bob, house.clock))
    with pytest.raises(PermissionDenied):
        house.heads.state(call("AuditService/GetAuditState", bob, house.clock))
    with pytest.raises(PermissionDenied):
        house.heads.page(call("AuditService/ListAuditHeads", bob, house.clock), "", (), 1)
    assert house.signer.signed == []
