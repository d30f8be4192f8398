"""Which audit keys count: those that were given, and all that sound hand-overs lead to (docs/audit-format.md).

Both keys of a hand-over have signed it: the former one, so that who pinned it follows to the successor, and the
successor, so that who pinned that one follows back. Where it was found does not matter.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from broker_cli import files
from broker_cli.journal import NotAJournalError, moment
from broker_cli.refusal import Exit, Refusal

FORMER, SUCCESSOR, TIME = "former_key", "successor_key", "handover_time"
BY_FORMER, BY_SUCCESSOR = "former_signature", "successor_signature"
MARK = f'"{BY_SUCCESSOR}":"'.encode()
LONGEST = 400
MOST = 1000
MAX_FILE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Handover:
    """A sound one: keys as SubjectPublicKeyInfo, DER."""

    former: bytes
    successor: bytes
    time: str


@dataclass(slots=True)
class AuditKeys:
    """The keys that count, in the order of their hand-overs; call it with a signature and what it is said to be over.

    ``replaced``: when each was handed over, by its number. ``forks``: keys that were handed over to two others, which
    were not both pinned: none of them is followed.
    """

    order: list[bytes]
    replaced: dict[int, datetime] = field(default_factory=dict)
    forks: list[str] = field(default_factory=list)

    def __call__(self, signature: bytes, statement: bytes) -> int:
        """The number of the key that has signed, from 1; 0: none of them."""
        newest_first = range(len(self.order), 0, -1)
        return next((number for number in newest_first if verified(self.order[number - 1], signature, statement)), 0)


def follow(pinned: Iterable[bytes], handovers: Iterable[Mapping[str, Any]]) -> AuditKeys:
    """Begin with the pinned keys, and go along all sound hand-overs, back and forth."""
    known = list(dict.fromkeys(pinned))
    sound = {(one.former, one.successor): one for one in map(_sound, handovers) if one is not None}
    back: dict[bytes, bytes] = {successor: former for former, successor in sound}
    order: list[bytes] = []
    forks: list[str] = []
    for key in known:
        path = [key]
        while (former := back.get(path[0])) is not None and former not in path:
            path.insert(0, former)
        order += [one for one in path if one not in order]
    at = 0
    while at < len(order):  # what is after each of them
        former = order[at]
        after = [successor for one, successor in sound if one == former]
        vouched = [one for one in after if one in order]
        if len(after) > 1 and vouched != after:
            forks.append(former.hex())
        if len(after) == 1 and not vouched:
            order.insert(at + 1, after[0])
        at += 1
    keys = AuditKeys(order, forks=forks)
    for (former, successor), one in sound.items():
        if former in order and successor in order:
            keys.replaced[order.index(former) + 1] = moment(one.time)
    return keys


def in_journals(paths: Iterable[Path]) -> Iterator[Mapping[str, Any]]:
    """Whatever in the journals says that it is a hand-over; what cannot be read is the verifier's to tell."""
    for path in paths:
        try:
            if path.stat().st_size:
                yield from _in_one(path)
        except OSError:
            continue


def in_file(source: str) -> list[Mapping[str, Any]]:
    """Hand-overs as ``broker audit handovers --format json`` writes them."""
    try:
        found = json.loads(files.take(source, MAX_FILE, "hand-overs"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Refusal(
            "HANDOVERS_INVALID",
            'The hand-overs are not what "broker audit handovers --format json" writes.',
            Exit.USAGE,
        )
    return found


def spki(pem: bytes) -> bytes:
    """A public key in PEM as SubjectPublicKeyInfo, DER; ``PUBLIC_KEY_INVALID`` unless it can be an audit key."""
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  cryptography is slow to load
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    try:
        public = serialization.load_pem_public_key(files.text(pem).encode())
    except ValueError:
        raise Refusal("PUBLIC_KEY_INVALID", "The public key is not a key in PEM.", Exit.USAGE) from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise Refusal("PUBLIC_KEY_INVALID", "The public key is not an EC P-256 key, so not the audit key.", Exit.USAGE)
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def verified(key: bytes, signature: bytes, statement: bytes) -> bool:
    """Whether a key has signed: ECDSA on P-256 with SHA-256, and nothing else."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  cryptography is slow to load
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    if key not in _LOADED:
        public = serialization.load_der_public_key(key)
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise ValueError("not an EC P-256 key")
        _LOADED[key] = public
    try:
        _LOADED[key].verify(signature, statement, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


_LOADED: dict[bytes, Any] = {}


def _sound(handover: Mapping[str, Any]) -> Handover | None:
    """None for anything that both keys have not signed, whoever wrote it."""
    try:
        texts = {name: handover[name] for name in (FORMER, SUCCESSOR, TIME, BY_FORMER, BY_SUCCESSOR)}
        if any(type(text) is not str or len(text) > LONGEST for text in texts.values()):
            return None
        former, successor = bytes.fromhex(texts[FORMER]), bytes.fromhex(texts[SUCCESSOR])
        said = f"broker-audit-handover-v1\n{former.hex()}\n{successor.hex()}\n{texts[TIME]}\n".encode()
        moment(texts[TIME])
        signed = verified(former, bytes.fromhex(texts[BY_FORMER]), said) and verified(
            successor, bytes.fromhex(texts[BY_SUCCESSOR]), said
        )
    except (ValueError, LookupError, TypeError, NotAJournalError):
        return None
    return Handover(former, successor, texts[TIME]) if signed and former != successor else None


def _in_one(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(MARK)
        while at >= 0:
            start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
            end = len(content) if end < 0 else end
            facts = _facts(content[start:end])
            if facts is not None:
                yield facts
            at = content.find(MARK, end)


def _facts(line: bytes) -> Mapping[str, Any] | None:
    try:
        facts = json.loads(line)["facts"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None
