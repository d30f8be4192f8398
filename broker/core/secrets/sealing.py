"""How a secret's fields rest: AES-256-GCM under a data key of their own, which the HSM's root key wraps.

Both seals have associated data: what they are, whose they are (the trust domain), the secret's name and the version;
the wrapped data key also the root key's version. So a row that was moved to another place, an older row put back under
a newer number, or half of one row beside half of another does not open (HS-09, ST-02). The fields are not bound to the
root key's version, because they stay as they are when the data key is wrapped anew; they are bound to the data key.

Bounds (NIST SP 800-38D 8.3): a data key seals once, under a random nonce of 96 bits; a root key wraps once for each
version and rewrap, and may do so 2^32 times. Data keys that were unwrapped are kept for a bounded time (0: never), so
that a fetch need not ask the HSM each time.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from broker.core.errors import InvalidRequest, NotFound, WrongState
from broker.core.kinds import EncryptionAlgorithm
from broker.core.ports import Hsm, KeyRef, Now
from broker.core.reasons import Reason

PURPOSE = b"broker-secret-v1"
DATA_KEY = 32
NONCE = 12
RECEIPTS = "*receipts"
KEPT = 10_000
"""How many unwrapped data keys are kept at most."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """An unwrapped data key, found only for the very wrapping that it came from. No cipher: it must not be kept."""

    wrapped: tuple[int, bytes]
    cipher: AESGCM | None
    since: datetime

    def __repr__(self) -> str:
        return "_Kept()"


class Sealing:
    """Seals and opens; thread-safe. ``roots``: every root key version there is, the highest one wraps.

    ``tenant`` is the trust domain: what one broker sealed does not open in another, even with the same token.
    ``entries`` bounds how many unwrapped data keys are kept, ``keep`` how long.
    """

    def __init__(
        self,
        hsm: Hsm,
        roots: Mapping[int, KeyRef],
        now: Now,
        keep: timedelta,
        *,
        tenant: str = "",
        entries: int = KEPT,
    ) -> None:
        self._hsm = hsm
        self._roots = dict(roots)
        self._now = now
        self._keep = keep
        self._tenant = tenant
        self._entries = entries
        self._kept: OrderedDict[tuple[str, int], _Kept] = OrderedDict()  # the oldest first
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Sealing(roots={sorted(self._roots)})"

    @property
    def roots(self) -> tuple[int, ...]:
        """The versions of the root keys that are known, the one that wraps last."""
        return tuple(sorted(self._roots))

    def seal(self, name: str, version: int, fields: Mapping[str, bytes]) -> tuple[int, bytes, bytes]:
        """(root key version, wrapped data key, sealed fields)."""
        data_key, nonce = secrets.token_bytes(DATA_KEY), secrets.token_bytes(NONCE)
        sealed = nonce + AESGCM(data_key).encrypt(nonce, encode(fields), self._context(b"fields", name, version))
        return *self._wrap(name, version, data_key), sealed

    def open(self, name: str, version: int, root: int, data_key: bytes, sealed: bytes) -> dict[str, bytes]:
        """The fields; WrongState ``SECRET_DAMAGED`` when anything was altered or moved."""
        cipher = self._cipher(name, version, root, data_key)
        try:
            return _decode(cipher.decrypt(sealed[:NONCE], sealed[NONCE:], self._context(b"fields", name, version)))
        except (InvalidTag, ValueError) as cause:
            raise damaged() from cause

    def rewrap(self, name: str, version: int, root: int, data_key: bytes) -> tuple[int, bytes]:
        """The data key wrapped under the newest root key; the sealed fields stay as they are."""
        return self._wrap(name, version, self._unwrap(name, version, root, data_key))

    def wrap_receipt_key(self, key: bytes) -> tuple[int, bytes]:
        """(root key version, wrapped key) of a key for ``value_macs``; no secret has the name that it is bound to."""
        return self._wrap(RECEIPTS, 0, key)

    def unwrap_receipt_key(self, root: int, wrapped: bytes) -> bytes:
        """Undo ``wrap_receipt_key``; WrongState when it does not open, or its root key is gone."""
        return self._unwrap(RECEIPTS, 0, root, wrapped)

    def forget(self, name: str, version: int) -> None:
        """Drop a data key that is kept, and keep it out while calls that had read its row may still be on the way."""
        self._remember((name, version), _Kept((0, b""), None, self._now()), again=True)

    def sweep(self) -> None:
        """Drop the data keys whose time is over; the background loop's, for when nothing else is asked."""
        with self._lock:
            self._drop_old(self._now())

    def use_roots(self, roots: Mapping[int, KeyRef]) -> None:
        """Exactly these root keys are there."""
        self._roots = dict(roots)

    def _wrap(self, name: str, version: int, data_key: bytes) -> tuple[int, bytes]:
        roots = self._roots
        root = max(roots, default=0)
        return root, self._hsm.encrypt(
            _root(roots, root), EncryptionAlgorithm.AES_GCM, data_key, self._context(b"data-key", name, version, root)
        )

    def _unwrap(self, name: str, version: int, root: int, wrapped: bytes) -> bytes:
        key = self._roots.get(root)
        if key is None:
            raise damaged()
        context = self._context(b"data-key", name, version, root)
        try:
            data_key = self._hsm.decrypt(key, EncryptionAlgorithm.AES_GCM, wrapped, context)
        except InvalidRequest as cause:
            raise damaged() from cause
        except NotFound as cause:
            raise _root_missing() from cause
        if len(data_key) != DATA_KEY:
            raise damaged()
        return data_key

    def _cipher(self, name: str, version: int, root: int, wrapped: bytes) -> AESGCM:
        place, now = (name, version), self._now()
        with self._lock:
            kept = self._kept.get(place)
        if kept and kept.cipher and kept.wrapped == (root, wrapped) and self._is_fresh(kept, now):
            return kept.cipher
        cipher = AESGCM(self._unwrap(name, version, root, wrapped))
        self._remember(place, _Kept((root, bytes(wrapped)), cipher, now))
        return cipher

    def _remember(self, place: tuple[str, int], kept: _Kept, *, again: bool = False) -> None:
        if not self._keep or not self._entries:
            return
        with self._lock:
            self._drop_old(kept.since)
            there = self._kept.get(place)
            if there and there.cipher is None and not again:
                return
            self._kept[place] = kept
            self._kept.move_to_end(place)
            while len(self._kept) > self._entries:
                self._kept.popitem(last=False)

    def _drop_old(self, now: datetime) -> None:
        while self._kept and not self._is_fresh(next(iter(self._kept.values())), now):
            self._kept.popitem(last=False)

    def _is_fresh(self, kept: _Kept, now: datetime) -> bool:
        """Within its time, and not from a future that a clock set back has made of it."""
        return timedelta(0) <= now - kept.since < self._keep

    def _context(self, part: bytes, name: str, version: int, root: int = 0) -> bytes:
        """The associated data; each part with its length before it, so that no two places read the same."""
        return b"".join(
            map(with_length, (PURPOSE, part, self._tenant.encode(), name.encode(), b"%d" % version, b"%d" % root))
        )


def with_length(part: bytes) -> bytes:
    """The part with its length before it, so that no two rows of parts read the same."""
    return len(part).to_bytes(2, "big") + part


def damaged() -> WrongState:
    """The one refusal of whatever does not open."""
    return WrongState(
        Reason.SECRET_DAMAGED,
        "The stored secret does not open, though its root key is there: what is stored was altered or moved outside "
        "the broker, or the device unwraps wrongly. Put the secret anew, and find out who can write to the database.",
    )


def _root(roots: Mapping[int, KeyRef], version: int) -> KeyRef:
    if version not in roots:
        raise _root_missing()
    return roots[version]


def _root_missing() -> WrongState:
    return WrongState(
        Reason.ROOT_KEY_MISSING,
        "The root key of this secret is not in the HSM; `broker doctor --config FILE` on the broker's host says "
        "whether it is the token that the broker was set up with.",
    )


def encode(fields: Mapping[str, bytes]) -> bytes:
    """Names in order, each name and value with its length before it: one form for one set of fields."""
    out = bytearray()
    for name in sorted(fields):
        encoded = name.encode()
        out += len(encoded).to_bytes(2, "big") + encoded + len(fields[name]).to_bytes(4, "big") + fields[name]
    return bytes(out)


def _decode(plain: bytes) -> dict[str, bytes]:
    """What ``encode`` made; ValueError for anything else."""
    fields: dict[str, bytes] = {}
    place = 0
    while place < len(plain):
        name, place = _piece(plain, place, 2)
        value, place = _piece(plain, place, 4)
        fields[name.decode()] = value
    if encode(fields) != plain:
        raise ValueError("not in the one form")
    return fields


def _piece(plain: bytes, place: int, width: int) -> tuple[bytes, int]:
    start = place + width
    end = start + int.from_bytes(plain[place:start], "big")
    if end > len(plain):
        raise ValueError("cut short")
    return plain[start:end], end
