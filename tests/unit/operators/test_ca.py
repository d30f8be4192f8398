"""CA certificates in every form that settings pages, editors and shells make of PEM."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from broker_cli import ca
from broker_cli import certificates as sent
from broker_cli.refusal import Exit, Refusal

from tests.live.cli.test_standin import Authority

ONE, TWO = (Authority(name).pem.decode() for name in ("one", "two"))
DER = ssl.PEM_cert_to_DER_cert(ONE)
KEY = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"

FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "crlf": lambda pem: pem.replace("\n", "\r\n"),
    "cr": lambda pem: pem.replace("\n", "\r"),
    "two characters": lambda pem: pem.replace("\n", "\\n"),
    "four characters": lambda pem: pem.replace("\n", "\\r\\n"),
    "blanks": lambda pem: pem.replace("\n", " "),
    "nothing": lambda pem: pem.replace("\n", ""),
    "in quotes": lambda pem: '"' + pem.replace("\n", "\\n") + '"',
    "indented": lambda pem: "".join(f"    {line}\n" for line in pem.splitlines()),
    "blank lines": lambda pem: "\n\n" + pem.replace("\n", "\n\n"),
    "mark": lambda pem: "\ufeff" + pem,
    "words around": lambda pem: f"Bag Attributes: é\nsubject=CN = x\n{pem}\nend",
    "with a key": lambda pem: KEY + pem,
    "base64": lambda pem: base64.b64encode(pem.encode()).decode(),
    "base64 in lines": lambda pem: base64.encodebytes(pem.encode()).decode(),
    "url": quote,
    "x509": lambda pem: pem.replace("BEGIN CERT", "BEGIN X509 CERT").replace("END CERT", "END X509 CERT"),
}


@pytest.mark.parametrize("form", FORMS)
def test_P45_a_ca_is_taken_in_every_form(form: str, tmp_path: Path) -> None:
    for pem in (ONE, ONE + TWO):
        text = FORMS[form](pem)
        assert ca.inline(text).decode() == pem
        (tmp_path / "ca.pem").write_bytes(text.encode())
        assert ca.read(tmp_path / "ca.pem").decode() == pem


@pytest.mark.parametrize("content", [DER, base64.b64encode(DER), ONE.encode("utf-16")])
def test_P45_a_file_is_taken_in_der_and_wide_characters(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ca").write_bytes(content)
    assert ca.read(tmp_path / "ca").decode() == ONE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no certificate"),
        ("canary", "holds no certificate"),
        (KEY, "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----", "certificate 1 of 1 is cut off"),
        (ONE[:-40], "certificate 1 of 1 is cut off"),
        (ONE + TWO[:200], "certificate 2 of 2 is cut off"),
        (ONE[:100] + "!" + ONE[101:], "certificate 1 of 1 is cut off"),
        (TWO + "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 2 of 2 is damaged"),
        (base64.b64encode(DER[:-9]).decode(), "is damaged"),
        ("x" * (ca.MAX + 1), "longer than"),
    ],
)
def test_P45_what_is_no_ca_is_said_to_be_none(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(text)
    reads: list[Callable[[], bytes]] = [
        lambda: ca.inline(text), lambda: ca.read(tmp_path / "ca.pem"), lambda: ca.certificates(text.encode(), "it"),
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(Refusal) as refused:
            read()
        assert (refused.value.reason, refused.value.code) == ("CA_INVALID", Exit.USAGE)
        assert told in refused.value.message
        assert "canary" not in refused.value.message


def test_P45_a_path_and_a_certificate_that_are_mixed_up_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(ONE)
    with pytest.raises(Refusal, match="put that in BROKER_CA_FILE"):
        ca.inline(str(tmp_path / "ca.pem"))
    with pytest.raises(Refusal, match="put it in BROKER_CA_PEM"):
        ca.read(Path(ONE))


def test_a_private_key_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(ONE + KEY)
    with pytest.raises(Refusal) as refused:
        sent.certificates(str(tmp_path / "ca.pem"), "CA file")
    assert refused.value.reason == "CA_FILE_HOLDS_KEY"
