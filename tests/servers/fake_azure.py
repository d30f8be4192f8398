"""Fake Azure vaults, Microsoft's own clients on them, and transfer files made without any of the broker's code."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from azure.core.credentials import AccessToken
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.servers.azure_key_vault import FakeVault

API = "2025-07-01"
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class StaticToken:
    """A credential that gives the vault's token to every asker, and counts."""

    def __init__(self, token: str) -> None:
        self.token, self.asked = token, 0

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        self.asked += 1
        return AccessToken(self.token, 1 << 40)


class Reached(Protocol):
    """A vault, or where one is in another process."""

    url: str
    token: str
    ca_file: Path


def key_client(vault: Reached, **options: Any) -> KeyClient:
    options = {"retry_total": 0, "credential": StaticToken(vault.token), **options}
    return KeyClient(vault.url, connection_verify=str(vault.ca_file), **options)


def crypto_client(vault: FakeVault, kid: str) -> CryptographyClient:
    return CryptographyClient(kid, StaticToken(vault.token), connection_verify=str(vault.ca_file), retry_total=0)


@contextmanager
def raw_to(vault: FakeVault) -> Iterator[Raw]:
    """Closed when left."""
    raw = Raw(vault)
    try:
        yield raw
    finally:
        raw.close()


@pytest.fixture
def premium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVault]:
    """A Key Vault Premium of this test's own."""
    with FakeVault(tmp_path_factory.mktemp("premium"), kind="premium") as vault:
        yield vault


@pytest.fixture
def managed_hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeVault]:
    """A Managed HSM of this test's own."""
    with FakeVault(tmp_path_factory.mktemp("managed"), kind="managed-hsm") as vault:
        yield vault


def b64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def pkcs8(key: Private) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def wrapped(
    kek: rsa.RSAPublicKey, target: bytes, oaep: hashes.HashAlgorithm | None = None, ephemeral: bytes | None = None
) -> bytes:
    """RSA-OAEP of an AES key, then RFC 5649 of the target under that."""
    oaep = oaep or hashes.SHA1()  # noqa: S303 (the specification knows no other)
    ephemeral = ephemeral or os.urandom(32)
    scheme = padding.OAEP(padding.MGF1(oaep), oaep, None)
    return kek.encrypt(ephemeral, scheme) + aes_key_wrap_with_padding(ephemeral, target)


def byok(kid: str, ciphertext: bytes, header: Mapping[str, Any] | None = None, **changes: Any) -> bytes:
    """The bytes of a transfer file."""
    head = {"kid": kid, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP", **(header or {})}
    file = {"schema_version": "1.0.0", "header": head, "ciphertext": b64(ciphertext), "generator": "a test"}
    return json.dumps({**file, **changes}).encode()


def public_kek(vault: FakeVault, name: str = "kek") -> rsa.RSAPublicKey:
    material = vault.versions(name)[-1].material
    assert isinstance(material, rsa.RSAPrivateKey)
    return material.public_key()


def transfer(vault: FakeVault, target: bytes, kid: str = "") -> bytes:
    """A right transfer file for ``target`` to this vault's newest KEK."""
    kek = vault.versions("kek")[-1]
    return byok(kid or f"{vault.url}/keys/kek/{kek.version}", wrapped(public_kek(vault), target))


class Raw:
    """Plain HTTPS with the token, over one connection."""

    def __init__(self, vault: FakeVault) -> None:
        self.vault = vault
        context = ssl.create_default_context(cafile=str(vault.ca_file))
        self._connection = http.client.HTTPSConnection(vault.host, context=context, timeout=200)

    def close(self) -> None:
        self._connection.close()

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, JSON body (None for none) and headers by lower-case name; a header of "" is not sent."""
        sent = {"Authorization": f"Bearer {self.vault.token}", "Content-Type": "application/json", **(headers or {})}
        try:
            self._connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            answer = self._connection.getresponse()
            content = answer.read()
        except OSError:
            self._connection.close()
            raise
        got = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, json.loads(content) if content else None, got

    def ask(self, method: str, path: str, body: Any = None, version: str = API) -> tuple[int, Any]:
        """The same, for a JSON value and with the api-version."""
        sign = "&" if "?" in path else "?"
        octets = None if body is None else json.dumps(body).encode()
        return self.send(method, f"{path}{sign}api-version={version}", octets)[:2]

    def refusal(self, method: str, path: str, body: Any = None) -> tuple[int, str, str]:
        """Status, code and inner code of a request that must be refused."""
        status, answer = self.ask(method, path, body)
        assert status >= 400, answer
        assert set(answer) == {"error"}
        error = answer["error"]
        return status, error["code"], error.get("innererror", {}).get("code", "")


def ec_body(vault: FakeVault, der: bytes, crv: str = "P-256", **more: Any) -> dict[str, Any]:
    """What imports this EC key, PKCS#8, into that vault."""
    return {"key": {"kty": "EC-HSM", "crv": crv, "key_hsm": b64(transfer(vault, der))}, **more}
