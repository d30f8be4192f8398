"""Jobs that log in at an authenticator whose key cache has a clock that a test moves by hand."""

from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest

from broker.auth.oidc import Oidc, OidcConfig
from broker.auth.oidc.fetch import Fetcher
from broker.auth.oidc.key_sets import KeySets
from broker.auth.oidc.resolve import Ask, system
from broker.auth.oidc.verifier import Verifier
from broker.core.errors import Unauthenticated, Unavailable
from broker.core.identity import Credentials, Patience
from broker.core.model import Principal, TrustRule
from tests.fakes.calls import Clock, call, operator, traits_of
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.servers.issuer import Issuer
from tests.servers.rules import exact, rule


class Ticks:
    """The monotonic clock of the key cache, moved by hand, or going so many times as fast as ours."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.speed = 0.0

    def __call__(self) -> float:
        return self.now + self.speed * time.monotonic()


def patient(seconds: float = 20, room: int = 231) -> Patience:
    """The patience that the gate gives a call, without a gate."""
    until = time.monotonic() + seconds
    return Patience(until=until, room=room, aside=nullcontext, alive=lambda: True)


class Jobs:
    """What logs in: an authenticator on a store with one rule for the issuer, trusting its CA."""

    def __init__(
        self, issuer: Issuer, allowed: frozenset[str] | None = None, url: str = "", ask: Ask = system, **changes: Any
    ) -> None:
        self.issuer, self.ticks, self.store = issuer, Ticks(), MemoryStore()
        parts: dict[str, Any] = {"issuer": url or issuer.url, "ca_pem": issuer.ca_pem, **changes}
        self.rule: TrustRule = rule(**{"matchers": (exact("repository_id", "42"),), **parts})
        with self.store.write(call("-", operator(), Clock()).outcome()) as write:
            write.add(self.rule)
        hosts = frozenset({issuer.host}) if allowed is None else allowed
        self.sets = KeySets(Fetcher(hosts, ask), self.ticks)
        self.oidc = Oidc(OidcConfig(allowed_hosts=hosts), self.store, lambda: datetime.now(UTC), Verifier(self.sets))

    def login(self, token: str | None = None, patience: Patience | None = None) -> Principal:
        metadata = {"authorization": f"Bearer {token or self.issuer.token()}"}
        found = self.oidc.authenticate(
            Credentials(
                certificate=None,
                chain_verified=False,
                metadata=metadata,
                peer="",
                rpc="SessionService/Login",
                traits=traits_of("SessionService/Login"),
                patience=patience,
            )
        )
        assert found is not None
        return found

    def why_not(self, token: str | None = None, patience: Patience | None = None) -> str:
        """For what reason the login is refused."""
        error = refused(lambda: self.login(token, patience))
        assert isinstance(error, (Unauthenticated, Unavailable))
        return error.reason

    def away(self) -> str:
        """Why there are no keys, as the audit has it."""
        with pytest.raises((Unauthenticated, Unavailable)) as refused:
            self.login()
        assert refused.value.reason in {"ISSUER_UNAVAILABLE", "ISSUER_MISCONFIGURED", "ISSUER_KEYS_REFUSED"}
        return str(refused.value.facts["claim_found"])

    def settle(self) -> None:
        """Wait until no fetch is under way."""
        for known in self.sets._issuers.values():  # noqa: SLF001 - a login would wait itself, or begin the next fetch
            with known.changed:
                while known.under_way:
                    assert known.changed.wait(60)
