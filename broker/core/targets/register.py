"""Targets: the registered places keys can be imported to, each with its pinned KEK."""

from __future__ import annotations

from dataclasses import replace

from broker.core import ports, receipts
from broker.core.amiss import no_target
from broker.core.call import Call
from broker.core.errors import AlreadyExists, BrokerError, InvalidRequest, WrongState
from broker.core.findings import DriftReport
from broker.core.kinds import ImportState
from broker.core.model import Import, Receipt, Target, WrappingKey
from broker.core.names import check_name
from broker.core.once import once
from broker.core.operations.running import Operations
from broker.core.page import Page
from broker.core.policy import guard
from broker.core.policy.guard import Guard
from broker.core.reasons import Reason
from broker.core.report import Probe
from broker.core.targets.copies import alarms
from broker.core.targets.keks import KEK, check_kek, check_pin, standing
from broker.core.targets.leaving import give_up_copies, refuse_in_use
from broker.core.targets.new_keks import NewKeks
from broker.core.targets.parts import kek_fixed
from broker.core.targets.slots import Slots
from broker.core.targets.thumbprints import thumbprint

UNREACHED = frozenset({Reason.TARGET_TLS_UNTRUSTED, Reason.TARGET_CREDENTIAL_UNUSABLE})
"""Refusals that come before the target has been asked anything."""


class Targets:
    """The noun behind TargetService."""

    def __init__(
        self,
        store: ports.Store,
        hsm: ports.HsmStatus,
        guard: Guard,
        connect: ports.Connect,
        operations: Operations,
        now: ports.Now,
        slots: Slots | None = None,
    ) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._connect = connect
        self._now = now
        self._slots = slots or Slots()
        self._keks = NewKeks(store, connect, operations, now)

    def create(
        self,
        call: Call,
        name: str,
        kind: str,
        settings: dict[str, str],
        expected_kek_thumbprint: str,
        *,
        create_kek: bool = False,
    ) -> Target:
        """Connect, read the KEK, or make it, and pin it."""
        check_name(name, "target")
        wanted = thumbprint(expected_kek_thumbprint) if expected_kek_thumbprint else ""
        if wanted and create_kek:
            raise InvalidRequest(
                Reason.THUMBPRINT_INVALID,
                "A KEK that is still to be made has no thumbprint to expect; give one of the two.",
            )
        asked = Target(name=name, kind=kind, settings=settings, kek_id="", kek_thumbprint="", created_at=self._now())
        made = self._allowed(call, asked)
        call.note(target=name)
        seen = self._seen(call)
        if seen is None:
            self._must_be_free(name)
            with self._slots.hold(call, name):
                if create_kek:
                    return self._with_new_kek(call, made)
                made = self._pinned(call, made, wanted)
        elif seen.operation:
            with self._slots.hold(call, name):
                return self._keks.resumed(call, seen)
        if call.validate_only:
            return made
        return self._saved(call, made)

    def get(self, call: Call, name: str) -> Target:
        """NotFound ``TARGET_NOT_FOUND``."""
        return self._permitted(call, name)

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[Target]:
        """Those that the caller may get; a page may hold fewer than there are to come."""
        self._guard.check(call, guard.BROKER)
        rows = self._store.page(Target, after=after, limit=limit, sound_only=True)
        shown = [row for row in rows if self._guard.permits(call.principal, "GetTarget", guard.of_target(row))]
        return Page(items=shown, next=(rows[-1].name,) if len(rows) == limit else ())

    def check(self, call: Call, name: str) -> list[Probe]:
        """Connect now and say of each step whether it works; what could not be tried has not passed."""
        target = self._permitted(call, name)
        call.note(target=name)
        with self._slots.hold(call, name):
            return self._checked(target)

    def _checked(self, target: Target) -> list[Probe]:
        try:
            port = self._port(target)
            kek = standing(port, target)
            if kek is None:
                port.check()
        except BrokerError as error:
            return [*_no_answer(error), self._copies_probe(target)]
        return [
            Probe(name="reachable", passed=True, detail="It answers, and its certificate is trusted for it."),
            _authorised_probe(port),
            _kek_probe(target, kek),
            self._wrap_probe(port),
            self._copies_probe(target),
        ]

    def repin(self, call: Call, name: str, expected_kek_thumbprint: str, kek: str = "") -> Target:
        """Pin the KEK that is offered now, if it is the one expected; ``kek`` names another of the target's keys."""
        wanted = thumbprint(expected_kek_thumbprint)
        old = self._permitted(call, name)
        if kek and KEK not in old.settings:
            raise kek_fixed()
        moved = self._moved(call, old, kek) if kek else old
        new = old
        if self._seen(call) is None:
            with self._slots.hold(call, name):
                new = self._pinned(call, moved, wanted)
        if call.validate_only:
            return new
        return once(
            self._store,
            call,
            name,
            lambda write: write.replace(old, new),
            lambda write, _: _existing(write.get(Target, name), name),
        )

    def delete(self, call: Call, name: str, *, copies_unknown: bool = False) -> None:
        """Forget the target. WrongState ``TARGET_IN_USE`` while keys are, or may be, there.

        ``copies_unknown``: it is gone for good and nobody can look; what is or may be there becomes UNKNOWN (FT-39).
        """
        check_name(name, "target")
        found = self._store.get(Target, name)
        self._guard.check(call, guard.of_target(found) if found else guard.of_unknown_target(name))
        call.note(target=name)
        if call.validate_only:
            if not copies_unknown:
                refuse_in_use(self._store, _existing(found, name))
            _existing(found, name)
            return

        def forget(write: ports.Write) -> None:
            target = _existing(write.get(Target, name), name)
            if copies_unknown:
                write.note(count=give_up_copies(write, target))
            refuse_in_use(write, target)
            if report := write.get(DriftReport, name):
                write.delete(report)  # it says nothing of another place that gets the name
            write.delete(target)

        once(self._store, call, name, forget, lambda _write, _receipt: None)

    def _saved(self, call: Call, made: Target) -> Target:
        def add(write: ports.Write) -> Target:
            self._keks.refuse_going(write, made.name)
            write.add(made)
            return made

        return once(
            self._store, call, made.name, add, lambda write, _: _existing(write.get(Target, made.name), made.name)
        )

    def _permitted(self, call: Call, name: str) -> Target:
        check_name(name, "target")
        found = self._store.get(Target, name)
        self._guard.check(call, guard.of_target(found) if found else guard.of_unknown_target(name))
        return _existing(found, name)

    def _must_be_free(self, name: str) -> None:
        if self._store.get(Target, name) is not None:
            raise AlreadyExists(
                Reason.TARGET_EXISTS,
                f"A target named {name} exists; `broker target show {name}` tells which. `broker target repin` pins "
                "another KEK of it; for another place choose another name.",
            )
        unknown = {"target": name, "state": ImportState.UNKNOWN.value}
        if self._store.page(Import, limit=1, where=unknown):
            raise AlreadyExists(
                Reason.TARGET_NAME_USED,
                "A target of this name was removed while copies of keys may have been there; choose another name, so "
                "that `broker key where` can go on saying so.",
            )

    def _allowed(self, call: Call, asked: Target) -> Target:
        """The target that is to be registered, in the spelling that it was decided on in."""
        try:
            made = replace(asked, settings=self._connect.canonical(asked.kind, asked.settings))
        except InvalidRequest:
            self._guard.check(call, guard.of_target(asked))  # who may not is not told what is wrong with it
            raise
        self._guard.check(call, guard.of_target(made))
        return made

    def _moved(self, call: Call, old: Target, kek: str) -> Target:
        """With another KEK, if the caller may have that one."""
        moved = replace(old, settings=self._connect.canonical(old.kind, {**old.settings, KEK: kek}))
        self._guard.check(call, guard.of_target(moved))
        return moved

    def _port(self, target: Target) -> ports.Target:
        return self._connect(target.name, target.kind, target.settings)

    def _seen(self, call: Call) -> Receipt | None:
        # A request that is repeated is answered from its receipt, also when the target is away by now.
        return receipts.seen(self._store, call)

    def _pinned(self, call: Call, target: Target, wanted: str) -> Target:
        port = self._port(target)
        kek = standing(port, target)
        if kek is None:
            return self._reached(call, port, target, wanted)
        call.note(target=target.name, kek_thumbprint=kek.thumbprint)
        check_kek(kek)
        if wanted and kek.thumbprint != wanted:
            raise WrongState(
                Reason.KEK_UNEXPECTED,
                f"The target offers a wrapping key with the thumbprint {kek.thumbprint}, not the one you expect; "
                "find out which is right before anything is wrapped for it.",
            )
        return replace(target, kek_id=kek.id, kek_thumbprint=kek.thumbprint)

    def _reached(self, call: Call, port: ports.Target, target: Target, wanted: str) -> Target:
        """Without a pin, since each import has a wrapping key of its own there; that the target answers is seen."""
        call.note(target=target.name)
        if wanted:
            raise InvalidRequest(
                Reason.THUMBPRINT_INVALID,
                "This kind of target makes a wrapping key for each import, so there is none to expect; leave the "
                "thumbprint out.",
            )
        port.check()
        return target

    def _with_new_kek(self, call: Call, target: Target) -> Target:
        if call.validate_only:
            self._keks.check(target)
            return target
        return self._keks.add(call, target)

    def _copies_probe(self, target: Target) -> Probe:
        """Passed unless something is enabled there that should not be; said from what is known, without asking."""
        rows = alarms(self._store, target.name)
        if not rows:
            return Probe(
                name="copies",
                passed=True,
                detail="No key that could not be proven, or was withdrawn, is known to be enabled there.",
            )
        named = ", ".join(f"{row.remote_name} (version {row.version} of {row.key})" for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        return Probe(
            name="copies",
            passed=False,
            detail=f"Not proven or withdrawn, and enabled there as far as is known: {named}{more}. They must not be "
            "used there; the broker disables what is not proven as soon as the target lets it, and what it cannot "
            "disable (TARGET_CANNOT_DISABLE in `broker key where`) somebody has to disable there.",
        )

    def _wrap_probe(self, port: ports.Offers) -> Probe:
        report = self._hsm.report()
        try:
            chosen = port.oaep_hash(report.oaep_hashes)
        except BrokerError as error:
            return Probe(name="wrap", passed=False, detail=error.message)
        if lacking := report.lacking(f"import with OAEP-{chosen.value}"):
            return Probe(name="wrap", passed=False, detail=f"The HSM cannot wrap a key for this target. {lacking}")
        detail = f"Keys are wrapped with RSA-OAEP-{chosen.value.upper()} and AES-KWP."
        if port.exact_wrap and not report.exact_wrap:
            detail += " The HSM pads some keys in a way that this target refuses; those cannot be imported."
        return Probe(name="wrap", passed=True, detail=detail)


def _no_answer(error: BrokerError) -> list[Probe]:
    reached = isinstance(error, WrongState) and error.reason not in UNREACHED
    return [
        Probe(name="reachable", passed=reached, detail="It answers." if reached else error.message),
        Probe(name="authorised", passed=False, detail=error.message if reached else "Not tried."),
        Probe(name="kek", passed=False, detail="Not tried."),
        Probe(name="wrap", passed=False, detail="Not tried."),
    ]


def _authorised_probe(port: ports.Offers) -> Probe:
    try:
        port.check()
    except BrokerError as error:
        return Probe(name="authorised", passed=False, detail=error.message)
    return Probe(name="authorised", passed=True, detail="The credential may do all that importing and proving take.")


def _kek_probe(target: Target, kek: WrappingKey | None) -> Probe:
    if kek is None:
        return Probe(name="kek", passed=True, detail="A new one is made for each import, so that none is pinned.")
    try:
        check_pin(target, kek)
    except WrongState as error:
        return Probe(name="kek", passed=False, detail=error.message)
    return Probe(name="kek", passed=True, detail=f"It is the pinned one, {kek.thumbprint}.")


def _existing(target: Target | None, name: str) -> Target:
    if target is None:
        raise no_target(name)
    return target
