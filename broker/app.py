"""The composition root: builds every part once, in order, and alone names concrete classes.

The clock lives here, and the background loop: it watches the HSM and the store, signs the audit's heads and, in the
one process that leads all others, ends sessions whose time is over and does the chores that a crash left behind.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import structlog

from broker import own_keys, setup
from broker.auth.mtls import Mtls, MtlsConfig
from broker.auth.oidc import Oidc
from broker.auth.session import SessionTokens
from broker.config import Config
from broker.core import policy
from broker.core.call import Call
from broker.core.errors import BrokerError
from broker.core.guard import Guard
from broker.core.handover import Handover
from broker.core.heads import Heads
from broker.core.imports import Imports
from broker.core.key_use import KeyUse
from broker.core.keys import DestructionDelay, Keys
from broker.core.kinds import Purpose
from broker.core.kv import Secrets
from broker.core.leases import Leases
from broker.core.model import Principal
from broker.core.operators import Operators
from broker.core.policies import Policies
from broker.core.ports import Authenticator, Hsm, KeyRef
from broker.core.quota import Limits
from broker.core.roots import known_roots
from broker.core.sealing import Sealing
from broker.core.sessions import Sessions
from broker.core.settling import Settling
from broker.core.slots import Slots
from broker.core.targets import Targets
from broker.core.trust import TrustRules
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.inspector import Inspector
from broker.processor import Processor
from broker.row_key import row_key
from broker.rpc.nouns import answers
from broker.rpc.server import Server
from broker.store.sql import SqlStore
from broker.targets import PrivateVault, Surroundings, connector

log = structlog.get_logger("broker")

Chore = tuple[str, Callable[[Call], None]]

TICK = 1.0
"""Seconds between two rounds of the background loop."""

CHECK_EVERY = timedelta(seconds=3)
SIGN_EVERY = timedelta(seconds=30)
SIGN_AFTER = 1000
CHORES_EVERY = timedelta(seconds=20)
CHORES_AT_ONCE = timedelta(seconds=5)
"""However many there are: heads and policies have to be looked after in between."""

BREATHER, LONGEST_BREATHER = 2.0, 0.03
"""How many times as long as a piece of the chores took the loop waits before the next, and how many seconds at most:
callers come first, and what is over ends all the same (P15)."""

ROOTS_EVERY = timedelta(seconds=20)
READS_EVERY = timedelta(seconds=5)
SESSIONS_EVERY = timedelta(seconds=2)
CERTIFICATE_EVERY = timedelta(hours=6)
PROCESSOR_EVERY = timedelta(seconds=10)


def now() -> datetime:
    """The broker's clock."""
    return datetime.now(UTC)


def ticks() -> timedelta:
    """What paces the loop: a time that nobody can set back, as the clock can be."""
    return timedelta(seconds=time.monotonic())


class Broker:
    """A broker, built and not yet serving. What the constructor opened, ``close`` closes, in reverse order."""

    def __init__(self, config: Config) -> None:
        self._parts = ExitStack()
        try:
            self._build(config)
        except BaseException:
            self._parts.close()
            raise

    def _build(self, config: Config) -> None:
        self._config = config
        self._processor = Processor(time.monotonic)
        if config.server.one_processor:  # before there is any other thread
            self._processor.settle()
        self.hsm = Pkcs11Hsm(config.hsm)
        self._parts.callback(self.hsm.close)
        self.store = SqlStore(config.store, row_key(config, self.hsm), now)
        self._parts.callback(self.store.close)
        audit_key = own_keys.internal_key(config, Purpose.AUDIT)
        own_keys.check_internal_keys(config, self.hsm)
        setup.renew_server_certificate(config, self.hsm, now(), before=setup.RENEW_AT_LAST)
        self._guard = Guard(setup.policy_in_force(self.store))
        self.keys = Keys(
            self.store, self.hsm.keyring(Purpose.KEY), self._guard, now, _delay(config), births=config.server.slots
        )
        self.heads = Heads(self.store, self.hsm.keyring(Purpose.AUDIT), audit_key, self._guard, now)
        mtls = MtlsConfig(trust_domain=config.trust_domain, operator_ca_file=config.server.operator_ca_file)
        oidc = Oidc(config.oidc, self.store, now)
        self._build_sessions(oidc)
        authenticators: list[Authenticator] = [Mtls(mtls, self.store, now), SessionTokens(self.sessions), oidc]
        self.server = Server(config.server, self._services(), authenticators, self.store, now)
        self.inspector = Inspector(self.store, now)
        self._loop = Loop(self)

    def _build_sessions(self, oidc: Oidc) -> None:
        store, guard, config = self.store, self._guard, self._config
        roots = self.hsm.keyring(Purpose.ROOT)
        keep = timedelta(seconds=config.secrets.keep_data_keys_seconds)
        known = known_roots(store)
        _look_at(roots, known)
        sealing = Sealing(roots, known, now, keep, tenant=config.trust_domain)
        self.secrets = Secrets(store, roots, sealing, guard, now)
        self.sessions = Sessions(store, self.secrets, guard, now, _limits(config))
        self.rules = TrustRules(store, guard, oidc.inspect, now)

    def _services(self) -> dict[str, object]:
        """What answers each service of the wire; the server refuses to start if one is missing."""
        store, guard, config = self.store, self._guard, self._config
        callers = self.hsm.keyring(Purpose.KEY)
        connect = connector(_surroundings(config))
        ca = own_keys.authority(config, self.hsm, Purpose.OPERATOR_CA)
        self.policies = Policies(store, guard, now, time.monotonic)
        if not config.store.sqlite:  # else there is no other process that could set one
            guard.watch(self.policies.refresh_when_late)
        slots = Slots(config.server.slots)
        imports = Imports(store, callers, guard, connect, now, slots)
        return answers(
            keys=self.keys,
            use=KeyUse(store, callers, guard),
            settling=Settling(store, callers, guard),
            targets=Targets(store, self.hsm, guard, connect, now, slots),
            imports=imports,
            handover=Handover(imports.ledger),
            operators=Operators(store, ca, guard, now, config.trust_domain),
            policies=self.policies,
            heads=self.heads,
            secrets=self.secrets,
            sessions=self.sessions,
            leases=Leases(store, guard, now),
            rules=self.rules,
            hsm=self.hsm,
            guard=guard,
            schema=policy.SCHEMA,
            page_key=setup.page_key(config),
        )

    def serve(self) -> None:
        """Start answering, and the background loop with it."""
        self._parts.callback(self._loop.stop)
        self.server.start()
        self._loop.start()
        self._parts.callback(self.inspector.stop)
        self.inspector.start(self.store.findings)
        self.server.set_serving(True)

    def drain(self) -> None:
        """Take no new calls, let those in flight finish (at most 10 s), sign the last head."""
        self.server.drain(10.0)
        self.inspector.stop()
        self._loop.stop()
        self.heads.sign_due()

    def renew_certificate(self) -> None:
        """Sign a new server certificate in time; the listeners of all processes take it up without a restart.

        The leader's work, and the others' only if the leader has not done it: it may have another folder.
        """
        before = setup.RENEW_BEFORE if self.store.lead() else setup.RENEW_AT_LAST
        if setup.renew_server_certificate(self._config, self.hsm, now(), before=before):
            log.info("server certificate renewed")

    def reconsider_processor(self) -> None:
        """Move to another processor when too much else runs on this one."""
        if self._config.server.one_processor:
            self._processor.reconsider()

    def close(self) -> None:
        """Release everything; twice is the same as once."""
        self._parts.close()


class Loop:
    """The background loop: one thread, one round a second; what fails is logged and tried again in a later round."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        start = ticks()
        self._work: list[tuple[str, timedelta, Callable[[], object]]] = [
            ("leadership", timedelta(0), self._lead),
            ("health", CHECK_EVERY, self._check),
            ("policy", timedelta(0), broker.policies.refresh),
            ("heads", timedelta(0), self._sign),
            ("roots", ROOTS_EVERY, broker.secrets.refresh),
            ("reads", READS_EVERY, lambda: broker.secrets.flush_reads(background_call)),
            ("sessions", SESSIONS_EVERY, lambda: self._do("sessions", broker.sessions.chores)),
            ("keys", CHORES_EVERY, lambda: self._do("keys", broker.keys.chores, sure=True)),
            ("secrets", CHORES_EVERY, lambda: self._do("secrets", broker.secrets.chores, sure=True)),
            ("certificate", CERTIFICATE_EVERY, broker.renew_certificate),
            ("processor", PROCESSOR_EVERY, broker.reconsider_processor),
        ]
        self._sign_at = start
        self._signed: dict[str, int] = {}
        self._fence: int | None = None
        self._due = {name: start for name, _, _ in self._work}

    def start(self) -> None:
        """Begin; the first round is at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._round()
            self._stop.wait(TICK)

    def _round(self) -> None:
        for name, every, work in self._work:
            if self._due[name] <= ticks():
                self._due[name] = ticks() + every
                _attempt(name, work)

    def _check(self) -> None:
        try:
            self._broker.hsm.check()
            self._broker.store.check()
        except BaseException:
            self._broker.server.set_serving(False)
            raise
        self._broker.server.set_serving(True)

    def _sign(self) -> None:
        """A head at least every 30 s or 1,000 records of a chain that moves; none of one that stands still."""
        moved = self._broker.store.heads()
        many = any(head.sequence - self._signed.get(head.chain, 0) >= SIGN_AFTER for head in moved)
        if many or (moved and self._sign_at <= ticks()):
            self._sign_at = ticks() + SIGN_EVERY
            self._signed = {head.chain: head.sequence for head in self._broker.heads.sign_due()}

    def _lead(self) -> int | None:
        """Ask to lead, or to go on leading; done so often that the leadership lapses only while this thread hangs."""
        try:
            fence = self._broker.store.lead()
        except BaseException:
            self._note_leadership(None)
            raise
        self._note_leadership(fence)
        return fence

    def _note_leadership(self, fence: int | None) -> None:
        if fence != self._fence:
            self._fence = fence
            log.info("leads the shared work" if fence else "leads no more", fence=fence or 0)

    def _do(self, name: str, chores: Callable[[], Iterable[Chore]], *, sure: bool = False) -> None:
        """The shared work, in the one process that leads; each piece is written under the leader's number.

        ``sure``: nothing is begun on a database that has gone back since the last look, for it may destroy keys.
        """
        if self._lead() is None:
            return
        until = ticks() + CHORES_AT_ONCE
        for resource, work in chores():
            fence = self._lead()
            if fence is None or self._stop.is_set():
                return
            if sure:
                self._broker.store.check()
            call, begun = background_call(resource, fence), ticks()
            if not _attempt(resource, lambda work=work, call=call: work(call)) and not call.settled:  # type: ignore[misc]
                self._broker.store.record(call.outcome("UNAVAILABLE", "CHORE_FAILED"))
            if ticks() >= until:
                self._due[name] = until  # what is left is found again in the next round
                return
            self._stop.wait(min(BREATHER * (ticks() - begun).total_seconds(), LONGEST_BREATHER))


def background_call(resource: str, fence: int = 0) -> Call:
    """The broker's own work, as the audit sees it; ``fence`` is the leader's number where it is shared work."""
    principal = Principal(kind="broker", name="background")
    call_id = secrets.token_hex(16)
    return Call(id=call_id, rpc="-/Chore", principal=principal, peer="", now=now, resource=resource, fence=fence)


def _attempt(name: str, work: Callable[[], object]) -> bool:
    """Do the work; a refusal, a bug, or a library's panic costs this round's work and never the loop (NT-14).

    But on a database that has gone back the broker must not go on: the loop's end is the process's.
    """
    try:
        work()
    except BrokerError as error:
        log.warning("background work failed", work=name, reason=error.reason, sentence=error.message)
        if error.reason == "STORE_RESTORED":
            raise
    except BaseException as error:  # noqa: BLE001 (the loop must outlive a bug; its text may hold anything, so it is not logged)
        log.error("background work broke", work=name, error=type(error).__name__)  # noqa: TRY400
    else:
        return True
    return False


def _surroundings(config: Config) -> Surroundings:
    targets = config.targets
    return Surroundings(
        allowed_hosts=targets.allowed_hosts,
        credentials=targets.credentials,
        private_vaults={
            vault.host: PrivateVault(kind=vault.kind, ca_file=vault.ca_file, token_file=vault.token_file)
            for vault in targets.private_vaults
        },
    )


def _limits(config: Config) -> Limits:
    sessions = config.sessions
    return Limits(
        per_principal=sessions.leases_per_pipeline,
        in_all=sessions.leases_in_all,
        usual=timedelta(seconds=sessions.usual_seconds),
    )


def _look_at(ring: Hsm, roots: Mapping[int, KeyRef]) -> None:
    """Say at the start which root key is not the one that was made; what hangs on it is refused, all else is served."""
    for version, key in roots.items():
        try:
            ring.public_key(key)
        except BrokerError as refusal:
            log.warning("a root key cannot be used", version=version, reason=refusal.reason, sentence=refusal.message)


def _delay(config: Config) -> DestructionDelay:
    keys = config.keys
    return DestructionDelay(
        least=timedelta(hours=keys.destruction_least_hours),
        usual=timedelta(hours=keys.destruction_usual_hours),
        most=timedelta(hours=keys.destruction_most_hours),
    )
