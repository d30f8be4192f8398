"""Registering, checking, pinning and forgetting targets, on a real OpenBao."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core import ports
from broker.core.errors import AlreadyExists, InvalidRequest, NotFound, PermissionDenied, WrongState
from broker.core.kinds import ImportState
from broker.core.model import Target, WrappingKey
from broker.core.targets.keks import check_kek
from broker.targets import Connector, Surroundings
from broker.targets.vault.policy import RIGHTS, SELF, line
from tests.fakes.refusals import refused
from tests.live.imports.bench import Bench, Mount
from tests.servers.openbao import OpenBao, self_signed
from tests.servers.softhsm import KeysHsm


@pytest.fixture
def bench(openbao: OpenBao, hsm: KeysHsm, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(Mount(openbao, tmp_path, openbao.mount), hsm, tmp_path)
    yield made
    made.close()


def create(bench: Bench, expected: str = "", *, name: str = "bao", **changed: str) -> Target:
    return bench.targets.create(bench.call("CreateTarget"), name, "vault", {**bench.settings, **changed}, expected)


def test_create_pins_the_kek_by_id_and_thumbprint(bench: Bench) -> None:
    kek = bench.connect("bao", "vault", bench.settings).offer().key
    made = create(bench, kek.thumbprint)
    assert (made.kek_id, made.kek_thumbprint) == (kek.id, kek.thumbprint)
    assert made.kek_id == f"{bench.mount.server.address}/v1/{bench.mount.path}/wrapping_key"
    assert bench.targets.get(bench.call("GetTarget"), "bao") == made
    assert kek.thumbprint in bench.journalled()


def test_another_kek_than_expected_is_not_pinned(bench: Bench) -> None:
    refused(lambda: create(bench, "0" * 64), WrongState, "KEK_UNEXPECTED")
    refused(lambda: create(bench, "AB" * 20), InvalidRequest, "THUMBPRINT_INVALID")
    refused(lambda: create(bench, "AB:" * 31 + "AB"), WrongState, "KEK_UNEXPECTED")
    assert bench.store.get(Target, "bao") is None


def test_a_name_is_registered_once_and_a_repeated_request_is_the_same(bench: Bench) -> None:
    request_id = str(uuid.uuid4())
    call = bench.call("CreateTarget", request_id=request_id)
    made = bench.targets.create(call, "bao", "vault", dict(bench.settings), "")
    assert call.closed
    bench.mount.give(SELF)  # the token can do nothing any more: the repetition does not ask the target
    again = bench.targets.create(
        bench.call("CreateTarget", request_id=request_id), "bao", "vault", dict(bench.settings), ""
    )
    assert again == made
    refused(lambda: create(bench), AlreadyExists, "TARGET_EXISTS")


def test_validate_only_connects_and_changes_nothing(bench: Bench) -> None:
    call = bench.call("CreateTarget", validate_only=True)
    made = bench.targets.create(call, "bao", "vault", dict(bench.settings), "")
    assert made.kek_thumbprint
    assert bench.store.get(Target, "bao") is None
    assert not call.closed


def test_a_caller_without_the_right_connects_to_nothing(bench: Bench) -> None:
    class Never(Connector):
        def __call__(self, *_: object) -> ports.Target:
            raise AssertionError("connected")

    targets = bench.targets_with(Never(Surroundings(allowed_hosts=frozenset(), credentials=bench.mount.credentials)))
    for action in (
        lambda: targets.create(bench.call("CreateTarget", "x"), "bao", "vault", {}, ""),
        lambda: targets.get(bench.call("GetTarget", "x"), "bao"),
        lambda: targets.check(bench.call("CheckTarget", "x"), "bao"),
        lambda: targets.repin(bench.call("RepinTarget", "x"), "bao", "0" * 64),
        lambda: targets.delete(bench.call("DeleteTarget", "x"), "bao"),
        lambda: targets.page(bench.call("ListTargets", "x"), (), 9),
    ):
        refused(action, PermissionDenied, "POLICY_DENIED")


def test_unknown_targets_are_told_to_those_who_may(bench: Bench) -> None:
    for action in (
        lambda: bench.targets.get(bench.call("GetTarget"), "bao"),
        lambda: bench.targets.check(bench.call("CheckTarget"), "bao"),
        lambda: bench.targets.repin(bench.call("RepinTarget"), "bao", "0" * 64),
        lambda: bench.targets.delete(bench.call("DeleteTarget"), "bao"),
    ):
        refused(action, NotFound, "TARGET_NOT_FOUND")


def test_lists_come_in_pages(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.mount.server.write_token(bench.mount.credentials, name, bench.mount.token)
        create(bench, name=name, token_file=name)
    first = bench.targets.page(bench.call("ListTargets"), (), 2)
    rest = bench.targets.page(bench.call("ListTargets"), first.next, 2)
    assert [row.name for row in first.items + rest.items] == ["a", "b", "c"]
    assert rest.next == ()


def findings(bench: Bench) -> dict[str, tuple[bool, str]]:
    return {probe.name: (probe.passed, probe.detail) for probe in bench.targets.check(bench.call("CheckTarget"), "bao")}


def test_check_finds_all_well(bench: Bench) -> None:
    create(bench)
    found = findings(bench)
    assert [*found] == ["reachable", "authorised", "kek", "wrap", "copies"]
    assert all(passed for passed, _ in found.values())


def test_check_names_every_right_that_the_token_lacks(bench: Bench) -> None:
    create(bench)
    path = bench.mount.path
    missing = ("sign/+/+", "keys/+/import_version")
    bench.mount.give(SELF + "".join(line(f"{path}/{at}", RIGHTS[at]) for at in RIGHTS if at not in missing))
    passed, detail = findings(bench)["authorised"]
    assert not passed
    assert all(f'path "{path}/{at}"' in detail for at in missing)
    assert "decrypt" not in detail


def test_check_tells_a_token_that_may_nothing_from_a_server_that_is_away(
    openbao_own: OpenBao, hsm: KeysHsm, tmp_path: Path
) -> None:
    bench = Bench(Mount(openbao_own, tmp_path, openbao_own.mount), hsm, tmp_path)
    create(bench)
    bench.mount.give(SELF)
    found = findings(bench)
    assert found["reachable"][0]
    assert not found["authorised"][0]
    assert f'path "{bench.mount.path}/wrapping_key"' in found["authorised"][1]
    (bench.mount.credentials / openbao_own.host / bench.mount.token_file).unlink()
    assert findings(bench)["reachable"] == (False, findings(bench)["reachable"][1])
    openbao_own.write_token(bench.mount.credentials, bench.mount.token_file)
    openbao_own.seal()
    assert "unseal" in findings(bench)["reachable"][1]
    openbao_own.stop()
    found = findings(bench)
    assert [passed for passed, _ in found.values()] == [False] * 4 + [True]
    assert openbao_own.host in found["reachable"][1]
    bench.close()


def test_a_changed_kek_is_found_and_pinned_only_when_it_is_the_one_expected(
    openbao: OpenBao, hsm: KeysHsm, tmp_path: Path
) -> None:
    bench = Bench(Mount(openbao, tmp_path), hsm, tmp_path)
    old = create(bench)
    bench.mount.renew()
    assert not findings(bench)["kek"][0]
    offered = bench.connect("bao", "vault", bench.settings).offer().key.thumbprint
    assert offered != old.kek_thumbprint

    def repin(expected: str, **more: bool) -> Target:
        return bench.targets.repin(bench.call("RepinTarget", **more), "bao", expected)  # type: ignore[arg-type]

    refused(lambda: repin(old.kek_thumbprint), WrongState, "KEK_UNEXPECTED")
    refused(lambda: repin(""), InvalidRequest, "THUMBPRINT_INVALID")
    assert repin(offered, validate_only=True).kek_thumbprint == offered
    assert not findings(bench)["kek"][0]
    new = repin(offered)
    assert (new.kek_thumbprint, new.revision) == (offered, old.revision + 1)
    assert findings(bench)["kek"][0]
    bench.close()


def test_a_target_with_keys_is_not_forgotten(bench: Bench) -> None:
    create(bench)
    key = bench.key()
    row = bench.run(key)

    def delete(request_id: str = "", *, dry: bool = False) -> None:
        bench.targets.delete(bench.call("DeleteTarget", request_id=request_id, validate_only=dry), "bao")

    assert key.name in refused(delete, WrongState, "TARGET_IN_USE").message
    refused(lambda: delete(dry=True), WrongState, "TARGET_IN_USE")
    with bench.store.write(bench.call("Test").outcome()) as write:
        row = write.replace(row, replace(row, state=ImportState.PENDING))
    refused(delete, WrongState, "TARGET_IN_USE")
    with bench.store.write(bench.call("Test").outcome()) as write:
        row = write.replace(row, replace(row, state=ImportState.FAILED))
    refused(delete, WrongState, "TARGET_IN_USE")  # it was sent, and may come back
    with bench.store.write(bench.call("Test").outcome()) as write:
        write.replace(row, replace(row, state=ImportState.GONE))
    delete(dry=True)
    assert bench.store.get(Target, "bao") is not None
    request_id = str(uuid.uuid4())
    delete(request_id)
    delete(request_id)  # repeated: done already
    assert bench.store.get(Target, "bao") is None


# ---- registered wrongly --------------------------------------------------------------------------------------------


def test_BY_12_another_ca_is_refused_and_no_token_is_sent(bench: Bench, tmp_path: Path) -> None:
    other = self_signed(tmp_path / "other")[0].read_text()
    refused(lambda: create(bench, ca_pem=other), WrongState, "TARGET_TLS_UNTRUSTED")


def test_BY_12_a_wrong_mount_is_told(bench: Bench) -> None:
    message = refused(lambda: create(bench, mount="nowhere"), WrongState, "TARGET_DENIED").message
    assert "or there is no transit engine at nowhere" in message
    bench.mount.give('path "*" { capabilities = ["read"] }')
    refused(lambda: create(bench, mount="nowhere"), WrongState, "TARGET_MOUNT_MISSING")
    other = f"kv-{bench.mount.path}"
    bench.mount.server.request("POST", f"sys/mounts/{other}", {"type": "kv"})
    refused(lambda: create(bench, mount=other), WrongState, "TARGET_MOUNT_MISSING")


def test_a_wrong_namespace_is_told(bench: Bench) -> None:
    message = refused(lambda: create(bench, namespace="nowhere"), WrongState, "TARGET_MOUNT_MISSING").message
    assert "namespace" in message


def test_a_token_that_is_no_token_is_told_and_not_shown(bench: Bench) -> None:
    bench.mount.server.write_token(bench.mount.credentials, bench.mount.token_file, "s.canary-token")
    assert "canary" not in refused(lambda: create(bench), WrongState, "TARGET_DENIED").message


@pytest.mark.parametrize("bits", [1024, 0])
def test_BY_02_a_kek_that_is_small_or_not_rsa_is_refused(bits: int) -> None:
    private = rsa.generate_private_key(65537, bits) if bits else ec.generate_private_key(ec.SECP256R1())
    der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    refused(lambda: check_kek(WrappingKey(id="x", public_key=der, thumbprint="")), WrongState, "KEK_WEAK")


def test_BY_02_a_kek_that_cannot_be_read_or_is_not_its_thumbprint_is_refused() -> None:
    refused(lambda: check_kek(WrappingKey(id="x", public_key=b"no", thumbprint="")), WrongState, "KEK_WEAK")
    der = (
        rsa.generate_private_key(65537, 2048).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    refused(lambda: check_kek(WrappingKey(id="x", public_key=der, thumbprint="0" * 64)), WrongState, "KEK_WEAK")
