"""Operators by client certificate: rows AN-25, AN-26, AN-28, AN-29 and P24."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.auth.mtls import Mtls, MtlsConfig
from broker.core.errors import Unauthenticated, WrongState
from broker.core.identity import Credentials
from broker.core.kinds import OperatorState
from tests.fakes.refusals import refused
from tests.servers.edge import ALICE, Issued, Journal, authority, issue, operator, operator_certificate

NOW = datetime.now(UTC).replace(microsecond=0)
CA = authority()
DER = Encoding.DER
FUZZED = operator_certificate(CA)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    (tmp_path / "ca.pem").write_bytes(CA.pem)
    return tmp_path / "ca.pem"


def shown(certificate: Issued | bytes | None, *, verified: bool = True) -> Credentials:
    pem = certificate.pem if isinstance(certificate, Issued) else certificate
    return Credentials(certificate=pem, chain_verified=verified, metadata={}, peer="ipv4:127.0.0.1:1")


def mtls(ca_file: Path, journal: Journal | None = None, now: datetime = NOW, **changes: Any) -> Mtls:
    store: Any = journal or Journal(operator())
    return Mtls(MtlsConfig(operator_ca_file=ca_file, **changes), store, lambda: now)


def why_not(authenticator: Mtls, certificate: Issued | bytes, *, verified: bool = True) -> str:
    return refused(lambda: authenticator.authenticate(shown(certificate, verified=verified)), Unauthenticated).reason


def test_a_good_certificate_names_its_operator(ca_file: Path) -> None:
    mine = operator_certificate(CA)
    found = mtls(ca_file).authenticate(shown(mine))
    assert found is not None
    assert (str(found), found.groups, found.method) == ("operator/alice", ("admins",), "mtls")
    assert int(found.credential, 16) == mine.certificate.serial_number


def test_no_certificate_is_not_mine(ca_file: Path) -> None:
    assert mtls(ca_file).authenticate(shown(None)) is None


def test_AN_30_the_kind_is_part_of_the_identity(ca_file: Path) -> None:
    found = mtls(ca_file).authenticate(shown(operator_certificate(CA)))
    assert found is not None
    assert found.kind == "operator"


IDENTITIES: dict[str, list[x509.GeneralName] | None] = {
    "the right CN and no SAN": None,
    "two URIs": [uri(ALICE), uri("spiffe://broker/operator/bob")],
    "the same URI twice": [uri(ALICE), uri(ALICE)],
    "a DNS name beside it": [uri(ALICE), x509.DNSName("alice")],
    "only a DNS name": [x509.DNSName("alice")],
    "only an e-mail": [x509.RFC822Name("alice@example.org")],
    "a wildcard": [uri("spiffe://broker/operator/*")],
    "a wildcard domain": [uri("spiffe://*/operator/alice")],
    "another trust domain": [uri("spiffe://other/operator/alice")],
    "a longer trust domain": [uri("spiffe://broker.example/operator/alice")],
    "a trust domain in capitals": [uri("spiffe://BROKER/operator/alice")],
    "a user in the authority": [uri("spiffe://x@broker/operator/alice")],
    "a port in the authority": [uri("spiffe://broker:1/operator/alice")],
    "another scheme": [uri("https://broker/operator/alice")],
    "a scheme in capitals": [uri("SPIFFE://broker/operator/alice")],
    "another kind": [uri("spiffe://broker/pipeline/alice")],
    "a deeper path": [uri("spiffe://broker/operator/alice/x")],
    "a slash at the end": [uri("spiffe://broker/operator/alice/")],
    "a doubled slash": [uri("spiffe://broker//operator/alice")],
    "dots": [uri("spiffe://broker/operator/../operator/alice")],
    "percent-encoding": [uri("spiffe://broker/operator/%61lice")],
    "a query": [uri("spiffe://broker/operator/alice?x")],
    "a fragment": [uri("spiffe://broker/operator/alice#x")],
    "capitals": [uri("spiffe://broker/operator/Alice")],
    "a space": [uri("spiffe://broker/operator/ alice")],
    "a NUL": [uri("spiffe://broker/operator/alice\0.example")],
    "a newline": [uri("spiffe://broker/operator/alice\n")],
    "no name": [uri("spiffe://broker/operator/")],
    "a long name": [uri("spiffe://broker/operator/" + "a" * 64)],
    "an empty URI": [uri("")],
}


@pytest.mark.parametrize("alternatives", IDENTITIES.values(), ids=IDENTITIES.keys())
def test_AN_25_the_identity_is_exactly_one_uri(ca_file: Path, alternatives: list[x509.GeneralName] | None) -> None:
    certificate = issue("alice", CA, alternatives=alternatives, usages=[ExtendedKeyUsageOID.CLIENT_AUTH])
    assert why_not(mtls(ca_file), certificate) in {"CERTIFICATE_IDENTITY", "CERTIFICATE_UNREADABLE"}


def test_AN_25_unicode_in_the_san_is_refused(ca_file: Path) -> None:
    made = operator_certificate(CA, "spiffe://broker/operator/alicf")
    der = made.certificate.public_bytes(DER)
    assert der.count(b"operator/alicf") == 1
    changed = der.replace(b"operator/alicf", b"operator/ali\xd1\x81")  # a Cyrillic es; the signature breaks as well
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(changed) + b"-----END CERTIFICATE-----\n"
    assert why_not(mtls(ca_file), pem) in {"CERTIFICATE_UNREADABLE", "CERTIFICATE_ISSUER"}


def test_AN_25_the_trust_domain_is_the_configured_one(ca_file: Path) -> None:
    theirs = operator_certificate(CA, "spiffe://bank.example/operator/alice")
    assert mtls(ca_file, trust_domain="bank.example").authenticate(shown(theirs)) is not None
    assert why_not(mtls(ca_file, trust_domain="bank.example"), operator_certificate(CA)) == "CERTIFICATE_IDENTITY"


@pytest.mark.parametrize("domain", ["", "A", "a b", "a/b", "a\n", ".a", "a" * 300, "*"])
def test_a_trust_domain_that_is_none_is_refused(ca_file: Path, domain: str) -> None:
    with pytest.raises(ValidationError):
        MtlsConfig(operator_ca_file=ca_file, trust_domain=domain)


def test_AN_26_only_the_operator_ca_itself_signs_operators(ca_file: Path) -> None:
    leaf = operator_certificate(CA)
    intermediate = issue("intermediate", CA, ca=True, path_length=0)
    same_name = authority("operators")
    for signer in (leaf, intermediate, same_name, authority("other")):
        assert why_not(mtls(ca_file), operator_certificate(signer)) == "CERTIFICATE_ISSUER"
    assert why_not(mtls(ca_file), issue("alice", alternatives=[uri(ALICE)])) == "CERTIFICATE_ISSUER"


def usage(*, sign: bool) -> x509.KeyUsage:
    rest = dict.fromkeys(
        ("content_commitment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    return x509.KeyUsage(digital_signature=sign, key_encipherment=not sign, **rest)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no usage": ({"usages": None}, "CERTIFICATE_USAGE"),
    "for servers": ({"usages": [ExtendedKeyUsageOID.SERVER_AUTH]}, "CERTIFICATE_USAGE"),
    "for anything": ({"usages": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}, "CERTIFICATE_USAGE"),
    "a CA": ({"ca": True}, "CERTIFICATE_IS_CA"),
    "a key that may not sign": ({"extra": ((usage(sign=False), True),)}, "CERTIFICATE_USAGE"),
    "an unknown critical extension": (
        {"extra": ((x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),)},
        "CERTIFICATE_USAGE",
    ),
}


@pytest.mark.parametrize(("changes", "expected"), WRONG.values(), ids=WRONG.keys())
def test_AN_26_a_certificate_for_something_else_is_refused(
    ca_file: Path, changes: dict[str, Any], expected: str
) -> None:
    assert why_not(mtls(ca_file), operator_certificate(CA, **changes)) == expected


def test_what_the_authority_puts_in_passes(ca_file: Path) -> None:
    usual = operator_certificate(CA, ca=False, extra=((usage(sign=True), True),))
    assert mtls(ca_file).authenticate(shown(usual)) is not None


def test_AN_28_validity_is_asked_at_each_call(ca_file: Path) -> None:
    times = [NOW]
    store: Any = Journal(operator())
    mine = operator_certificate(CA, start=NOW - timedelta(hours=1), end=NOW + timedelta(hours=1))
    authenticator = Mtls(MtlsConfig(operator_ca_file=ca_file), store, lambda: times[0])
    assert authenticator.authenticate(shown(mine)) is not None
    for moment, valid in ((3600, True), (3601, False), (-3600, True), (-3601, False)):
        times[0] = NOW + timedelta(seconds=moment)
        if valid:
            assert authenticator.authenticate(shown(mine)) is not None
        else:
            assert why_not(authenticator, mine) == "CERTIFICATE_EXPIRED"


def test_an_expired_ca_speaks_for_nobody(ca_file: Path) -> None:
    mine = operator_certificate(CA, end=NOW + timedelta(days=300))
    assert why_not(mtls(ca_file, now=NOW + timedelta(days=200)), mine) == "CERTIFICATE_EXPIRED"


def test_P24_a_revoked_certificate_is_refused_even_as_the_first_call(ca_file: Path) -> None:
    mine = operator_certificate(CA, start=NOW - timedelta(minutes=5))
    revoked = Journal(operator(not_before=NOW - timedelta(minutes=1)))
    assert why_not(mtls(ca_file, revoked), mine) == "CERTIFICATE_REVOKED"
    fresh = operator_certificate(CA, start=NOW - timedelta(minutes=1))
    assert mtls(ca_file, revoked).authenticate(shown(fresh)) is not None


def test_AN_28_revocation_and_removal_count_from_the_next_call_on(ca_file: Path) -> None:
    journal, mine = Journal(operator()), operator_certificate(CA)
    authenticator = mtls(ca_file, journal)
    assert authenticator.authenticate(shown(mine)) is not None
    alice = journal.operators["alice"]
    journal.operators["alice"] = replace(alice, not_before=NOW)
    assert why_not(authenticator, mine) == "CERTIFICATE_REVOKED"
    journal.operators["alice"] = replace(alice, groups=("auditors",))
    found = authenticator.authenticate(shown(mine))
    assert found is not None
    assert found.groups == ("auditors",)
    journal.operators["alice"] = replace(alice, state=OperatorState.REMOVED)
    removed = why_not(authenticator, mine)
    del journal.operators["alice"]
    assert removed == why_not(authenticator, mine) == "OPERATOR_UNKNOWN"


def test_a_certificate_from_the_second_of_its_revocation_is_refused(ca_file: Path) -> None:
    mine = operator_certificate(CA, start=NOW)
    revoked = Journal(operator(not_before=NOW + timedelta(microseconds=300)))
    assert why_not(mtls(ca_file, revoked, now=NOW + timedelta(seconds=1)), mine) == "CERTIFICATE_REVOKED"


def test_a_certificate_that_the_connection_did_not_verify_counts_for_nothing(ca_file: Path) -> None:
    assert why_not(mtls(ca_file), operator_certificate(CA), verified=False) == "CERTIFICATE_UNVERIFIED"


@pytest.mark.parametrize(
    "pem", [b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"A" * 20_000]
)
def test_bytes_that_are_no_certificate_are_refused(ca_file: Path, pem: bytes) -> None:
    assert why_not(mtls(ca_file), pem) == "CERTIFICATE_UNREADABLE"


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")  # its signature refuses it
@given(st.data())
def test_P13_no_damage_to_a_certificate_gets_through_or_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    ca_file = tmp_path_factory.getbasetemp() / "fuzz-ca.pem"
    ca_file.write_bytes(CA.pem)
    der = bytearray(FUZZED.certificate.public_bytes(DER))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(der) - 1))
        der[place] ^= data.draw(st.integers(1, 255))
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(der)) + b"-----END CERTIFICATE-----\n"
    if bytes(der) != FUZZED.certificate.public_bytes(DER):
        assert why_not(mtls(ca_file), pem).startswith("CERTIFICATE_")


def test_P13_another_spelling_of_a_good_certificate_is_none(ca_file: Path) -> None:
    """The signature's last bit, if it is 0, could be said to be unused."""
    good = (operator_certificate(CA) for _ in range(64))
    der = bytearray(next(one for one in map(_der, good) if not one[-1] & 1))
    at = len(der) - len(x509.load_der_x509_certificate(bytes(der)).signature) - 1
    der[at] = 1
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(der)) + b"-----END CERTIFICATE-----\n"
    assert why_not(mtls(ca_file), pem) == "CERTIFICATE_UNREADABLE"


def _der(one: Issued) -> bytes:
    return one.certificate.public_bytes(DER)


def test_the_known_certificates_are_bounded(ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched: the bound is 1,024 certificates, which take their time to make.
    monkeypatch.setattr("broker.auth.mtls.authenticator.MAX_KNOWN", 2)
    authenticator = mtls(ca_file)
    for _ in range(4):
        assert authenticator.authenticate(shown(operator_certificate(CA))) is not None
    assert len(authenticator._known) == 2  # noqa: SLF001 - that they pile up in memory would not show


def test_a_refusal_tells_the_audit_who_was_refused(ca_file: Path) -> None:
    mine = operator_certificate(CA)
    with pytest.raises(Unauthenticated) as refused:
        mtls(ca_file, Journal()).authenticate(shown(mine))
    serial = f"{mine.certificate.serial_number:x}"
    assert refused.value.metadata == {"operator": "alice", "certificate_serial": serial}


@pytest.mark.parametrize("content", [None, b"", b"x"])
def test_a_ca_file_that_will_not_do_stops_the_start(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "bad.pem").write_bytes(content)
    with pytest.raises(WrongState) as stopped:
        mtls(tmp_path / "bad.pem")
    assert stopped.value.reason == "OPERATOR_CA_INVALID"
