"""Root keys as their rows have them, and as a process knows them.

A process wraps under the newest root key that it has read of. It reads again when that is ``REREAD`` ago, refuses what
it wrapped more than ``SURE`` after its last reading, and nobody destroys a root key before ``RETIRE_AFTER`` has passed
since a newer one was ready: so nothing can be wrapped under a root key that is just being destroyed elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from threading import Lock

from broker.core.errors import NotFound, Unavailable
from broker.core.kinds import KeyType, KeyUsage, RootKeyState
from broker.core.model import RootKey, SecretVersion
from broker.core.ports import KeyRef, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rows import readable
from broker.core.secrets.sealing import Sealing

REREAD = timedelta(seconds=30)
SURE = timedelta(minutes=10)
RETIRE_AFTER = timedelta(hours=24)

MOST = 256
"""How many root keys there may be."""

USABLE = frozenset({RootKeyState.ENABLED, RootKeyState.KEPT})


def ref(root: RootKey) -> KeyRef:
    """The name of a root key in the HSM."""
    return KeyRef(
        hsm_id=root.hsm_id,
        type=KeyType.AES_256,
        usage=KeyUsage.ENCRYPT,
        public_key=None,
        name=str(root.version),
        check=root.check_value,
    )


def rows(store: Store) -> list[RootKey]:
    """Every root key that can be read, oldest first."""
    return store.page(RootKey, limit=MOST + 1, sound_only=True)


def ready(store: Store) -> list[RootKey]:
    """Those that can be used."""
    return [root for root in rows(store) if root.state in USABLE]


def newest(store: Store) -> RootKey:
    """The one that wraps; NotFound ``ROOT_KEY_NOT_FOUND`` if none can be used."""
    usable = ready(store)
    if not usable:
        raise NotFound(
            Reason.ROOT_KEY_NOT_FOUND,
            "There is no root key that can be used; `broker secret root` shows what is held since a restore. Is "
            "nothing, stop the broker and run `broker init FOLDER` for its folder.",
        )
    return usable[-1]


def known_roots(store: Store) -> Mapping[int, KeyRef]:
    """Every root key that can be used, by version: what ``Sealing`` starts with."""
    return {root.version: ref(root) for root in ready(store)}


def in_use(where: Store | Write, root: RootKey) -> bool:
    """Whether a secret hangs on it; one whose row is damaged does too, for somebody may put that right."""
    return readable(lambda: bool(where.page(SecretVersion, limit=1, where={"root": root.version})), True)


class KnownRoots:
    """What this process knows of the root keys, and since when."""

    def __init__(self, store: Store, sealing: Sealing, now: Now) -> None:
        self._store = store
        self._sealing = sealing
        self._now = now
        self._reading = Lock()
        self._read_at: datetime | None = None

    def refresh(self) -> None:
        """Learn which root keys there are."""
        with self._reading:
            started = self._now()
            self._sealing.use_roots(known_roots(self._store))
            self._read_at = started

    def learnt(self) -> datetime:
        """When the root keys were read last, which is at most ``REREAD`` ago; for ``check_sure``."""
        read_at = self._read_at
        if read_at is None or not timedelta(0) <= self._now() - read_at < REREAD:
            self.refresh()
            read_at = self._read_at
        return read_at or self._now()

    def check_sure(self, learnt: datetime) -> None:
        """Asked once a row is written and before it is committed: refuses what was wrapped too long ago to be sure."""
        if not timedelta(0) <= self._now() - learnt < SURE:
            raise Unavailable(
                Reason.TOO_SLOW, "Encrypting the secret took too long, or the clock moved; send it again."
            )
