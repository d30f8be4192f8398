"""Addresses, names, thumbprints, CA files: as they are found elsewhere they are taken, or named for what they are."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import pytest
from broker_cli import certificates as sent
from broker_cli.refusal import Refusal
from broker_cli.values import Name, Span, Version
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    pkcs7,
    pkcs12,
)
from cryptography.x509.oid import NameOID

from broker.core import addresses
from broker.core.armour import certificates, public_key
from broker.core.errors import InvalidRequest
from broker.core.names import check_request_id
from broker.core.targets.thumbprints import thumbprint
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings
from broker.targets.vault.settings import VaultSettings

KEY = ec.generate_private_key(ec.SECP256R1())
PRIVATE = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
PUBLIC_PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def certificate(name: str) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(KEY.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=2))
    return made.not_valid_after(now - timedelta(days=1)).sign(KEY, hashes.SHA256())


ONE, TWO = certificate("one"), certificate("two")
PEM, PEM_TWO = ONE.public_bytes(Encoding.PEM), TWO.public_bytes(Encoding.PEM)
DER = ONE.public_bytes(Encoding.DER)
CRL = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
CSR = b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"


# ---- K16 ---------------------------------------------------------------------------------------------------------

TAKEN: dict[str, tuple[bytes, bytes]] = {
    "plain": (PEM, PEM),
    "CRLF": (PEM.replace(b"\n", b"\r\n"), PEM),
    "CR": (PEM.replace(b"\n", b"\r"), PEM),
    "a byte order mark": (b"\xef\xbb\xbf" + PEM, PEM),
    "UTF-16": (PEM.decode().encode("utf-16"), PEM),
    "text and comments": (b"# the CA of \xc3\xa4 and \xff\nsubject=CN = one\n" + PEM + b"\n  # end\n", PEM),
    "two with text between": (b"one\n" + PEM + b"Bag Attributes\n    friendlyName: two\n" + PEM_TWO, PEM + PEM_TWO),
    "the same twice": (PEM + PEM, PEM),
    "no line end": (PEM.strip(), PEM),
    "one long line": (
        b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(DER) + b"\n-----END CERTIFICATE-----", PEM,
    ),
    "the old label": (PEM.replace(b" CERTIFICATE", b" X509 CERTIFICATE"), PEM),
    "indented, as in YAML": (b"\n".join(b"    " + line for line in PEM.splitlines()), PEM),
    "DER": (DER, PEM),
    "PKCS#7 in DER": (pkcs7.serialize_certificates([ONE, TWO], Encoding.DER), PEM + PEM_TWO),
    "PKCS#7 in PEM": (pkcs7.serialize_certificates([ONE, TWO], Encoding.PEM), PEM + PEM_TWO),
}  # fmt: skip

NAMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b" \r\n\t", "is empty"),
    "a private key besides": (PEM + PRIVATE, "private key"),
    "a private key alone": (PRIVATE, "private key"),
    "a request": (CSR, "certificate request"),
    "a bare public key": (PUBLIC_PEM, "public key"),
    "a list of revocations": (PEM + CRL, "revoked"),
    "something else": (PEM.replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE"), "openssl x509"),
    "cut off": (PEM[:-30], "cut off"),
    "damaged base64": (PEM[:40] + b"!" + PEM[41:], "damaged"),
    "another certificate damaged": (
        PEM + PEM_TWO.replace(PEM_TWO.splitlines()[1], b"A" * len(PEM_TWO.splitlines()[1])), "certificate 2 of 2",
    ),
    "no PEM": (b"vault.example.org", "BEGIN CERTIFICATE"),
    "PKCS#12": (
        pkcs12.serialize_key_and_certificates(b"x", KEY, ONE, None, BestAvailableEncryption(b"pass")), "PKCS#12",
    ),
    "binary": (b"\xfe\xed\xfe\xed\0\0\0\2", "key store"),
    "huge": (b"#" * (2 << 20), "longer than"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
def test_K16_a_ca_file_as_others_write_it_is_taken(what: str, tmp_path: Path) -> None:
    content, wanted = TAKEN[what]
    file = tmp_path / "ca"
    file.write_bytes(content)
    for found in (certificates(content), certificates(sent.certificates(str(file), "CA file").encode())):
        in_order = sorted if "PKCS#7" in what else list  # a set there has no order of its own
        assert in_order(found.split("-----BEGIN")) == in_order(wanted.decode().split("-----BEGIN"))


@pytest.mark.parametrize("what", NAMED)
def test_K16_a_ca_file_that_will_not_do_is_named(what: str, tmp_path: Path) -> None:
    content, word = NAMED[what]
    with pytest.raises(ValueError, match=r".") as caught:
        certificates(content)
    assert word in str(caught.value)
    file = tmp_path / "ca"
    file.write_bytes(content)
    with pytest.raises((Refusal, ValueError)) as refused:
        certificates(sent.certificates(str(file), "CA file").encode())
    if "private" in what:  # it does not even leave the client
        assert isinstance(refused.value, Refusal)


def test_K16_forty_certificates_with_their_text_are_taken(tmp_path: Path) -> None:
    many = [certificate(f"ca {number}") for number in range(40)]
    text = b"".join(b"x" * 5000 + b"\n" + one.public_bytes(Encoding.PEM) for one in many)
    file = tmp_path / "bundle.pem"
    file.write_bytes(text)
    found = certificates(sent.certificates(str(file), "CA file").encode())
    assert found.count("BEGIN") == 40
    settings = VaultSettings(address="https://v:1", mount="t", ca_pem=text.decode(), token_file="t")
    assert settings.ca_pem == found
    with pytest.raises(ValueError, match="at most 64 are taken"):
        certificates(b"".join(certificate(str(number)).public_bytes(Encoding.PEM) for number in range(65)))


def test_K16_what_is_base64_once_more_is_taken(tmp_path: Path) -> None:
    encoded = (base64.encodebytes(PEM), base64.encodebytes(DER), PEM.replace(b"\n", b"\\n"), quote(PEM).encode())
    for content in encoded:
        file = tmp_path / "ca"
        file.write_bytes(content)
        assert certificates(sent.certificates(str(file), "CA file").encode()) == PEM.decode()
    file.write_bytes(base64.b64encode(PRIVATE))
    with pytest.raises(Refusal, match="private key"):
        sent.certificates(str(file), "CA file")


@pytest.mark.parametrize("content", [
    PRIVATE, KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    KEY.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    KEY.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), b'{"kty":"EC","d":"AAAA"}',
    PRIVATE.decode().encode("utf-16"), b"\xef\xbb\xbf" + PRIVATE, PRIVATE[:40],
])  # fmt: skip
def test_K16_nothing_that_holds_a_private_key_leaves_the_client(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    for way in (sent.certificates, sent.public_key):
        with pytest.raises(Refusal):
            way(str(file), "file")


@pytest.mark.parametrize("content", [
    PUBLIC_PEM, PUBLIC, b"\xef\xbb\xbftext\r\n" + PUBLIC_PEM.replace(b"\n", b"\r\n"), PEM,
], ids=["PEM", "DER", "with text", "in a certificate"])  # fmt: skip
def test_K16_a_public_key_in_any_of_its_files_is_taken(content: bytes) -> None:
    assert public_key(content) == PUBLIC


@pytest.mark.parametrize(("content", "word"), [
    (b"", "empty"), (PRIVATE, "private key"), (PUBLIC_PEM * 2, "2 things"), (CSR, "request"),
    (b'{"kty":"RSA"}', "JSON"),
    (b"0\x82junk", "no public key"), (PUBLIC_PEM.replace(b"\nM", b"\nA"), "cannot be read"),
])  # fmt: skip
def test_K16_a_public_keys_file_that_will_not_do_is_named(content: bytes, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        public_key(content)
    assert word in str(caught.value)


# ---- K17 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "host", "port"), [
    ("https://vault.example:8200", "vault.example", 8200), ("https://vault.example:8200/", "vault.example", 8200),
    ("https://vault.example", "vault.example", 443), ("HTTPS://Vault.Example/", "vault.example", 443),
    ("https://[2001:DB8::0:1]:8200", "[2001:db8::1]", 8200), ("https://[::1]", "[::1]", 443),
    ("https://10.0.0.1:443", "10.0.0.1", 443),
])  # fmt: skip
def test_K17_an_address_is_brought_into_one_spelling(text: str, host: str, port: int) -> None:
    assert addresses.https(text) == (host, port)


@pytest.mark.parametrize(("text", "word"), [
    ("", "https://"), ("vault.example:8200", "https://"), ("http://vault.example", "TLS"), ("https://", "no host"),
    ("https://u:p@vault.example", "user"), ("https://vault.example/v1/", "path"), ("https://vault.example?x", "query"),
    ("https://vault.example#x", "fragment"), ("https://vault.example:", "port"), ("https://vault.example:0", "port"),
    ("https://vault.example:99999", "port"), ("https://:8200", "no host"), ("https://vault.example:8200 ", "blanks"),
    ("https://väult.example", "xn--"), ("https://vault.example\\@evil", "user"), ("https://[::g]:1", "host"),
    ("https://vault_1.example", "host"), ("https://vault..example", "host"), ("https://vault.example.", "host"),
    ("https://" + "a" * 300, "host"), ("unix:///run/x", "TLS"), ("https://a.b:c", "host"),
])  # fmt: skip
def test_K17_an_address_that_will_not_do_is_refused_for_its_fault(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        addresses.https(text)
    assert word in str(caught.value)


@pytest.mark.parametrize(("given", "mount"), [
    ("transit/", "transit"), ("/transit", "transit"), ("/team/transit/", "team/transit"),
    ("transit.prod", "transit.prod"), ("_t", "_t"),
])  # fmt: skip
def test_K17_a_mount_with_slashes_around_it_is_taken_and_shown_without(given: str, mount: str) -> None:
    made = VaultSettings(address="https://V:1/", mount=given, ca_pem=PEM.decode(), token_file="t", namespace=given)
    assert (made.address, made.host, made.mount, made.namespace) == ("https://v:1", "v:1", mount, mount)


VAULT, VERSION = "https://team-keys.vault.azure.net", "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(("url", "kek"), [
    (f"{VAULT}/", f"{VAULT}/keys/KEK/{VERSION}"),
    ("https://Team-Keys.Vault.azure.net", f"{VAULT}:443/keys/KEK/{VERSION}/"),
    (f"{VAULT}:443/", f"https://TEAM-KEYS.vault.azure.net/keys/KEK/{VERSION.upper()}"),
])  # fmt: skip
def test_K17_K20_azure_urls_and_ids_are_brought_into_one_spelling(url: str, kek: str) -> None:
    tenant = "11111111-2222-3333-4444-AAAAAAAAAAAA"
    made = AzureKeyVaultSettings(
        vault_url=url, kek=kek, credential="workload-identity", tenant_id=tenant, client_id=f"{{{tenant}}}"
    )
    assert (made.vault_url, made.kek) == (VAULT, f"{VAULT}/keys/KEK/{VERSION}")
    assert made.tenant_id == made.client_id == tenant.lower()


def test_K17_a_keys_id_as_the_vaults_url_is_named() -> None:
    with pytest.raises(ValueError, match="is the id of a key"):
        AzureKeyVaultSettings(vault_url=f"{VAULT}/keys/k/{VERSION}", kek="k", credential="managed-identity")


# ---- K20 ---------------------------------------------------------------------------------------------------------

RAW = hashlib.sha256(b"a key").digest()
HEX = RAW.hex()
COLONS = ":".join(f"{one:02X}" for one in RAW)


@pytest.mark.parametrize("text", [
    HEX, HEX.upper(), f" {HEX}\n", COLONS, COLONS.lower(), COLONS.replace(":", " "), COLONS.replace(":", "-"),
    f"sha256:{HEX}", f"SHA256:{HEX}", f"SHA-256: {COLONS}", f"SHA256 Fingerprint={COLONS}",
    f"sha256 Fingerprint={COLONS}",
    f"SHA2-256(stdin)= {HEX}", f"SHA256(kek.der)= {HEX}", f"(stdin)= {HEX}", f"{HEX}  -", f"{HEX}  kek.der",
    f"{HEX} *kek.der",
    base64.b64encode(RAW).decode(), base64.b64encode(RAW).decode().rstrip("="), base64.urlsafe_b64encode(RAW).decode(),
    f"sha256//{base64.b64encode(RAW).decode()}", f"SHA256:{base64.b64encode(RAW).decode().rstrip('=')}",
    f'pin-sha256="{base64.b64encode(RAW).decode()}"', f'"{HEX}"',
])  # fmt: skip
def test_K20_a_thumbprint_as_others_write_it_is_taken(text: str) -> None:
    assert thumbprint(text) == HEX


@pytest.mark.parametrize(("text", "word"), [
    ("", "64 hexadecimal"), (HEX[:-1], "63 hexadecimal"), (HEX + "0", "65 hexadecimal"), ("a" * 40, "SHA-1"),
    ("b" * 128, "SHA-512"), ("g" * 64, "64 hexadecimal"), ("sha1:" + "a" * 40, "64 hexadecimal"),
    ("A" * 42, "42"), ("x" * 10_000, "64 hexadecimal"), (HEX + " " * 500 + "0", "more than 512"),
])  # fmt: skip
def test_K20_a_thumbprint_that_is_none_is_named(text: str, word: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        thumbprint(text)
    assert caught.value.reason == "THUMBPRINT_INVALID"
    assert word in caught.value.message


def test_K20_a_request_id_in_upper_case_is_the_same_one() -> None:
    assert check_request_id("0F8FAD5B-D9CB-469F-A165-70867728950E") == "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.mark.parametrize(("kind", "text", "value"), [
    (Version(), "3", 3), (Version(), "v3", 3), (Version(), "@3", 3), (Version(), "V3", 3), (Version(), "0", 0),
    (Name("key"), "key/payments", "payments"), (Name("key"), "payments", "payments"),
    (Name("target"), "target/prod", "prod"), (Name("target"), "key/prod", "key/prod"),
    (Span(60, 86_400), "90", 90), (Span(60, 86_400), "90s", 90), (Span(60, 86_400), "1h", 3600),
    (Span(60, 86_400), "1h30m", 5400), (Span(60, 86_400), "1h 30m", 5400), (Span(60, 86_400), "PT1H", 3600),
    (Span(60, 86_400), "P1D", 86_400), (Span(86_400, 31_536_000, "d"), "30", 2_592_000),
    (Span(86_400, 31_536_000, "d"), "2w", 1_209_600), (Span(86_400, 31_536_000, "d"), "30D", 2_592_000),
])  # fmt: skip
def test_K20_what_other_output_shows_is_taken(kind: click.ParamType[Any], text: str, value: object) -> None:
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(("kind", "text"), [
    (Version(), "v"), (Version(), "-1"), (Version(), "1.0"), (Version(), ""), (Version(), "latest"), (Version(), "v٣"),
    (Version(least=1), "0"), (Version(), "1" * 50), (Span(60, 86_400), "59"), (Span(60, 86_400), "2d"),
    (Span(60, 86_400), ""), (Span(60, 86_400), "P"), (Span(60, 86_400), "PT"), (Span(60, 86_400), "1.5h"),
    (Span(60, 86_400), "1 hour"), (Span(60, 86_400), "-1h"), (Span(60, 86_400), "1m1h"),
])  # fmt: skip
def test_K20_what_is_not_plain_is_refused(kind: click.ParamType[Any], text: str) -> None:
    with pytest.raises(click.UsageError):
        kind.convert(text, None, None)


def test_K16_what_is_no_label_of_a_block_is_not_quoted() -> None:
    hidden = b"-----BEGIN hunter2 and what else stands there-----"
    for read in (certificates, public_key):
        with pytest.raises(ValueError, match="a block of another kind") as found:
            read(hidden + b"AAAA" + hidden.replace(b"BEGIN", b"END"))
        assert "hunter2" not in str(found.value)
