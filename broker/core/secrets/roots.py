"""Root keys: AES-256 keys of the HSM that wrap the data keys of secrets; made, rotated and, when unused, destroyed.

A rotation is two writes with the HSM between them; the background loop finishes what a crash left PENDING, wraps
everything anew in small steps, each of which may be repeated, and destroys a root key that nothing hangs on any more.
No RPC can name a root key: its id in the HSM stands in its row only (HS-17).

A process wraps under the newest root key that it has read of. It reads again when that is ``REREAD`` ago, refuses what
it wrapped more than ``SURE`` after its last reading, and nobody destroys a root key before ``RETIRE_AFTER`` has passed
since a newer one was ready: so nothing can be wrapped under a root key that is just being destroyed elsewhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from threading import Lock

from broker.core import receipts
from broker.core.call import Call
from broker.core.errors import BrokerError, Exhausted, NotFound, Outcome, Unavailable, WrongState
from broker.core.kinds import KeyType, KeyUsage, RootKeyState
from broker.core.model import Receipt, RootKey, SecretVersion
from broker.core.policy.guard import BROKER, Guard
from broker.core.ports import Hsm, KeyRef, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.records import key_of
from broker.core.rows import readable, refuse_doubt
from broker.core.secrets.sealing import Sealing

REREAD = timedelta(seconds=30)
SURE = timedelta(minutes=10)
RETIRE_AFTER = timedelta(hours=24)
FINISH_AFTER = timedelta(minutes=5)
"""A root key that is still PENDING after this long belongs to a call that died."""

MOST = 256
TABLES = frozenset({"root_keys", "secret_versions"})
STEP = 50
REPORTED = 1000
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


def known_roots(store: Store) -> Mapping[int, KeyRef]:
    """Every root key that can be used, by version: what ``Sealing`` starts with."""
    return {root.version: ref(root) for root in _ready(store)}


class Roots:
    """The root keys behind SecretService."""

    def __init__(self, store: Store, hsm: Hsm, sealing: Sealing, guard: Guard, now: Now) -> None:
        self._store = store
        self._hsm = hsm
        self._sealing = sealing
        self._guard = guard
        self._now = now
        self._reading = Lock()
        self._read_at: datetime | None = None
        self._reported: set[tuple[str, int, int]] = set()

    def ensure(self, call: Call) -> None:
        """Make the first root key if there is none that can be used; repeating it completes it."""
        if not _ready(self._store):
            with self._store.write(call.intent()) as write:
                first = write.get(RootKey, 1)
                if first is None:
                    first = self._draft(1)
                    write.add(first)
                elif first.state is RootKeyState.HELD:
                    raise WrongState(
                        Reason.ROOT_KEY_HELD,
                        "The first root key is held since a restore; start the broker, and keep or discard it with "
                        "`broker secret settle-root 1`.",
                    )
            self._complete(first, call)
        for root in _unchecked(_ready(self._store)):
            self._check(root, call)
        self.refresh()

    def rotate(self, call: Call) -> int:
        """Make the next root key; what is wrapped under older ones follows in the background."""
        self._guard.check(call, BROKER)
        if call.validate_only:
            return _newest(self._store).version + 1
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
            if receipt is None:
                root = self._begin(write)
                receipts.keep(write, call, "root", root.version)
        if receipt is not None:
            root = self._resumed(receipt)
        call.note(version=root.version)
        if root.state is RootKeyState.PENDING:
            self._complete(root, call)
        return root.version

    def newest(self, call: Call) -> tuple[RootKey, int]:
        """The root key that wraps, and how many versions still hang on older ones."""
        self._guard.check(call, BROKER)
        newest = _newest(self._store)
        older = [root.version for root in _ready(self._store) if root.version < newest.version]
        return newest, sum(self._store.count(SecretVersion, {"root": version}) for version in older)

    def settle(self, call: Call, version: int, *, keep: bool) -> None:
        """Say what becomes of a root key since a restore (``RootKeyState``).

        Keep: a HELD one is used from now on, if the HSM has it (else NotFound ``KEY_NOT_IN_HSM``). Discard: a HELD one
        is destroyed in the HSM, a KEPT one may be destroyed by itself again. Anything else stays as it is.
        """
        self._guard.check(call, BROKER)
        call.note(version=version)
        root = self._store.get(RootKey, version)
        if root is None:
            self._discarded_before(call, version)
            return
        if root.state is RootKeyState.PENDING:
            raise WrongState(Reason.ROTATION_RUNNING, "This root key is being made; try again in some minutes.")
        held = root.state is RootKeyState.HELD
        if held and keep:
            self._hsm.public_key(ref(root))  # refused if it is not there
        if call.validate_only:
            return
        with self._store.write(call.intent()) as write:
            if receipts.replay(write, call) is None:
                receipts.keep(write, call, "root", version)
            root = write.replace(root, root)  # from here on nobody else settles it
        if held and not keep:
            self._hsm.destroy(ref(root))
        with self._store.write(call.outcome()) as write:
            if held and not keep:
                write.delete(root)
            else:
                write.replace(root, self._settled(root, keep=keep))
        call.settled = True
        self.refresh()

    def frozen(self) -> list[RootKey]:
        """Those that are HELD or KEPT; for callers who may see the root key."""
        return [root for root in _rows(self._store) if root.state in {RootKeyState.HELD, RootKeyState.KEPT}]

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
            raise Unavailable(Reason.TOO_SLOW, "Sealing the secret took too long, or the clock moved; send it again.")

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """What the background loop has to do now: (resource, work); each piece stands alone and may be repeated."""
        self.refresh()
        rows = _rows(self._store)
        for root in rows:
            if root.state is RootKeyState.PENDING and root.created_at + FINISH_AFTER < self._now():
                yield f"root/{root.version}", partial(self._complete, root)
        ready = [root for root in rows if root.state in USABLE]
        for root in _unchecked(ready):
            yield f"root/{root.version}", partial(self._check, root)
        for root, next_one in pairwise(ready):
            for batch in self._hanging(root):
                yield f"root/{root.version}", partial(self._rewrap, batch)
            if root.state is RootKeyState.KEPT:  # only what may be destroyed by itself is
                continue
            if next_one.created_at + RETIRE_AFTER <= self._now() and not self._holds(self._store, root):
                yield f"root/{root.version}", partial(self._retire, root)

    def _discarded_before(self, call: Call, version: int) -> None:
        """Return if it was this very request that discarded it; else NotFound ``ROOT_KEY_NOT_FOUND``."""
        with self._store.write(call.outcome()) as write:
            if receipts.replay(write, call) is None:
                raise NotFound(
                    Reason.ROOT_KEY_NOT_FOUND, f"There is no root key of version {version}; see `broker secret root`."
                )
        call.settled = True

    def _settled(self, root: RootKey, *, keep: bool) -> RootKey:
        """What was held and is not the newest would be destroyed at once, as nothing hangs on it; so it is kept."""
        if root.state is RootKeyState.HELD:
            newer = any(one.version > root.version for one in _ready(self._store))
            state = RootKeyState.KEPT if newer else RootKeyState.ENABLED
            return replace(root, state=state, created_at=self._now())  # ready from now on, as after a rotation
        return root if keep else replace(root, state=RootKeyState.ENABLED)

    def _draft(self, version: int) -> RootKey:
        hsm_id = secrets.token_bytes(16)
        return RootKey(version=version, hsm_id=hsm_id, created_at=self._now(), state=RootKeyState.PENDING)

    def _begin(self, write: Write) -> RootKey:
        rows = write.page(RootKey, limit=MOST)
        if any(root.state is RootKeyState.PENDING for root in rows):
            raise WrongState(Reason.ROTATION_RUNNING, "A root key is being made already; try again in some minutes.")
        if len(rows) == MOST:
            raise Exhausted(
                Reason.ROOT_KEYS_MANY,
                f"There are {MOST} root keys, the most there may be; `broker secret root` shows how many versions "
                "still wait to be moved off the old ones. Rotate again when none does.",
            )
        root = self._draft(rows[-1].version + 1 if rows else 1)
        write.add(root)
        write.note(version=root.version)
        return root

    def _resumed(self, receipt: Receipt) -> RootKey:
        root = self._store.get(RootKey, receipt.version)
        if root is None:
            raise receipts.undone()
        return root

    def _complete(self, root: RootKey, call: Call) -> None:
        try:
            self._hsm.generate(ref(root), exportable=False)
            check = self._check_value(root)
        except Unavailable:
            raise  # the row stays PENDING: the same request id, or the background loop, completes it
        except BrokerError:
            self._undo(root, call)
            raise
        with self._store.write(call.outcome()) as write:
            stored = write.get(RootKey, root.version)
            if stored is not None and stored.state is RootKeyState.PENDING:
                # Ready from now on, and not earlier: when older ones may be destroyed is counted from here.
                ready = replace(stored, state=RootKeyState.ENABLED, created_at=self._now(), check_value=check)
                write.replace(stored, ready)
        call.settled = True
        self.refresh()

    def _check_value(self, root: RootKey) -> bytes | None:
        """What tells this root key from any other; None from a token that could seal nothing with it anyway."""
        try:
            return self._hsm.check_value(ref(root))
        except WrongState as refusal:
            if refusal.reason != Reason.HSM_MECHANISM_MISSING:
                raise
            return None

    def _check(self, root: RootKey, call: Call) -> None:
        """Give a root key its check value that was made before there were any (FT-20)."""
        check = self._check_value(root)
        if check is None:
            return
        with self._store.write(call.outcome()) as write:
            stored = write.get(RootKey, root.version)
            if stored is not None and (stored.hsm_id, stored.check_value) == (root.hsm_id, None):
                write.replace(stored, replace(stored, check_value=check))
            write.note(version=root.version)
        call.settled = True

    def _undo(self, root: RootKey, call: Call) -> None:
        """Take back a root key that the HSM will not make."""
        with self._store.write(call.outcome(Outcome.ABORTED, Reason.KEY_NOT_MADE)) as write:
            stored = write.get(RootKey, root.version)
            if stored is None or stored.state is not RootKeyState.PENDING:
                return
            write.delete(stored)
            for receipt in write.page(Receipt, limit=10, where={"resource": "root", "version": root.version}):
                write.delete(receipt)

    def _hanging(self, root: RootKey) -> Iterator[list[SecretVersion]]:
        after: tuple[str | int, ...] = ()
        where = {"root": root.version}
        while batch := self._store.page(SecretVersion, after=after, limit=STEP, where=where, sound_only=True):
            yield batch
            after = key_of(batch[-1])

    def _rewrap(self, batch: list[SecretVersion], call: Call) -> None:
        learnt = self.learnt()
        wrapped: list[tuple[SecretVersion, int, bytes]] = []
        damaged: list[SecretVersion] = []
        for version in batch:
            try:
                again = self._sealing.rewrap(version.secret, version.number, version.root, version.data_key)
            except WrongState as refusal:
                if refusal.reason != Reason.SECRET_DAMAGED:
                    raise
                damaged.append(version)
            else:
                wrapped.append((version, *again))
        if wrapped:
            self._keep_wrapped(wrapped, learnt, call)
        for version in damaged:
            self._report(version, call)

    def _keep_wrapped(self, wrapped: list[tuple[SecretVersion, int, bytes]], learnt: datetime, call: Call) -> None:
        with self._store.write(call.outcome()) as write:
            count = 0
            for version, root, data_key in wrapped:
                stored = write.get(SecretVersion, version.secret, version.number)
                if stored is not None and stored.revision == version.revision:
                    write.replace(stored, replace(stored, root=root, data_key=data_key))
                    count += 1
            write.note(count=count, version=wrapped[0][1])
            self.check_sure(learnt)
        call.settled = True

    def _report(self, version: SecretVersion, call: Call) -> None:
        """Say in the audit, once for each process, that a stored version does not open (ST-02)."""
        which = (version.secret, version.number, version.revision)
        if which in self._reported or len(self._reported) >= REPORTED:
            return
        call.resource = f"secret/{version.secret}"
        call.note(version=version.number)
        self._store.record(call.outcome(Outcome.FAILED_PRECONDITION, Reason.SECRET_DAMAGED))
        self._reported.add(which)
        call.settled = True

    def _holds(self, where: Store | Write, root: RootKey) -> bool:
        """Whether a secret hangs on it; one whose row is spoilt does too, for somebody may put that right."""
        return readable(lambda: bool(where.page(SecretVersion, limit=1, where={"root": root.version})), True)

    def _retire(self, root: RootKey, call: Call) -> None:
        with self._store.write(call.intent()) as write:
            if self._holds(write, root):
                raise WrongState(
                    Reason.ROOT_KEY_IN_USE,
                    f"A secret still hangs on version {root.version} of the root key, so it is kept.",
                )
        refuse_doubt(self._store, TABLES, str(root.version))
        self._hsm.destroy(ref(root))
        with self._store.write(call.outcome()) as write:
            stored = write.get(RootKey, root.version)
            if stored is not None:
                write.delete(stored)
        call.settled = True
        self.refresh()


def _rows(store: Store) -> list[RootKey]:
    return store.page(RootKey, limit=MOST + 1, sound_only=True)


def _ready(store: Store) -> list[RootKey]:
    return [root for root in _rows(store) if root.state in USABLE]


def _unchecked(ready: list[RootKey]) -> list[RootKey]:
    return [root for root in ready if root.check_value is None]


def _newest(store: Store) -> RootKey:
    ready = _ready(store)
    if not ready:
        raise NotFound(
            Reason.ROOT_KEY_NOT_FOUND,
            "There is no root key that can be used; `broker secret root` shows what is held since a restore. Is "
            "nothing, stop the broker and run `broker init FOLDER` for its folder.",
        )
    return ready[-1]
