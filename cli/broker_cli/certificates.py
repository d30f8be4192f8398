"""Files with certificates and public keys, as text for the wire; a private key does not leave this machine."""

from __future__ import annotations

from contextlib import suppress

from broker_cli import ca, files
from broker_cli.refusal import Exit, Refusal

MAX_FILE = 1024 * 1024
MAX_SENT = 512 * 1024
_BEGIN = "-----BEGIN "


def certificates(source: str, what: str) -> str:
    """The file's content for the broker, which reads PEM: DER is written so, and what is between blocks left out."""
    return _sendable(files.take(source, MAX_FILE, what), what, "certificate")


def public_key(source: str, what: str) -> str:
    """As ``certificates``, for a public key."""
    return _sendable(files.take(source, MAX_FILE, what), what, "public key")


def held_back(text: str, what: str) -> str:
    """Return a text that holds no private key; else Refusal ``CA_FILE_HOLDS_KEY``."""
    if "PRIVATE KEY" in text:
        raise Refusal(
            "CA_FILE_HOLDS_KEY",
            f"The {what} holds a private key; it was not sent. Give the public part only.",
            Exit.USAGE,
        )
    return text


def _sendable(content: bytes, what: str, kind: str) -> str:
    if not content.strip():
        raise Refusal("FILE_EMPTY", f"The {what} is empty.", Exit.USAGE)
    text = _bare(held_back(_text(content, what, kind), what))
    if len(text) > MAX_SENT:
        raise Refusal("INPUT_TOO_LONG", f"The {what} is longer than {MAX_SENT >> 10} KiB; give fewer.", Exit.USAGE)
    return text


def _text(content: bytes, what: str, kind: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    if (content.startswith(b"\x30") and b"\0" in content[:4096]) or content.startswith(b"\x30\x82"):
        return _from_der(content, what, kind)
    if b"\0" in content:
        raise _neither(what, kind)
    text = ca.unescaped(content.decode("utf-8-sig", "replace"))
    return text if _BEGIN in text else _unpacked(text, what, kind)


def _unpacked(text: str, what: str, kind: str) -> str:
    """PEM or DER that is base64 once more, as Kubernetes and others keep it."""
    inner = ca.unbased64(text)
    if inner is None:
        raise _neither(what, kind)
    return inner.decode("utf-8-sig", "replace") if _BEGIN.encode() in inner else _from_der(inner, what, kind)


def _from_der(content: bytes, what: str, kind: str) -> str:
    from cryptography import x509  # noqa: PLC0415  slow to load
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, pkcs7  # noqa: PLC0415

    def public() -> bytes:
        return serialization.load_der_public_key(content).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def one() -> bytes:
        return x509.load_der_x509_certificate(content).public_bytes(Encoding.PEM)

    def several() -> bytes:
        return b"".join(each.public_bytes(Encoding.PEM) for each in pkcs7.load_der_pkcs7_certificates(content))

    for way in (one, several, public):
        with suppress(ValueError, UnsupportedAlgorithm):
            return way().decode("ascii")
    raise _neither(what, kind)


def _neither(what: str, kind: str) -> Refusal:
    return Refusal(
        "FILE_UNKNOWN",
        f"The {what} holds no {kind}, neither as PEM (-----BEGIN …) nor as DER; it was not sent. Of a PKCS#12 or Java "
        f"key store, write the {kind} out as PEM.",
        Exit.USAGE,
    )


def _bare(text: str) -> str:
    """The PEM blocks alone; a text with one that has no end as it is, for the broker to say what it is."""
    blocks: list[str] = []
    for piece in text.split(_BEGIN)[1:]:
        label, _, rest = piece.partition("-----")
        body, end, _ = rest.partition(f"-----END {label}-----")
        if not end:
            return text
        blocks.append(f"{_BEGIN}{label}-----{body}-----END {label}-----\n")
    return "".join(blocks) or text
