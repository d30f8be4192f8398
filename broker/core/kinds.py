"""The closed lists: types, algorithms and states. The values are what the CLI, the policies and the audit say."""

from __future__ import annotations

from enum import StrEnum


class KeyType(StrEnum):
    """What kind of key; the value is the name that the CLI, the policies and the audit use."""

    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    EC_P521 = "ec-p521"
    EC_SECP256K1 = "ec-secp256k1"
    ED25519 = "ed25519"
    AES_128 = "aes-128"
    AES_256 = "aes-256"

    @property
    def symmetric(self) -> bool:
        """True when there is no public half."""
        return self in {KeyType.AES_128, KeyType.AES_256}


class Purpose(StrEnum):
    """What a key in the token is there for; the holder of one purpose's keyring sees no key of another.

    KEY: callers' keys; ROOT: wraps the data keys of secrets; ROWS: an AES-256 key that wraps the key of the MACs of
    the database's rows.
    """

    KEY = "key"
    ROOT = "root"
    AUDIT = "audit"
    OPERATOR_CA = "operator-ca"
    SERVER_CA = "server-ca"
    ROWS = "rows"


class Own(StrEnum):
    """The broker's own keys that can be rotated. PAGE is no key of the token: the HSM only wraps it."""

    AUDIT = "audit"
    OPERATOR_CA = "operator-ca"
    SERVER_CA = "server-ca"
    PAGE = "page"

    @property
    def purpose(self) -> Purpose:
        """Whose keyring has it, or has wrapped it."""
        return Purpose.ROWS if self is Own.PAGE else Purpose(self.value)


class OwnKeyState(StrEnum):
    """PENDING (being made) → NEXT (everybody takes what it makes) → ACTIVE (it makes) → FORMER (taken) → DESTROYED."""

    PENDING = "pending"
    NEXT = "next"
    ACTIVE = "active"
    FORMER = "former"
    DESTROYED = "destroyed"


class KeyUsage(StrEnum):
    """The one thing that a key may do (NIST SP 800-57 part 1, 5.2)."""

    SIGN = "sign"
    ENCRYPT = "encrypt"


class SignatureAlgorithm(StrEnum):
    """JOSE names (RFC 7518, RFC 8037, RFC 8812)."""

    RS256 = "RS256"
    RS384 = "RS384"
    RS512 = "RS512"
    PS256 = "PS256"
    PS384 = "PS384"
    PS512 = "PS512"
    ES256 = "ES256"
    ES384 = "ES384"
    ES512 = "ES512"
    ES256K = "ES256K"
    EDDSA = "EdDSA"


class EncryptionAlgorithm(StrEnum):
    """AES-GCM (NIST SP 800-38D) and RSAES-OAEP (RFC 8017 7.1, MGF1 hash equal to the OAEP hash, empty label)."""

    AES_GCM = "AES-GCM"
    RSA_OAEP_SHA1 = "RSA-OAEP-SHA1"
    RSA_OAEP_SHA256 = "RSA-OAEP-SHA256"


class OaepHash(StrEnum):
    """The hash of an RSAES-OAEP key transport; the value is the name hashlib knows."""

    SHA1 = "sha1"
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


class KeyState(StrEnum):
    """PENDING (the HSM is asked) → ENABLED ⇄ DISABLED → DESTROY_SCHEDULED → DESTROYED.

    HELD: its destruction was scheduled when the database was restored; an operator schedules it again, or cancels.
    """

    PENDING = "pending"
    ENABLED = "enabled"
    DISABLED = "disabled"
    DESTROY_SCHEDULED = "destroy-scheduled"
    DESTROYED = "destroyed"
    HELD = "held"


class VersionState(StrEnum):
    """PENDING until the HSM has made the key; DESTROYED once it is gone from the HSM; FAILED: was never made.

    HELD: was PENDING when the database was restored; neither completed nor undone until an operator says which.
    """

    PENDING = "pending"
    ENABLED = "enabled"
    DESTROYED = "destroyed"
    FAILED = "failed"
    HELD = "held"


class Phase(StrEnum):
    """Where a key version is in its life (NIST SP 800-57 part 1, 7); what each allows is ``core.keys.phases``.

    PRE_ACTIVE → ACTIVE → DEACTIVATED, and COMPROMISED from any of them. That it is SUSPENDED (its key is disabled) or
    DESTROYED is told by the states of the key and of the version.
    """

    PRE_ACTIVE = "pre-active"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    DEACTIVATED = "deactivated"
    COMPROMISED = "compromised"
    DESTROYED = "destroyed"


class ScheduleState(StrEnum):
    """ACTIVE, or HELD since the database was restored: then nothing is rotated until the schedule is set again."""

    ACTIVE = "active"
    HELD = "held"


class RootKeyState(StrEnum):
    """PENDING until the HSM has made the key → ENABLED → destroyed by itself once nothing hangs on it.

    After the database was restored, until an operator says so: HELD was PENDING, and is not used; KEPT was no longer
    the newest, and is used as before but not destroyed.
    """

    PENDING = "pending"
    ENABLED = "enabled"
    KEPT = "kept"
    HELD = "held"


class ImportState(StrEnum):
    """PENDING (may or may not have arrived) → PROVEN (same key, used there) or FAILED (disabled or not shown there).

    FAILED is not nowhere: what was deleted there can often be recovered. GONE: the target has it no more, for good.

    HELD: was PENDING when the database was restored; an operator confirms it, which reads back and never uploads.
    DISABLING: it came to nothing, is to be disabled and still enabled; then FAILED. UNKNOWN: its target was removed.
    DISABLED: it was proven, and put out of use there since, because its version was retired.
    """

    PENDING = "pending"
    PROVEN = "proven"
    FAILED = "failed"
    HELD = "held"
    DISABLING = "disabling"
    UNKNOWN = "unknown"
    GONE = "gone"
    DISABLED = "disabled"


class Standing(StrEnum):
    """What a copy is good for: its state, its version's place among the key's, and what the target can do, in one."""

    CURRENT = "current"
    AHEAD = "ahead"
    BEHIND = "behind"
    STILL_ENABLED = "still-enabled"
    DISABLED = "disabled"
    MISSING = "missing"
    FAILED = "failed"
    UNKNOWN = "unknown"
    GONE = "gone"
    PENDING = "pending"
    HELD = "held"
    UNPROVEN = "unproven"


class Drift(StrEnum):
    """How a place differs from the broker's record; ``core.drift.findings`` has the repair of each."""

    DELETED = "deleted"
    DISABLED = "disabled"
    REPLACED = "replaced"
    EXPORTABLE = "exportable"
    ENABLED = "enabled"
    RETURNED = "returned"
    EXTRA_VERSION = "extra-version"
    KEK_CHANGED = "kek-changed"
    KEY_MISSING = "key-missing"
    KEY_DIFFERS = "key-differs"


class Sent(StrEnum):
    """What has ever left the HSM for a place: NOTHING, an UPLOAD, or a FILE, which can be carried there at any time.

    An upload that the target refused for its name, which another key has, counts for nothing.
    """

    NOTHING = "nothing"
    UPLOAD = "upload"
    FILE = "file"


class OperationState(StrEnum):
    """RUNNING until every step is done, or UNDOING from the refusal of one until that is undone; then never changed."""

    RUNNING = "running"
    UNDOING = "undoing"
    DONE = "done"
    UNDONE = "undone"

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self in {OperationState.DONE, OperationState.UNDONE}


class OperatorState(StrEnum):
    """A removed operator's row stays, so that the name is never given to somebody else."""

    ENABLED = "enabled"
    REMOVED = "removed"


class Preset(StrEnum):
    """Whose identity tokens a trust rule reads."""

    GENERIC = "generic"
    GITHUB = "github"
    GITLAB = "gitlab"
    AZURE_DEVOPS = "azure-devops"
    BITBUCKET = "bitbucket"
    CIRCLECI = "circleci"
    BUILDKITE = "buildkite"
    KUBERNETES = "kubernetes"


class MatcherKind(StrEnum):
    """How a claim is compared: with one value, with several, or with a glob whose ``*`` stays within a segment.

    CONTAINS is for a claim that is a list: one of what it holds is the value. The others never fit a list.
    """

    EXACT = "exact"
    ONE_OF = "one-of"
    GLOB = "glob"
    CONTAINS = "contains"


class SecretVersionState(StrEnum):
    """ENABLED ⇄ DELETED → DESTROYED (its data key is erased)."""

    ENABLED = "enabled"
    DELETED = "deleted"
    DESTROYED = "destroyed"


class SessionState(StrEnum):
    """A session ends once, for whatever reason."""

    ACTIVE = "active"
    ENDED = "ended"


class LeaseState(StrEnum):
    """EXPIRED: its time was over, or its session's; REVOKED: somebody ended it."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class ApprovalState(StrEnum):
    """OPEN until it is USED, REJECTED (or withdrawn), or EXPIRED; how many have approved stands beside it."""

    OPEN = "open"
    USED = "used"
    REJECTED = "rejected"
    EXPIRED = "expired"
