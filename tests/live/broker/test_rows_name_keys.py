"""An attacker who can write the database names any key by its id, and gets nothing done with it: a row is not a
permission.

The rows are handed to the core as a database's administrator would have left them, on a real token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from broker import own_keys
from broker.core.call import Call
from broker.core.errors import BrokerError
from broker.core.keys.refs import ref
from broker.core.kinds import (
    EncryptionAlgorithm,
    KeyState,
    KeyType,
    KeyUsage,
    Purpose,
    SignatureAlgorithm,
    VersionState,
)
from broker.core.model import Key, KeyVersion, RootKey
from broker.core.operators.authority import Authority
from broker.core.ports import KeyRef
from broker.core.secrets import root_rows
from tests.contracts.hsm.keys import fresh, made, unmade
from tests.fakes.calls import operator
from tests.fakes.refusals import refused
from tests.fakes.secrets import FIELDS, SecretsHouse
from tests.servers.softhsm import KeysHsm
from tests.worlds.world import World

MALLORY = operator("mallory")  # in no group
REFUSED = {"KEY_NOT_THIS"}


class Ground(World):
    """A broker's keys in the token, a database that its administrator writes, and the nouns on both."""

    def __init__(self, hsm: KeysHsm) -> None:
        super().__init__(hsm=hsm)
        self.house = SecretsHouse(self.store, hsm, keep=0, clock=self.clock)
        self.house.put("a/n")
        self.internal = {
            purpose: made(hsm.keyring(purpose), own_keys.unmade(purpose)) for purpose in own_keys.INTERNAL_KEYS
        }
        self.other = self.keys.create(
            self.call("CreateKey", "alice", "admins"), "payments", KeyType.EC_P256, KeyUsage.SIGN,
            exportable=False, labels={}, owner="",
        )  # fmt: skip

    def call(self, method: str, name: str = "mallory", *groups: str) -> Call:
        return self.asked(f"KeyService/{method}", operator(name, *groups))

    @property
    def root(self) -> KeyRef:
        [row] = self.store.page(RootKey, limit=9)
        return root_rows.ref(row)

    def aimed_at(self) -> dict[str, KeyRef]:
        """What no row of a caller's key may reach."""
        found = self.store.version("payments", 1)
        assert found is not None
        return {
            **{purpose.value: key for purpose, key in self.internal.items()},
            "root": self.root,
            "payments": ref(*found),
        }

    def planted(self, name: str, victim: KeyRef, state: KeyState, version: VersionState) -> tuple[Key, KeyVersion]:
        """A key of Mallory's whose row names the victim's id."""
        past = self.clock() - timedelta(hours=1)
        key = Key(
            name=name, type=victim.type, usage=victim.usage, exportable=False, labels={}, owner="operator/mallory",
            state=state, primary=1, latest=1, created_at=past,
            destroy_at=past if state is KeyState.DESTROY_SCHEDULED else None,
        )  # fmt: skip
        row = KeyVersion(
            key=name, number=1, state=version, hsm_id=victim.hsm_id, public_key=victim.public_key,
            sealed=False, created_at=past,
        )  # fmt: skip
        with self.store.write(self.call("Sql").outcome()) as write:
            write.add(key)
            write.add(row)
        return key, row

    def assert_unharmed(self) -> None:
        """Every key that was aimed at does its work."""
        for purpose, key in self.internal.items():
            assert self.hsm.keyring(purpose).sign(key, SignatureAlgorithm.ES256, [b"m"])
        assert self.house.read("a/n").fields == FIELDS
        call_ = self.call("Sign", "alice", "admins")
        assert self.use.sign(call_, "payments", None, [b"m"], prehashed=False).signatures


@pytest.fixture
def ground(hsm: KeysHsm) -> Iterator[Ground]:
    ground = Ground(hsm)
    yield ground
    hsm.keyring(Purpose.ROOT).destroy(ground.root)
    found = ground.store.version("payments", 1)
    assert found is not None
    hsm.destroy(ref(*found))


def test_HS_17_a_pending_row_an_hour_old_destroys_no_key_of_others(ground: Ground) -> None:
    for name, victim in ground.aimed_at().items():
        ground.planted(f"x-{name}", victim, KeyState.PENDING, VersionState.PENDING)
    work = list(ground.keys.chores())
    assert len(work) == 5
    assert {refused(partial(piece, ground.call("Chore"))).reason for _, piece in work} == REFUSED
    ground.assert_unharmed()


def test_HS_17_a_row_that_is_due_for_destruction_destroys_no_key_of_others(ground: Ground) -> None:
    for name, victim in ground.aimed_at().items():
        ground.planted(f"x-{name}", victim, KeyState.DESTROY_SCHEDULED, VersionState.ENABLED)
    work = list(ground.keys.chores())
    assert len(work) == 5
    assert {refused(partial(piece, ground.call("Chore"))).reason for _, piece in work} == REFUSED
    ground.assert_unharmed()


def test_HS_17_a_row_of_ones_own_uses_no_key_of_others(ground: Ground) -> None:
    """Sign as the operator CA gave an admin's certificate, decrypting as the root key a secret."""
    for name, victim in ground.aimed_at().items():
        ground.planted(f"x-{name}", victim, KeyState.ENABLED, VersionState.ENABLED)
        use = ground.use
        if victim.type.symmetric:
            told = {
                refused(partial(use.encrypt, ground.call("Encrypt"), f"x-{name}", None, b"m", b"")).reason,
                refused(partial(use.decrypt, ground.call("Decrypt"), f"x-{name}", 1, None, bytes(60), b"")).reason,
            }
        else:
            told = {refused(partial(use.sign, ground.call("Sign"), f"x-{name}", None, [b"m"], prehashed=False)).reason}
        assert told == REFUSED, name
    ground.assert_unharmed()


def test_HS_17_a_row_of_ones_own_seals_and_completes_no_key_of_others(ground: Ground) -> None:
    admin = ("alice", "admins")
    for name, victim in ground.aimed_at().items():
        key, row = ground.planted(f"x-{name}", victim, KeyState.ENABLED, VersionState.ENABLED)
        refused(partial(ground.keys.seal, ground.call("SealKey", *admin), key.name), reason="KEY_NOT_THIS")
        refused(partial(ground.hsm.generate, ref(key, row), exportable=False), reason="KEY_NOT_THIS")
    ground.assert_unharmed()


def test_HS_17_a_root_keys_row_wraps_with_no_key_of_others(ground: Ground) -> None:
    callers = fresh(ground.hsm, KeyType.AES_256)
    [row] = ground.store.page(RootKey, limit=9)
    with ground.store.write(ground.call("Sql").outcome()) as write:
        write.replace(row, replace(row, hsm_id=callers.hsm_id, check_value=None))
    ground.house.restart()
    refused(partial(ground.house.put, "a/m"), reason="KEY_NOT_THIS")
    refused(partial(ground.house.read, "a/n"), reason="KEY_NOT_THIS")
    with ground.store.write(ground.call("Sql").outcome()) as write:
        [now] = ground.store.page(RootKey, limit=9)
        write.replace(now, replace(row, revision=now.revision))
    ground.house.restart()
    ground.assert_unharmed()
    ground.hsm.destroy(callers)


def test_FT_20_nothing_is_sealed_with_another_key_under_the_root_keys_id(ground: Ground) -> None:
    ring, root = ground.hsm.keyring(Purpose.ROOT), ground.root
    assert root.check is not None
    ring.destroy(root)
    ring.generate(root, exportable=False)
    ground.house.restart()
    refused(partial(ground.house.put, "a/m"), reason="KEY_NOT_THIS")
    refused(partial(ground.house.read, "a/n"), reason="KEY_NOT_THIS")
    assert [one.name for one in ground.store.page(Key, limit=9)] == ["payments"]
    assert ground.house.names() == ["a/n"], "nothing was sealed"
    [row] = ground.store.page(RootKey, limit=9)
    with ground.store.write(ground.call("Sql").outcome()) as write:
        write.replace(row, replace(row, check_value=None))  # so that it can be cleaned away


def test_FT_20_a_root_key_of_an_earlier_release_gets_its_check_value(ground: Ground) -> None:
    [row] = ground.store.page(RootKey, limit=9)
    with ground.store.write(ground.call("Sql").outcome()) as write:
        write.replace(row, replace(row, check_value=None))
    ground.house.restart()
    assert ground.house.work() == 1
    assert ground.root.check is not None
    assert ground.house.work() == 0
    assert ground.house.read("a/n").fields == FIELDS


def test_a_certificate_is_signed_by_no_other_key_than_the_cas(ground: Ground, hsm: KeysHsm) -> None:
    """The files of the folder name the keys of CAs; a public key alone is not one."""
    key = made(hsm.keyring(Purpose.OPERATOR_CA), unmade(KeyType.EC_P256, name=""))
    with pytest.raises(BrokerError) as refusal:
        Authority.create(hsm.keyring(Purpose.SERVER_CA), key.hsm_id, "Operators", ground.clock())
    assert refusal.value.reason == "KEY_NOT_THIS"
    hsm.keyring(Purpose.OPERATOR_CA).destroy(key)


def test_a_decryption_shows_the_right_keys_plaintext_only(hsm: KeysHsm) -> None:
    gcm = EncryptionAlgorithm.AES_GCM
    mine, others = fresh(hsm, KeyType.AES_256), fresh(hsm, KeyType.AES_256)
    sealed = hsm.encrypt(others, gcm, b"canary", b"")
    with pytest.raises(BrokerError) as refusal:
        hsm.decrypt(mine, gcm, sealed, b"")
    assert refusal.value.reason == "CIPHERTEXT_INVALID"
    for key in (mine, others):
        hsm.destroy(key)
