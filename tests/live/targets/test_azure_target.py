"""The Azure target on the strict fake: what it refuses before anything is sent, and what exactly it sends."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker.core import ports
from broker.core.errors import InvalidRequest
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import Terms, WrappingKey
from tests.fakes.refusals import refused
from tests.servers.azure import put_kek, target_of
from tests.servers.azure_key_vault import FakeVault
from tests.servers.fake_azure import pkcs8, public_kek, wrapped

P256, SIGN, SHA1 = KeyType.EC_P256, KeyUsage.SIGN, OaepHash.SHA1
MARK = "0" * 32


def cargo(name: str, key_type: KeyType = P256, usage: KeyUsage = SIGN, *, first: bool = True) -> ports.Cargo:
    return ports.Cargo(name=name, type=key_type, usage=usage, first=first)


class Bench:
    """A vault, a target of it, and keys whose bytes the test knows."""

    def __init__(self, vault: FakeVault, folder: Path) -> None:
        self.vault, self.folder = vault, folder
        self.kek = put_kek(vault)
        self.port = target_of(vault, self.kek, folder)

    def blob(self, target: bytes | None = None) -> bytes:
        return wrapped(public_kek(self.vault), target or pkcs8(ec.generate_private_key(ec.SECP256R1())))

    def imported(self, name: str, *, first: bool = True) -> str:
        self.port.import_key(cargo(name, first=first), self.blob(), SHA1)
        return str(self.port.versions(name)[-1].version)

    def fill(self, count: int) -> list[str]:
        """That many keys, and their names."""
        names = [f"k-{number:02}" for number in range(count)]
        for name in names:
            self.port.import_key(cargo(name), self.blob(), SHA1)
        return names

    def sent(self, method: str) -> list[str]:
        return [seen.path for seen in self.vault.requests if seen.method == method]


@pytest.fixture
def bench(premium: FakeVault, tmp_path: Path) -> Bench:
    return Bench(premium, tmp_path)


# ---- the KEK -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "reason", "says"), [
    ({"key_ops": ("import", "encrypt")}, "KEK_UNSUITABLE", "more than import"),
    ({"key_ops": ("wrapKey", "unwrapKey")}, "KEK_UNSUITABLE", "more than import"),
    ({"key_ops": ()}, "KEK_UNSUITABLE", "more than import"),
    ({"kty": "RSA"}, "KEK_UNSUITABLE", "RSA-HSM"),
    ({"bits": 1024}, "KEK_WEAK", "2048"),
])  # fmt: skip
def test_BY_02_a_kek_that_can_do_more_or_is_weaker_than_it_should_is_refused(
    premium: FakeVault, tmp_path: Path, options: dict[str, Any], reason: str, says: str
) -> None:
    port = target_of(premium, premium.add_kek(**options), tmp_path)
    assert says in refused(port.offer, reason=reason).message


def test_BY_02_a_kek_that_is_disabled_or_exportable_is_refused(bench: Bench) -> None:
    held = bench.vault.versions("kek")[-1]
    held.attributes.exportable = True
    assert "exportable" in refused(bench.port.offer, reason="KEK_UNSUITABLE").message
    held.attributes.exportable, held.attributes.enabled = False, False
    assert "disabled" in refused(bench.port.offer, reason="KEK_UNSUITABLE").message


def test_BY_01_another_key_under_the_pinned_id_has_another_thumbprint(bench: Bench) -> None:
    before = bench.port.offer().key
    bench.vault.swap_kek()
    after = bench.port.offer().key
    assert after.id == before.id == bench.kek
    assert after.thumbprint != before.thumbprint


def test_BY_14_a_kek_that_was_rotated_or_is_gone_is_not_replaced_by_what_is_there_now(bench: Bench) -> None:
    pinned = bench.port.offer().key
    bench.vault.add_kek()
    assert bench.port.offer().key == pinned  # the version that was pinned, not the newest
    gone = target_of(bench.vault, bench.kek[:-4] + "0000", bench.folder)
    refused(gone.offer, reason="TARGET_KEK_MISSING")


def test_BY_14_a_blob_for_a_kek_that_has_expired_since_is_refused_and_not_sent_for_another(bench: Bench) -> None:
    blob = bench.blob()
    bench.vault.versions("kek")[-1].attributes.expires = 1
    error = refused(lambda: bench.port.import_key(cargo("web"), blob, SHA1), reason="KEK_UNSUITABLE")
    assert "has expired" in error.message
    assert bench.port.versions("web") == []


def test_a_kek_is_made_for_importing_only_and_a_name_in_use_is_left_alone(premium: FakeVault, tmp_path: Path) -> None:
    port = target_of(premium, "new-kek", tmp_path)
    refused(port.offer, reason="TARGET_SETTINGS_INVALID")
    assert port.keks.made_wrapping_key(MARK) is None
    made = port.keks.create_wrapping_key(MARK)
    (held,) = premium.versions("new-kek")
    assert (held.key_ops, held.kty) == (["import"], "RSA-HSM")
    assert isinstance(held.material, rsa.RSAPrivateKey)
    assert held.material.key_size == 4096
    assert made.id == f"{premium.url}/keys/new-kek/{held.version}"
    assert target_of(premium, made.id, tmp_path).offer().key == made
    assert port.keks.create_wrapping_key(MARK) == port.keks.made_wrapping_key(MARK) == made  # found again by its mark
    for look in (port.keks.create_wrapping_key, port.keks.made_wrapping_key):
        assert made.id in refused(lambda look=look: look("1" * 32), reason="TARGET_KEK_EXISTS").message  # type: ignore[misc]
    assert premium.versions("new-kek") == [held]


# ---- imports -------------------------------------------------------------------------------------------------------


def test_the_transfer_file_is_the_specifications_and_goes_out_as_azs_does(bench: Bench) -> None:
    blob = bench.blob()
    bench.port.import_key(cargo("web"), blob, SHA1)
    request = next(seen for seen in bench.vault.requests if seen.method == "PUT" and seen.body)
    body = json.loads(request.body)
    file = base64.urlsafe_b64decode(body["key"].pop("key_hsm") + "==")
    sent = {"kty": "EC-HSM", "crv": "P-256", "key_ops": ["sign", "verify"]}
    assert body == {"Hsm": True, "attributes": {"enabled": True}, "key": sent}
    parsed = json.loads(file)
    assert parsed.pop("generator").startswith("hsm-broker ")
    assert parsed == {
        "schema_version": "1.0.0",
        "header": {"kid": bench.kek, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP"},
        "ciphertext": base64.urlsafe_b64encode(blob).rstrip(b"=").decode(),
    }
    assert bench.port.files.transfer_file(P256, SIGN, blob, bench.port.offer().key, SHA1) == file


def test_BY_07_what_cannot_be_a_transfer_blob_is_not_sent(bench: Bench) -> None:
    kek = WrappingKey(id=bench.kek, public_key=b"", thumbprint="")
    blob = bench.blob()
    for wrong, digest in ((b"", SHA1), (blob[:-1], SHA1), (blob[:256], SHA1), (blob, OaepHash.SHA256)):
        for act in (
            lambda wrong=wrong, digest=digest: bench.port.import_key(cargo("web"), wrong, digest),
            lambda wrong=wrong, digest=digest: bench.port.files.transfer_file(P256, SIGN, wrong, kek, digest),
        ):
            refused(act, reason="TARGET_REFUSED")
    assert bench.vault.requests == []


def test_BY_07_a_refused_blob_is_told_with_its_size_and_kek_and_never_quoted(bench: Bench) -> None:
    blob = bench.blob(b"no PKCS#8 at all")
    error = refused(lambda: bench.port.import_key(cargo("web"), blob, SHA1), reason="TARGET_REFUSED")
    assert f"{len(blob)} bytes for {bench.kek}" in error.message
    assert "PrivateKeyInfo" not in error.message  # the service's own text
    assert bench.vault.versions("web") == []


def test_BY_08_nothing_that_exposes_can_be_asked_for_and_what_is_set_there_is_seen(bench: Bench) -> None:
    bench.imported("web")
    request = next(seen for seen in bench.vault.requests if seen.method == "PUT" and seen.body)
    assert not {b"exportable", b"release_policy"} & set(request.body.split(b'"'))
    assert bench.port.versions("web")[0].exposed == ""
    bench.vault.versions("web")[0].attributes.exportable = True
    assert bench.port.versions("web")[0].exposed == "exportable"


def test_BY_10_somebody_elses_key_gets_no_further_version(bench: Bench) -> None:
    bench.imported("web")
    puts = len(bench.sent("PUT"))
    error = refused(lambda: bench.imported("Web"), reason="TARGET_NAME_TAKEN")  # names are case-insensitive there
    assert "choose another" in error.message
    assert len(bench.sent("PUT")) == puts
    assert len(bench.vault.versions("web")) == 1


def test_what_the_vault_has_just_shown_is_not_asked_of_it_again_before_an_upload(bench: Bench) -> None:
    bench.imported("web")
    held = tuple(bench.port.versions("web"))
    asked = len(bench.sent("GET"))
    further = ports.Cargo(name="web", type=P256, usage=SIGN, first=False, held=held)
    bench.port.import_key(further, bench.blob(), SHA1)
    assert len(bench.sent("GET")) == asked
    assert [one.version for one in bench.port.versions("web")][:1] == [held[0].version]


def test_names_come_from_all_pages(bench: Bench) -> None:
    assert bench.port.keks.names() == ["kek"]
    assert sorted([*bench.fill(27), "kek"]) == bench.port.keks.names()


# ---- proof and terms -----------------------------------------------------------------------------------------------


def test_the_vault_does_the_signing_and_the_pinned_version_of_it(bench: Bench) -> None:
    first, second = bench.imported("web"), bench.imported("web", first=False)
    bench.vault.requests.clear()
    bench.port.sign("web", first, SignatureAlgorithm.ES256, b"message")
    assert [(seen.method, seen.path) for seen in bench.vault.requests] == [("POST", f"/keys/web/{first}/sign")]
    assert first != second
    for version in ("", "1", first[:-1], f"{first}/x", "latest", "0" * 32):
        signing = partial(bench.port.sign, "web", version, SignatureAlgorithm.ES256, b"m")
        refused(signing, reason="REMOTE_KEY_MISSING")


def test_both_oaep_hashes_open_at_the_vault(bench: Bench) -> None:
    from broker.core.keys.use import encrypt_oaep  # noqa: PLC0415 - one test's need

    blob = bench.blob(pkcs8(rsa.generate_private_key(65537, 2048)))
    bench.port.import_key(cargo("web", KeyType.RSA_2048, KeyUsage.ENCRYPT), blob, SHA1)
    (held,) = bench.port.versions("web")
    for algorithm, digest in (
        (EncryptionAlgorithm.RSA_OAEP_SHA1, OaepHash.SHA1), (EncryptionAlgorithm.RSA_OAEP_SHA256, OaepHash.SHA256),
    ):  # fmt: skip
        sealed = encrypt_oaep(held.public_key or b"", digest, b"challenge")
        assert bench.port.decrypt("web", held.version, algorithm, sealed) == b"challenge"


WHOLE = Terms(
    operations=("verify",), tags={"team": "blue"}, enabled=False,
    not_before=datetime(2031, 1, 1, tzinfo=UTC), expires_at=datetime(2032, 1, 1, 12, 30, tzinfo=UTC),
)  # fmt: skip


def test_a_version_is_held_to_its_terms_and_the_others_are_not(bench: Bench) -> None:
    first, second = bench.imported("web"), bench.imported("web", first=False)
    bench.port.terms.check_terms(P256, SIGN, WHOLE)
    for _ in range(2):
        bench.port.terms.apply("web", second, WHOLE)
    other, held = bench.vault.versions("web")
    assert (other.version, other.enabled, other.tags, other.key_ops) == (first, True, {}, ["sign", "verify"])
    assert (held.enabled, held.tags, held.key_ops) == (False, {"team": "blue"}, ["verify"])
    assert held.attributes.not_before == int(datetime(2031, 1, 1, tzinfo=UTC).timestamp())
    assert held.attributes.expires == int(datetime(2032, 1, 1, 12, 30, tzinfo=UTC).timestamp())
    patches = len(bench.sent("PATCH"))
    bench.port.terms.apply("web", first, Terms())  # asks for nothing
    assert len(bench.sent("PATCH")) == patches


@pytest.mark.parametrize("changes", [
    {"operations": ("decrypt",)}, {"operations": ("import",)}, {"operations": ("sign", "sign")},
    {"tags": {f"t{number}": "x" for number in range(16)}}, {"tags": {"": "x"}}, {"tags": {"a": "x" * 257}},
    {"tags": {"a": "line\nline"}}, {"not_before": WHOLE.expires_at, "expires_at": WHOLE.not_before},
])  # fmt: skip
def test_terms_that_the_service_does_not_keep_are_refused_before(bench: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        bench.port.terms.check_terms(P256, SIGN, replace(Terms(), **changes))
    assert caught.value.reason == "TERMS_UNSUPPORTED"


def test_one_version_is_disabled_alone(bench: Bench) -> None:
    first, second = bench.imported("web"), bench.imported("web", first=False)
    bench.port.disable("web", first)
    assert [(one.version, one.enabled) for one in bench.port.versions("web")] == [(first, False), (second, True)]
    refused(lambda: bench.port.sign("web", first, SignatureAlgorithm.ES256, b"m"), reason="TARGET_KEY_DISABLED")
    bench.port.sign("web", second, SignatureAlgorithm.ES256, b"m")


# ---- rights --------------------------------------------------------------------------------------------------------


def test_missing_rights_are_all_named_at_once_and_nothing_is_changed_by_asking(bench: Bench) -> None:
    bench.port.check()
    bench.vault.denied |= {"import", "sign"}
    error = refused(bench.port.check, reason="TARGET_DENIED")
    assert "import, sign" in error.message
    assert "Key Vault Crypto Officer" in error.message
    assert bench.port.keks.names() == ["kek"]


def test_a_managed_hsm_asks_for_its_own_role_and_for_encryption_too(managed_hsm: FakeVault, tmp_path: Path) -> None:
    port = Bench(managed_hsm, tmp_path).port
    port.check()
    managed_hsm.denied.add("encrypt")
    error = refused(port.check, reason="TARGET_DENIED")
    assert "(encrypt)" in error.message
    assert "Managed HSM Crypto User" in error.message


def test_a_right_that_is_missing_during_an_import_is_named(bench: Bench) -> None:
    bench.vault.denied.add("import")
    assert "(import)" in refused(lambda: bench.imported("web"), reason="TARGET_DENIED").message
    bench.vault.denied.add("list")
    assert "(list)" in refused(lambda: bench.imported("web"), reason="TARGET_DENIED").message
