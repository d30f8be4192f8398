"""The keys of the broker's own: listed, rotated, and the former ones retired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from cryptography import x509

from broker.core import receipts
from broker.core.authorities.plans import AuthorityPlans, Footing
from broker.core.call import Call
from broker.core.certified import Certified, print_of
from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import OperatorState, Own, OwnKeyState
from broker.core.model import Operation, Operator
from broker.core.operations.running import Operations
from broker.core.own_key import OwnKey
from broker.core.policy.guard import BROKER, Guard
from broker.core.reasons import Reason

IN_TIME = timedelta(days=365)
"""So long before its end a CA is rotated by the broker itself: clients have a year to follow the server's."""

STEP = 500
_GONE = frozenset({OwnKeyState.FORMER, OwnKeyState.DESTROYED})
_CAS = (Own.OPERATOR_CA, Own.SERVER_CA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """The version that is coming, and what brings it; with ``validate_only`` nothing does."""

    version: int
    operation: Operation | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The former versions that are destroyed, and the operators, by name, who are not let in any more."""

    versions: list[OwnKey]
    locked_out: list[str]


class Authorities:
    """The noun behind AuthorityService."""

    def __init__(self, ground: Footing, guard: Guard, operations: Operations) -> None:
        self._ground = ground
        self._store, self._own, self._now = ground.store, ground.own, ground.now
        self._guard = guard
        self._plans = AuthorityPlans(ground, operations)

    def all(self, call: Call) -> list[OwnKey]:
        """Every version of each, those that are gone included."""
        self._guard.check(call, BROKER)
        self._own.refresh()
        return self._own.all()

    def rotate(self, call: Call, name: str) -> Rotation:
        """Make the next version, and put it in force once every process takes it."""
        self._guard.check(call, BROKER)
        own = self._named(name)
        self._own.refresh()
        if call.validate_only:
            call.note(validate_only=1)
            self._plans.refuse_running(self._store, own)
            self._plans.refuse_many(own, self._own.versions(own))
            return Rotation(version=self._own.versions(own)[-1].version + 1, operation=None)
        operation = self._plans.rotate(call, own)
        self.follow()
        newest = self._own.versions(own)[-1]
        return Rotation(version=newest.version, operation=operation)

    def retire(self, call: Call, name: str) -> Ended:
        """End the overlap now: what the former versions have made is not taken any more, and they are destroyed.

        WrongState ``OWN_KEY_NOT_FORMER`` when there is none.
        """
        self._guard.check(call, BROKER)
        own = self._named(name)
        self._own.refresh()
        former = [one for one in self._own.versions(own) if one.state is OwnKeyState.FORMER]
        if call.validate_only:
            call.note(validate_only=1)
            _refuse_none(own, former)
            return Ended([replace(one, until=self._now()) for one in former], self._locked_out(own))
        lost = self._locked_out(own)
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
            if receipt is None:
                _refuse_none(own, former)
                former = [self._plans.end(write, call, one) for one in former]
                receipts.keep(write, call, f"own/{own}", former[0].version)
        self.follow()
        since = receipt.version if receipt else former[0].version
        return Ended([one for one in self._own.versions(own) if one.version >= since and one.state in _GONE], lost)

    def _locked_out(self, own: Own) -> list[str]:
        """The operators, by name, whose newest certificate is not known to be of the CA in force.

        Whose newest one has run out is let in by none as it is. Of one from before that was written down nothing is
        known.
        """
        if own is not Own.OPERATOR_CA:
            return []
        ca, found, after = print_of(self._own.active(own).certificate.encode()), list[str](), ""
        where = {"state": OperatorState.ENABLED.value}
        while rows := self._store.page(
            Operator, after=(after,) if after else (), limit=STEP, where=where, sound_only=True
        ):
            after = rows[-1].name
            found += [row.name for row in rows if self._is_of_another(row.name, ca)]
        return found

    def _is_of_another(self, operator: str, ca: str) -> bool:
        newest = self._store.get(Certified, operator)
        return newest is None or (newest.authority != ca and newest.until > self._now())

    def follow(self) -> None:
        """Have this process and this host take what the rows say."""
        self._own.refresh()
        self._ground.publish()

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """What the background has to do now: former versions whose overlap is over, CAs that end soon."""
        self._own.refresh()
        now = self._now()
        for one in self._own.all():
            over = one.state is OwnKeyState.FORMER and one.until is not None and one.until <= now
            if over and self._plans.live(self._store, one) is None:
                yield f"own/{one.name}", partial(self._retire, one)
        yield from self.due(now + IN_TIME)

    def due(self, when: datetime) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """The CAs that end before ``when``, to be rotated."""
        for name in _CAS:
            if self._own.versions(name) and ends(self._own.active(name)) <= when and self._idle(name):
                yield f"own/{name}", partial(self._rotate, name)

    def _idle(self, name: Own) -> bool:
        newest = self._own.versions(name)[-1]
        return newest.state is OwnKeyState.ACTIVE

    def _rotate(self, name: Own, call: Call) -> None:
        self._plans.rotate(call, name)
        self.follow()

    def _retire(self, one: OwnKey, call: Call) -> None:
        self._plans.retire(call, one)
        self.follow()

    def _named(self, name: str) -> Own:
        known = [one for one in Own if one == name and self._own.versions(one)]
        if not known:
            raise InvalidRequest(
                Reason.OWN_KEY_UNKNOWN,
                f"The broker has no key of its own of that name; it has {', '.join(Own)} (`broker authority list`).",
            )
        return known[0]


def ends(own: OwnKey) -> datetime:
    """When a CA's certificate ends."""
    return x509.load_pem_x509_certificate(own.certificate.encode()).not_valid_after_utc


def _refuse_none(own: Own, former: list[OwnKey]) -> None:
    if not former:
        raise WrongState(
            Reason.OWN_KEY_NOT_FORMER,
            f"No former version of the broker's key {own} is there to retire; `broker authority rotate {own}` makes "
            "the one in force a former one first.",
        )
