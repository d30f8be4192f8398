"""CA certificates as people have them: whatever a settings page, an editor or a shell has made of the PEM's lines."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path
from urllib.parse import unquote

from broker_cli import files
from broker_cli.refusal import Exit, Refusal

MAX = 64 * 1024
_BEGIN = "-----BEGIN "
_BLOCK = re.compile(r"-----BEGIN (?:X509 )?CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END (?:X509 )?CERTIFICATE-----")
_BEGUN = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE")


def read(path: Path) -> bytes:
    """The certificates in a file; see ``certificates``."""
    if "CERTIFICATE-----" in str(path):
        raise _invalid("What is given as the CA file is a certificate itself: put it in BROKER_CA_PEM.")
    return certificates(files.read(path, MAX, "CA file"), f"The CA file {path}")


def inline(text: str) -> bytes:
    """The certificates in BROKER_CA_PEM; see ``certificates``."""
    if text.startswith(("/", "./")) and "\n" not in text and Path(text).is_file():
        raise _invalid("BROKER_CA_PEM holds the path of a file: put that in BROKER_CA_FILE.")
    return certificates(text.encode(errors="replace"), "BROKER_CA_PEM")


def certificates(content: bytes, what: str) -> bytes:
    r"""The certificates in ``content`` as PEM, and nothing else that stands there.

    Lines may end as on any system, be joined by blanks or by nothing, or by ``\n`` as two characters; the whole may be
    URL-encoded, in base64, in UTF-16 or DER. What no TLS library could load is refused (``CA_INVALID``).
    """
    if len(content) > MAX:
        raise _invalid(f"{what} is longer than {MAX} bytes.")
    found = _ders(content)
    if not found:
        raise _invalid(f"{what} holds no certificate in PEM (-----BEGIN CERTIFICATE-----).")
    if None in found:
        raise _invalid(f"{what}: certificate {found.index(None) + 1} of {len(found)} is cut off or damaged.")
    import ssl  # noqa: PLC0415  slow to load

    pem = ""
    for number, der in enumerate(found, 1):
        one = ssl.DER_cert_to_PEM_cert(der or b"")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=one)
        except ssl.SSLError:
            raise _invalid(f"{what}: certificate {number} of {len(found)} is damaged.") from None
        pem += one
    return pem.encode()


def _ders(content: bytes) -> list[bytes | None]:
    """The certificates; None for one that was begun and is none."""
    if content.startswith(b"\x30"):
        return [content]
    text = _text(content)
    if _BEGIN not in text and (decoded := unbased64(text)):
        return [decoded] if decoded.startswith(b"\x30") else _blocks(_text(decoded))
    return _blocks(text)


def _text(content: bytes) -> str:
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    return unescaped(content.decode("utf-16" if wide else "utf-8-sig", errors="replace"))


def unescaped(text: str) -> str:
    r"""A text whose line ends stand there as ``\n``, or which is URL-encoded, as it was meant."""
    return unquote(re.sub(r"\\r\\n|\\n|\\r", "\n", text))


def _blocks(text: str) -> list[bytes | None]:
    whole = {found.start(): unbased64(found[1]) for found in _BLOCK.finditer(text)}
    return [whole.get(begun.start()) for begun in _BEGUN.finditer(text)]


def unbased64(text: str) -> bytes | None:
    """What is in base64 there, however it is broken into lines; None for what is none."""
    try:
        return base64.b64decode("".join(text.split()), validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _invalid(sentence: str) -> Refusal:
    return Refusal("CA_INVALID", sentence, Exit.USAGE)


def followed(known: bytes, offered: str) -> bytes | None:
    """The CA file of a profile, once its broker has said which CAs it has today; None where nothing is to be changed.

    The broker's are told by their name, which all versions share: those of today take their place, others stay. Where
    none is the broker's, somebody else has signed its server, and nothing is changed.
    """
    from cryptography import x509  # noqa: PLC0415  slow to load

    try:
        mine, theirs = x509.load_pem_x509_certificates(known), x509.load_pem_x509_certificates(offered.encode())
    except ValueError:
        return None
    names = {one.subject for one in theirs}
    others = [one for one in mine if one.subject not in names]
    if set(mine) == {*theirs, *others} or len(others) == len(mine):
        return None
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415  slow to load

    return b"".join(one.public_bytes(Encoding.PEM) for one in (*theirs, *others))
