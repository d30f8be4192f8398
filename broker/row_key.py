"""The key that vouches for the database's rows: random, wrapped by a key of the HSM, in a file of the certificates.

All processes on one database share the file. Without the HSM nobody can open it, and who has the database alone can
compute no MAC. It is never made anew for a database that has rows under another one.
"""

from __future__ import annotations

from broker.config import Config
from broker.core.authorities.page_keys import WRAPS
from broker.core.errors import InvalidRequest, NotFound, WrongState
from broker.core.kinds import EncryptionAlgorithm, Purpose
from broker.core.ports import Device
from broker.core.reasons import Reason
from broker.rpc.tls import read_key
from broker.store.authentic import KEY_BYTES

FILE = "rows.key"
NEW = "rows.key.new"
"""What `init` calls it until it has vouched for the rows that are there."""


def row_key(config: Config, device: Device, name: str = "") -> bytes:
    """The 32 bytes; WrongState ``NOT_INITIALISED`` or ``FILE_DAMAGED``. ``name``: of the file, ``FILE`` if it is ""."""
    file = config.certificates / (name or FILE)
    if not file.exists():
        raise WrongState(Reason.NOT_INITIALISED, f"{file} is missing; run `broker init` for this folder first.")
    try:
        key = device.keyring(Purpose.ROWS).decrypt(WRAPS, EncryptionAlgorithm.AES_GCM, read_key(file), _context(config))
    except (InvalidRequest, NotFound) as error:
        raise WrongState(
            Reason.FILE_DAMAGED,
            f"{file} does not open: it is of another token or broker, or trust_domain is not what it was when the "
            "broker was made. Put back what was exchanged.",
        ) from error
    if len(key) != KEY_BYTES:
        raise WrongState(Reason.FILE_DAMAGED, f"{file} holds another key; put it back from a backup.")
    return key


def wrapped(config: Config, device: Device) -> bytes:
    """A new key, as the file is to hold it; the HSM's own key for it is made where it is missing."""
    ring = device.keyring(Purpose.ROWS)
    ring.generate(WRAPS, exportable=False)
    return ring.encrypt(WRAPS, EncryptionAlgorithm.AES_GCM, device.random(KEY_BYTES), _context(config))


def _context(config: Config) -> bytes:
    return b"broker-row-key-v1\0" + config.trust_domain.encode()
