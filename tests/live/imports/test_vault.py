"""Keys generated in SoftHSM, imported into a real OpenBao and proven there; and everything that is refused."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.errors import InvalidRequest, NotFound, PermissionDenied, WrongState
from broker.core.kinds import ImportState, KeyState, KeyType, KeyUsage, SignatureAlgorithm
from broker.core.model import Import
from broker.core.ports import Cargo
from broker.targets import Surroundings, connector
from broker.targets.vault.policy import RIGHTS, line, policy
from tests.fakes.refusals import refused
from tests.live.imports.bench import Bench, Mount, same
from tests.live.imports.fault_proxy import FaultProxy
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm


@pytest.fixture
def mount(openbao: OpenBao, tmp_path: Path) -> Mount:
    """The engine that all share; the names of keys are fresh ones."""
    return Mount(openbao, tmp_path, openbao.mount)


@pytest.fixture
def own_mount(openbao: OpenBao, tmp_path: Path) -> Mount:
    return Mount(openbao, tmp_path / "own")


@pytest.fixture
def proxy(openbao: OpenBao, tmp_path: Path) -> Iterator[FaultProxy]:
    hop = FaultProxy(openbao, tmp_path / "proxy")
    yield hop
    hop.close()


@pytest.fixture
def bench(mount: Mount, hsm: KeysHsm, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(mount, hsm, tmp_path)
    made.register()
    yield made
    made.close()


@pytest.fixture
def hopped(mount: Mount, hsm: KeysHsm, tmp_path: Path, proxy: FaultProxy) -> Iterator[Bench]:
    """As ``bench``, with the fault proxy between the broker and the server."""
    made = Bench(mount, hsm, tmp_path, frozenset({proxy.host}))
    made.settings = mount.settings(proxy.address, proxy.ca_pem)
    made.register()
    yield made
    made.close()


# ---- the main road -----------------------------------------------------------------------------------------------


def test_a_key_is_imported_read_back_and_proven(bench: Bench) -> None:
    key = bench.key()
    done = bench.run(key)
    assert done.state is ImportState.PROVEN
    assert (done.remote_name, done.remote_version, done.version, done.target) == (key.name, "1", 1, "bao")
    assert len(done.blob_sha256) == 64
    assert done.proven_at is not None
    assert bench.row(key) == done
    assert bench.mount.versions(key.name) == ["1"]


def test_what_is_signed_on_either_side_verifies_on_the_other(bench: Bench) -> None:
    key = bench.key()
    bench.run(key)
    message = b"either side"
    port = bench.connect("bao", "vault", bench.settings)
    there = port.sign(key.name, "1", SignatureAlgorithm.ES256, message)
    public = load_der_public_key(bench.version(key).public_key or b"")
    assert isinstance(public, ec.EllipticCurvePublicKey)
    public.verify(there, message, ec.ECDSA(hashes.SHA256()))
    here = bench.hsm.sign(bench.ref(key), SignatureAlgorithm.ES256, [message])[0]
    body = {
        "input": base64.b64encode(message).decode(),
        "signature": "vault:v1:" + base64.b64encode(here).decode(),
    }
    answer = bench.mount.server.request("POST", f"{bench.mount.path}/verify/{key.name}/sha2-256", body)
    assert answer["data"]["valid"] is True


@pytest.mark.parametrize(
    ("key_type", "usage"), [(KeyType.AES_128, None), (KeyType.AES_256, None), (KeyType.RSA_2048, KeyUsage.ENCRYPT)]
)
def test_keys_that_encrypt_are_proven_by_decryption(bench: Bench, key_type: KeyType, usage: KeyUsage | None) -> None:
    assert bench.run(bench.key(key_type, usage)).state is ImportState.PROVEN


def test_the_same_version_again_is_the_same_import_proven_again_and_no_key_is_sent(
    hopped: Bench, proxy: FaultProxy
) -> None:
    key = hopped.key()
    first = hopped.run(key)
    sent = len(proxy.seen)
    for version in (0, 1):
        hopped.clock.forward(minutes=1)
        again = hopped.run(key, version)
        assert same(again, first)
        assert again.proven_at == hopped.clock()
    asked = proxy.seen[sent:]
    assert len(asked) == 4, asked
    assert not [one for one in asked if "import" in one or "wrapping_key" in one]


def test_a_new_version_goes_to_the_same_remote_key(bench: Bench) -> None:
    key = bench.key()
    bench.run(key, remote_name="elsewhere")
    rotated = bench.rotate(key)
    second = bench.run(rotated)
    assert (second.version, second.remote_name, second.remote_version) == (2, "elsewhere", "2")
    assert bench.mount.versions("elsewhere") == ["1", "2"]
    error = refused(lambda: bench.run(bench.rotate(rotated), remote_name="third"), WrongState, "REMOTE_NAME_DIFFERS")
    assert "elsewhere" in error.message


def test_a_new_version_of_a_symmetric_key_is_found_and_proven(bench: Bench) -> None:
    key = bench.key(KeyType.AES_256)
    bench.run(key)
    second = bench.run(bench.rotate(key))
    assert (second.remote_version, second.state) == ("2", ImportState.PROVEN)


def test_a_repeated_request_means_the_version_that_was_primary_then(bench: Bench) -> None:
    key = bench.key()
    request_id = str(uuid.uuid4())
    first = bench.run(key, request_id=request_id)
    bench.rotate(key)
    assert same(bench.run(key, request_id=request_id), first)
    assert bench.mount.versions(key.name) == ["1"]


def test_prove_again_moves_the_date(bench: Bench) -> None:
    key = bench.key()
    first = bench.run(key)
    bench.clock.forward(hours=1)
    again = bench.imports.prove(bench.call("ProveImport"), key.name, 0, "bao").row
    assert first.proven_at is not None
    assert again.proven_at == first.proven_at + timedelta(hours=1)
    assert again == bench.row(key)


def test_validate_only_says_what_would_be_refused_and_changes_nothing(bench: Bench) -> None:
    key = bench.key()

    def dry() -> Import:
        return bench.imports.import_key(bench.call("ImportKey", validate_only=True), key.name, 0, "bao", "").row

    assert dry().state is ImportState.PENDING
    assert bench.row(key) is None
    assert not bench.arrived(key)
    bench.mount.server.request("POST", f"{bench.mount.path}/keys/{key.name}", {"type": "ecdsa-p256"})
    refused(dry, WrongState, "TARGET_NAME_TAKEN")


def test_lists_show_only_keys_that_the_caller_may_get(bench: Bench) -> None:
    keys = [bench.key() for _ in range(3)]
    for key in keys:
        bench.run(key)
    page = bench.imports.page(bench.call("ListImports"), "", "bao", (), 2)
    rest = bench.imports.page(bench.call("ListImports"), "", "bao", page.next, 2)
    assert sorted(row.key for row in page.items + rest.items) == sorted(key.name for key in keys)
    assert rest.next == ()
    assert [row.key for row in bench.imports.page(bench.call("ListImports"), keys[1].name, "", (), 9).items] == [
        keys[1].name
    ]
    refused(
        lambda: bench.imports.page(bench.call("ListImports", "x"), "", "", (), 9), PermissionDenied, "POLICY_DENIED"
    )


def test_the_audit_tells_intent_and_outcome_with_key_version_kek_and_blob(bench: Bench) -> None:
    key = bench.key()
    done = bench.run(key)
    lines = [line for line in bench.journalled().splitlines() if "ImportService/ImportKey" in line]
    assert ["intent" in lines[0], "intent" in lines[1], "outcome" in lines[2], len(lines)] == [True, True, True, 3]
    for fact in (done.kek_thumbprint, done.blob_sha256, f"key/{key.name},target/bao", '"remote_version":"1"'):
        assert all(fact in line for line in lines[1:])
    assert bench.mount.server.broker_token not in bench.journalled()


# ---- refused before anything leaves ------------------------------------------------------------------------------


def test_only_an_enabled_exportable_unsealed_key_is_imported(bench: Bench) -> None:
    key = bench.key()
    disabled = bench.change(key, replace(key, state=KeyState.DISABLED))
    refused(lambda: bench.run(key), WrongState, "KEY_STATE")
    bench.change(disabled, replace(disabled, state=KeyState.ENABLED))
    held = bench.version(key)
    bench.change_version(held, replace(held, sealed=True))
    refused(lambda: bench.run(key), WrongState, "KEY_SEALED")
    kept = bench.key(exportable=False)
    refused(lambda: bench.run(kept), WrongState, "KEY_NOT_EXPORTABLE")
    assert not bench.arrived(key)
    assert not bench.arrived(kept)


def test_a_key_that_the_hsm_will_not_give_fails_and_sends_nothing(bench: Bench) -> None:
    key = bench.key(exportable=False)
    bench.change(key, replace(key, exportable=True))  # a record that lies: the token has the last word
    error = refused(lambda: bench.run(key), WrongState, "KEY_NOT_EXPORTABLE")
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.FAILED, error.reason)
    assert not bench.arrived(key)


def test_key_types_that_transit_has_not_are_refused(bench: Bench) -> None:
    error = refused(lambda: bench.run(bench.key(KeyType.EC_SECP256K1)), InvalidRequest, "KEY_TYPE_UNSUPPORTED")
    assert "secp256k1" in error.message


def test_unknown_things_and_bad_names(bench: Bench) -> None:
    key, run = bench.key(), bench.imports.import_key
    refused(lambda: run(bench.call("ImportKey"), "nobody", 0, "bao", ""), NotFound, "KEY_NOT_FOUND")
    refused(lambda: run(bench.call("ImportKey"), key.name, 7, "bao", ""), NotFound, "KEY_VERSION_NOT_FOUND")
    refused(lambda: run(bench.call("ImportKey"), key.name, 0, "nowhere", ""), NotFound, "TARGET_NOT_FOUND")
    refused(lambda: run(bench.call("ImportKey"), key.name, -1, "bao", ""), InvalidRequest, "VERSION_INVALID")
    for name in ("../x", "a/b", "a\0", "x" * 10_000, "-"):
        refused(partial(run, bench.call("ImportKey"), name, 0, "bao", ""), InvalidRequest, "NAME_INVALID")
        for target, remote in (("bao", name), (name, "")):
            call = bench.call("ImportKey")
            refused(lambda: run(call, key.name, 0, target, remote), InvalidRequest, "NAME_INVALID")  # noqa: B023


def test_a_caller_without_the_right_learns_nothing(bench: Bench) -> None:
    key = bench.key()
    for name in (key.name, "nobody"):
        for target in ("bao", "nowhere"):
            call = bench.call("ImportKey", "outsiders")
            refused(
                partial(bench.imports.import_key, call, name, 0, target, ""),
                PermissionDenied,
                "POLICY_DENIED",
            )
    assert bench.row(key) is None


def test_BY_01_a_changed_kek_is_refused_before_anything_is_wrapped(
    own_mount: Mount, hsm: KeysHsm, tmp_path: Path
) -> None:
    bench = Bench(own_mount, hsm, tmp_path)
    bench.register()
    key = bench.key()
    own_mount.renew()

    class NoWrap:
        report = hsm.report

    bench.import_by(bench.connect, NoWrap())  # type: ignore[arg-type]
    error = refused(lambda: bench.run(key), WrongState, "KEK_CHANGED")
    assert "repin" in error.message
    assert bench.row(key) is None
    assert not bench.arrived(key)
    bench.close()


def test_BY_01_a_lookalike_with_another_certificate_gets_nothing(bench: Bench, proxy: FaultProxy) -> None:
    surroundings = Surroundings(allowed_hosts=frozenset({proxy.host}), credentials=bench.mount.credentials)
    port = connector(surroundings)("bao", "vault", bench.mount.settings(proxy.address, bench.mount.server.ca_pem))
    error = refused(port.offer, WrongState, "TARGET_TLS_UNTRUSTED")
    assert "nothing was sent" in error.message
    assert proxy.seen == []


# ---- the target says no ------------------------------------------------------------------------------------------


def test_BY_10_somebody_elses_key_is_neither_taken_over_nor_added_to(bench: Bench) -> None:
    key = bench.key()
    bench.mount.server.request("POST", f"{bench.mount.path}/keys/{key.name}", {"type": "ecdsa-p256"})
    before = bench.mount.key(key.name)
    refused(lambda: bench.run(key), WrongState, "TARGET_NAME_TAKEN")
    assert bench.mount.key(key.name) == before
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure, row.may_be_there) == (ImportState.FAILED, "TARGET_NAME_TAKEN", False)
    assert bench.run(key, remote_name="another").state is ImportState.PROVEN


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
def test_BY_10_no_further_version_goes_to_a_key_that_was_put_in_ours_place(bench: Bench, key_type: KeyType) -> None:
    key, lookalike = bench.key(key_type), bench.key(key_type)
    bench.run(key)
    bench.run(lookalike, remote_name="lookalike")
    path, request = bench.mount.path, bench.mount.server.request
    request("POST", f"{path}/keys/{key.name}/config", {"deletion_allowed": True})
    request("DELETE", f"{path}/keys/{key.name}")
    request("POST", f"{path}/keys/lookalike/config", {"deletion_allowed": True})
    request("DELETE", f"{path}/keys/lookalike")
    port = bench.connect("bao", "vault", bench.settings)
    chosen = port.oaep_hash(bench.hsm.report().oaep_hashes)
    blob = bench.hsm.wrap(bench.ref(lookalike), port.offer().key, chosen, exact=False)
    port.import_key(Cargo(name=key.name, type=key.type, usage=key.usage, first=True), blob, chosen)
    rotated = bench.rotate(key)
    refused(lambda: bench.run(rotated), WrongState, "TARGET_NAME_TAKEN")
    assert bench.mount.versions(key.name) == ["1"]


def test_a_remote_key_that_was_deleted_is_made_anew_by_the_next_version(bench: Bench) -> None:
    key = bench.key()
    bench.run(key)
    bench.mount.server.request("POST", f"{bench.mount.path}/keys/{key.name}/config", {"deletion_allowed": True})
    bench.mount.server.request("DELETE", f"{bench.mount.path}/keys/{key.name}")
    error = refused(
        lambda: bench.imports.prove(bench.call("ProveImport"), key.name, 1, "bao"), WrongState, "REMOTE_KEY_MISSING"
    )
    assert "import the key again" in error.message
    assert bench.run(key, 1).remote_version == "1"


@pytest.mark.parametrize("flag", ["exportable", "allow_plaintext_backup"])
def test_BY_08_flags_that_would_let_the_key_out_are_read_back(bench: Bench, flag: str) -> None:
    key = bench.key()
    bench.run(key)
    remote = bench.mount.key(key.name)
    for never in ("exportable", "allow_plaintext_backup", "imported_key_allow_rotation", "derived", "deletion_allowed"):
        assert remote[never] is False
    bench.mount.server.request("POST", f"{bench.mount.path}/keys/{key.name}/config", {flag: True})
    call = bench.call("ProveImport")
    error = refused(lambda: bench.imports.prove(call, key.name, 1, "bao"), WrongState, "REMOTE_KEY_EXPOSED")
    assert flag in error.message
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.FAILED, "REMOTE_KEY_EXPOSED")
    assert bench.mount.key(key.name)["soft_deleted"] is False  # it was in use: that is for people to decide
    refused(lambda: bench.run(bench.rotate(key), 1), WrongState, "REMOTE_KEY_EXPOSED")
    assert bench.mount.key(key.name)["soft_deleted"] is True


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
def test_an_import_that_cannot_be_proven_is_disabled_there_and_may_be_tried_again(
    bench: Bench, key_type: KeyType
) -> None:
    key = bench.key(key_type)
    path = bench.mount.path
    proofs = {"sign/+/+", "encrypt/+"}
    bench.mount.give("".join(line(f"{path}/{at}", rights) for at, rights in RIGHTS.items() if at not in proofs))
    error = refused(lambda: bench.run(key), WrongState, "TARGET_DENIED")
    assert f'path "{path}/' in error.message
    assert bench.mount.key(key.name)["soft_deleted"] is True
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure, row.remote_version) == (ImportState.FAILED, "TARGET_DENIED", "1")
    bench.mount.give(policy(path))
    assert bench.run(key).state is ImportState.PROVEN
    assert bench.mount.versions(key.name) == ["1"]
    assert bench.mount.key(key.name)["soft_deleted"] is False


def test_a_further_version_that_cannot_be_proven_says_that_it_stays(bench: Bench) -> None:
    key = bench.key()
    bench.run(key)
    port = bench.connect("bao", "vault", bench.settings)

    class Mute:
        """Signs for the version that is in use, and no more."""

        def __getattr__(self, name: str) -> object:
            return getattr(port, name)

        def sign(self, name: str, version: str, algorithm: SignatureAlgorithm, message: bytes) -> bytes:
            signature = port.sign(name, version, algorithm, message)
            return signature if version == "1" else port.sign(name, version, algorithm, message + b"!")

    bench.import_by(lambda _name, _kind, _settings: Mute())
    rotated = bench.rotate(key)
    error = refused(lambda: bench.run(rotated), WrongState, "REMOTE_KEY_STILL_ENABLED")
    assert all(part in error.message for part in ("not the key in the HSM", "cannot disable version 2"))
    assert bench.mount.key(key.name)["soft_deleted"] is False  # version 1 is in use
    row = bench.row(key, 2)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.DISABLING, "PROOF_FAILED")
