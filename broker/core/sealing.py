"""How a secret's fields rest: AES-256-GCM under a data key of their own, which the HSM's root key wraps.

Name, version and root key version are associated data of both seals, so that a row moved to another place, or an older
row put back under a newer number, does not open (HS-09, ST-02). Data keys that were unwrapped are kept for a bounded
time (0: never), so that a fetch need not ask the HSM each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from broker.core.ports import Hsm, KeyRef, Now


class Sealing:
    """Seals and opens; thread-safe. ``roots``: every root key version there is, the highest one wraps."""

    def __init__(self, hsm: Hsm, roots: Mapping[int, KeyRef], now: Now, keep: timedelta) -> None:
        raise NotImplementedError

    def seal(self, name: str, version: int, fields: Mapping[str, bytes]) -> tuple[int, bytes, bytes]:
        """(root key version, wrapped data key, sealed fields)."""
        raise NotImplementedError

    def open(self, name: str, version: int, root: int, data_key: bytes, sealed: bytes) -> dict[str, bytes]:
        """The fields; WrongState ``SECRET_DAMAGED`` when anything was altered or moved."""
        raise NotImplementedError

    def rewrap(self, name: str, version: int, root: int, data_key: bytes) -> tuple[int, bytes]:
        """The data key wrapped under the newest root key; the sealed fields stay as they are."""
        raise NotImplementedError

    def forget(self, name: str, version: int) -> None:
        """Drop a data key that is kept (HS-16)."""
        raise NotImplementedError

    def add_root(self, version: int, key: KeyRef) -> None:
        """Wrap under this root key from now on."""
        raise NotImplementedError
