"""The key noun on a real SQLite store and the software HSM that the HSM's contract suite proves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.core import signatures
from broker.core.call import Call
from broker.core.errors import (
    AlreadyExists,
    BrokerError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
    WrongState,
)
from broker.core.inventory.lifecycle import Filter
from broker.core.keys.making import UNDO_AFTER
from broker.core.kinds import EncryptionAlgorithm, KeyState, KeyType, KeyUsage, VersionState
from broker.core.model import Key, KeyVersion
from broker.core.ports import KeyRef
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY
from tests.fakes.calls import operator
from tests.fakes.hsm import SoftwareHsm
from tests.servers.databases import migrate
from tests.servers.patience import PATIENCE
from tests.worlds.world import World

START = datetime(2030, 1, 1, tzinfo=UTC)


class LosableHsm(SoftwareHsm):
    """Goes away for the next key that is to be made."""

    lost = False

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        if self.lost:
            self.lost = False
            raise Unavailable("HSM_UNAVAILABLE", "gone")
        return super().generate(key, exportable=exportable, fresh=fresh)


class Bench(World):
    """A world with an HSM to break."""

    def __init__(self, store: SqlStore) -> None:
        super().__init__(store, LosableHsm())
        self.clock.time = START

    def call(
        self,
        rpc: str,
        request_id: str = "",
        *,
        who: str = "alice",
        groups: tuple[str, ...] = ("admins",),
        digest: str = "d",
        dry: bool = False,
    ) -> Call:
        how = {"request_id": request_id, "digest": digest, "validate_only": dry}
        return self.asked(f"KeyService/{rpc}", operator(who, *groups), **how)

    def create(self, name: str = "payments", key_type: KeyType = KeyType.EC_P256, request_id: str = "") -> Key:
        usage = KeyUsage.ENCRYPT if key_type.symmetric else KeyUsage.SIGN
        return self.make(self.call("CreateKey", request_id), name, key_type, usage)

    def make(self, call: Call, name: str, key_type: KeyType, usage: KeyUsage, *, exportable: bool = False) -> Key:
        return self.keys.create(call, name, key_type, usage, exportable=exportable, labels={"team": "a"}, owner="")

    def chores(self) -> int:
        return self.do_chores(self.keys)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    config = StoreConfig(
        url=f"sqlite:///{tmp_path / 'broker.db'}", journal=tmp_path / "journal", patience_seconds=PATIENCE
    )
    migrate(config)
    store = SqlStore(config, ROW_KEY, lambda: START)
    yield Bench(store)
    store.close()


def test_a_new_key_is_enabled_owned_by_its_maker_and_signs(bench: Bench) -> None:
    key = bench.create()
    assert (key.state, key.primary, key.owner) == (KeyState.ENABLED, 1, "operator/alice")
    signed = bench.use.sign(bench.call("Sign"), "payments", None, [b"one", b"two"], prehashed=False)
    _, version = bench.keys.public_key(bench.call("GetPublicKey"), "payments", 0)
    assert version.public_key is not None
    for message, signature in zip([b"one", b"two"], signed.signatures, strict=True):
        assert signatures.verify(version.public_key, signed.algorithm, message, signature)
        assert not signatures.verify(version.public_key, signed.algorithm, message + b"!", signature)


def test_a_repeated_request_makes_one_key(bench: Bench) -> None:
    request_id = str(uuid.uuid4())
    first, again = bench.create(request_id=request_id), bench.create(request_id=request_id)
    assert first == again
    assert bench.hsm.calls["generate"] == 1


def test_a_request_id_used_for_another_request_is_refused(bench: Bench) -> None:
    request_id = str(uuid.uuid4())
    bench.create(request_id=request_id)
    with pytest.raises(AlreadyExists) as caught:
        bench.make(bench.call("CreateKey", request_id, digest="other"), "other", KeyType.EC_P256, KeyUsage.SIGN)
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert bench.store.get(Key, "other") is None


def test_a_taken_name_is_refused_without_asking_the_hsm(bench: Bench) -> None:
    bench.create()
    with pytest.raises(AlreadyExists) as caught:
        bench.create()
    assert caught.value.reason == "NAME_TAKEN"
    assert bench.hsm.calls["generate"] == 1


def test_validate_only_checks_and_changes_nothing(bench: Bench) -> None:
    seen = bench.make(bench.call("CreateKey", dry=True), "payments", KeyType.EC_P256, KeyUsage.SIGN)
    assert seen.name == "payments"
    assert bench.store.get(Key, "payments") is None
    with pytest.raises(PermissionDenied):
        bench.make(bench.call("CreateKey", dry=True, groups=()), "payments", KeyType.EC_P256, KeyUsage.SIGN)


def test_rotation_moves_the_primary_and_keeps_the_old_version_for_verify_and_decrypt(bench: Bench) -> None:
    bench.create("sealing", KeyType.AES_256)
    old = bench.use.encrypt(bench.call("Encrypt"), "sealing", None, b"hello", b"a")
    assert bench.keys.rotate(bench.call("RotateKey"), "sealing").primary == 2
    new = bench.use.encrypt(bench.call("Encrypt"), "sealing", None, b"hello", b"a")
    assert (old.version, new.version) == (1, 2)
    for sealed in (old, new):
        plain, number = bench.use.decrypt(bench.call("Decrypt"), "sealing", 0, None, sealed.ciphertext, b"a")
        assert (plain, number) == (b"hello", sealed.version)


def test_an_rsa_ciphertext_that_looks_like_an_aes_header_is_decrypted(bench: Bench) -> None:
    bench.make(bench.call("CreateKey"), "box", KeyType.RSA_2048, KeyUsage.ENCRYPT)
    while True:
        sealed = bench.use.encrypt(bench.call("Encrypt"), "box", None, b"hello", b"")
        if sealed.ciphertext[0] == 1:
            break
    assert bench.use.decrypt(bench.call("Decrypt"), "box", 0, sealed.algorithm, sealed.ciphertext, b"")[0] == b"hello"


@pytest.mark.parametrize(
    ("key_type", "usage"),
    [(KeyType.EC_P256, KeyUsage.ENCRYPT), (KeyType.AES_256, KeyUsage.SIGN), (KeyType.ED25519, KeyUsage.ENCRYPT)],
)
def test_a_usage_that_a_type_cannot_have_is_refused(bench: Bench, key_type: KeyType, usage: KeyUsage) -> None:
    with pytest.raises(InvalidRequest) as caught:
        bench.make(bench.call("CreateKey"), "odd", key_type, usage)
    assert caught.value.reason == "USAGE_MISMATCH"


def test_a_key_has_one_purpose(bench: Bench) -> None:
    bench.create("sealing", KeyType.AES_256)
    with pytest.raises(WrongState) as caught:
        bench.use.sign(bench.call("Sign"), "sealing", None, [b"x"], prehashed=False)
    assert caught.value.reason == "KEY_USAGE"


def test_a_disabled_key_does_nothing_until_it_is_enabled(bench: Bench) -> None:
    bench.create()
    bench.keys.disable(bench.call("DisableKey"), "payments")
    with pytest.raises(WrongState):
        bench.use.sign(bench.call("Sign"), "payments", None, [b"x"], prehashed=False)
    bench.keys.enable(bench.call("EnableKey"), "payments")
    assert bench.use.sign(bench.call("Sign"), "payments", None, [b"x"], prehashed=False).version == 1


def test_destruction_waits_can_be_cancelled_and_then_is_for_good(bench: Bench) -> None:
    bench.create()
    bench.keys.schedule_destruction(bench.call("ScheduleKeyDestruction"), "payments", timedelta(days=2))
    assert bench.chores() == 0
    assert bench.keys.cancel_destruction(bench.call("CancelKeyDestruction"), "payments").state is KeyState.DISABLED
    bench.keys.schedule_destruction(bench.call("ScheduleKeyDestruction"), "payments", timedelta(days=2))
    bench.clock.time += timedelta(days=2)
    with pytest.raises(WrongState) as caught:
        bench.keys.cancel_destruction(bench.call("CancelKeyDestruction"), "payments")
    assert caught.value.reason == "DESTRUCTION_DUE"
    assert bench.chores() == 1
    gone, version = bench.store.get(Key, "payments"), bench.store.get(KeyVersion, "payments", 1)
    assert gone is not None
    assert version is not None
    assert (gone.state, version.state) == (KeyState.DESTROYED, VersionState.DESTROYED)
    assert bench.hsm.calls["destroy"] == 1
    with pytest.raises(AlreadyExists):
        bench.create()


@pytest.mark.parametrize("delay", [timedelta(0), timedelta(days=-1), timedelta(days=31), timedelta(hours=23)])
def test_a_destruction_delay_out_of_range_is_refused(bench: Bench, delay: timedelta) -> None:
    bench.create()
    with pytest.raises(InvalidRequest) as caught:
        bench.keys.schedule_destruction(bench.call("ScheduleKeyDestruction"), "payments", delay)
    assert caught.value.reason == "DELAY_OUT_OF_RANGE"


def test_a_sealed_key_is_not_exportable_any_more(bench: Bench) -> None:
    bench.make(bench.call("CreateKey"), "payments", KeyType.EC_P256, KeyUsage.SIGN, exportable=True)
    assert not bench.keys.seal(bench.call("SealKey"), "payments").exportable
    version = bench.store.get(KeyVersion, "payments", 1)
    assert version is not None
    assert version.sealed
    assert not bench.keys.seal(bench.call("SealKey"), "payments").exportable


def test_what_a_lost_hsm_left_pending_is_resumed_under_the_same_request_id(bench: Bench) -> None:
    request_id = str(uuid.uuid4())
    bench.hsm.lost = True
    with pytest.raises(Unavailable):
        bench.create(request_id=request_id)
    pending = bench.store.get(Key, "payments")
    assert pending is not None
    assert pending.state is KeyState.PENDING
    assert bench.create(request_id=request_id).state is KeyState.ENABLED


def test_what_nobody_came_back_for_is_undone_and_its_name_is_free(bench: Bench) -> None:
    bench.hsm.lost = True
    with pytest.raises(Unavailable):
        bench.create(request_id=str(uuid.uuid4()))
    assert bench.chores() == 0
    bench.clock.time += UNDO_AFTER + timedelta(seconds=1)
    assert bench.chores() == 1
    assert bench.store.get(Key, "payments") is None
    assert bench.create().state is KeyState.ENABLED


def test_a_rotation_that_died_leaves_the_old_version_in_use(bench: Bench) -> None:
    bench.create()
    bench.hsm.lost = True
    with pytest.raises(Unavailable):
        bench.keys.rotate(bench.call("RotateKey"), "payments")
    bench.clock.time += UNDO_AFTER + timedelta(seconds=1)
    assert bench.chores() == 1
    failed, key = bench.store.get(KeyVersion, "payments", 2), bench.store.get(Key, "payments")
    assert failed is not None
    assert key is not None
    assert (failed.state, key.primary, key.latest) == (VersionState.FAILED, 1, 2)
    assert bench.keys.rotate(bench.call("RotateKey"), "payments").primary == 3


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a\0", "a" * 10_000, "-a", "a-", "a--b", "ä", "a b", " root "])
def test_AZ_01_a_name_outside_the_grammar_is_refused_before_anything_is_looked_up(bench: Bench, name: str) -> None:
    for attempt in (
        lambda: bench.create(name),
        lambda: bench.inventory.get(bench.call("GetKey"), name),
        lambda: bench.use.sign(bench.call("Sign"), name, None, [b"x"], prehashed=False),
    ):
        with pytest.raises(InvalidRequest) as caught:
            attempt()
        assert caught.value.reason == "NAME_INVALID"
        assert len(name) < 5 or name not in caught.value.message


def test_an_absent_key_is_told_only_to_those_who_may_know(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.inventory.get(bench.call("GetKey"), "nothing")
    bench.create("something")
    refusals = []
    for name in ("nothing", "something"):
        with pytest.raises(PermissionDenied) as caught:
            bench.inventory.get(bench.call("GetKey", groups=(), who="eve"), name)
        refusals.append((caught.value.reason, caught.value.message.replace(name, "")))
    assert refusals[0] == refusals[1]


def test_a_list_shows_what_the_caller_may_get_and_goes_on_from_where_it_stopped(bench: Bench) -> None:
    names = [f"k{number}" for number in range(5)]
    for name in names:
        bench.create(name)
    page = bench.inventory.page(bench.call("ListKeys"), Filter(), (), 2)
    seen = list(page.items)
    while page.next:
        page = bench.inventory.page(bench.call("ListKeys"), Filter(), page.next, 2)
        seen += page.items
    assert [entry.key.name for entry in seen] == names


@pytest.mark.parametrize("use", ["sign", "encrypt", "decrypt"])
def test_a_use_costs_one_hsm_call(bench: Bench, use: str) -> None:
    bench.create("signing")
    bench.create("sealing", KeyType.AES_256)
    sealed = bench.use.encrypt(bench.call("Encrypt"), "sealing", None, b"x", b"").ciphertext
    bench.hsm.calls.clear()
    if use == "sign":
        bench.use.sign(bench.call("Sign"), "signing", None, [b"x"], prehashed=False)
    elif use == "encrypt":
        bench.use.encrypt(bench.call("Encrypt"), "sealing", EncryptionAlgorithm.AES_GCM, b"x", b"")
    else:
        bench.use.decrypt(bench.call("Decrypt"), "sealing", 0, None, sealed, b"")
    assert {name: count for name, count in bench.hsm.calls.items() if name != "report"} == {use: 1}


def test_a_tampered_ciphertext_is_refused_with_one_reason(bench: Bench) -> None:
    bench.create("sealing", KeyType.AES_256)
    sealed = bench.use.encrypt(bench.call("Encrypt"), "sealing", None, b"hello", b"").ciphertext
    reasons = set()
    for position in range(5, len(sealed)):
        broken = bytearray(sealed)
        broken[position] ^= 1
        with pytest.raises(BrokerError) as caught:
            bench.use.decrypt(bench.call("Decrypt"), "sealing", 0, None, bytes(broken), b"")
        reasons.add(caught.value.reason)
    assert reasons == {"CIPHERTEXT_INVALID"}


@pytest.mark.parametrize(("kind", "size", "words"), [
    (KeyType.ED25519, 32, "message whole, of at most 64 KiB"),
    (KeyType.EC_P384, 32, "48 bytes, by SHA384, and this one has 32"),
    (KeyType.EC_P256, 64, "is hexadecimal, where bytes are wanted"),
])  # fmt: skip
def test_K12_a_digest_that_does_not_fit_the_key_is_told_what_does(
    bench: Bench, kind: KeyType, size: int, words: str
) -> None:
    bench.create("signing", kind)
    with pytest.raises(BrokerError) as caught:
        bench.use.sign(bench.call("Sign"), "signing", None, [b"a" * size], prehashed=True)
    assert caught.value.reason == "DIGEST_LENGTH"
    assert words in caught.value.message


@pytest.mark.parametrize("wrong", [b"", b"\1" * 32, b"AQAAAAE" * 10])
def test_K12_what_is_no_ciphertext_at_all_is_named(bench: Bench, wrong: bytes) -> None:
    bench.create("sealing", KeyType.AES_256)
    with pytest.raises(BrokerError) as caught:
        bench.use.decrypt(bench.call("Decrypt"), "sealing", 0, None, wrong, b"")
    assert caught.value.reason in {"CIPHERTEXT_INVALID", "KEY_VERSION_NOT_FOUND"}
    assert ("base64" in caught.value.message) is (wrong[:2] == b"AQ")


def test_K19_verify_says_what_was_expected_and_what_came(bench: Bench) -> None:
    bench.create()
    (old,) = bench.use.sign(bench.call("Sign"), "payments", None, [b"m"], prehashed=False).signatures
    assert bench.use.verify(bench.call("Verify"), "payments", 0, None, b"m", old, prehashed=False) == (True, 1, "")
    bench.keys.rotate(bench.call("RotateKey"), "payments")
    valid, version, told = bench.use.verify(bench.call("Verify"), "payments", 0, None, b"m", old, prehashed=False)
    assert (valid, version) == (False, 2)
    assert "by version 2 with ES256" in told
    assert "It is one by version 1 of the key" in told
