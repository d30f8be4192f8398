"""What is known of one issuer's keys, and when it may be asked again: decided here, without a network or a thread."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from broker.auth.oidc.fetch import Fault
from broker.auth.oidc.keys import Key

FAILED_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before an issuer is asked again: after the first failure, the second, and so on."""

VAIN_PAUSES = (3.0, 6.0, 12.0)
"""Seconds before an issuer is asked again for a key that it did not publish: after a fetch that brought news, after the
first that brought none, and so on."""

MISSING = 10.0
"""Seconds for which a key that the issuer does not publish is not looked for again."""

GRACE = 15.0
"""Seconds for which a key serves after it was last published: a cache before the issuer may show the old set once more
after the new one. It is longer than two fetches are apart while somebody looks for a key."""

STALE = 300.0
"""Seconds after which keys are fetched anew, while the old ones go on serving."""

OVER = 600.0
"""Seconds after which keys that could not be fetched anew serve no longer."""

MAX_MISSING = 256
NEVER = float("-inf")
SILENT = Fault("it did not answer in time")


@dataclass(slots=True, kw_only=True)
class Issuer:
    """One issuer. ``changed`` holds the lock under which all of this is read and written; times are its clock's."""

    changed: threading.Condition
    keys: dict[str, Key] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)  # when a key was last published
    missing: OrderedDict[str, float] = field(default_factory=OrderedDict)  # by kid: when it may be looked for again
    fetched: float = NEVER
    due: float = NEVER  # when it may be asked again
    begun: int = 0  # fetches
    good: int = 0  # the number of the last fetch that succeeded
    under_way: bool = False
    failures: int = 0  # since the last success
    vain: int = 0  # fetches one after the other that brought no news, to one who looked for some
    fault: Fault = SILENT
    address: str = ""  # of the keys, from a discovery after which they could not be had
    waiting: int = 0

    def fresh(self, now: float) -> bool:
        """Whether there are keys that serve."""
        return now - self.fetched <= OVER

    def serving(self, kid: str, now: float) -> Key | None:
        """The key of that name while it serves: it is of the newest set, or was published a moment ago."""
        seen = self.seen.get(kid, NEVER)
        serves = self.fresh(now) and (seen == self.fetched or now - seen <= GRACE)
        return self.keys.get(kid) if serves else None

    def lacks(self, kid: str, now: float) -> bool:
        """Whether it was found a moment ago that no such key is published."""
        return now < self.missing.get(kid, now)

    def note_missing(self, kid: str, now: float) -> None:
        """The newest set has no such key, and was fetched because that was asked."""
        if not self.lacks(kid, now):
            self.missing[kid] = now + MISSING
            self.missing.move_to_end(kid)
        while len(self.missing) > MAX_MISSING:
            self.missing.popitem(last=False)

    def succeeded(self, found: dict[str, Key], number: int, now: float) -> None:
        """Take over a set, which the fetch of that number brought."""
        news = any(self.keys.get(kid) != key for kid, key in found.items())
        soon = now - self.fetched < STALE  # so it was fetched because a key was looked for
        self.vain = min(self.vain + 1, len(VAIN_PAUSES) - 1) if soon and not news else 0
        kept = {kid: seen for kid, seen in self.seen.items() if kid not in found and now - seen <= GRACE}
        self.keys = {kid: self.keys[kid] for kid in kept} | found
        self.seen = kept | dict.fromkeys(found, now)
        for kid in found:
            self.missing.pop(kid, None)
        self.good, self.failures = number, 0
        self.fetched, self.due = now, now + VAIN_PAUSES[self.vain]

    def failed(self, fault: Fault, now: float) -> None:
        """There was no set to be had."""
        self.due = now + FAILED_PAUSES[min(self.failures, len(FAILED_PAUSES) - 1)]
        self.failures += 1
        self.fault = fault
