"""The composition root: builds every part once, in order, and alone names concrete classes.

The clock lives here.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import structlog

from broker import own_keys, own_rows, setup
from broker.auth.mtls import Mtls, MtlsConfig
from broker.auth.oidc import Oidc
from broker.auth.session import SessionTokens
from broker.config import CALLS_END, Config
from broker.core.claiming import Claim, claim_call
from broker.core.clock import Clock, Timely
from broker.core.errors import BrokerError
from broker.core.gate.asking import Asking
from broker.core.keys.lifecycle import DestructionDelay
from broker.core.kinds import Purpose
from broker.core.policy import approvers
from broker.core.policy import cedar as policy
from broker.core.policy.guard import Guard
from broker.core.ports import Authenticator, Hsm, KeyRef
from broker.core.quota import LeaseQuota
from broker.core.report import HsmReport
from broker.core.secrets.root_rows import known_roots
from broker.hsm.features import described
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.inspector import Inspector
from broker.loop import Loop
from broker.nouns import Nouns, Parts
from broker.own_work import LEAD, OwnKeyWork, own_file
from broker.row_key import row_key
from broker.rpc.nouns import answers
from broker.rpc.server import Server
from broker.store.sql import SqlStore
from broker.targets import PrivateVault, Surroundings, connector
from broker.zones import time_zone

log = structlog.get_logger("broker")


def now() -> datetime:
    """The host's clock."""
    return datetime.now(UTC)


def counted() -> timedelta:
    """What the broker's time is counted by: nobody can set it, and it goes on while the host sleeps."""
    return timedelta(0, time.clock_gettime(time.CLOCK_BOOTTIME))  # by place: it is asked some ten times a call


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
        self.clock = Clock(now, counted)
        self.hsm = Pkcs11Hsm(config.hsm)
        self._parts.callback(self.hsm.close)
        own_rows.check(config, self.hsm, self.clock.now)  # before anything else of the folder is believed
        genuine = own_keys.genuine(config)
        # ``serve`` begins its chain
        self.store = SqlStore(config.store, row_key(config, self.hsm), self.clock.now, genuine, passing=True)
        self._parts.callback(self.store.close)
        self.clock.look(self.store.clock)
        self.claim = Claim(self.store, self.hsm, self.clock.now, place(config))
        self.claim.refuse_taken()
        self.hsm.guard(self.claim.refuse_doubt)
        setup.refuse_future_ca(config, self.clock.now())
        self._guard = Guard(setup.policy_in_force(self.store), config.approvals.counts)
        mtls = MtlsConfig(trust_domain=config.trust_domain, operator_ca_file=config.server.operator_ca_file)
        oidc = Oidc(config.oidc, self.store, self.clock.now)
        self._build_nouns(oidc)
        self.own = OwnKeyWork(config, self.hsm, self._nouns.own_keys, self._nouns.authorities, self.clock)
        self.own.begin()
        _say_if_refused("the server's certificate cannot be renewed when it is due", setup.check_renewable, config)
        tokens = [Timely(self.clock, each) for each in (SessionTokens(self.sessions), oidc)]
        cas = self.own.operator_cas if own_file(config) else None
        authenticators: list[Authenticator] = [Mtls(mtls, self.store, self.clock.now, cas), *tokens]
        asking = Asking(self.store, self._guard, config.approvals.limits)
        self.server = Server(config.server, self._services(), authenticators, self.store, self.clock.now, asking=asking)
        self.inspector = Inspector(self.store, self.clock.now)
        self._loop = Loop(self)

    def _build_nouns(self, oidc: Oidc) -> None:
        config = self._config
        own_rows.restore(config, self.hsm, self.store, self.clock.now)
        _look_at(self.hsm.keyring(Purpose.ROOT), known_roots(self.store))
        self._nouns = nouns = Nouns(
            Parts(
                store=self.store,
                hsm=self.hsm,
                guard=self._guard,
                now=self.clock.now,
                ticks=time.monotonic,
                connect=connector(_surroundings(config)),
                verify=oidc.inspect,
                founding=own_keys.founding(config, self.hsm),
                lead=timedelta(0) if config.store.sqlite else LEAD,
                publish=self._publish,
                sole=self.claim.refuse_doubt,
                trust_domain=config.trust_domain,
                zone=time_zone,
                keep=timedelta(seconds=config.secrets.keep_data_keys_seconds),
                slots=config.server.slots,
                delay=_delay(config),
                quota=_quota(config),
                look_every=timedelta(hours=config.drift.every_hours) if config.drift.every_hours else None,
            )
        )
        self.operations, self.keys, self.imports = nouns.operations, nouns.keys, nouns.imports
        self.secrets, self.sessions, self.drifts = nouns.secrets, nouns.sessions, nouns.drifts
        self.schedules, self.use = nouns.schedules, nouns.use
        self.heads, self.policies, self.authorities = nouns.heads, nouns.policies, nouns.authorities
        self.approvals = nouns.approvals
        if not config.store.sqlite:  # else there is no other process that could set one
            self._guard.watch(self.policies.refresh_when_late)

    def _publish(self) -> None:
        """Have this host take the versions of the broker's own keys that there are."""
        self.own.follow()

    def _services(self) -> dict[str, object]:
        """What answers each service of the wire; the server refuses to start if one is missing."""
        return answers(
            self._nouns,
            hsm=self.hsm,
            guard=self._guard,
            schema=policy.SCHEMA,
            pages=self.own.pages,
            trouble=lambda: (self.clock.trouble, self.claim.trouble),
        )

    def serve(self) -> None:
        """Start answering, and the background loop with it."""
        _tell(self.hsm.report())
        self.heads.begin()
        self._tell_approvals()
        self._claim_token()
        for doubt in self.store.doubts():
            log.warning("the audit journal is in doubt", sentence=doubt)
        self._parts.callback(self._loop.stop)
        self.server.start()
        self.server.set_serving(not self.clock.in_doubt)
        self._loop.start()
        self._parts.callback(self.inspector.stop)
        self.inspector.start(self.store.findings)

    def _claim_token(self) -> None:
        """Say in the token whose it is before anybody can have something destroyed; the loop goes on with it."""
        try:
            fence = None if self.clock.in_doubt else self.store.lead()
            self.claim.look(claim_call(fence or 0, self.clock.now))
        except BrokerError as refusal:
            log.warning("the token is not claimed yet", reason=refusal.reason, sentence=refusal.message)

    def _tell_approvals(self) -> None:
        if self._config.approvals.suspended:
            log.warning("approvals are suspended in the configuration: nothing waits for anybody")
        elif lacking := approvers.lacking(self.store, self._guard):
            log.warning("too few operators may approve", sentence=lacking)

    def drain(self) -> None:
        """Take no new calls, let those in flight finish (at most 10 s), sign the last head."""
        self.server.drain(CALLS_END)
        self.inspector.stop()
        self._loop.stop()
        self.heads.sign_due()
        self.store.finish()
        self.heads.sign_last()

    def renew_certificate(self) -> None:
        """Sign a new server certificate in time; the listeners of all processes take it up without a restart.

        The leader's work, and the others' only if the leader has not done it: it may have another folder.
        """
        self.clock.check()
        self.own.renew(setup.RENEW_BEFORE if self.store.lead() else setup.RENEW_AT_LAST)
        self.own.warn()

    def close(self) -> None:
        """Release everything; twice is the same as once."""
        self._parts.close()


def place(config: Config) -> str:
    """Which broker this is, for the people who find its name in a token."""
    return f"{socket.gethostname()}:{config.store.journal}"


def _surroundings(config: Config) -> Surroundings:
    targets = config.targets
    return Surroundings(
        allowed_hosts=targets.allowed_hosts,
        credentials=targets.credentials,
        private_vaults={
            vault.host: PrivateVault(kind=vault.kind, ca_file=vault.ca_file, token_file=vault.token_file)
            for vault in targets.private_vaults
        },
        credentials_for={
            **targets.credentials_for,
            **{f"{vault.host}/token-file": vault.targets for vault in targets.private_vaults},
        },
        vault_transfer_files=targets.vault_transfer_files,
    )


def _say_if_refused(what: str, check: Callable[[Config], None], config: Config) -> None:
    """What will be needed in weeks is tried today, and serving does not end for it."""
    try:
        check(config)
    except BrokerError as refusal:
        log.warning(what, reason=refusal.reason, sentence=refusal.message)


def _quota(config: Config) -> LeaseQuota:
    sessions = config.sessions
    return LeaseQuota(
        per_principal=sessions.leases_per_pipeline,
        in_all=sessions.leases_in_all,
        usual=timedelta(seconds=sessions.usual_seconds),
    )


def _tell(token: HsmReport) -> None:
    """Which token this is, and what it is good for."""
    log.info("token", label=token.token_label, serial=token.token_serial, sentence=described(token))


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
