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
from broker.core.model import AuditHead, Key, KeyVersion, Principal, Record, Secret, SecretVersion, WrappingKey
from broker.core.ports.targets import (
    Cargo,
    Carries,
    Connect,
    KeepsTerms,
    MakesKek,
    Offer,
    Offers,
    Switches,
    Takes,
    Target,
    Uses,
)
from broker.core.report import HsmReport, Origin

__all__ = [
    "DECIDING", "RESERVED_IDS", "Authenticator", "Cargo", "Carries", "Connect", "Device", "Hsm", "HsmStatus",
    "KeepsTerms", "KeyRef", "MakesKek", "Now", "Offer", "Offers", "RowFinding", "Store", "Switches", "Takes", "Target",
    "Uses", "Write",
]  # fmt: skip

R = TypeVar("R", bound=Record)

Now = Callable[[], datetime]
"""The clock: an aware datetime in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRef:
    """Names one key in the HSM: all that an operation needs to know of it, so that none has to ask the store.

    ``name`` is what the key was called at its generation, among those of its purpose: "payments/1" (key and version)
    for a caller's, "3" (version) for a root key, "" where the purpose has one key. ``check`` is a ``check_value`` of an
    AES key that was made before; None: there is none yet.
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
    """The keyring of one purpose: the keys in a PKCS#11 token that were generated for it, and no other.

    Whatever a ``KeyRef`` says, nothing is done with an object of the token that was not generated as the key of this
    purpose and name, of this type and usage: WrongState ``KEY_NOT_THIS``, before anything is done. No slot, session,
    mechanism number or PIN shows.

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

    def origin(self, key: KeyRef) -> Origin:
        """What the token itself says of the secret half, read anew."""

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

    def differing(self, key: KeyRef, *, exportable: bool) -> tuple[str, ...]:
        """The attributes of the key's secret half that are not as they were made; () when all are.

        ``exportable``: whether it may leave, as far as is known. NotFound when the token has no such key.
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

    def claims(self) -> list[bytes]:
        """The values by which brokers say that the token is theirs (``core.claiming``)."""

    def add_claim(self, value: bytes) -> None:
        """Keep one more; twice is the same as once. WrongState ``HSM_NO_DATA_OBJECTS`` if the token cannot."""

    def drop_claims(self, values: Collection[bytes]) -> None:
        """Keep these no more; twice is the same as once."""

    def guard(self, check: Callable[[], None]) -> None:
        """Have this asked before any key is destroyed, from every keyring; what it raises ends that."""

    def close(self) -> None:
        """Log out and finalise the module."""


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

    def last(self, kind: type[R], *under: str | int, lock: bool = True) -> R | None:
        """As ``Store.last``, under the same conditions as ``page``."""

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

    What may be asked of which kind is declared in ``core.records``; anything else is a bug, and a ValueError.
    Errors: Unavailable ``STORE_UNAVAILABLE`` / ``AUDIT_UNAVAILABLE`` within its patience, never a hang. WrongState
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
        under: Sequence[str | int] = (),
        begins: str = "",
        where: Mapping[str, str | int] | None = None,
        sound_only: bool = False,
    ) -> list[R]:
        """Up to ``limit`` records in primary-key order (bytewise), strictly after ``after`` (a whole primary key).

        ``under``: only those whose key has these first parts; ``begins``: and whose next part, a text, begins so.
        ``where`` keeps only the rows whose named fields equal the given values. ``sound_only`` passes over rows that
        cannot be read, which are refused otherwise: for what must not be held up by one of them.
        """

    def last(self, kind: type[R], *under: str | int) -> R | None:
        """The record with the highest primary key of those whose key has these first parts, or None."""

    def due(self, kind: type[R], before: datetime, *, limit: int, state: str = "") -> list[R]:
        """Records whose time has come at ``before``, oldest first, found through an index.

        Time and state are those declared, unless ``state`` is another. What cannot be read is passed over (TL-18).
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

        The answer is the number to put into ``AuditEntry.fence``, greater than all that were given before. A process
        that leads asks again each second, because one that is silent for some seconds is replaced; ``close`` resigns.
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
