"""Keys that people carry to a target: exported, uploaded by hand, confirmed; on SoftHSM and a real OpenBao."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from broker.core.errors import InvalidRequest, NotFound, PermissionDenied, Unavailable, WrongState
from broker.core.imports.handover import Exported
from broker.core.imports.places import ARRIVAL_GRACE
from broker.core.kinds import ImportState, KeyState, KeyType
from broker.core.model import Import, Key, Terms
from broker.targets import Surroundings, connector
from tests.fakes.refusals import refused
from tests.live.imports.bench import Bench, Mount, same
from tests.live.imports.fault_proxy import LOSE_REQUEST, PASS, FaultProxy
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm


class Carrier(Bench):
    """A bench with people who carry files."""

    def export(self, key: Key, *, kek: bytes = b"", request_id: str = "", dry: bool = False) -> Exported:
        call = self.call("ExportKey", request_id=request_id, validate_only=dry)
        return self.handover.export(call, key.name, 0, "bao", "", kek)

    def confirm(self, key: Key, version: int = 0, *, dry: bool = False, request_id: str = "") -> Import:
        call = self.call("ConfirmImport", validate_only=dry, request_id=request_id)
        return self.handover.confirm(call, key.name, version, "bao").row

    def carry(self, key: Key, file: bytes, road: str = "import") -> None:
        """What `bao write transit/keys/NAME/import @FILE` does."""
        self.mount.server.request("POST", f"{self.mount.path}/keys/{key.name}/{road}", json.loads(file))

    def kek(self) -> bytes:
        der = self.connect("bao", "vault", self.settings).offer().key.public_key
        return load_der_public_key(der).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def bench(openbao: OpenBao, hsm: KeysHsm, tmp_path: Path) -> Iterator[Carrier]:
    made = Carrier(Mount(openbao, tmp_path, openbao.mount), hsm, tmp_path)
    made.register()
    yield made
    made.close()


@pytest.fixture
def proxy(openbao: OpenBao, tmp_path: Path) -> Iterator[FaultProxy]:
    hop = FaultProxy(openbao, tmp_path / "proxy")
    yield hop
    hop.close()


@pytest.fixture
def hopped(openbao: OpenBao, hsm: KeysHsm, tmp_path: Path, proxy: FaultProxy) -> Iterator[Carrier]:
    mount = Mount(openbao, tmp_path, openbao.mount)
    made = Carrier(mount, hsm, tmp_path, frozenset({proxy.host}))
    made.settings = mount.settings(proxy.address, proxy.ca_pem)
    made.register()
    yield made
    made.close()


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.RSA_2048, KeyType.AES_256])
def test_a_carried_key_is_recorded_when_it_is_proven_and_not_before(bench: Carrier, key_type: KeyType) -> None:
    key = bench.key(key_type)
    out = bench.export(key)
    assert (out.row.state, out.row.failure) == (ImportState.PENDING, "EXPORTED")
    assert bench.row(key) == out.row
    assert not bench.arrived(key)
    bench.carry(key, out.transfer_file)
    waiting = bench.row(key)
    assert waiting is not None
    assert waiting.state is ImportState.PENDING
    done = bench.confirm(key)
    assert (done.state, done.remote_version, done.failure) == (ImportState.PROVEN, "1", "")
    assert bench.row(key) == done
    assert same(bench.confirm(key), done)
    assert same(bench.run(key), done)
    refused(lambda: bench.export(key), WrongState, "IMPORT_PROVEN")


def test_a_further_version_is_carried_to_the_same_remote_key(bench: Carrier) -> None:
    key = bench.key()
    bench.run(key)
    rotated = bench.rotate(key)
    bench.carry(key, bench.export(rotated).transfer_file, "import_version")
    assert bench.confirm(rotated).remote_version == "2"


def test_BY_13_an_older_version_is_carried_nowhere_once_a_later_one_is_there(bench: Carrier) -> None:
    key = bench.key()
    bench.run(bench.rotate(key))
    for again in (
        lambda: bench.run(key, 1),
        lambda: bench.handover.export(bench.call("ExportKey"), key.name, 1, "bao", ""),
    ):
        refused(again, WrongState, "NEWER_VERSION_THERE")
    by_file = bench.call("ExportKey")
    refused(
        lambda: bench.handover.export(by_file, key.name, 1, "bao", "", bench.kek()), WrongState, "NEWER_VERSION_THERE"
    )
    assert bench.row(key, 1) is None


def test_the_audit_tells_both_ways_with_the_blob_and_the_kek(bench: Carrier) -> None:
    key = bench.key()
    out = bench.export(key)
    bench.carry(key, out.transfer_file)
    bench.confirm(key)
    lines = [json.loads(line) for line in bench.journalled().splitlines() if f"key/{key.name}" in line]
    told = [(one["rpc"].rpartition("/")[2], one["phase"]) for one in lines]
    assert told == [("ExportKey", "intent"), ("ExportKey", "outcome"), ("ConfirmImport", "intent"),
                    ("ConfirmImport", "outcome")]  # fmt: skip
    assert lines[1]["facts"]["blob_sha256"] == out.blob_sha256
    assert {one["facts"].get("kek_thumbprint") for one in lines[:2]} == {out.row.kek_thumbprint}
    assert "blob_sha256" not in lines[0]["facts"]
    assert (lines[3]["facts"]["state"], lines[3]["facts"]["remote_version"]) == ("proven", "1")


def test_BY_08_no_file_is_written_unless_the_configuration_allows_it(bench: Carrier) -> None:
    key = bench.key()
    hosts = frozenset({bench.mount.server.host})
    bench.import_by(connector(Surroundings(allowed_hosts=hosts, credentials=bench.mount.credentials)))
    assert "exportable" in refused(lambda: bench.export(key), WrongState, "TRANSFER_FILES_OFF").message
    assert bench.row(key) is None
    assert bench.run(key).state is ImportState.PROVEN


def test_BY_14_every_export_is_a_fresh_wrap_and_none_is_kept(bench: Carrier, tmp_path: Path) -> None:
    key, number = bench.key(), str(uuid.uuid4())
    first = bench.export(key, request_id=number)
    again = bench.export(key, request_id=number)
    assert again.row.started_at == first.row.started_at
    assert len({first.blob_sha256, again.blob_sha256, bench.export(key).blob_sha256}) == 3
    blob = json.loads(first.transfer_file)["ciphertext"]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and blob.encode()[:64] in path.read_bytes()]
    assert kept == []


def test_with_the_kek_in_hand_nothing_connects_to_the_target(hopped: Carrier, proxy: FaultProxy) -> None:
    key, kek = hopped.key(), hopped.kek()
    sent = len(proxy.seen)
    out = hopped.export(key, kek=kek)
    assert len(proxy.seen) == sent
    hopped.carry(key, out.transfer_file)
    assert hopped.confirm(key).state is ImportState.PROVEN


def test_BY_01_no_other_kek_than_the_pinned_one_is_wrapped_for(bench: Carrier) -> None:
    key = bench.key(KeyType.RSA_2048)
    public = load_der_public_key(bench.version(key).public_key or b"")
    other = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    refused(lambda: bench.export(key, kek=other), InvalidRequest, "KEK_UNEXPECTED")
    refused(lambda: bench.export(key, kek=b"-----BEGIN nothing"), InvalidRequest, "KEK_FILE_INVALID")
    assert bench.row(key) is None


def test_what_did_not_arrive_fails_and_can_be_confirmed_later(bench: Carrier) -> None:
    key = bench.key()
    refused(lambda: bench.confirm(key), NotFound, "IMPORT_NOT_FOUND")
    out = bench.export(key)
    refused(lambda: bench.confirm(key, dry=True), WrongState, "REMOTE_KEY_MISSING")
    waiting = bench.row(key)
    assert waiting is not None
    assert waiting.state is ImportState.PENDING
    refused(lambda: bench.confirm(key), WrongState, "REMOTE_KEY_MISSING")
    failed = bench.row(key)
    assert failed is not None
    assert (failed.state, failed.failure) == (ImportState.FAILED, "REMOTE_KEY_MISSING")
    bench.carry(key, out.transfer_file)
    assert bench.confirm(key).state is ImportState.PROVEN


def test_BY_10_another_key_under_the_name_is_not_confirmed_and_stays_as_it_is(bench: Carrier) -> None:
    key, other = bench.key(), bench.key()
    bench.export(key)
    bench.carry(key, bench.export(other).transfer_file)
    refused(lambda: bench.confirm(key), WrongState, "REMOTE_KEY_MISSING")
    assert bench.mount.key(key.name)["soft_deleted"] is False


def test_BY_10_a_name_that_is_taken_is_seen_before_anything_is_wrapped(bench: Carrier) -> None:
    key = bench.key()
    bench.mount.server.request("POST", f"{bench.mount.path}/keys/{key.name}", {"type": "ecdsa-p256"})
    refused(lambda: bench.export(key), WrongState, "TARGET_NAME_TAKEN")
    assert bench.row(key) is None


def test_BY_15_an_upload_that_may_be_on_its_way_is_waited_for_here_too(hopped: Carrier, proxy: FaultProxy) -> None:
    key = hopped.key()
    proxy.rule = lambda _method, path: LOSE_REQUEST if path.endswith("/import") else PASS
    refused(lambda: hopped.run(key), Unavailable, "TARGET_UNREACHABLE")
    proxy.rule = lambda _method, _path: PASS
    error = refused(lambda: hopped.confirm(key), Unavailable, "TARGET_UNREACHABLE")
    assert 0 < int(error.metadata["retry_after_seconds"]) <= 61
    refused(lambda: hopped.export(key), Unavailable, "TARGET_UNREACHABLE")
    hopped.clock.forward(seconds=ARRIVAL_GRACE.total_seconds())
    refused(lambda: hopped.confirm(key), WrongState, "REMOTE_KEY_MISSING")
    hopped.carry(key, hopped.export(key).transfer_file)
    assert hopped.confirm(key).state is ImportState.PROVEN
    assert hopped.mount.versions(key.name) == ["1"]


def test_only_what_may_be_imported_is_exported(bench: Carrier) -> None:
    key = bench.key()
    held = bench.version(key)
    bench.change_version(held, replace(held, sealed=True))
    refused(lambda: bench.export(key), WrongState, "KEY_SEALED")
    refused(lambda: bench.export(bench.key(exportable=False)), WrongState, "KEY_NOT_EXPORTABLE")
    off = bench.key()
    out = bench.export(off)
    disabled = bench.change(off, replace(off, state=KeyState.DISABLED))
    refused(lambda: bench.export(off), WrongState, "KEY_STATE")
    bench.carry(off, out.transfer_file)
    refused(lambda: bench.confirm(off), WrongState, "KEY_STATE")
    bench.change(disabled, replace(disabled, state=KeyState.ENABLED))
    assert bench.confirm(off).state is ImportState.PROVEN


def test_a_dry_run_makes_no_file(bench: Carrier) -> None:
    key = bench.key()
    out = bench.export(key, dry=True)
    assert (out.transfer_file, out.blob_sha256, bench.row(key)) == (b"", "", None)


def test_importing_is_no_leave_to_export(bench: Carrier) -> None:
    key, noun = bench.key(), bench.handover
    outsider = bench.call("ConfirmImport", "outsiders")
    refused(lambda: noun.confirm(outsider, key.name, 0, "bao"), PermissionDenied, "POLICY_DENIED")
    operators = bench.call("ExportKey", "key-operators")
    refused(lambda: noun.export(operators, key.name, 0, "bao", ""), PermissionDenied, "POLICY_DENIED")


def test_terms_that_transit_has_not_are_refused_before_anything_is_wrapped(bench: Carrier) -> None:
    key = bench.key()
    for terms in (Terms(enabled=False), Terms(operations=("sign",)), Terms(tags={"a": "b"})):
        call = bench.call("ImportKey")
        refused(
            partial(bench.imports.import_key, call, key.name, 0, "bao", "", terms),
            InvalidRequest,
            "TERMS_UNSUPPORTED",
        )
    assert bench.row(key) is None
    past = Terms(expires_at=bench.clock())
    refused(
        lambda: bench.imports.import_key(bench.call("ImportKey"), key.name, 0, "bao", "", past),
        InvalidRequest,
        "TERMS_INVALID",
    )


def test_a_kek_of_its_own_is_neither_made_nor_chosen(bench: Carrier) -> None:
    call, second = bench.call("CreateTarget"), {**bench.settings, "token_file": "second"}
    refused(
        lambda: bench.targets.create(call, "second", "vault", second, "", create_kek=True),
        WrongState,
        "TARGET_KEK_FIXED",
    )
    again = bench.call("RepinTarget")
    refused(lambda: bench.targets.repin(again, "bao", "0" * 64, "https://x/keys/k/1"), WrongState, "TARGET_KEK_FIXED")
