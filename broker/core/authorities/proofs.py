"""What a version of one of the broker's own keys shows of itself, wherever it was read."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.audit.handover import FACTS, LONGEST, SUCCESSOR, related
from broker.core.authorities.plans import TITLES
from broker.core.kinds import Own
from broker.core.own_key import OwnKey


def coherent(one: OwnKey) -> bool:
    """Whether its parts speak of its public key and of nothing else.

    A CA's certificate is one, self-signed, so that only the key itself can have made it; its link is one of the same
    key. A hand-over proves itself, and leads to this key. No other key has such a part.
    """
    if one.name in TITLES:
        linked = not one.link or _single(one.link, one.public_key) is not None
        return not one.handover and linked and _self_signed(one)
    if one.certificate or one.link or (one.name == Own.PAGE and one.public_key is not None):
        return False
    return not one.handover or (one.name == Own.AUDIT and _handed_over(one))


def _self_signed(one: OwnKey) -> bool:
    certificate = _single(one.certificate, one.public_key)
    if certificate is None:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _single(pem: str, public_key: bytes | None) -> x509.Certificate | None:
    """The certificate of that key, if the text is it and nothing more: what follows would be trusted with it."""
    try:
        found = x509.load_pem_x509_certificate(pem.encode())
        own = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == public_key
    except (ValueError, UnsupportedAlgorithm):
        return None
    return found if own and pem == found.public_bytes(Encoding.PEM).decode("ascii") else None


def _handed_over(one: OwnKey) -> bool:
    if one.public_key is None or set(one.handover) != set(FACTS):
        return False
    short = all(len(part) <= LONGEST for part in one.handover.values())
    to_it = one.handover[SUCCESSOR] == one.public_key.hex()
    return short and to_it and len(related([one.public_key], [one.handover])) > 1
