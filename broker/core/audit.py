"""What is written of a call, and the bytes that chain and sign it (docs/audit-format.md).

Only the fields below and the names in ``FACTS`` are ever recorded; a fact under any other name is a bug and raises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from broker.core.model import AuditHead

GENESIS = "0" * 64
"""The hash that a chain's first record names as the one before it."""

MAX_RECORD_BYTES = 4096
"""No line of a journal is longer; values are cut to fit, and say so."""

MAX_NUMBER = 2**53 - 1
"""No number in a journal is further from zero, so that every JSON reader gets it right (RFC 8259 6)."""

FACTS = frozenset({
    "algorithm", "blob_sha256", "certificate_serial", "count", "destroy_at", "exportable", "fence", "former_chain",
    "former_hash", "former_sequence", "groups", "head_sequence", "kek_thumbprint", "key_type", "key_usage",
    "operator", "policy_version", "public_key_sha256", "remote_name", "remote_version", "replayed", "revision",
    "state", "target", "validate_only", "version",
    "enabled", "expires_at", "extra_versions", "not_before", "operations",
    "claim", "claim_expected", "claim_found", "issuer", "lease", "session", "subject", "token_id", "trust_rule",
})  # fmt: skip
"""The allow-list of fact names. None of them can hold key material, a token, a plaintext or a free text."""


class Phase(StrEnum):
    """INTENT is durable before anything is touched; OUTCOME says how it ended."""

    INTENT = "intent"
    OUTCOME = "outcome"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One record of the audit, before it gets its place in a chain."""

    time: datetime
    phase: Phase
    call_id: str  # made by the broker, one a call; also in the error the caller sees
    rpc: str  # "KeyService/Sign"; "-" for the broker's own work
    request_id: str  # the caller's idempotency id, or ""
    principal: str  # "operator/alice", or "" when not established
    authn: str
    credential: str
    peer: str
    resource: str  # "key/payments", or ""
    decision: str  # "allow", "deny" or "" when it never came to a decision
    policies: tuple[str, ...]  # ids of the policies that decided
    policy_version: int
    outcome: str  # "ok", or the gRPC status name; "" for an intent
    reason: str  # the BrokerError reason, or ""
    facts: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def fence(self) -> int:
        """The number of the leader whose work it is; 0 for everything that any process may do."""
        return int(self.facts.get("fence", 0))

    def __post_init__(self) -> None:
        unknown = set(self.facts) - FACTS
        if unknown:
            raise ValueError(f"not recordable: {sorted(unknown)}")


def encode(entry: AuditEntry, chain: str, sequence: int, previous: str) -> tuple[bytes, str]:
    """One journal line (canonical JSON, ASCII, no newline) and its hash, which the next line names as ``prev``.

    Texts are cut to 1024 characters, which is room for all the groups an operator can be in, and further if the line
    would still be longer than ``MAX_RECORD_BYTES`` (a character outside ASCII takes up to twelve bytes).
    """
    for limit in (1024, 128, 32, 8, 4):
        line, digest = _seal(_body(entry, chain, sequence, previous, limit))
        if len(line) <= MAX_RECORD_BYTES:
            return line, digest
    raise ValueError("the audit record is too long")


def _body(entry: AuditEntry, chain: str, sequence: int, previous: str, limit: int) -> dict[str, object]:
    return {
        "v": 1,
        "kind": "entry",
        "chain": chain,
        "seq": sequence,
        "prev": previous,
        "time": entry.time.isoformat(timespec="microseconds"),
        "phase": entry.phase.value,
        "call": _cut(entry.call_id, limit),
        "rpc": _cut(entry.rpc, limit),
        "request": _cut(entry.request_id, limit),
        "principal": _cut(entry.principal, limit),
        "authn": _cut(entry.authn, limit),
        "credential": _cut(entry.credential, limit),
        "peer": _cut(entry.peer, limit),
        "resource": _cut(entry.resource, limit),
        "decision": _cut(entry.decision, limit),
        "policies": [_cut(policy, limit) for policy in entry.policies[:8]],
        "policy_version": _bound(entry.policy_version),
        "outcome": _cut(entry.outcome, limit),
        "reason": _cut(entry.reason, limit),
        "facts": {
            name: _cut(value, limit) if isinstance(value, str) else _bound(value) for name, value in entry.facts.items()
        },
    }


def encode_head(head: AuditHead, sequence: int, previous: str) -> tuple[bytes, str]:
    """The journal line of a signed head; it is part of the chain like any other line."""
    body: dict[str, object] = {
        "v": 1,
        "kind": "head",
        "chain": head.chain,
        "seq": sequence,
        "prev": previous,
        "time": head.signed_at.isoformat(timespec="microseconds"),
        "head_seq": head.sequence,
        "head_hash": head.hash,
        "signature": head.signature.hex(),
    }
    return _seal(body)


def head_statement(chain: str, sequence: int, head_hash: str, signed_at: datetime) -> bytes:
    """The bytes that the HSM's audit key signs: four lines, so that no two statements can read the same."""
    stamp = signed_at.isoformat(timespec="microseconds")
    return f"broker-audit-head-v1\n{chain}\n{sequence}\n{head_hash}\n{stamp}\n".encode("ascii")


def _seal(body: dict[str, object]) -> tuple[bytes, str]:
    line = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    return line, hashlib.sha256(line).hexdigest()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bound(number: int) -> int:
    return max(-MAX_NUMBER, min(int(number), MAX_NUMBER))
