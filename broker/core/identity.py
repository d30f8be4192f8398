"""Who calls, before anybody believes it, and what a token says once it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the transport says of the caller, before anybody believes it."""

    certificate: bytes | None  # the peer's verified certificate, PEM
    chain_verified: bool  # the TLS layer checked it against the operator CA
    metadata: Mapping[str, str] = field(repr=False)  # "authorization" and "broker-trust-rule", where the call has them
    peer: str
    rpc: str = ""  # "SessionService/Login"


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
