from __future__ import annotations

import base64
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from broker.core.errors import BrokerError, InvalidRequest, Unavailable, WrongState
from broker.core.operators.authority import Authority, public_key_of
from broker.core.ports import KeyRef
from tests.fakes.calls import Clock
from tests.fakes.signer import Signer

NOW = Clock()()
START = NOW.replace(microsecond=0)
HOUR = timedelta(hours=1)
URI = "spiffe://broker/operator/alice"
PRIVATE = ec.generate_private_key(ec.SECP256R1())


def csr(key: object = PRIVATE, *extensions: x509.ExtensionType, name: str = "mallory") -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    return builder.sign(key, digest).public_bytes(Encoding.PEM)


def made(signer: Signer) -> tuple[Authority, KeyRef, x509.Certificate]:
    key, pem = Authority.create(signer.hsm, b"operator-ca-0001", "Operators", NOW)
    return Authority(signer.hsm, key, pem), key, x509.load_pem_x509_certificate(pem)


@pytest.fixture
def authority() -> Authority:
    return made(Signer())[0]


def issued(authority: Authority, request: bytes) -> x509.Certificate:
    pem, serial = authority.client(request, URI, START, HOUR)
    certificate = x509.load_pem_x509_certificate(pem)
    assert serial == f"{certificate.serial_number:x}"
    return certificate


def values(certificate: x509.Certificate) -> dict[str, tuple[bool, x509.ExtensionType]]:
    return {type(found.value).__name__: (found.critical, found.value) for found in certificate.extensions}


def test_the_ca_certificate_may_sign_leaves_and_nothing_else() -> None:
    _, key, ca = made(Signer())
    ca.verify_directly_issued_by(ca)
    assert ca.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == key.public_key
    assert ca.not_valid_before_utc <= NOW
    assert ca.not_valid_after_utc - NOW > timedelta(days=3650)
    found = values(ca)
    assert set(found) == {"BasicConstraints", "KeyUsage", "SubjectKeyIdentifier"}
    assert found["BasicConstraints"] == (True, x509.BasicConstraints(ca=True, path_length=0))
    critical, usage = found["KeyUsage"]
    assert critical
    assert isinstance(usage, x509.KeyUsage)
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)


def test_making_the_ca_again_keeps_its_key() -> None:
    signer = Signer()
    assert made(signer)[1] == made(signer)[1]


def test_a_client_certificate_says_one_uri_and_nothing_more(authority: Authority) -> None:
    leaf = issued(authority, csr())
    ca = x509.load_pem_x509_certificate(authority.certificate)
    leaf.verify_directly_issued_by(ca)
    assert leaf.subject == x509.Name([])
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (START, START + HOUR)
    found = values(leaf)
    assert found.keys() == {
        "BasicConstraints", "KeyUsage", "ExtendedKeyUsage", "SubjectAlternativeName", "SubjectKeyIdentifier",
        "AuthorityKeyIdentifier",
    }  # fmt: skip
    assert found["BasicConstraints"] == (True, x509.BasicConstraints(ca=False, path_length=None))
    assert found["ExtendedKeyUsage"] == (False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))
    assert found["SubjectAlternativeName"] == (
        True,
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI)]),
    )
    critical, usage = found["KeyUsage"]
    assert critical
    assert isinstance(usage, x509.KeyUsage)
    assert (usage.digital_signature, usage.key_cert_sign, usage.key_agreement) == (True, False, False)
    _, issuer = found["AuthorityKeyIdentifier"]
    assert isinstance(issuer, x509.AuthorityKeyIdentifier)
    subject = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert issuer.key_identifier == subject.digest


def test_AZ_22_nothing_of_the_request_but_its_key_is_taken(authority: Authority) -> None:
    smuggled = csr(
        PRIVATE,
        x509.SubjectAlternativeName(
            [
                x509.DNSName("*.example"),
                x509.RFC822Name("root@example"),
                x509.UniformResourceIdentifier("spiffe://broker/operator/root"),
            ]
        ),
        x509.BasicConstraints(ca=True, path_length=9),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    )
    plain, crafted = issued(authority, csr(name="x")), issued(authority, smuggled)
    assert values(plain) == values(crafted)
    assert plain.subject == crafted.subject
    assert crafted.public_key() == PRIVATE.public_key()


def test_serials_are_long_random_and_never_twice(authority: Authority) -> None:
    serials = {issued(authority, csr()).serial_number for _ in range(50)}
    assert len(serials) == 50
    assert 150 < max(serials).bit_length() < 160


def test_AZ_22_a_leaf_never_outlives_its_ca(authority: Authority) -> None:
    ca = x509.load_pem_x509_certificate(authority.certificate)
    end = ca.not_valid_after_utc
    pem, _ = authority.client(csr(), URI, end - timedelta(minutes=1), HOUR)
    assert x509.load_pem_x509_certificate(pem).not_valid_after_utc == end
    with pytest.raises(WrongState) as refused:
        authority.client(csr(), URI, end, HOUR)
    assert refused.value.reason == "CA_EXPIRED"


def test_a_leaf_does_not_start_before_its_ca(authority: Authority) -> None:
    ca = x509.load_pem_x509_certificate(authority.certificate)
    pem, _ = authority.client(csr(), URI, START - HOUR, 2 * HOUR)
    assert x509.load_pem_x509_certificate(pem).not_valid_before_utc == ca.not_valid_before_utc


def mangled(pem: bytes) -> bytes:
    der = x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER)
    changed = der[:-1] + bytes([der[-1] ^ 1])
    return x509.load_der_x509_csr(changed).public_bytes(Encoding.PEM)


BAD: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "not UTF-8": b"\xff\xfe",
    "a certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "an empty request": b"-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n",
    "too long": csr() + b"\n" * 8192,
    "RSA": csr(rsa.generate_private_key(65537, 2048)),
    "Ed25519": csr(ed25519.Ed25519PrivateKey.generate()),
    "P-384": csr(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": csr(ec.generate_private_key(ec.SECP256K1())),
    "another's signature": mangled(csr()),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_request_that_is_not_a_sound_one_for_p256_is_refused(authority: Authority, kind: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        authority.client(BAD[kind], URI, START, HOUR)
    assert refused.value.reason == "CSR_INVALID"


REQUEST = x509.load_pem_x509_csr(csr()).public_bytes(Encoding.DER)


@given(st.integers(0, len(REQUEST) - 1), st.integers(1, 255))
def test_a_request_with_an_octet_changed_gets_no_certificate_for_another_key(place: int, change: int) -> None:
    octets = bytearray(REQUEST)
    octets[place] ^= change
    body = base64.encodebytes(bytes(octets))
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"
    try:
        assert public_key_of(pem) == PRIVATE.public_key()
    except InvalidRequest as refused:
        assert refused.reason == "CSR_INVALID"  # noqa: PT017 - either is right
        return
    # The one octet that may differ says how many bits of the signature's last octet are unused.
    assert octets[place - 1] == len(octets) - place


def test_a_server_certificate_names_hosts_and_addresses(authority: Authority) -> None:
    pem, _ = authority.server(csr(), ["broker.example", "localhost", "127.0.0.1", "::1"], START, HOUR)
    leaf = x509.load_pem_x509_certificate(pem)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize(
    "names", [[], [""], ["*.example"], ["a..b"], ["UPPER"], ["a b"], ["a" * 64], ["-a"], ["a\n"], ["a"] * 17]
)
def test_a_server_name_that_is_none_is_refused(authority: Authority, names: list[str]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        authority.server(csr(), names, START, HOUR)
    assert refused.value.reason == "SERVER_NAME_INVALID"


@pytest.mark.parametrize("name", ["https://broker.example", "broker.example:7443", "br\u00f6ker.example", "UPPER"])
def test_K01_a_server_name_that_is_none_is_named(authority: Authority, name: str) -> None:
    with pytest.raises(InvalidRequest, match="without a scheme, a port or a path") as refused:
        authority.server(csr(), ["localhost", name], START, HOUR)
    assert ascii(name) in str(refused.value)


def test_a_signature_that_does_not_verify_is_withheld() -> None:
    signer = Signer()
    authority = made(signer)[0]
    signer.broken = True
    with pytest.raises(Unavailable) as refused:
        authority.client(csr(), URI, START, HOUR)
    assert refused.value.reason == "HSM_FAULT"
    with pytest.raises(Unavailable):
        Authority.create(signer.hsm, b"operator-ca-0002", "Operators", NOW)


def test_O_13_a_ca_certificate_of_another_key_or_more_than_one_is_refused() -> None:
    signer = Signer()
    authority, key, _ = made(signer)
    _, other = Authority.create(signer.hsm, b"operator-ca-0002", "Operators", NOW)
    for pem, reason in (
        (other, "CA_KEY_MISMATCH"),
        (b"no certificate", "CA_CERTIFICATE_INVALID"),
        (authority.certificate + other, "CA_CERTIFICATE_INVALID"),
    ):
        with pytest.raises(BrokerError) as refused:
            Authority(signer.hsm, key, pem)
        assert refused.value.reason == reason


def test_openssl_agrees(tmp_path: Path) -> None:
    now = datetime.now(tz=NOW.tzinfo).replace(microsecond=0)
    signer = Signer()
    key, ca = Authority.create(signer.hsm, b"operator-ca-0003", "Operators", now)
    authority = Authority(signer.hsm, key, ca)
    (tmp_path / "ca.pem").write_bytes(ca)
    (tmp_path / "sslclient.pem").write_bytes(authority.client(csr(), URI, now, HOUR)[0])
    (tmp_path / "sslserver.pem").write_bytes(authority.server(csr(), ["broker.example"], now, HOUR)[0])

    def verifies(leaf: str, purpose: str) -> bool:
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", f"{leaf}.pem"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0

    assert verifies("sslclient", "sslclient")
    assert verifies("sslserver", "sslserver")
    assert not verifies("sslclient", "sslserver")
    assert not verifies("sslserver", "sslclient")
