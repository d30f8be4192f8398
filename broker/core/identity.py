"""Who calls, before anybody believes it, and what a token says once it is believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from broker.core.traits import NO_METHOD, Traits


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How a call may wait for something outside: until when, and without keeping others from their turn."""

    until: float  # monotonic seconds
    room: int  # how many calls may wait so at a time
    aside: Callable[[], AbstractContextManager[None]]  # to be inside while waiting; Exhausted when there is no room
    alive: Callable[[], bool]  # whether the caller still waits for the answer
    once: bool = False  # only for what is under way, not for its being tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the transport says of the caller, before anybody believes it."""

    certificate: bytes | None  # the peer's verified certificate, PEM
    chain_verified: bool  # the TLS layer checked it against the operator CA
    metadata: Mapping[str, str] = field(repr=False)  # "authorization" and "broker-trust-rule", where the call has them
    peer: str
    rpc: str = ""  # "SessionService/Login"
    traits: Traits = NO_METHOD
    patience: Patience | None = None  # None: nobody waits longer than for what is under way


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFinding:
    """How one step of reading a token ended: ``name`` is a claim or a step such as "signature"."""

    name: str
    passed: bool
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A token whose signature, times, issuer and form hold. ``claims`` is the one parse that everybody uses."""

    issuer: str
    subject: str
    audience: str
    token_id: str  # jti, or ""
    expires_at: datetime
    claims: Mapping[str, Any]
    findings: tuple[ClaimFinding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a verified identity token says, for the session that it opens."""

    rule: str
    issuer: str
    subject: str
    token_id: str  # its jti, or "" where the issuer gives none
    expires_at: datetime
    claims: Mapping[str, str]  # those that the rule matched
    rule_revision: int  # the one that the token matched
