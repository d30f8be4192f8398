"""What is to go wrong: rules that each disturb a number of matching requests and are then spent.

A rule is a ``Refused`` to answer with, or an ``Effect``. Only requests with the right token are disturbed, so the
challenge before them does not use a rule up.
"""

from __future__ import annotations

import base64
import re
import threading
from dataclasses import dataclass, field
from enum import Enum, auto

from .refusals import Refused


class Effect(Enum):
    """Something that no error answer says."""

    HANG = auto()  # not handled and never answered
    CUT = auto()  # not handled, the connection closed
    LOSE_ANSWER = auto()  # handled, then the connection closed instead of an answer
    OTHER_KEY = auto()  # an import keeps another key of the same kind than it was sent


@dataclass
class _Rule:
    what: Refused | Effect
    on: re.Pattern[str]
    times: int


@dataclass
class Faults:
    """The rules in force, the first that matches counts; ``fired`` is what was disturbed by what, in order."""

    fired: list[tuple[str, Refused | Effect]] = field(default_factory=list)
    _rules: list[_Rule] = field(default_factory=list)
    _lock: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def add(self, what: Refused | Effect, *, on: str = "", times: int = 1) -> None:
        """Disturb the next ``times`` requests in whose "METHOD /path" the regular expression ``on`` is found."""
        pattern = on or (r"^PUT " if what is Effect.OTHER_KEY else "")
        with self._lock:
            self._rules.append(_Rule(what, re.compile(pattern, re.IGNORECASE), times))

    def clear(self) -> None:
        """Drop every rule."""
        with self._lock:
            self._rules.clear()

    def take(self, method: str, path: str) -> Refused | Effect | None:
        """What disturbs this request, or None; the rule is one use poorer."""
        with self._lock:
            line = f"{method} {path}"
            rule = next((each for each in self._rules if each.on.search(line)), None)
            if rule is None:
                return None
            rule.times -= 1
            if rule.times <= 0:
                self._rules.remove(rule)
            self.fired.append((line, rule.what))
            self._lock.notify_all()
            return rule.what

    def await_fired(self, count: int, timeout: float = 60) -> bool:
        """Wait until so many requests have been disturbed; False when that took too many seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: len(self.fired) >= count, timeout)


def unauthorized() -> Refused:
    """The token is not accepted (any more); the challenge comes with it."""
    return Refused(401, "Unauthorized", "AKV10022: Invalid audience or expired token.")


def insufficient_claims(claims: str = '{"access_token":{"nbf":{"essential":true,"value":"1"}}}') -> Refused:
    """Continuous access evaluation: the token was revoked, and a new one must satisfy ``claims``."""
    encoded = base64.b64encode(claims.encode()).decode()
    extra = {"x-fake-challenge": f', error="insufficient_claims", claims="{encoded}"'}
    return Refused(401, "Unauthorized", "The token was revoked by continuous access evaluation.", headers=extra)
