"""Operators: the people who may call, and their short-lived certificates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from broker.core import ports
from broker.core.amiss import no_operator
from broker.core.call import Call
from broker.core.certified import Certified, print_of
from broker.core.errors import AlreadyExists, InvalidRequest, WrongState
from broker.core.kinds import OperatorState
from broker.core.model import Operator, Principal, Receipt
from broker.core.names import check_name
from broker.core.once import last_write, once
from broker.core.operators.authority import BACKDATED, Authority, public_key_of
from broker.core.page import Page
from broker.core.policy.guard import BROKER, Guard, of_operator
from broker.core.reasons import Reason

MAX_GROUPS = 16
DEFAULT_TTL = timedelta(hours=12)
MIN_TTL = timedelta(minutes=5)
MAX_TTL = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A signed client certificate."""

    pem: bytes
    ca_pem: bytes
    server_ca_pem: bytes  # whom to trust as the broker's server, from now on
    serial: str  # lower-case hex
    expires_at: datetime


class Operators:
    """The noun behind OperatorService.

    An operator's certificate names them by one URI, ``spiffe://<trust domain>/operator/<name>``.
    """

    def __init__(
        self,
        store: ports.Store,
        authority: Callable[[], Authority],
        guard: Guard,
        now: ports.Now,
        trust_domain: str,
        server_cas: Callable[[], bytes],
    ) -> None:
        self._store = store
        self._authority = authority
        self._guard = guard
        self._now = now
        self._trust_domain = trust_domain
        self._server_cas = server_cas

    def add(
        self, call: Call, name: str, groups: list[str], csr_pem: bytes, ttl: timedelta | None
    ) -> tuple[Operator, Issued]:
        """Register an operator and sign a first certificate, which with ``validate_only`` has no ``pem`` or ``serial``.

        The same request again gives a certificate again, which ends no later than the first one did; once the operator
        was changed, that is for ``issue`` (WrongState ``CHANGED_MEANWHILE``), which is another permission.
        AlreadyExists ``NAME_TAKEN``, also for the name of a removed operator.
        """
        wanted = _groups(groups)
        stored = self._store.get(Operator, check_name(name, "operator"))
        self._guard.check(call, of_operator(name, stored, asked=wanted))
        operator = Operator(
            name=name,
            groups=wanted,
            state=OperatorState.ENABLED,
            not_before=self._whole_seconds() - BACKDATED,
            created_at=self._now(),
        )
        call.note(operator=name, groups=",".join(wanted))
        if call.validate_only:
            _refuse_taken(stored)
            return operator, self._validated(call, csr_pem, ttl)

        def certified(write: ports.Write, one: Operator) -> tuple[Operator, Issued]:
            # Signed in here: no certificate leaves for an operator that was not added, and none is added without.
            issued = self._certificate(one, csr_pem, ttl, one.created_at)
            write.note(certificate_serial=issued.serial)
            note_certificate(write, one.name, self._authority().certificate, issued.expires_at)
            return one, issued

        def add(write: ports.Write) -> tuple[Operator, Issued]:
            write.add(operator)
            return certified(write, operator)

        def again(write: ports.Write, _: Receipt) -> tuple[Operator, Issued]:
            return certified(write, _untouched(write.get(Operator, name), name))

        return once(self._store, call, f"operator/{name}", add, again)

    def _validated(self, call: Call, csr_pem: bytes, ttl: timedelta | None) -> Issued:
        call.note(validate_only=1)
        public_key_of(csr_pem)
        return Issued(
            pem=b"",
            ca_pem=self._authority().certificate,
            server_ca_pem=self._server_cas(),
            serial="",
            expires_at=self._whole_seconds() + _ttl(ttl),
        )

    def renew(self, call: Call, csr_pem: bytes, ttl: timedelta | None) -> Issued:
        """A fresh certificate for the caller, for another key or the same; at most ``DEFAULT_TTL``.

        A longer one takes somebody with the right to IssueCertificate, so that a thief of a certificate cannot make
        it last.
        """
        return self._issue(call, call.principal.name, csr_pem, min(ttl or DEFAULT_TTL, DEFAULT_TTL))

    def issue(self, call: Call, name: str, csr_pem: bytes, ttl: timedelta | None) -> Issued:
        """A fresh certificate for an operator whose own has lapsed or was revoked."""
        return self._issue(call, name, csr_pem, ttl)

    def _issue(self, call: Call, name: str, csr_pem: bytes, ttl: timedelta | None) -> Issued:
        operator = self._store.get(Operator, check_name(name, "operator"))
        self._guard.check(call, of_operator(name, operator))
        enabled = _enabled(operator, name)
        lacking = call.clearance is not None and call.clearance.lacking
        if lacking:
            call.note(operator=name)
        with last_write(self._store, call) as write:
            if call.clearance is not None and lacking:  # nothing is signed without the approval
                call.clearance.spend(write)
            issued = self._certificate(enabled, csr_pem, ttl, self._now())
            write.note(operator=name, certificate_serial=issued.serial)
            note_certificate(write, name, self._authority().certificate, issued.expires_at)
        return issued

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[Operator]:
        """Operators by name, removed ones included; only those that the caller may list (AZ-04)."""
        self._guard.check(call, BROKER)
        rows = self._store.page(Operator, after=after, limit=limit, sound_only=True)
        seen = [row for row in rows if self._guard.permits(call.principal, call.action, of_operator(row.name, row))]
        return Page(items=seen, next=(rows[-1].name,) if len(rows) == limit else ())

    def set_groups(self, call: Call, name: str, groups: list[str]) -> Operator:
        """Replace the groups; WrongState ``POLICY_LOCKS_YOU_OUT`` for taking the right to SetPolicy from oneself."""
        wanted = _groups(groups)
        stored = self._store.get(Operator, check_name(name, "operator"))
        self._guard.check(call, of_operator(name, stored, asked=wanted))
        call.note(groups=",".join(wanted))
        self._refuse_lockout(call, name, wanted)
        return self._change(call, name, stored, lambda operator: replace(operator, groups=wanted))

    def revoke(self, call: Call, name: str) -> Operator:
        """Refuse every certificate issued so far.

        Anybody who may do so may revoke their own: a stolen key must be stoppable at once. But not when nobody else
        is left who could issue a new certificate or change that (WrongState ``POLICY_LOCKS_YOU_OUT``).
        """
        stored = self._authorised(call, name)
        if _own(call, name) and not self._another_keeper(call.principal):
            raise _locks_out()
        return self._change(call, name, stored, self._without_certificates)

    def remove(self, call: Call, name: str) -> Operator:
        """Remove for good; the row stays, so that the name is never used again."""
        stored = self._authorised(call, name)
        self._refuse_lockout(call, name, None)
        return self._change(call, name, stored, lambda operator: replace(operator, state=OperatorState.REMOVED))

    def whoami(self, call: Call) -> None:
        """Allowed to every established principal; the decision is recorded like any other."""
        self._guard.check(call, BROKER)

    def _authorised(self, call: Call, name: str) -> Operator | None:
        stored = self._store.get(Operator, check_name(name, "operator"))
        self._guard.check(call, of_operator(name, stored))
        return stored

    def _change(
        self, call: Call, name: str, stored: Operator | None, change: Callable[[Operator], Operator]
    ) -> Operator:
        """Change the very row that the permission was decided on; WrongState ``CHANGED_MEANWHILE`` else (AZ-15)."""
        operator = _found(stored, name)
        call.note(operator=operator.name)
        if call.validate_only:
            call.note(validate_only=1)
            return change(_enabled(operator, name))
        return once(
            self._store,
            call,
            f"operator/{operator.name}",
            lambda write: write.replace(operator, change(_enabled(operator, name))),
            lambda write, _: _found(write.get(Operator, name), name),
        )

    def _certificate(self, operator: Operator, csr_pem: bytes, ttl: timedelta | None, since: datetime) -> Issued:
        """Valid from now on until ``ttl`` after ``since``."""
        now, end = self._whole_seconds(), since.replace(microsecond=0) + _ttl(ttl)
        if end <= now:
            raise WrongState(
                Reason.REQUEST_TOO_OLD,
                f"The certificate of that request ended {end:%Y-%m-%d %H:%M} UTC; issue a new one "
                f"(`broker operator issue {operator.name}`).",
            )
        start = max(now - BACKDATED, operator.not_before)
        uri = operator_uri(self._trust_domain, operator.name)
        authority = self._authority()
        pem, serial = authority.client(csr_pem, uri, start, end - start)
        expires_at = x509.load_pem_x509_certificate(pem).not_valid_after_utc
        return Issued(
            pem=pem,
            ca_pem=authority.certificate,
            server_ca_pem=self._server_cas(),
            serial=serial,
            expires_at=expires_at,
        )

    def _without_certificates(self, operator: Operator) -> Operator:
        # Later than the start of any certificate issued so far, even when this is the second time in one second.
        moment = max(self._whole_seconds(), operator.not_before + timedelta(seconds=1))
        return replace(operator, not_before=moment)

    def _whole_seconds(self) -> datetime:
        return self._now().replace(microsecond=0)

    def _refuse_lockout(self, call: Call, name: str, groups: tuple[str, ...] | None) -> None:
        """``groups`` None: the operator is to be removed."""
        if not _own(call, name) or not self._keeps_policy(call.principal):
            return
        if groups is None or not self._keeps_policy(replace(call.principal, groups=groups)):
            raise _locks_out()

    def _keeps_policy(self, principal: Principal) -> bool:
        return self._guard.permits(principal, "SetPolicy", BROKER)

    def _another_keeper(self, caller: Principal) -> bool:
        """Whether an enabled operator other than the caller may set the policy, if the caller may at all."""
        if not self._keeps_policy(caller):
            return True
        after: tuple[str | int, ...] = ()
        enabled: dict[str, str | int] = {"state": OperatorState.ENABLED.value}
        while rows := self._store.page(Operator, after=after, limit=100, where=enabled, sound_only=True):
            others = (row for row in rows if row.name != caller.name)
            if any(self._keeps_policy(Principal(kind="operator", name=row.name, groups=row.groups)) for row in others):
                return True
            after = (rows[-1].name,)
        return False


def note_certificate(write: ports.Write, name: str, authority: bytes, until: datetime) -> None:
    """Keep which CA signed the operator's newest certificate."""
    row, ca = write.get(Certified, name), print_of(authority)
    if row is None:
        write.add(Certified(operator=name, authority=ca, until=until))
    else:
        write.replace(row, replace(row, authority=ca, until=until))


def operator_uri(trust_domain: str, name: str) -> str:
    """The one URI that an operator's certificate holds (SPIFFE ID)."""
    return f"spiffe://{trust_domain}/operator/{name}"


def _own(call: Call, name: str) -> bool:
    return (call.principal.kind, call.principal.name) == ("operator", name)


def _groups(names: list[str]) -> tuple[str, ...]:
    if len(names) > MAX_GROUPS:
        raise InvalidRequest(
            Reason.GROUPS_INVALID, f"There are too many groups: an operator is in at most {MAX_GROUPS}."
        )
    return tuple(sorted({check_name(name, "group") for name in names}))


def _ttl(ttl: timedelta | None) -> timedelta:
    if ttl is None:
        return DEFAULT_TTL
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise InvalidRequest(Reason.TTL_INVALID, "A certificate lives 5 minutes to 7 days; ask for a time in between.")
    return ttl


def _refuse_taken(stored: Operator | None) -> None:
    if stored:
        raise AlreadyExists(
            Reason.NAME_TAKEN,
            f"An operator named {stored.name} exists or existed, and no name is used twice; choose another.",
        )


def _found(operator: Operator | None, name: str) -> Operator:
    if operator is None:
        raise no_operator(name)
    return operator


def _enabled(operator: Operator | None, name: str) -> Operator:
    found = _found(operator, name)
    if found.state is not OperatorState.ENABLED:
        raise WrongState(
            Reason.OPERATOR_REMOVED, f"The operator {name} was removed for good; add one under another name."
        )
    return found


def _untouched(operator: Operator | None, name: str) -> Operator:
    """The operator as it was added: who could add one may not thereby get into what others have made of them."""
    found = _enabled(operator, name)
    if found.revision != 1:
        raise WrongState(
            Reason.CHANGED_MEANWHILE,
            f"The operator {name} was changed after this request; issue a new certificate (`broker operator issue "
            f"{name}`).",
        )
    return found


def _locks_out() -> WrongState:
    return WrongState(
        Reason.POLICY_LOCKS_YOU_OUT,
        "You could not set the policy afterwards; let another operator who may set the policy do this.",
    )
