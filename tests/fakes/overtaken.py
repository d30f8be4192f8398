"""Something that happens between a decision and what is done upon it."""

from __future__ import annotations

from collections.abc import Callable

from broker.core.call import Call
from broker.core.policy.guard import Guard, Resource


class OvertakenGuard(Guard):
    """The guard itself; after its next decision ``then`` comes first, once."""

    then: Callable[[], object] | None = None

    def check(self, call: Call, resource: Resource) -> None:
        """See ``Guard``."""
        super().check(call, resource)
        act, self.then = self.then, None
        if act:
            act()
