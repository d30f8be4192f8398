"""What is written of a call, and the bytes that chain and sign it (docs/audit-format.md).

Only the fields below and the names in ``FACTS`` are ever recorded; a fact under any other name is a bug and raises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from operator import attrgetter

from broker.core.model import AuditHead

GENESIS = "0" * 64
"""The hash that a chain's first record names as the one before it."""

MAX_RECORD_BYTES = 4096
"""No line of a journal is longer; values are cut to fit, and say so."""

MAX_NUMBER = 2**53 - 1
"""No number in a journal is further from zero, so that every JSON reader gets it right (RFC 8259 6)."""

FACTS = frozenset({
    "algorithm", "blob_sha256", "certificate_serial", "count", "destroy_at", "exportable", "fence", "former_chain",
    "former_end", "former_end_hash", "former_hash", "former_sequence", "former_strays", "former_torn",
    "former_torn_hash", "groups", "head_sequence", "kek_thumbprint", "key_type", "key_usage",
    "operator", "phase", "policy_version", "public_key_sha256", "remote_name", "remote_version", "replayed", "revision",
    "scheduled_by", "seconds", "state", "target", "validate_only", "version",
    "former_key", "former_signature", "handover_time", "successor_key", "successor_signature",
    "enabled", "expires_at", "extra_versions", "not_before", "operations",
    "ledger", "rows", "approval", "approval_digest",
    "claim", "claim_expected", "claim_found", "issuer", "lease", "session", "subject", "token_id", "trust_rule",
})  # fmt: skip
"""The allow-list of fact names. None of them can hold key material, a token, a plaintext or a free text."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode
_quoted = json.encoder.encode_basestring_ascii


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

    def saying(self, facts: Mapping[str, str | int]) -> AuditEntry:
        """The same entry with these facts besides; ``dataclasses.replace`` takes twice as long."""
        return AuditEntry(**dict(zip(_SAME, _same(self), strict=True)), facts={**self.facts, **facts})

    def __post_init__(self) -> None:
        if not self.facts.keys() <= FACTS:
            raise ValueError(f"not recordable: {sorted(self.facts.keys() - FACTS)}")


_SAME = tuple(each.name for each in fields(AuditEntry) if each.name != "facts")
_same = attrgetter(*_SAME)


def encode(entry: AuditEntry, chain: str, sequence: int, previous: str) -> tuple[bytes, str]:
    """One journal line (canonical JSON, ASCII, no newline) and its hash, which the next line names as ``prev``.

    Texts are cut to 1024 characters, which is room for all the groups an operator can be in, and further if the line
    would still be longer than ``MAX_RECORD_BYTES`` (a character outside ASCII takes up to twelve bytes).
    """
    for limit in (1024, 128, 32, 8, 4):
        line = _line(entry, chain, sequence, previous, limit)
        if len(line) <= MAX_RECORD_BYTES:
            return line, hashlib.sha256(line).hexdigest()
    raise ValueError("the audit record is too long")


def _line(entry: AuditEntry, chain: str, sequence: int, previous: str, limit: int) -> bytes:
    """Canonical JSON put together by hand: one call can have a hundred entries, and this takes a third of the time."""

    def text(value: str) -> str:
        return _quoted(_cut(value, limit))

    facts = ",".join(
        f"{_quoted(name)}:{text(value) if isinstance(value, str) else _bound(value)}"
        for name, value in sorted(entry.facts.items())
    )
    return (
        f'{{"authn":{text(entry.authn)},"call":{text(entry.call_id)},"chain":{_quoted(chain)},'
        f'"credential":{text(entry.credential)},"decision":{text(entry.decision)},"facts":{{{facts}}},'
        f'"kind":"entry","outcome":{text(entry.outcome)},"peer":{text(entry.peer)},'
        f'"phase":{_quoted(entry.phase.value)},"policies":[{",".join(map(text, entry.policies[:8]))}],'
        f'"policy_version":{_bound(entry.policy_version)},"prev":{_quoted(previous)},'
        f'"principal":{text(entry.principal)},"reason":{text(entry.reason)},"request":{text(entry.request_id)},'
        f'"resource":{text(entry.resource)},"rpc":{text(entry.rpc)},"seq":{sequence:d},'
        f'"time":"{entry.time.isoformat(timespec="microseconds")}","v":1}}'
    ).encode("ascii")


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
    return _hashed(body)


def head_statement(chain: str, sequence: int, head_hash: str, signed_at: datetime) -> bytes:
    """The bytes that the HSM's audit key signs: four lines, so that no two statements can read the same."""
    stamp = signed_at.isoformat(timespec="microseconds")
    return f"broker-audit-head-v1\n{chain}\n{sequence}\n{head_hash}\n{stamp}\n".encode("ascii")


def _hashed(body: dict[str, object]) -> tuple[bytes, str]:
    line = _CANONICAL(body).encode("ascii")
    return line, hashlib.sha256(line).hexdigest()


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _bound(number: int) -> int:
    return max(-MAX_NUMBER, min(int(number), MAX_NUMBER))
