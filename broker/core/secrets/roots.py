"""Root keys: AES-256 keys of the HSM that wrap the data keys of secrets; made, rotated and, when unused, destroyed.

No RPC can name a root key: its id in the HSM stands in its row only (HS-17). ``root_plans`` has what is done in the
HSM, ``rewrapping`` what follows a rotation, ``root_rows`` what a process knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import pairwise

from broker.core import receipts
from broker.core.call import Call
from broker.core.errors import NotFound
from broker.core.kinds import RootKeyState
from broker.core.model import RootKey, SecretVersion
from broker.core.once import last_write, once
from broker.core.operations.running import Operations, running
from broker.core.policy.guard import BROKER, Guard
from broker.core.ports import Hsm, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.secrets.rewrapping import Rewrapping
from broker.core.secrets.root_plans import FINISH_AFTER, RootPlans, being_made
from broker.core.secrets.root_rows import RETIRE_AFTER, USABLE, KnownRoots, in_use, newest, ready, ref, rows
from broker.core.secrets.sealing import Sealing


class Roots:
    """The root keys behind SecretService."""

    def __init__(
        self, store: Store, hsm: Hsm, sealing: Sealing, guard: Guard, operations: Operations, now: Now
    ) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._now = now
        self._known = KnownRoots(store, sealing, now)
        self._plans = RootPlans(store, hsm, operations, now)
        self._rewrapping = Rewrapping(store, sealing, self._known)

    def ensure(self, call: Call) -> None:
        """Make the first root key if there is none that can be used; repeating it completes it."""
        if not ready(self._store):
            self._plans.first(call)
        for root in _unchecked(ready(self._store)):
            self._check(root, call)
        self.refresh()

    def rotate(self, call: Call) -> int:
        """Make the next root key; what is wrapped under older ones follows in the background."""
        self._guard.check(call, BROKER)
        if call.validate_only:
            return newest(self._store).version + 1
        version = self._plans.next(call)
        self.refresh()
        return version

    def newest(self, call: Call) -> tuple[RootKey, int]:
        """The root key that wraps, and how many versions still hang on older ones."""
        self._guard.check(call, BROKER)
        last = newest(self._store)
        older = [root.version for root in ready(self._store) if root.version < last.version]
        return last, sum(self._store.count(SecretVersion, {"root": version}) for version in older)

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
            raise being_made()
        held = root.state is RootKeyState.HELD
        if held and keep:
            self._hsm.public_key(ref(root))  # refused if it is not there
        if call.validate_only:
            return
        if held and not keep:
            self._plans.discard(call, root)
        else:
            self._change(call, root, self._settled(root, keep=keep))
        self.refresh()

    def frozen(self) -> list[RootKey]:
        """Those that are HELD or KEPT; for callers who may see the root key."""
        return [root for root in rows(self._store) if root.state in {RootKeyState.HELD, RootKeyState.KEPT}]

    def refresh(self) -> None:
        """Learn which root keys there are."""
        self._known.refresh()

    def learnt(self) -> datetime:
        """When the root keys were read last; for ``check_sure``."""
        return self._known.learnt()

    def check_sure(self, learnt: datetime) -> None:
        """Asked before a commit: refuses what was wrapped too long ago to be sure."""
        self._known.check_sure(learnt)

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """What the background loop has to do now: (resource, work); each piece stands alone and may be repeated."""
        self.refresh()
        found = rows(self._store)
        for root in found:
            if root.state is RootKeyState.PENDING and self._is_lost(root):
                yield f"root/{root.version}", partial(self._plans.adopt, root)
        usable = [root for root in found if root.state in USABLE]
        for root in _unchecked(usable):
            yield f"root/{root.version}", partial(self._check, root)
        for root, next_one in pairwise(usable):
            yield from self._rewrapping.chores(root)
            if self._is_over(root, next_one):
                yield f"root/{root.version}", partial(self._retire, root)

    def _is_lost(self, root: RootKey) -> bool:
        """Whether an older release has begun to make it, and no operation stands for it."""
        return root.created_at + FINISH_AFTER < self._now() and self._plans.live(self._store, root) is None

    def _is_over(self, root: RootKey, next_one: RootKey) -> bool:
        """Whether it is to be destroyed; one that is KEPT never is by itself."""
        if root.state is RootKeyState.KEPT or self._now() < next_one.created_at + RETIRE_AFTER:
            return False
        return not in_use(self._store, root) and self._plans.live(self._store, root) is None

    def _retire(self, root: RootKey, call: Call) -> None:
        self._plans.retire(root, call)
        self.refresh()

    def _discarded_before(self, call: Call, version: int) -> None:
        """Return if it was this very request that discarded it; else NotFound ``ROOT_KEY_NOT_FOUND``."""
        with last_write(self._store, call) as write:
            if receipts.replay(write, call) is None:
                raise NotFound(
                    Reason.ROOT_KEY_NOT_FOUND, f"There is no root key of version {version}; see `broker secret root`."
                )

    def _change(self, call: Call, root: RootKey, settled: RootKey) -> None:
        def change(write: Write) -> None:
            write.replace(root, settled)
            operation = self._plans.live(write, root)
            if operation is not None:  # what is being destroyed is not kept
                raise running(operation)

        once(self._store, call, "root", change, lambda write, _: change(write), version=root.version)

    def _settled(self, root: RootKey, *, keep: bool) -> RootKey:
        """What was held and is not the newest would be destroyed at once, as nothing hangs on it; so it is kept."""
        if root.state is RootKeyState.HELD:
            newer = any(one.version > root.version for one in ready(self._store))
            state = RootKeyState.KEPT if newer else RootKeyState.ENABLED
            return replace(root, state=state, created_at=self._now())  # ready from now on, as after a rotation
        return root if keep else replace(root, state=RootKeyState.ENABLED)

    def _check(self, root: RootKey, call: Call) -> None:
        """Give a root key its check value that was made before there were any (FT-20)."""
        check = self._plans.check_value(root)
        if check is None:
            return
        with last_write(self._store, call) as write:
            stored = write.get(RootKey, root.version)
            if stored is not None and (stored.hsm_id, stored.check_value) == (root.hsm_id, None):
                write.replace(stored, replace(stored, check_value=check))
            write.note(version=root.version)


def _unchecked(usable: list[RootKey]) -> list[RootKey]:
    return [root for root in usable if root.check_value is None]
