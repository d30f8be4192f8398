"""The folder of certificates of each host follows the rows, and what it says is held against the token."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from broker import own_files, own_keys, own_rows, setup
from broker.config import Config
from broker.core.audit.heads import signed_by
from broker.core.authorities.plans import OVERLAP, TITLES
from broker.core.kinds import Own, OwnKeyState, Purpose
from broker.core.operators.authority import Authority
from broker.core.own_key import OwnKey
from broker.core.ports import KeyRef
from broker.store.genuine import genuine_by
from tests.crash.scenes_authorities import OwnWorld
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import ending, refused
from tests.unit.broker.test_setup import configured


class Host:
    """A folder of its own, and the rows and the token of all."""

    def __init__(self, folder: Path, world: OwnWorld) -> None:
        folder.mkdir()
        self.world = world
        self.config: Config = configured(folder).model_copy(update={"trust_domain": world.parts.trust_domain})
        founding = world.ground.founding
        for name in TITLES:
            self.write(f"{name}.pem", founding[name].certificate.encode())
        key = serialization.load_der_public_key(founding[Own.AUDIT].public_key)
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        self.write("audit.pem", key.public_bytes(*form))
        self.write("page.key", bytes(32))

    def write(self, name: str, content: bytes) -> None:
        own_keys.write_private(self.config.certificates / name, content)

    def follow(self) -> bool:
        own = self.world.elsewhere().own_keys
        return own_files.follow(self.config, own)

    def check(self) -> None:
        own_keys.check_internal_keys(self.config, self.world.ground.hsm)

    def subjects(self, name: str) -> int:
        return len(x509.load_pem_x509_certificates((self.config.certificates / name).read_bytes()))


@pytest.fixture
def world() -> OwnWorld:
    return OwnWorld()


@pytest.fixture
def host(tmp_path: Path, world: OwnWorld) -> Host:
    return Host(tmp_path / "one", world)


@pytest.fixture
def rotate(world: OwnWorld) -> Callable[..., None]:
    def rotated(*names: Own, over: bool = False) -> None:
        for name in names or Own:
            world.authorities.rotate(world.asked("AuthorityService/RotateAuthority"), name)
            if over:
                world.clock.time += OVERLAP[name]
                world.do_chores(world.authorities)

    return rotated


def strange(purpose: Purpose, host: Host) -> tuple[KeyRef, bytes]:
    """A CA of another token."""
    return Authority.create(OwnWorld().ground.hsm.keyring(purpose), b"broker/planted-1", "x", host.world.clock())


def test_nothing_is_written_where_nothing_was_rotated(host: Host) -> None:
    assert not host.follow()
    assert not (host.config.certificates / own_files.FILE).exists()
    host.check()
    assert own_files.active(host.config, Own.AUDIT).version == 1


def test_every_host_follows_and_knows_the_keys_of_the_token_by_its_files(
    tmp_path: Path, host: Host, rotate: Callable[..., None]
) -> None:
    other = Host(tmp_path / "other", host.world)
    rotate()
    for one in (host, other):
        assert one.follow()
        assert not one.follow(), "once"
        one.check()
        assert (one.subjects("operator-ca.pem"), one.subjects("server-ca.pem")) == (2, 2)
        assert own_keys.internal_key(one.config, Purpose.AUDIT).name == "2"
        ca = own_keys.authority(one.config, host.world.ground.hsm, Purpose.OPERATOR_CA)
        assert ca.certificate.count(b"BEGIN") == 1
    for name in Own:
        there, stored = own_files.active(host.config, name), host.world.elsewhere().own_keys.active(name)
        assert replace(there, revision=stored.revision) == stored


def test_the_server_s_certificate_is_of_the_ca_in_force_with_what_leads_to_it(
    host: Host, rotate: Callable[..., None]
) -> None:
    hsm, now = host.world.ground.hsm, host.world.clock
    assert setup.renew_server_certificate(host.config, hsm, now(), ("localhost",))
    assert not setup.renew_server_certificate(host.config, hsm, now())
    rotate(Own.SERVER_CA)
    host.follow()
    assert setup.renew_server_certificate(host.config, hsm, now())
    assert not setup.renew_server_certificate(host.config, hsm, now())
    leaf, link = x509.load_pem_x509_certificates(host.config.server.certificate_file.read_bytes())
    new, old = x509.load_pem_x509_certificates((host.config.certificates / "server-ca.pem").read_bytes())
    leaf.verify_directly_issued_by(new)
    link.verify_directly_issued_by(old)
    assert link.public_key() == new.public_key()
    assert setup.signed_here(leaf, host.config)


def test_what_is_destroyed_leaves_the_files_and_stays_known(host: Host, rotate: Callable[..., None]) -> None:
    rotate(over=True)
    host.follow()
    assert (host.subjects("operator-ca.pem"), host.subjects("server-ca.pem")) == (1, 1)
    assert not (host.config.certificates / "page.key").exists()
    host.check()
    known = own_files.known(host.config, Own.SERVER_CA)
    assert [one.state for one in known] == [OwnKeyState.DESTROYED, OwnKeyState.ACTIVE]
    assert own_files.links(host.config).count(b"BEGIN") == 1, "clients of the old CA are led on"


def test_a_folder_from_before_the_rotation_is_told_from_a_token_that_lacks_the_key(
    host: Host, rotate: Callable[..., None]
) -> None:
    rotate(Own.AUDIT, over=True)
    assert "older copy" in refused(host.check, reason="KEY_NOT_IN_HSM").message


@pytest.mark.parametrize("name", ["operator-ca", "server-ca", "audit"])
def test_O_13_a_planted_ca_or_key_is_not_trusted_after_a_rotation_either(
    host: Host, rotate: Callable[..., None], name: str
) -> None:
    rotate()
    host.follow()
    planted = Authority.create(
        OwnWorld().ground.hsm.keyring(Purpose.SERVER_CA), b"broker/planted-1", "x", host.world.clock()
    )
    key = serialization.load_der_public_key(planted[0].public_key or b"")
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    host.write(f"{name}.pem", key.public_bytes(*form) if name == "audit" else planted[1])
    assert ending(host.check) == "HSM_NOT_OURS"
    assert host.follow()
    host.check()


def test_O_13_a_version_that_the_token_does_not_have_under_its_name_is_not_believed(
    host: Host, rotate: Callable[..., None]
) -> None:
    rotate(Own.OPERATOR_CA)
    host.follow()
    file = host.config.certificates / own_files.FILE
    planted = Authority.create(
        OwnWorld().ground.hsm.keyring(Purpose.OPERATOR_CA), b"broker/planted-1", "x", host.world.clock()
    )
    found = json.loads(file.read_text())
    for one in found:
        if (one["name"], one["state"]) == ("operator-ca", "active"):
            one |= {"public_key": (planted[0].public_key or b"").hex(), "certificate": planted[1].decode()}
            one["link"] = ""
    file.write_text(json.dumps(found))
    assert ending(host.check) == "HSM_NOT_OURS"


@pytest.mark.parametrize("content", ["", "{", "[{}]", "[1]", '{"a": 1}', "[" * 100_000])
def test_a_damaged_file_is_refused_in_a_sentence(host: Host, content: str) -> None:
    (host.config.certificates / own_files.FILE).write_text(content)
    assert ending(host.check) == "FILE_DAMAGED"


def test_a_folder_that_cannot_be_written_says_what_to_do(host: Host, rotate: Callable[..., None]) -> None:
    rotate(Own.AUDIT)
    (host.config.certificates / "audit.pem").unlink()
    (host.config.certificates / "audit.pem").mkdir()  # as little as into a read-only folder, for root too
    assert "writable" in refused(host.follow, reason="CERTIFICATE_NOT_WRITTEN").message


def test_a_process_that_knows_less_than_the_files_does_not_set_them_back(
    host: Host, rotate: Callable[..., None]
) -> None:
    earlier = host.world.elsewhere().own_keys
    rotate(Own.AUDIT)
    host.follow()
    there = (host.config.certificates / own_files.FILE).read_bytes()
    assert not own_files.follow(host.config, earlier)
    assert (host.config.certificates / own_files.FILE).read_bytes() == there


def test_a_database_from_before_the_rotation_is_told_what_the_files_and_the_token_know(
    host: Host, rotate: Callable[..., None]
) -> None:
    rotate(Own.AUDIT)
    rotate(Own.AUDIT, Own.SERVER_CA)
    host.follow()
    host.check()
    older: Any = MemoryStore()
    assert own_rows.restore(host.config, host.world.ground.hsm, older, host.world.clock) == 5
    assert own_rows.restore(host.config, host.world.ground.hsm, older, host.world.clock) == 0
    rows = older.page(OwnKey, limit=100)
    assert [(row.name, row.version, row.state.value) for row in rows] == [
        ("audit", 1, "former"), ("audit", 2, "former"), ("audit", 3, "active"),
        ("server-ca", 1, "former"), ("server-ca", 2, "active"),
    ]  # fmt: skip
    assert older.entries[-1].rpc == "-/OwnKeys"


def test_heads_of_a_later_key_count_by_the_hand_overs_of_the_journal(
    tmp_path: Path, world: OwnWorld, rotate: Callable[..., None]
) -> None:
    """So a folder and a database from before a rotation are still told from the journal."""
    old = world.own_keys.active(Own.AUDIT).public_key or b""
    rotate(Own.AUDIT)
    world.store.record(world.own("x").outcome())
    [head] = world.heads.sign_due()
    assert not signed_by(old)(head)
    journal = tmp_path / "journal"
    journal.mkdir()
    genuine = genuine_by(lambda: {old}, journal)
    assert not genuine(head), "no hand-over is there"
    [handover] = world.own_keys.handovers()
    lines = [
        b"{}",
        b'not json "successor_signature":"',
        json.dumps({"facts": dict(handover)}, separators=(",", ":")).encode(),
    ]
    file = journal / "broker-20261130T212405698637Z-951779564a16235a.000001.jsonl"
    file.write_bytes(b"\n".join(lines))
    assert genuine_by(lambda: {old}, journal)(head)
    assert not genuine_by(set, journal)(head), "without a key that is known, none counts"
