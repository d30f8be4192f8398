"""A place that keys can be imported to: the parts that each has, and those that only some have.

Errors of all parts: Unavailable ``TARGET_UNREACHABLE``, ``TARGET_SEALED``, ``TARGET_THROTTLED``; WrongState
``TARGET_TLS_UNTRUSTED``, ``TARGET_DENIED``, ``TARGET_MOUNT_MISSING``, ``TARGET_NAME_TAKEN``, ``TARGET_REFUSED`` (it
understood the request and would not do it), ``TARGET_CANNOT_DISABLE``, ``TARGET_CANNOT_DELETE``,
``TARGET_CREDENTIAL_UNUSABLE`` (the file with the token is missing, a link, or readable by others); InvalidRequest
``KEY_TYPE_UNSUPPORTED``. No message quotes the target's own text beyond its short error strings, and none holds a
token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import RemoteKey, Terms, WrappingKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Cargo:
    """A key version on its way to a target: its name there, and what it is. ``first``: the name is to be new there.

    ``held``: else what the target itself has just shown under the name, so that it need not be asked again; () unknown.
    """

    name: str
    type: KeyType
    usage: KeyUsage
    first: bool
    held: tuple[RemoteKey, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A wrapping key, and what goes back to the target with what was wrapped for it ("": nothing)."""

    key: WrappingKey
    token: str = field(default="", repr=False)


class Offers(Protocol):
    """What a place takes, and what is to be wrapped for.

    ``exact_wrap``: it parses PKCS#8 strictly, so only an exact RFC 5649 wrap will do. ``fresh``: it makes a wrapping
    key for each import, so that there is none to pin; it must be known before one is made.
    """

    @property
    def exact_wrap(self) -> bool:
        """See above."""

    @property
    def fresh(self) -> bool:
        """See above."""

    def offer(self, cargo: Cargo | None = None) -> Offer:
        """The wrapping key that the target has now, without a ``cargo``.

        Where it is ``fresh``, one is made for this ``cargo`` and no other, with all that the import takes there but the
        key; WrongState ``TARGET_NAME_TAKEN`` as with ``import_key``.
        """

    def oaep_hash(self, offered: tuple[OaepHash, ...]) -> OaepHash:
        """The hash to use, of those the token can do; WrongState ``OAEP_HASH_UNSUPPORTED`` when none fits."""

    def supports(self, key_type: KeyType, usage: KeyUsage) -> None:
        """Return if such a key can be imported; else InvalidRequest ``KEY_TYPE_UNSUPPORTED`` saying what can."""

    def check(self) -> None:
        """Return when the broker's credential may do all that importing and proving take; changes nothing there.

        WrongState ``TARGET_DENIED`` names every right that is missing.
        """


class Takes(Protocol):
    """The way in, and what is there."""

    def spelled(self, name: str) -> str:
        """The one spelling of a key's name there, as policies compare it; InvalidRequest ``NAME_INVALID`` if none."""

    def import_key(self, cargo: Cargo, blob: bytes, oaep_hash: OaepHash, token: str = "") -> None:
        """Upload what was wrapped for an offer, with the offer's ``token``: a new key, or a further version of one.

        WrongState ``TARGET_NAME_TAKEN`` when the cargo is a first one and its name is in use.
        """

    def versions(self, name: str) -> list[RemoteKey]:
        """All versions the target holds under ``name``, oldest first; [] when there is none."""

    def hidden(self, name: str) -> list[str]:
        """The versions under ``name`` that the target holds too, and does not show; ``delete`` takes them as well."""

    def remains(self, name: str) -> str:
        """How a version under ``name`` that does not show could come back, for people; "" when it is gone for good."""


class Uses(Protocol):
    """What proves that the target holds a key: it does something with it."""

    def sign(self, name: str, version: str, algorithm: SignatureAlgorithm, message: bytes) -> bytes:
        """Let the target sign; ECDSA as DER ECDSA-Sig-Value."""

    def encrypt(self, name: str, version: str, plaintext: bytes) -> bytes:
        """Let the target encrypt with AES-GCM; same layout as ``Hsm.encrypt``."""

    def decrypt(self, name: str, version: str, algorithm: EncryptionAlgorithm, ciphertext: bytes) -> bytes:
        """Let the target decrypt what ``Hsm.encrypt`` or RSAES-OAEP made."""


class Switches(Protocol):
    """Out of use and back, and away."""

    def disable(self, name: str, version: str) -> None:
        """Make this remote version unusable. Doing it twice, or for a version that is not there, is no error.

        WrongState ``TARGET_CANNOT_DISABLE`` when the target can only do it together with versions that are in use.
        """

    def enable(self, name: str, version: str) -> None:
        """Undo ``disable``, before an import that had failed is proven again. Doing it twice is the same as once."""

    def delete(self, name: str) -> None:
        """Take the key of this name away with all its versions, for good where the broker may do that.

        What it leaves that could come back ``remains`` tells. Doing it twice, or when there is none, is no error.
        WrongState ``TARGET_CANNOT_DELETE`` when the broker may not, saying what it lacks.
        """


class KeepsTerms(Protocol):
    """Of a place that can hold a key to operations, tags and times."""

    def check_terms(self, key_type: KeyType, usage: KeyUsage, terms: Terms) -> None:
        """Return if the target can hold such a key to ``terms``; else InvalidRequest ``TERMS_UNSUPPORTED``."""

    def apply(self, name: str, version: str, terms: Terms) -> None:
        """Hold this remote version to ``terms`` from now on. Doing it twice is the same as once."""


class Carries(Protocol):
    """Of a place whose wrapping key lasts, and whose own tools import what people carry there in files."""

    def check_transfer(self) -> None:
        """Return if keys may be carried there in files; else WrongState ``TRANSFER_FILES_OFF``."""

    def transfer_file(
        self, key_type: KeyType, usage: KeyUsage, blob: bytes, kek: WrappingKey, oaep_hash: OaepHash
    ) -> bytes:
        """The file with which ``blob`` is carried to the target by hand, as the target's own tools take it."""


class MakesKek(Protocol):
    """Of a place whose wrapping key is one of its keys, named in the settings, and can be made on request."""

    @property
    def by_hand(self) -> str:
        """What such a key is, and the command of the target's own tools that makes one; part of a sentence."""

    def create_wrapping_key(self, mark: str) -> WrappingKey:
        """Make the KEK that the settings name, able to do nothing but import, and mark it; else as the next one."""

    def made_wrapping_key(self, mark: str) -> WrappingKey | None:
        """The KEK that was made under this mark; None when there is no key of the name that the settings have.

        WrongState ``TARGET_KEK_EXISTS`` when there is another one, which is left as it is.
        """

    def names(self) -> list[str]:
        """The names of the keys that the target holds, sorted; at most 1000."""


class Target(Offers, Takes, Uses, Switches, Protocol):
    """One registered ``model.Target``, as its adapter composes it; None for a part that there is not."""

    @property
    def terms(self) -> KeepsTerms | None:
        """How it holds keys to terms."""

    @property
    def files(self) -> Carries | None:
        """How keys are carried there by hand."""

    @property
    def keks(self) -> MakesKek | None:
        """How a KEK is made there."""


class Connect(Protocol):
    """The way to targets, as the broker's configuration allows it."""

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> Target:
        """The port of the target ``name``; opens no connection.

        InvalidRequest ``TARGET_HOST_NOT_ALLOWED`` or ``TARGET_CREDENTIAL_NOT_BOUND`` when the configuration does not
        give this place, or not to this target.
        """

    def canonical(self, kind: str, settings: Mapping[str, str]) -> dict[str, str]:
        """The settings in their one spelling, as policies compare them; looks at nothing but them.

        InvalidRequest ``TARGET_KIND_UNKNOWN`` or ``TARGET_SETTINGS_INVALID``.
        """
