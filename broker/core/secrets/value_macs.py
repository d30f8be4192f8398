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

from broker.core.call import Call
from broker.core.errors import WrongState
from broker.core.secrets.sealing import DATA_KEY, Sealing, encode, with_length

PURPOSE = b"broker-receipt-v1"
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
        root, wrapped, key = self._key()
        return root.to_bytes(ROOT_BYTES, "big") + wrapped + _mac(key, call, name, fields)

    def same(self, kept: bytes, call: Call, name: str, fields: Mapping[str, bytes]) -> bool | None:
        """Whether these are the values that ``kept`` was made of; None when its key does not open any more."""
        root, wrapped = int.from_bytes(kept[:ROOT_BYTES], "big"), kept[ROOT_BYTES:-DIGEST_BYTES]
        try:
            key = self._sealing.unwrap_receipt_key(root, wrapped)
        except WrongState:
            return None
        return hmac.compare_digest(kept[-DIGEST_BYTES:], _mac(key, call, name, fields))

    def _key(self) -> tuple[int, bytes, bytes]:
        """The key of this process; another one once there is a newer root key, as the older may soon be destroyed."""
        own = self._own
        if own is None or own[0] != max(self._sealing.roots, default=0):
            key = secrets.token_bytes(DATA_KEY)
            own = self._own = *self._sealing.wrap_receipt_key(key), key
        return own


def _mac(key: bytes, call: Call, name: str, fields: Mapping[str, bytes]) -> bytes:
    bound = (PURPOSE, str(call.principal).encode(), call.request_id.encode(), name.encode())
    return hmac.digest(key, b"".join(map(with_length, bound)) + encode(fields), DIGEST)
