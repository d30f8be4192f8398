"""The nouns of the broker, as frozen records.

A record that the store keeps has a ``revision``: 1 when added, one more at each change, so that a change made from
an outdated copy is noticed. All times are aware datetimes in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from broker.core.approval import Approval
from broker.core.certified import Certified
from broker.core.findings import DriftReport
from broker.core.identity import Proof
from broker.core.kinds import (
    ImportState,
    KeyState,
    KeyType,
    KeyUsage,
    LeaseState,
    MatcherKind,
    OperationState,
    OperatorState,
    Phase,
    Preset,
    RootKeyState,
    SecretVersionState,
    Sent,
    SessionState,
    VersionState,
)  # fmt: skip
from broker.core.own_key import OwnKey
from broker.core.schedule import KeySchedule
from broker.core.token_claim import TokenClaim


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A named key; its material lives in its versions. Names are never used again, not even after destruction."""

    name: str
    type: KeyType
    usage: KeyUsage
    exportable: bool
    labels: Mapping[str, str]
    owner: str
    state: KeyState
    primary: int  # the version that signs and encrypts; 0 until the first one is made
    latest: int  # the highest version number ever begun
    created_at: datetime
    destroy_at: datetime | None = None
    destroyed_at_targets: bool | None = None  # True: its destruction goes to the targets too; None: in the HSM alone
    sealed_once_at: tuple[str, ...] | None = None  # targets: a version that is proven at all of them is sealed
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyVersion:
    """One key in the HSM, found there by ``hsm_id`` (CKA_ID, 16 random bytes, chosen before the HSM is asked)."""

    key: str
    number: int
    state: VersionState
    hsm_id: bytes
    public_key: bytes | None  # SubjectPublicKeyInfo, DER (RFC 5280); None for symmetric keys
    sealed: bool  # True: EXTRACTABLE was taken away for good after creation
    created_at: datetime
    phase: Phase | None = None  # as it is stored; None of what was made before there were phases
    revision: int = 1

    @property
    def standing(self) -> Phase:
        """The phase that the version itself is in, whatever its key's state says besides (``keys.phases.phase_of``)."""
        return self.phase or Phase.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMove:
    """A key version came into a phase: when, by whom, and why; for good."""

    key: str
    version: int
    number: int  # counts the moves of the version
    phase: Phase
    at: datetime
    actor: str  # "operator/alice", "broker/background"
    reason: str  # what people gave, or a word of the broker: "rotated"
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappingKey:
    """A target's key-exchange key (KEK): an RSA public key that the target alone can open blobs for."""

    id: str
    public_key: bytes  # SubjectPublicKeyInfo, DER
    thumbprint: str  # SHA-256 of ``public_key``, lower-case hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A registered place keys can be imported to, with the KEK that was pinned when it was registered."""

    name: str
    kind: str
    settings: Mapping[str, str]
    kek_id: str
    kek_thumbprint: str
    created_at: datetime
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One key version at one target, under one name there."""

    key: str
    version: int
    target: str
    remote_name: str
    remote_version: str  # "" until the target has answered
    state: ImportState
    kek_thumbprint: str
    blob_sha256: str  # "" until the blob is made
    failure: str  # the reason code, "" unless FAILED
    started_at: datetime
    proven_at: datetime | None = None
    sent: Sent | None = None  # None: not known, of an import that was begun before this was written down
    terms: str | None = None  # what it was asked to be held to there, as ``imports.terms`` writes it; None: to nothing
    revision: int = 1

    @property
    def may_be_there(self) -> bool:
        """Whether the target has it, or may have it, or may get it back."""
        failed_unsent = self.state is ImportState.FAILED and self.sent is Sent.NOTHING
        return self.state is not ImportState.GONE and not failed_unsent


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """A person who may call with a client certificate. Certificates that start before ``not_before`` are refused."""

    name: str
    groups: tuple[str, ...]
    state: OperatorState
    not_before: datetime
    created_at: datetime
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocument:
    """One version of the whole Cedar policy text; the highest version is in force."""

    version: int
    text: str
    author: str
    created_at: datetime
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a mutation under a request id did, so that its repetition does nothing again (AIP-155)."""

    principal: str
    request_id: str
    rpc: str
    digest: str  # SHA-256 of the serialised request without secret values, hex
    resource: str
    version: int
    created_at: datetime
    values_mac: bytes | None = None  # of the secret values that came with it (``value_macs``); None: not known
    operation: int | None = None  # the number of the operation on the resource that it began; None: it began none
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHead:
    """A signed statement of how far one audit chain has come."""

    chain: str
    sequence: int
    hash: str  # hex
    signed_at: datetime
    signature: bytes  # ECDSA P-256/SHA-256, DER, over ``audit.head_statement``
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Matcher:
    """One condition on one claim; ``claim`` is a path, "/" between its steps."""

    claim: str
    kind: MatcherKind
    values: tuple[str, ...]  # one, unless the kind is ONE_OF


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRule:
    """Which identity tokens become which pipeline principal."""

    name: str
    preset: Preset
    issuer: str
    audience: str
    matchers: tuple[Matcher, ...]
    pipeline: str  # the principal is "pipeline/" and this name
    max_session_seconds: int
    single_use: bool
    ca_pem: str  # of the issuer's server; "" is the system's CAs
    grade: str  # "A" to "D"
    findings: tuple[str, ...]
    created_at: datetime
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A static secret; its values live in its versions."""

    name: str  # segments joined by slashes
    labels: Mapping[str, str]
    latest: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    max_age: int | None = None  # seconds after which its latest version is overdue; None: at no age
    renew_at: datetime | None = None  # when that is; None with ``max_age``
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretVersion:
    """One sealed set of fields (``core.sealing``)."""

    secret: str
    number: int
    state: SecretVersionState
    fields: tuple[str, ...]  # their names
    root: int  # the root key's version that wraps the data key
    data_key: bytes  # wrapped; empty once destroyed
    sealed: bytes  # empty once destroyed
    author: str
    created_at: datetime
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRead:
    """Who fetched a secret last; kept beside it, so that reading does not contend with writing."""

    secret: str
    principal: str
    read_at: datetime
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RootKey:
    """A version of the key in the HSM that wraps data keys; the highest one wraps, the older ones only unwrap."""

    version: int
    hsm_id: bytes
    created_at: datetime
    state: RootKeyState = RootKeyState.ENABLED
    check_value: bytes | None = None  # what this key and no other has made; None: not made yet (FT-20)
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a login gave. The token is kept as a hash only."""

    id: str  # 22 characters of base62, 128 bits
    token_hash: bytes  # SHA-256 of the whole token
    principal: str  # "pipeline/deploy"
    rule: str
    rule_revision: int  # as it was when the identity token matched
    issuer: str
    subject: str
    claims: Mapping[str, str]  # those that the rule matched
    state: SessionState
    created_at: datetime
    expires_at: datetime
    last_at: datetime  # no renewal passes it
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One thing handed out under a session."""

    id: str
    session: str
    principal: str
    resource: str  # "secret/team/app/db"
    version: int
    state: LeaseState
    created_at: datetime
    expires_at: datetime
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedToken:
    """An identity token that has opened its one session; its second use meets this row."""

    issuer: str
    jti: str
    until: datetime  # from then on the token is over anyway
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something that reaches outside the store, step by step (``core.operations``)."""

    subject: str  # what it is about, "key/payments/3"; it has one operation at a time
    number: int  # counts the operations of the subject
    kind: str  # names its plan, "make-key-version"
    state: OperationState
    step: int  # the next one; steps count from 0
    memory: Mapping[str, str]  # what later steps need of earlier ones; never a secret
    principal: str  # who asked, and was permitted
    failure: str  # the newest refusal's reason, "" if there was none
    attempts: int  # how often the background has taken it up
    created_at: datetime
    due_at: datetime  # nobody takes it up before; of one that is over: when it is forgotten
    revision: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsed:
    """Who used a key last; kept beside it, so that using does not contend with changing."""

    key: str
    principal: str
    used_at: datetime
    revision: int = 1


Record = (
    Key | KeyVersion | Target | Import | Operator | PolicyDocument
    | Receipt | AuditHead | TrustRule | Secret | SecretVersion | SecretRead
    | RootKey | Session | Lease | UsedToken | Operation | KeyMove | Approval | KeySchedule | KeyUsed
    | DriftReport | OwnKey | TokenClaim | Certified
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls. ``kind`` and ``name`` together are the identity; two kinds never share one (AN-30)."""

    kind: str
    name: str
    groups: tuple[str, ...] = ()
    method: str = ""  # how it was proven: "mtls", "oidc" or "session"
    credential: str = ""  # what proved it: the certificate's serial number, the token's id, the session's id
    proof: Proof | None = field(default=None, compare=False)  # with "oidc" only

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a key may do at its target, and when; set there once the key is proven. The defaults ask for nothing."""

    operations: tuple[str, ...] = ()  # in the target's own words ("sign", "wrapKey"); (): all that the usage allows
    tags: Mapping[str, str] = field(default_factory=dict)
    enabled: bool = True
    not_before: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteKey:
    """What a target says of one version of a key it holds."""

    name: str
    version: str
    public_key: bytes | None  # SubjectPublicKeyInfo, DER; None for symmetric keys
    enabled: bool = True
    exposed: str = ""  # the flag at the target that lets the material leave or change there; "" when none is set
