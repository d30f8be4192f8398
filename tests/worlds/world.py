"""The nouns as the app makes them, on parts of the test's choice and at a time that the test sets.

A noun that takes something new is given it in ``broker.nouns``, and the tests have it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

from broker.core.call import Call, background_call
from broker.core.kinds import Own, OwnKeyState, Purpose
from broker.core.model import Principal
from broker.core.own_key import OwnKey
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.ports import KeyRef
from broker.nouns import Nouns, Parts
from broker.zones import time_zone
from tests.fakes.background import carry_on
from tests.fakes.calls import ADMIN, Clock, call, document
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.overtaken import OvertakenGuard

NOT_THERE: Any = None
"""A part that the test has no use for: who asks for it fails."""


class Fronted:
    """A device with another keyring of callers' keys in front of its own."""

    def __init__(self, device: Any, keys: Any) -> None:
        self._device, self._keys = device, keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def keyring(self, purpose: Purpose) -> Any:
        return self._keys if purpose is Purpose.KEY else self._device.keyring(purpose)


class HasChores(Protocol):
    def chores(self) -> Iterable[tuple[str, Callable[[Call], None]]]: ...


def founded(name: Own, key: KeyRef, certificate: bytes = b"") -> OwnKey:
    """A key of the broker's own as ``init`` has made it."""
    return OwnKey(
        name=name.value,
        version=1,
        state=OwnKeyState.ACTIVE,
        hsm_id=key.hsm_id,
        public_key=key.public_key,
        certificate=certificate.decode(),
        link="",
        handover={},
        sealed=None,
        created_at=Clock()(),
    )


class World(Nouns):
    """A process, and what outlives it: a store, a token, and the time.

    ``parts``: whatever else is to be otherwise than usual, by its name in ``Parts``. What waits for a target has a slot
    for more calls than any test makes.
    """

    def __init__(
        self,
        store: Any = None,
        hsm: Any = None,
        clock: Clock | None = None,
        *,
        policy: str = FIRST_POLICY,
        **parts: Any,
    ) -> None:
        self.clock = clock or Clock()
        if "guard" not in parts:
            parts["guard"] = OvertakenGuard(document(policy))
        usual: dict[str, Any] = {
            "store": MemoryStore() if store is None else store,
            "hsm": SoftwareHsm() if hsm is None else hsm,
            "now": self.clock,
            "ticks": lambda: self.clock().timestamp(),
            "connect": NOT_THERE,
            "verify": NOT_THERE,
            "founding": {},
            "trust_domain": "one.example",
            "zone": time_zone,
            "keep": timedelta(minutes=1),
            "slots": 128,
        }
        self._stand_on(Parts(**usual | parts))

    def restart(self, **parts: Any) -> None:
        """From now on this is another process on the same, with these parts instead."""
        self._stand_on(replace(self.parts, **parts))

    def elsewhere(self, **parts: Any) -> Nouns:
        """The nouns of another process on the same, with these parts instead."""
        return Nouns(replace(self.parts, **parts))

    def _stand_on(self, parts: Parts) -> None:
        super().__init__(parts)
        self.parts = parts

    @property
    def store(self) -> Any:
        return self.parts.store

    @property
    def hsm(self) -> Any:
        return self.parts.hsm

    @property
    def guard(self) -> Any:
        return self.parts.guard

    def asked(self, rpc: str, principal: Principal = ADMIN, **how: Any) -> Call:
        return call(rpc, principal, self.clock, **how)

    def own(self, resource: str = "") -> Call:
        """What the background does in its own name."""
        return background_call(resource, 0, self.clock)

    def do_chores(self, *nouns: HasChores) -> int:
        """A round of the background: the chores of these nouns, and what is due of operations; how many there were."""
        done = 0
        for noun in nouns:
            for resource, act in noun.chores():
                act(self.own(resource))
                done += 1
        return done + carry_on(self.operations, self.clock)
