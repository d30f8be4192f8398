"""The fake opens what the BYOK specification allows, and nothing that comes near it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from asn1crypto.keys import PrivateKeyInfo
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.servers.azure_key_vault import FakeVault
from tests.servers.fake_azure import Private, Raw, b64, byok, pkcs8, public_kek, raw_to, transfer, wrapped

CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1(), "P-256K": ec.SECP256K1(),
}  # fmt: skip
BAD = (400, "BadParameter", "")


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(curve: str = "P-256") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[curve])


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVault]:
    with FakeVault(tmp_path_factory.mktemp("vault"), kind="premium") as started:
        started.add_kek()
        yield started


@pytest.fixture(scope="module")
def raw(vault: FakeVault) -> Iterator[Raw]:
    with raw_to(vault) as connection:
        yield connection


@pytest.fixture
def name() -> str:
    return f"k-{os.urandom(4).hex()}"


def kid(vault: FakeVault, name: str = "kek") -> str:
    return f"{vault.url}/keys/{name}/{vault.versions(name)[-1].version}"


def rsa_body(file: bytes) -> dict[str, Any]:
    return {"key": {"kty": "RSA-HSM", "key_hsm": b64(file)}}


def ec_body(file: bytes, crv: str = "P-256") -> dict[str, Any]:
    return {"key": {"kty": "EC-HSM", "crv": crv, "key_hsm": b64(file)}}


def public(key: Private) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("curve", CURVES)
def test_an_EC_key_is_accepted_with_and_without_its_public_part(
    vault: FakeVault, raw: Raw, name: str, curve: str
) -> None:
    key = ec_key(curve)
    number = key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8, "big")
    without = around(pkcs8(key), tlv(0x30, b"\x02\x01\x01" + tlv(4, number)))  # as SoftHSM writes it
    for der in (pkcs8(key), without):
        status, answer = raw.ask("PUT", f"/keys/{name}", ec_body(transfer(vault, der), curve))
        assert status == 200, answer
        assert answer["key"]["crv"] == curve
        assert vault.versions(name)[-1].public_key == public(key)
    assert len(pkcs8(key)) > len(without)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_an_RSA_key_is_accepted(vault: FakeVault, raw: Raw, name: str, bits: int) -> None:
    key = rsa_key(bits)
    status, answer = raw.ask("PUT", f"/keys/{name}", rsa_body(transfer(vault, pkcs8(key))))
    assert (status, answer["key"]["key_ops"][2]) == (200, "sign")
    assert vault.versions(name)[0].public_key == public(key)
    assert set(answer["key"]) == {"kid", "kty", "key_ops", "n", "e"}


@pytest.mark.parametrize("length", [16, 24, 32])
def test_an_AES_key_is_accepted_by_a_managed_HSM_only(
    vault: FakeVault, raw: Raw, managed_hsm: FakeVault, length: int
) -> None:
    body = {"key": {"kty": "oct-HSM", "key_hsm": b64(transfer(vault, os.urandom(length)))}}
    assert raw.refusal("PUT", "/keys/aes", body) == BAD
    managed_hsm.add_kek()
    body["key"]["key_hsm"] = b64(transfer(managed_hsm, os.urandom(length)))
    with raw_to(managed_hsm) as there:
        status, answer = there.ask("PUT", "/keys/aes", body)
        assert (status, set(answer["key"])) == (200, {"kid", "kty", "key_ops"})
        assert managed_hsm.versions("aes")[0].public_key is None
        body["key"]["key_hsm"] = b64(transfer(managed_hsm, os.urandom(20)))
        assert there.refusal("PUT", "/keys/aes", body) == BAD


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 5, b"\x05\x00"])
def test_BY_07_bytes_after_the_PKCS8_are_refused(vault: FakeVault, raw: Raw, name: str, tail: bytes) -> None:
    for body in (
        ec_body(transfer(vault, pkcs8(ec_key()) + tail)),
        rsa_body(transfer(vault, pkcs8(rsa_key()) + tail)),
    ):
        assert raw.refusal("PUT", f"/keys/{name}", body) == BAD
    assert vault.versions(name) == []


def tlv(tag: int, content: bytes) -> bytes:
    return bytes([tag]) + length(len(content)) + content


def around(der: bytes, inner: bytes) -> bytes:
    """The PrivateKeyInfo ``der`` with another private key inside."""
    outer = PrivateKeyInfo.load(der)
    return tlv(0x30, outer["version"].dump() + outer["private_key_algorithm"].dump() + tlv(4, inner))


def inner_tail(der: bytes) -> bytes:
    """A zero after the key inside the OCTET STRING, with all outer lengths right."""
    return around(der, PrivateKeyInfo.load(der)["private_key"].contents + b"\0")


def length(number: int) -> bytes:
    if number < 128:
        return bytes([number])
    octets = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def long_length(der: bytes) -> bytes:
    """The same structure with one more byte in its outer length, as BER allows and DER does not."""
    header = 2 if der[1] < 0x80 else 2 + (der[1] & 0x7F)
    size = len(der) - header
    return b"\x30\x83" + size.to_bytes(3, "big") + der[header:]


def pkcs1(_: bytes) -> bytes:
    return rsa_key().private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())


@pytest.mark.parametrize(
    "alter", [inner_tail, long_length, pkcs1, lambda der: der[:-1], lambda der: der[1:], lambda _: b"\x30\x00"]
)
def test_BY_07_what_is_not_exactly_one_PrivateKeyInfo_is_refused(
    vault: FakeVault, raw: Raw, name: str, alter: Callable[[bytes], bytes]
) -> None:
    altered = alter(pkcs8(rsa_key()))
    assert altered != pkcs8(rsa_key())
    assert raw.refusal("PUT", f"/keys/{name}", rsa_body(transfer(vault, altered))) == BAD
    # The elliptic kind goes through a parser of its own.
    if alter is not pkcs1:
        assert raw.refusal("PUT", f"/keys/{name}", ec_body(transfer(vault, alter(pkcs8(ec_key()))))) == BAD


def test_kinds_of_key_that_Azure_does_not_hold_are_refused(vault: FakeVault, raw: Raw, name: str) -> None:
    edwards = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    small = pkcs8(rsa.generate_private_key(65537, 1024))  # noqa: S505 (to be refused)
    other = pkcs8(ec.generate_private_key(ec.BrainpoolP256R1()))
    for body in (
        ec_body(transfer(vault, edwards)),
        ec_body(transfer(vault, edwards), "Ed25519"),
        rsa_body(transfer(vault, small)),
        ec_body(transfer(vault, other)),
        ec_body(transfer(vault, pkcs8(ec_key("P-384")))),  # not the curve that was said
        ec_body(transfer(vault, pkcs8(rsa_key()))),
        rsa_body(transfer(vault, pkcs8(ec_key()))),
        {"key": {"kty": "EC-HSM", "key_hsm": b64(transfer(vault, pkcs8(ec_key())))}},  # no curve said
        {"key": {"kty": "RSA-HSM", "crv": "P-256", "key_hsm": b64(transfer(vault, pkcs8(rsa_key())))}},
        {"key": {"kty": "RSA", "key_hsm": b64(transfer(vault, pkcs8(rsa_key())))}},
    ):
        assert raw.refusal("PUT", f"/keys/{name}", body) == BAD
    assert vault.versions(name) == []


def test_BY_07_another_OAEP_hash_or_another_ephemeral_key_is_refused(vault: FakeVault, raw: Raw, name: str) -> None:
    kek, der = public_kek(vault), pkcs8(ec_key())
    right = wrapped(kek, der)
    size = kek.key_size // 8
    unpadded = wrapped(kek, os.urandom(32))[:size] + aes_key_wrap(os.urandom(32), der[: len(der) // 8 * 8])
    for ciphertext in (
        wrapped(kek, der, hashes.SHA256()),
        wrapped(kek, der, hashes.SHA384()),
        wrapped(kek, der, ephemeral=os.urandom(16)),
        wrapped(kek, der, ephemeral=os.urandom(24)),
        wrapped(rsa_key().public_key(), der),
        unpadded,
        right[:-8],
        right[:-1],
        right + b"\0",
        right + b"\0" * 8,
        right[:size],
        right[: size + 8],
        b"",
        bytes([right[0] ^ 1]) + right[1:],
        right[:-1] + bytes([right[-1] ^ 1]),
        right[size:] + right[:size],
    ):
        assert raw.refusal("PUT", f"/keys/{name}", ec_body(byok(kid(vault), ciphertext))) == BAD
    assert raw.ask("PUT", f"/keys/{name}", ec_body(byok(kid(vault), right)))[0] == 200


def test_RFC_3394_constants_in_place_of_those_of_RFC_5649_are_refused(vault: FakeVault, raw: Raw, name: str) -> None:
    kek = public_kek(vault)
    ephemeral = os.urandom(32)
    der = pkcs8(ec_key("P-384"))
    assert len(der) % 8, "padded to a multiple of eight, as plain key wrap needs it"
    plain = aes_key_wrap(ephemeral, der + b"\0" * (-len(der) % 8))
    ciphertext = wrapped(kek, der, ephemeral=ephemeral)[: kek.key_size // 8] + plain
    assert raw.refusal("PUT", f"/keys/{name}", ec_body(byok(kid(vault), ciphertext), "P-384")) == BAD


def test_BY_01_a_file_for_another_KEK_is_refused(vault: FakeVault, raw: Raw, name: str) -> None:
    old = vault.add_kek("other")
    vault.add_kek("other")
    able = vault.add_kek("able", key_ops=("import", "wrapKey"))
    soft = vault.add_kek("idle", key_ops=())
    version = old.rsplit("/", 1)[1]
    ciphertext = wrapped(public_kek(vault), pkcs8(ec_key()))
    for named in (
        old,  # a right KEK, but not the one it was wrapped for
        able,
        soft,
        f"https://elsewhere.vault.azure.net/keys/kek/{version}",
        f"{vault.url}/keys/kek",
        f"{vault.url}/keys/kek/{version}",
        f"{vault.url}/keys/KEK/{kid(vault).rsplit('/', 1)[1]}",
        f"{vault.url}/keys/absent/{version}",
        kid(vault) + "?api-version=7.4",
        kid(vault) + "/",
        kid(vault).replace("https", "http"),
        "",
    ):
        assert raw.refusal("PUT", f"/keys/{name}", ec_body(byok(named, ciphertext))) == BAD
    mine = wrapped(public_kek(vault, "other"), pkcs8(ec_key()))
    assert raw.refusal("PUT", f"/keys/{name}", ec_body(byok(old, mine))) == BAD, "the newest opened it"


def test_a_KEK_that_may_not_be_used_opens_nothing(vault: FakeVault, raw: Raw, name: str) -> None:
    vault.add_kek("shut")
    kek = vault.versions("shut")[0]
    file = byok(kid(vault, "shut"), wrapped(public_kek(vault, "shut"), pkcs8(ec_key())))
    kek.attributes.enabled = False
    assert raw.refusal("PUT", f"/keys/{name}", ec_body(file)) == (403, "Forbidden", "KeyDisabled")
    kek.attributes.enabled, kek.attributes.expires = True, 1
    assert raw.refusal("PUT", f"/keys/{name}", ec_body(file)) == (403, "Forbidden", "KeyExpired")
    kek.attributes.expires = None
    assert raw.ask("PUT", f"/keys/{name}", ec_body(file))[0] == 200


def files(vault: FakeVault) -> Iterator[bytes]:
    """Transfer files that each have one fault in their JSON."""
    ciphertext = wrapped(public_kek(vault), pkcs8(ec_key()))
    right = byok(kid(vault), ciphertext)
    yield byok(kid(vault), ciphertext, schema_version="1.0")
    yield byok(kid(vault), ciphertext, schema_version=1)
    yield byok(kid(vault), ciphertext, generator=None)
    yield byok(kid(vault), ciphertext, comment="more")
    text = b64(ciphertext)
    for member in (text + "=", text + "A", "+/" + text[2:], text + "\n", list(ciphertext), None):
        yield json.dumps({**json.loads(right), "ciphertext": member}).encode()
    for header in ({"alg": "RSA-OAEP"}, {"alg": "DIR"}, {"enc": "CKM_AES_KEY_WRAP_PAD"}, {"enc": None}, {"typ": "x"}):
        yield byok(kid(vault), ciphertext, header)
    yield byok(kid(vault), ciphertext, {"kid": None})
    for member in ("schema_version", "header", "ciphertext", "generator"):
        yield json.dumps({name: value for name, value in json.loads(right).items() if name != member}).encode()
    yield right.replace(b"{", b'{"generator": "twice", ', 1)
    yield right.replace(b'"header": {', b'"header": {"alg": "dir", ', 1)
    yield right.replace(b'"', b"'")
    yield b"\xef\xbb\xbf" + right
    yield right.decode().encode("utf-16")
    yield right + b"x"
    yield right[:-1]
    yield b"[" + right + b"]"
    yield b'"' + b64(right).encode() + b'"'
    yield b"[" * 5000
    yield b"\xff\xfe"
    yield b""


def test_the_file_is_JSON_of_exactly_the_specified_form(vault: FakeVault, raw: Raw, name: str) -> None:
    count = 0
    for file in files(vault):
        assert raw.refusal("PUT", f"/keys/{name}", ec_body(file)) == BAD, file[:200]
        count += 1
    assert count == 32


def test_the_file_comes_in_unpadded_base64url_and_is_at_most_64_kB(vault: FakeVault, raw: Raw, name: str) -> None:
    right = transfer(vault, pkcs8(ec_key()))
    right += b" " * (1 + -len(right) % 3)  # so that padding would have to be there
    text = b64(right)
    padded = text + "=" * (-len(text) % 4)
    assert padded != text
    stray = text[:-1] + chr(ord(text[-1]) + 1)
    for wrong in (padded, stray, "+/" + text, text + "\n", " " + text, text[:-1] + "é", "", None, [text], 7):
        body = {"key": {"kty": "EC-HSM", "crv": "P-256", "key_hsm": wrong}}
        assert raw.refusal("PUT", f"/keys/{name}", body) == BAD
    largest = right + b" " * (64 * 1024 - len(right))
    assert raw.refusal("PUT", f"/keys/{name}", ec_body(largest + b" ")) == BAD
    assert raw.ask("PUT", f"/keys/{name}", ec_body(largest))[0] == 200


def test_BY_08_nothing_can_be_asked_that_lets_the_key_out(vault: FakeVault, raw: Raw, name: str) -> None:
    right = ec_body(transfer(vault, pkcs8(ec_key())))
    policy = {"contentType": "application/json; charset=utf-8", "data": b64(b"{}")}
    for more in ({"release_policy": policy}, {"attributes": {"exportable": True}}, {"Hsm": False}, {"backup": True}):
        assert raw.refusal("PUT", f"/keys/{name}", {**right, **more}) == BAD
    clear = {"kty": "EC-HSM", "crv": "P-256", "x": b64(b"x"), "y": b64(b"y"), "d": b64(b"d")}
    keys: list[object] = [clear, {**right["key"], "d": b64(b"d")}, {"kty": "oct-HSM", "k": b64(b"k" * 32)}, [], None]
    for key in keys:
        assert raw.refusal("PUT", f"/keys/{name}", {"key": key}) == BAD
    assert vault.versions(name) == []


def test_key_operations_are_those_of_the_kind_and_never_import(vault: FakeVault, raw: Raw, name: str) -> None:
    ec_file, rsa_file = b64(transfer(vault, pkcs8(ec_key()))), b64(transfer(vault, pkcs8(rsa_key())))
    curve: dict[str, Any] = {"kty": "EC-HSM", "crv": "P-256", "key_hsm": ec_file}
    rivest: dict[str, Any] = {"kty": "RSA-HSM", "key_hsm": rsa_file}
    for key, operations in (
        (curve, ["sign", "verify", "encrypt"]),
        (curve, ["wrapKey"]),
        (curve, ["import"]),
        (rivest, ["import"]),
        (rivest, ["sign", "import"]),
        (rivest, ["export"]),
        (rivest, ["Sign"]),
        (rivest, ["sign", "sign"]),
        (rivest, "sign"),
        (rivest, [1]),
    ):
        body = {"key": {**key, "key_ops": operations}}
        assert raw.refusal("PUT", f"/keys/{name}", body) == BAD, operations
    status, answer = raw.ask("PUT", f"/keys/{name}", {"key": {**rivest, "key_ops": ["verify", "sign"]}})
    assert (status, answer["key"]["key_ops"]) == (200, ["verify", "sign"])
