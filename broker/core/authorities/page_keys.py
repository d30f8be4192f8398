"""The keys of the page tokens: made here, wrapped by the HSM, so that every process on one database has them."""

from __future__ import annotations

from collections.abc import Callable

from broker.core.authorities.known import OwnKeys
from broker.core.errors import BrokerError, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, Own, Purpose
from broker.core.own_key import OwnKey
from broker.core.ports import Device, KeyRef
from broker.core.reasons import Reason

WRAPS = KeyRef(hsm_id=b"broker/row-key/1", type=KeyType.AES_256, usage=KeyUsage.ENCRYPT, public_key=None, name="")
"""The key of the HSM that wraps what the broker keeps in files and rows: the key of the rows, and these."""

BYTES = 32


class PageKeys:
    """Opens them. ``first``: reads the one that ``init`` wrote into a file."""

    def __init__(self, device: Device, own: OwnKeys, trust_domain: str, first: Callable[[], bytes]) -> None:
        self._device = device
        self._own = own
        self._trust_domain = trust_domain
        self._first = first
        self._opened: dict[bytes, bytes] = {}

    def keys(self) -> list[bytes]:
        """The one that makes tokens, then the others whose tokens are taken."""
        return [self._first() if one.version == 1 else self._open(one) for one in self._own.taken(Own.PAGE)]

    def _open(self, one: OwnKey) -> bytes:
        sealed = one.sealed or b""
        if sealed not in self._opened:
            key = opened(self._device, self._trust_domain, one)
            self._opened = {sealed: key, **dict(list(self._opened.items())[:3])}
        return self._opened[sealed]


def sealed(device: Device, trust_domain: str, version: int) -> bytes:
    """A new key, wrapped."""
    key, ring = device.random(BYTES), device.keyring(Purpose.ROWS)
    return ring.encrypt(WRAPS, EncryptionAlgorithm.AES_GCM, key, _context(trust_domain, version))


def opened(device: Device, trust_domain: str, one: OwnKey) -> bytes:
    """A key that ``sealed`` made for this version; WrongState ``OWN_KEY_MISSING`` for anything else."""
    try:
        ring, context = device.keyring(Purpose.ROWS), _context(trust_domain, one.version)
        return ring.decrypt(WRAPS, EncryptionAlgorithm.AES_GCM, one.sealed or b"", context)
    except BrokerError as error:
        raise WrongState(
            Reason.OWN_KEY_MISSING,
            f"Version {one.version} of the page key does not open with this token; put the right token back.",
        ) from error


def _context(trust_domain: str, version: int) -> bytes:
    return b"broker-page-key-v1\0%d\0" % version + trust_domain.encode()
