"""Whether a repeated request brings the same secret values: told by its receipt, and by nobody who reads the database.

A receipt outlives the version that the request made: 24 hours, although the version may be destroyed at once. So it
has a MAC of the values, under a random key that each process draws for itself and that the HSM's root key wraps. The
wrapped key stands before the MAC. Without the HSM a guess cannot be tried (a plain hash could be); with it, only the
one request's values can, for the MAC is bound to the principal, the request id and the secret's name.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.core.call import Call
from broker.core.errors import WrongState
from broker.core.secrets.sealing import DATA_KEY, Sealing, encode, with_length

PURPOSE = b"broker-receipt-v1"
APPROVAL = b"broker-approval-v1"
DIGEST = "sha256"
DIGEST_BYTES = 32
ROOT_BYTES = 4


class ValueMacs:
    """Makes and checks the MACs of this process. Thread-safe: two keys that are drawn at once are both good."""

    def __init__(self, sealing: Sealing) -> None:
        self._sealing = sealing
        self._own: tuple[int, bytes, bytes] | None = None  # root key version, wrapped key, key

    def __repr__(self) -> str:
        return "ValueMacs()"

    def of(self, call: Call, name: str, fields: Mapping[str, bytes]) -> bytes | None:
        """The MAC to keep with the receipt of this call; None when it has no request id and so leaves no receipt."""
        if not call.request_id:
            return None
        return self.made(_of_receipt(call, name, fields))

    def same(self, kept: bytes, call: Call, name: str, fields: Mapping[str, bytes]) -> bool | None:
        """Whether these are the values that ``kept`` was made of; None when its key does not open any more."""
        return self.matches(kept, _of_receipt(call, name, fields))

    def bind(self, call: Call, name: str, fields: Mapping[str, bytes]) -> None:
        """Have an approval of this call stand for these values, and for no others."""
        if call.clearance is not None:
            call.clearance.values = _Bound(self, str(call.principal), name, fields)

    def made(self, bound: bytes) -> bytes:
        """What to keep of values: root key version, wrapped key of this process, MAC."""
        root, wrapped, key = self._key()
        return root.to_bytes(ROOT_BYTES, "big") + wrapped + hmac.digest(key, bound, DIGEST)

    def matches(self, kept: bytes, bound: bytes) -> bool | None:
        """Whether ``kept`` was made of the same; None when its key does not open any more."""
        root, wrapped = int.from_bytes(kept[:ROOT_BYTES], "big"), kept[ROOT_BYTES:-DIGEST_BYTES]
        try:
            key = self._sealing.unwrap_receipt_key(root, wrapped)
        except WrongState:
            return None
        return hmac.compare_digest(kept[-DIGEST_BYTES:], hmac.digest(key, bound, DIGEST))

    def _key(self) -> tuple[int, bytes, bytes]:
        """The key of this process; another one once there is a newer root key, as the older may soon be destroyed."""
        own = self._own
        if own is None or own[0] != max(self._sealing.roots, default=0):
            key = secrets.token_bytes(DATA_KEY)
            own = self._own = *self._sealing.wrap_receipt_key(key), key
        return own


@dataclass(frozen=True, slots=True)
class _Bound:
    """The values of a request that may wait for an approval; ``repr`` shows none."""

    macs: ValueMacs
    principal: str
    name: str
    fields: Mapping[str, bytes] = field(repr=False)

    def mac(self) -> bytes:
        """See ``Values``."""
        return self.macs.made(self._bytes())

    def same(self, kept: bytes) -> bool:
        """See ``Values``."""
        return self.macs.matches(kept, self._bytes()) is True

    def _bytes(self) -> bytes:
        return _joined((APPROVAL, self.principal.encode(), self.name.encode()), self.fields)


def _of_receipt(call: Call, name: str, fields: Mapping[str, bytes]) -> bytes:
    return _joined((PURPOSE, str(call.principal).encode(), call.request_id.encode(), name.encode()), fields)


def _joined(bound: tuple[bytes, ...], fields: Mapping[str, bytes]) -> bytes:
    return b"".join(map(with_length, bound)) + encode(fields)
