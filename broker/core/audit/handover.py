"""How the audit key is handed over: the old key signs the new one in, and the new one says whom it follows.

Both sign one statement. Who knows the old key follows to the new one, which needed the old one's consent; who knows the
new one follows back, which needed the new one's. Where it is kept does not matter: it proves itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from broker.core.kinds import SignatureAlgorithm
from broker.core.ports import Hsm, KeyRef
from broker.core.signatures import verify

FORMER, SUCCESSOR, TIME = "former_key", "successor_key", "handover_time"
BY_FORMER, BY_SUCCESSOR = "former_signature", "successor_signature"
FACTS = (FORMER, SUCCESSOR, TIME, BY_FORMER, BY_SUCCESSOR)
"""Its parts, as texts: two public keys (SubjectPublicKeyInfo, DER, in hex), a time, two signatures."""

LONGEST = 400
"""No part of one is longer."""


def statement(former: bytes, successor: bytes, time: str) -> bytes:
    """The bytes that both keys sign."""
    return f"broker-audit-handover-v1\n{former.hex()}\n{successor.hex()}\n{time}\n".encode("ascii")


def hand_over(hsm: Hsm, former: KeyRef, successor: KeyRef, at: datetime) -> dict[str, str]:
    """Have the HSM sign with both."""
    if former.public_key is None or successor.public_key is None:
        raise ValueError("an audit key has a public half")
    time = at.isoformat(timespec="microseconds")
    said = statement(former.public_key, successor.public_key, time)
    [by_former] = hsm.sign(former, SignatureAlgorithm.ES256, [said])
    [by_successor] = hsm.sign(successor, SignatureAlgorithm.ES256, [said])
    return {
        FORMER: former.public_key.hex(),
        SUCCESSOR: successor.public_key.hex(),
        TIME: time,
        BY_FORMER: by_former.hex(),
        BY_SUCCESSOR: by_successor.hex(),
    }


def related(known: Iterable[bytes], handovers: Iterable[Mapping[str, str]]) -> set[bytes]:
    """The known audit keys, and all that sound hand-overs lead to from them, forth and back."""
    keys, pairs = set(known), {pair for one in handovers if (pair := _sound(one))}
    while added := {key for pair in pairs if keys & set(pair) for key in pair} - keys:
        keys |= added
    return keys


def _sound(handover: Mapping[str, str]) -> tuple[bytes, bytes] | None:
    """Former and successor, if both have signed; None for anything else, whoever wrote it."""
    try:
        former, successor, by_former, by_successor = (
            bytes.fromhex(handover[name][:LONGEST]) for name in (FORMER, SUCCESSOR, BY_FORMER, BY_SUCCESSOR)
        )
        said = statement(former, successor, handover[TIME][:LONGEST])
        signed = verify(former, SignatureAlgorithm.ES256, said, by_former) and verify(
            successor, SignatureAlgorithm.ES256, said, by_successor
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return (former, successor) if signed else None
