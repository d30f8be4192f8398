"""What the core asks of the outside world.

Everything here is blocking and thread-safe and raises only ``BrokerError``; a bug may raise anything else, and ends
as INTERNAL. An implementation lives in an edge (``hsm``, ``store``, ``auth/*``, ``targets/*``) and is proven by the
contract suite of its port in ``tests/contracts``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from broker.core.entries import AuditEntry
from broker.core.identity import Credentials
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, LeaseState, OaepHash, Purpose, SignatureAlgorithm
from broker.core.model import (
    AuditHead,
    HsmReport,
    Key,
    KeyVersion,
    Principal,
    Record,
    RemoteKey,
    Secret,
    SecretVersion,
    Terms,
    WrappingKey,
)

R = TypeVar("R", bound=Record)

Now = Callable[[], datetime]
"""The clock: an aware datetime in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRef:
    """Names one key in the HSM: all that an operation needs to know of it, so that none has to ask the store.

    ``name`` is what the key was called at its birth, among those of its purpose: "payments/1" (key and version) for a
    caller's, "3" (version) for a root key, "" where the purpose has one key. ``check`` is a ``check_value`` of an AES
    key that was made before; None: there is none yet.
    """

    hsm_id: bytes  # CKA_ID, 16 bytes
    type: KeyType
    usage: KeyUsage
    public_key: bytes | None  # SubjectPublicKeyInfo, DER; None for AES
    name: str
    check: bytes | None = None


RESERVED_IDS = b"broker/"
"""What the CKA_ID of each of the broker's own keys begins with; no caller's key and no root key has such an id."""


class Hsm(Protocol):
    """The keyring of one purpose: the keys in a PKCS#11 token that were born for it, and no other.

    Whatever a ``KeyRef`` says, nothing is done with an object of the token that was not born as the key of this purpose
    and name, of this type and usage: WrongState ``KEY_NOT_THIS``, before anything is done. No slot, session, mechanism
    number or PIN shows.

    Errors: NotFound ``KEY_NOT_IN_HSM``; WrongState ``KEY_NOT_THIS``, ``KEY_AMBIGUOUS`` (several objects under its id:
    the key is not used until the stray one is gone), ``HSM_MECHANISM_MISSING`` (this token cannot do that operation),
    ``KEY_NOT_EXPORTABLE``, ``WRAP_NOT_EXACT``; InvalidRequest ``CIPHERTEXT_INVALID`` (one error for every failed
    decryption), ``ALGORITHM_MISMATCH``, ``DIGEST_LENGTH``; Unavailable ``HSM_UNAVAILABLE`` (device, session or login
    lost; the next call tries again) and ``HSM_FAULT`` (a result failed its own check and was withheld).
    """

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        """Make a token key as ``key`` names it and return its SubjectPublicKeyInfo DER (None for AES).

        Never repeats blindly: if this very key is there already, complete, it is the answer (a crashed earlier call
        made it); AlreadyExists ``HSM_ID_TAKEN`` when it may leave and this one may not, or the reverse. The attributes
        are read back and the public key is checked for sanity. ``fresh``: the caller has drawn ``hsm_id`` just now, so
        the token need not be searched. Ed25519 is never exportable (InvalidRequest ``KEY_NOT_EXPORTABLE``).
        """

    def check_value(self, key: KeyRef) -> bytes:
        """What this AES key alone can make, for ``KeyRef.check``: another one in its place is ``KEY_NOT_THIS`` too."""

    def public_key(self, key: KeyRef) -> bytes | None:
        """Read the SubjectPublicKeyInfo DER from the token; None for AES. NotFound when the token has no such key."""

    def sign(
        self, key: KeyRef, algorithm: SignatureAlgorithm, messages: list[bytes], *, prehashed: bool = False
    ) -> list[bytes]:
        """Sign each message (or, with ``prehashed``, each digest of the algorithm's hash) in order; all or nothing.

        ECDSA signatures are DER ECDSA-Sig-Value (RFC 3279 2.2.3). Each signature is verified under ``key.public_key``
        before any is returned. EdDSA takes no digest (InvalidRequest ``DIGEST_LENGTH``).
        """

    def encrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, plaintext: bytes, aad: bytes) -> bytes:
        """AES-GCM only (for RSA the core needs no HSM): 12-byte IV made here ‖ ciphertext ‖ 16-byte tag."""

    def decrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> bytes:
        """Undo ``encrypt`` or an RSAES-OAEP encryption; ``aad`` must be empty for OAEP."""

    def wrap(self, key: KeyRef, kek: WrappingKey, oaep_hash: OaepHash, *, exact: bool) -> bytes:
        """Return RSA-OAEP(kek, ephemeral AES-256) ‖ AES-KWP(ephemeral, key), made wholly inside the token.

        The key's PKCS#8 form (raw bytes for AES) is the plaintext. ``exact``: refuse (``WRAP_NOT_EXACT``) unless the
        token's padding is proven to follow RFC 5649 for this key. The attributes are read back first: a key that is
        not exportable is refused (``KEY_NOT_EXPORTABLE``). The ephemeral is gone afterwards, whatever happened.
        """

    def seal(self, key: KeyRef) -> None:
        """Take EXTRACTABLE away for good. Doing it twice is the same as once."""

    def destroy(self, key: KeyRef) -> None:
        """Destroy all halves of the key in the token, and nothing else under its id. Twice is the same as once."""

    def report(self) -> HsmReport:
        """What the token is and what the probe found; does not touch the token."""


class HsmStatus(Protocol):
    """How the token is; no key can be reached through it."""

    def report(self) -> HsmReport:
        """What the token is and what the probe found; does not touch the token."""

    def check(self) -> None:
        """Return when the token answers and the login holds; raise ``Unavailable`` when it does not. Tries recovery."""


class Device(HsmStatus, Protocol):
    """The whole HSM. Who builds the broker holds it and gives each part the keyring that this part needs."""

    def keyring(self, purpose: Purpose) -> Hsm:
        """The keys of one purpose."""

    def random(self, length: int) -> bytes:
        """Random bytes from the token, 1 to 1024 of them."""

    def close(self) -> None:
        """Log out and finalise the module."""


DECIDING = ("operators", "policy_documents", "trust_rules", "targets", "keys", "key_versions", "root_keys")
"""The tables that say who may do what with which key: small, and looked at often."""


@dataclass(frozen=True, slots=True)
class RowFinding:
    """A row that is not what the brokers left there; ``name`` "": some of the table's, and which is unknown."""

    table: str
    name: str
    how: str  # "altered", "put back", "removed", …


class Write(Protocol):
    """An open transaction. What is read here cannot change under the writer before the end."""

    def get(self, kind: type[R], *key: str | int) -> R | None:
        """As ``Store.get``, and on PostgreSQL the row is locked."""

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[str | int, ...] = (),
        limit: int,
        where: Mapping[str, str | int] | None = None,
        lock: bool = True,
    ) -> list[R]:
        """As ``Store.page``, with all that was changed before this transaction, and nobody changes the table meanwhile.

        Without ``lock`` the caller must hold a row that everybody holds who changes the rows asked for.
        """

    def add(self, *records: R) -> None:
        """Insert records of one kind. AlreadyExists ``NAME_TAKEN`` when a primary key is in use."""

    def replace(self, old: R, new: R) -> R:
        """Write ``new`` over ``old`` and return it with ``revision = old.revision + 1``.

        WrongState ``CHANGED_MEANWHILE`` unless the stored row still has ``old.revision``.
        """

    def replace_all(self, changes: Sequence[tuple[R, R]]) -> list[R]:
        """``replace`` for pairs (old, new) of one kind, in one go; the ones written, in the same order."""

    def end_leases(self, session: str, state: LeaseState, at: datetime) -> int:
        """Give every active lease of a session this state, and ``at`` as its end unless that is earlier; how many.

        The caller must hold the session. A row that could not be read is ended as well.
        """

    def delete(self, record: Record) -> None:
        """Remove the row. WrongState ``CHANGED_MEANWHILE`` unless it still has ``record.revision``."""

    def note(self, **facts: str | int) -> None:
        """Add facts that only became known inside the transaction to the audit entry that is about to be written."""

    def also(self, entry: AuditEntry) -> None:
        """Make a further entry durable together with the one that the transaction was opened with."""


class Store(Protocol):
    """Records by primary key, and the audit journal that every change goes through.

    Primary keys: Key (name) · KeyVersion (key, number) · Target (name) · Import (key, version, target) ·
    Operator (name) · PolicyDocument (version) · Receipt (principal, request_id) · AuditHead (chain, sequence) ·
    TrustRule (name) · Secret (name) · SecretVersion (secret, number) · SecretRead (secret) · RootKey (version) ·
    Session (id) · Lease (id) · UsedToken (issuer, jti) · Operation (subject, number).
    Errors: Unavailable ``STORE_UNAVAILABLE`` / ``AUDIT_UNAVAILABLE`` within a second, never a hang. WrongState
    ``ROW_FORGED`` for a row that somebody else has changed, made up, put back as it once was, or removed.
    """

    def get(self, kind: type[R], *key: str | int) -> R | None:
        """The record with this whole primary key, or None."""

    def recent(self, kind: type[R], *key: str | int) -> R | None:
        """As ``get``; what another process has changed within the last second may be missed."""

    def version(self, key: str, number: int) -> tuple[Key, KeyVersion] | None:
        """A key and one of its versions in one read; ``number`` 0 is the primary version."""

    def secrets(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[Secret | None, SecretVersion | None]]:
        """Secrets by name, each with one of its versions (0: the latest), in the order asked for and in one read."""

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[str | int, ...] = (),
        limit: int,
        where: Mapping[str, str | int] | None = None,
        sound_only: bool = False,
    ) -> list[R]:
        """Up to ``limit`` records in primary-key order (bytewise), strictly after ``after`` (a whole primary key).

        ``where`` keeps only the rows whose named fields equal the given values. ``sound_only`` passes over rows that
        cannot be read, which are refused otherwise: for what must not be held up by one of them.
        """

    def due(self, kind: type[R], before: datetime, *, limit: int, state: str = "active") -> list[R]:
        """Records whose time has come at ``before``, oldest first, found through an index.

        The time is ``expires_at`` of Sessions and Leases in that state, ``due_at`` of Operations in that state,
        ``until`` of UsedTokens, ``created_at`` of Receipts. A row that cannot be read is passed over, so that it never
        holds up the others (TL-18).
        """

    def count(self, kind: type[R], where: Mapping[str, str | int]) -> int:
        """How many records there are whose named fields equal the given values."""

    def write(self, entry: AuditEntry) -> AbstractContextManager[Write]:
        """The only way to change anything: the body's changes become visible together, or not at all.

        On leaving: ``entry`` is made durable in the audit journal, then the transaction is committed. If the body
        raises, nothing is written and the exception goes on; if the journal cannot be written, the transaction is
        rolled back and Unavailable ``AUDIT_UNAVAILABLE`` is raised. A commit that fails after the entry became
        durable leaves an entry that says what was intended; the error says so too (``STORE_UNAVAILABLE``).

        An entry with a ``fence`` is a leader's: WrongState ``LEADERSHIP_LOST``, and nothing is written, unless that is
        the newest number that ``lead`` has given to anybody. No newer one is given until the transaction has ended.
        """

    def record(self, *entries: AuditEntry) -> None:
        """Make entries durable that go with no change: a read, a use of a key, a refusal. All of them, or none."""

    def heads(self) -> list[AuditHead]:
        """The newest unsigned head (``signature`` empty) of each chain this process appends to; [] if none moved."""

    def save_head(self, head: AuditHead) -> None:
        """Append a signed head to the journal and keep it in the database."""

    def inspect(self, tables: Collection[str] = ()) -> list[RowFinding]:
        """Look at every row of these tables, or of all; what is found is refused by name from then on."""

    def lead(self) -> int | None:
        """Be the one process of all on this database that does the shared work, or stay it; None when another is.

        The answer is the number to put into ``AuditEntry.fence``, greater than all that were given before. Whoever
        leads asks again each second, because one that is silent for some seconds is replaced; ``close`` resigns.
        """

    def clock(self) -> datetime | None:
        """What time it is by the clock of the database's server, now; None when no other process shares it."""

    def check(self) -> None:
        """Return when the database answers and the journal is writable; else raise ``Unavailable``."""

    def close(self) -> None:
        """Release files and connections."""


class Authenticator(Protocol):
    """One way of proving who calls."""

    def authenticate(self, credentials: Credentials) -> Principal | None:
        """The principal; None when the call carries nothing for this authenticator; Unauthenticated when it is bad."""


class Connect(Protocol):
    """The way to targets, as the broker's configuration allows it."""

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> Target:
        """The port of the target ``name``; opens no connection.

        InvalidRequest ``TARGET_HOST_NOT_ALLOWED`` or ``TARGET_CREDENTIAL_NOT_BOUND`` when the configuration does not
        give this place, or not to this target.
        """

    def settled(self, kind: str, settings: Mapping[str, str]) -> dict[str, str]:
        """The settings in their one spelling, as policies compare them; looks at nothing but them.

        InvalidRequest ``TARGET_KIND_UNKNOWN`` or ``TARGET_SETTINGS_INVALID``.
        """


class Target(Protocol):
    """A place keys can be imported to. Built from one registered ``model.Target``.

    Errors: Unavailable ``TARGET_UNREACHABLE``, ``TARGET_SEALED``, ``TARGET_THROTTLED``; WrongState
    ``TARGET_TLS_UNTRUSTED``, ``TARGET_DENIED``, ``TARGET_MOUNT_MISSING``, ``TARGET_NAME_TAKEN``, ``TARGET_REFUSED``
    (it understood the request and would not do it), ``TARGET_CANNOT_DISABLE``, ``TARGET_CREDENTIAL_UNUSABLE`` (the
    file with the token is missing, a link, or readable by others); InvalidRequest ``KEY_TYPE_UNSUPPORTED``. No message
    quotes the target's own text beyond its short error strings, and none holds a token.
    """

    exact_wrap: bool  # True: the target parses PKCS#8 strictly, so only an exact RFC 5649 wrap will do

    def wrapping_key(self) -> WrappingKey:
        """The KEK the target offers now."""

    def oaep_hash(self, offered: tuple[OaepHash, ...]) -> OaepHash:
        """The hash to use, of those the token can do; WrongState ``OAEP_HASH_UNSUPPORTED`` when none fits."""

    def supports(self, key_type: KeyType, usage: KeyUsage) -> None:
        """Return if such a key can be imported; else InvalidRequest ``KEY_TYPE_UNSUPPORTED`` saying what can."""

    def spelled(self, name: str) -> str:
        """The one spelling of a key's name there, as policies compare it; InvalidRequest ``NAME_INVALID`` if none."""

    def import_key(
        self, name: str, key_type: KeyType, usage: KeyUsage, blob: bytes, oaep_hash: OaepHash, *, first: bool
    ) -> None:
        """Upload the blob: a new remote key when ``first``, else a further version of it."""

    def versions(self, name: str) -> list[RemoteKey]:
        """All versions the target holds under ``name``, oldest first; [] when there is none."""

    def remains(self, name: str) -> str:
        """How a version under ``name`` that does not show could come back, for people; "" when it is gone for good."""

    def check_terms(self, key_type: KeyType, usage: KeyUsage, terms: Terms) -> None:
        """Return if the target can hold such a key to ``terms``; else InvalidRequest ``TERMS_UNSUPPORTED``."""

    def settle(self, name: str, version: str, terms: Terms) -> None:
        """Hold this remote version to ``terms`` from now on. Doing it twice is the same as once."""

    def create_wrapping_key(self) -> WrappingKey:
        """Make the KEK that the settings name, able to do nothing but import; what is there is left as it is.

        WrongState ``TARGET_KEK_EXISTS``, or ``TARGET_KEK_FIXED`` when such a target has one of its own.
        """

    def check_transfer(self) -> None:
        """Return if keys may be carried there in files; else WrongState ``TRANSFER_FILES_OFF``."""

    def transfer_file(
        self, key_type: KeyType, usage: KeyUsage, blob: bytes, kek: WrappingKey, oaep_hash: OaepHash
    ) -> bytes:
        """The file with which ``blob`` is carried to the target by hand, as the target's own tools take it."""

    def sign(self, name: str, version: str, algorithm: SignatureAlgorithm, message: bytes) -> bytes:
        """Let the target sign; ECDSA as DER ECDSA-Sig-Value."""

    def encrypt(self, name: str, version: str, plaintext: bytes) -> bytes:
        """Let the target encrypt with AES-GCM; same layout as ``Hsm.encrypt``."""

    def decrypt(self, name: str, version: str, algorithm: EncryptionAlgorithm, ciphertext: bytes) -> bytes:
        """Let the target decrypt what ``Hsm.encrypt`` or RSAES-OAEP made."""

    def disable(self, name: str, version: str) -> None:
        """Make this remote version unusable. Doing it twice, or for a version that is not there, is no error.

        WrongState ``TARGET_CANNOT_DISABLE`` when the target can only do it together with versions that are in use.
        """

    def enable(self, name: str, version: str) -> None:
        """Undo ``disable``, before an import that had failed is proven again. Doing it twice is the same as once."""

    def check(self) -> None:
        """Return when the broker's credential may do all that importing and proving take; changes nothing there.

        WrongState ``TARGET_DENIED`` names every right that is missing.
        """

    def names(self) -> list[str]:
        """The names of the keys that the target holds, sorted; at most 1000."""
