"""What is done with a key: sign, verify, encrypt, decrypt. One store read, one HSM call; the gate writes the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from broker.core import signatures
from broker.core.amiss import no_key, no_key_version, not_enabled
from broker.core.call import Call
from broker.core.errors import InvalidRequest, WrongState
from broker.core.keys import mismatch
from broker.core.keys.phases import Use, require_use
from broker.core.keys.refs import ref
from broker.core.kinds import EncryptionAlgorithm, KeyState, KeyUsage, OaepHash, SignatureAlgorithm, VersionState
from broker.core.last_uses import LastUses
from broker.core.model import Key, KeyUsed, KeyVersion
from broker.core.names import check_name
from broker.core.policy.guard import Guard, of_key, of_unknown_key
from broker.core.ports import Hsm, Now, Store
from broker.core.reasons import Reason

MAX_LOOKED_AT = 1000
"""Versions of a key that are looked at to find the one that has made a signature."""

AES_HEADER = 5
"""One byte 1, then the version's number, 4 bytes big-endian: what an AES ciphertext of the broker starts with."""

_TEXT = re.compile(rb"[0-9A-Za-z+/=_\s-]+", re.ASCII)
"""Base64 or hexadecimal."""

OAEP = {EncryptionAlgorithm.RSA_OAEP_SHA256: OaepHash.SHA256, EncryptionAlgorithm.RSA_OAEP_SHA1: OaepHash.SHA1}
"""Best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """``signatures`` in the order of the inputs; ECDSA as DER."""

    signatures: list[bytes]
    version: int
    algorithm: SignatureAlgorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Encrypted:
    """``ciphertext`` as the wire carries it (keys.proto, EncryptResponse)."""

    ciphertext: bytes
    version: int
    algorithm: EncryptionAlgorithm


class KeyUse:
    """The noun behind KeyService's uses of a key. Each method checks the permission first, raises only BrokerError."""

    def __init__(self, store: Store, hsm: Hsm, guard: Guard, now: Now) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._uses = LastUses(store, now, "key", _used, lambda one: one.used_at)

    def flush_uses(self, make_call: Callable[[str], Call]) -> None:
        """Write down who used which key last; every process has uses of its own. ``make_call``: about a resource."""
        self._uses.flush(make_call)

    def sign(
        self, call: Call, name: str, algorithm: SignatureAlgorithm | None, inputs: list[bytes], *, prehashed: bool
    ) -> Signed:
        """Sign messages, or digests when ``prehashed``, with the primary version; all or nothing."""
        key, version = self._usable(call, name, 0, KeyUsage.SIGN, Use.PROTECT)
        chosen = signatures.choose(key.type, algorithm)
        _check_digests(chosen, inputs, prehashed=prehashed)
        call.note(algorithm=chosen.value, count=len(inputs))
        made = self._hsm.sign(ref(key, version), chosen, inputs, prehashed=prehashed)
        return Signed(signatures=made, version=version.number, algorithm=chosen)

    def verify(
        self,
        call: Call,
        name: str,
        version: int,
        algorithm: SignatureAlgorithm | None,
        data: bytes,
        signature: bytes,
        *,
        prehashed: bool,
    ) -> tuple[bool, int, str]:
        """(valid, version, what was expected and what came instead); version 0 is the primary one.

        Needs no HSM call: the public key is kept.
        """
        key, found = self._usable(call, name, version, KeyUsage.SIGN, Use.PROCESS)
        chosen = signatures.choose(key.type, algorithm)
        _check_digests(chosen, [data], prehashed=prehashed)
        call.note(algorithm=chosen.value)
        if signatures.verify(found.public_key or b"", chosen, data, signature, prehashed=prehashed):
            return True, found.number, ""
        others = [one for one in self._others(name) if one.number != found.number]
        came = mismatch.found(key.type, chosen, found, others, data, signature, prehashed=prehashed)
        return False, found.number, f"{mismatch.expected(chosen, found.number)} {came}"

    def _others(self, name: str) -> list[KeyVersion]:
        """The versions of a key that can be used, the newest first."""
        where = {"state": VersionState.ENABLED.value}
        return self._store.page(KeyVersion, under=(name,), limit=MAX_LOOKED_AT, where=where, sound_only=True)[::-1]

    def encrypt(
        self, call: Call, name: str, algorithm: EncryptionAlgorithm | None, plaintext: bytes, aad: bytes
    ) -> Encrypted:
        """Encrypt with the primary version; RSA encrypts here, with the public key, what only the HSM can decrypt."""
        key, version = self._usable(call, name, 0, KeyUsage.ENCRYPT, Use.PROTECT)
        chosen = self._choose(key, algorithm, aad)
        call.note(algorithm=chosen.value)
        if chosen is EncryptionAlgorithm.AES_GCM:
            sealed = self._hsm.encrypt(ref(key, version), chosen, plaintext, aad)
            sealed = b"\x01" + version.number.to_bytes(4, "big") + sealed
        else:
            sealed = encrypt_oaep(version.public_key or b"", OAEP[chosen], plaintext)
        return Encrypted(ciphertext=sealed, version=version.number, algorithm=chosen)

    def decrypt(
        self, call: Call, name: str, version: int, algorithm: EncryptionAlgorithm | None, ciphertext: bytes, aad: bytes
    ) -> tuple[bytes, int]:
        """(plaintext, version). An AES ciphertext names its version; for RSA ``version`` 0 is the primary one."""
        named = _named_version(ciphertext)
        key, found = self._usable(call, name, version, KeyUsage.ENCRYPT, Use.PROCESS, named)
        chosen = self._choose(key, algorithm, aad)
        _check_form(key, ciphertext)
        call.note(algorithm=chosen.value)
        body = ciphertext[AES_HEADER:] if chosen is EncryptionAlgorithm.AES_GCM else ciphertext
        return self._hsm.decrypt(ref(key, found), chosen, body, aad), found.number

    def _usable(
        self, call: Call, name: str, number: int, usage: KeyUsage, use: Use, named: int | None = None
    ) -> tuple[Key, KeyVersion]:
        """The key and the version for this ``use``; ``named`` stands where an AES ciphertext names its version."""
        found = self._store.version(check_name(name, "key"), named or number)
        key = found[0] if found else self._store.get(Key, name)
        self._guard.check(call, of_key(key) if key else of_unknown_key(name))
        if key is None:
            raise no_key(name)
        if key.state is not KeyState.ENABLED:
            raise not_enabled(key, "only an enabled key can be used")
        if key.usage is not usage:
            raise WrongState(
                Reason.KEY_USAGE,
                f"The key {name} was made to {key.usage}, and a key has one purpose; make another to {usage} "
                f"(`broker key create NAME --usage {usage}`).",
            )
        if named and not key.type.symmetric:
            found = self._store.version(name, number)
        if found is None or found[1].state is not VersionState.ENABLED:
            raise no_key_version(name, named or number, "can be used")
        call.note(version=found[1].number)
        require_use(*found, use)
        self._uses.add(str(call.principal), [name])
        return found

    def _choose(self, key: Key, asked: EncryptionAlgorithm | None, aad: bytes) -> EncryptionAlgorithm:
        if key.type.symmetric:
            if asked in (None, EncryptionAlgorithm.AES_GCM):
                return EncryptionAlgorithm.AES_GCM
            raise InvalidRequest(Reason.ALGORITHM_MISMATCH, f"A key of type {key.type} encrypts with AES-GCM only.")
        if asked is EncryptionAlgorithm.AES_GCM:
            raise InvalidRequest(Reason.ALGORITHM_MISMATCH, f"A key of type {key.type} encrypts with RSA-OAEP only.")
        if aad:
            raise InvalidRequest(
                Reason.AAD_UNSUPPORTED, "RSA-OAEP takes no associated data; leave it out or use an AES key."
            )
        able = [one for one, oaep in OAEP.items() if oaep in self._hsm.report().oaep_hashes]
        if asked in able or (asked is None and able):
            return asked or able[0]
        raise WrongState(
            Reason.HSM_MECHANISM_MISSING,
            f"This HSM cannot decrypt with CKM_RSA_PKCS_OAEP and {OAEP[asked] if asked else 'any hash'}; see "
            "`broker hsm` for what it can.",
        )


def _used(name: str, principal: str, at: datetime) -> KeyUsed:
    return KeyUsed(key=name, principal=principal, used_at=at)


def encrypt_oaep(public_key: bytes, oaep_hash: OaepHash, plaintext: bytes) -> bytes:
    """RSAES-OAEP (RFC 8017 7.1.1) under a SubjectPublicKeyInfo DER; InvalidRequest ``PLAINTEXT_TOO_LONG``."""
    digest = hashes.SHA1() if oaep_hash is OaepHash.SHA1 else hashes.SHA256()  # noqa: S303  OAEP does not rest on collisions
    key = signatures.load_public_key(public_key)
    if not isinstance(key, rsa.RSAPublicKey):
        raise TypeError("OAEP needs an RSA key")
    room = key.key_size // 8 - 2 * digest.digest_size - 2
    if len(plaintext) > room:
        raise InvalidRequest(
            Reason.PLAINTEXT_TOO_LONG,
            f"One RSA block of this key holds {room} bytes; encrypt a data key, or use an AES key.",
        )
    return key.encrypt(plaintext, padding.OAEP(padding.MGF1(digest), digest, None))


def _named_version(ciphertext: bytes) -> int:
    if len(ciphertext) > AES_HEADER and ciphertext[0] == 1:
        return int.from_bytes(ciphertext[1:AES_HEADER], "big") & 0x7FFFFFFF
    return 0


def _check_digests(algorithm: SignatureAlgorithm, inputs: list[bytes], *, prehashed: bool) -> None:
    if not prehashed:
        return
    digest = signatures.digest_of(algorithm)
    if digest is None:
        raise InvalidRequest(
            Reason.DIGEST_LENGTH,
            f"{algorithm} takes no digest but the message whole, of at most 64 KiB; a longer one is signed with an RSA "
            "or EC key.",
        )
    wrong = next((one for one in inputs if len(one) != digest.digest_size), None)
    if wrong is not None:
        raise InvalidRequest(
            Reason.DIGEST_LENGTH,
            f"{algorithm} takes a digest of {digest.digest_size} bytes, by {digest.name.upper()}, and this one has "
            f"{len(wrong)}{_digest_hint(wrong)}; make it so, or send the message to let the broker hash it.",
        )


def _digest_hint(digest: bytes) -> str:
    try:
        bytes.fromhex(digest.decode("ascii").strip())
    except ValueError:
        return ""
    return " and is hexadecimal, where bytes are wanted (openssl dgst -binary)"


def _check_form(key: Key, ciphertext: bytes) -> None:
    """Refuse what has not the outer form of a ciphertext of the key, which everybody can see."""
    least = AES_HEADER + 12 + 16
    if key.type.symmetric:
        if len(ciphertext) >= least and not _TEXT.fullmatch(ciphertext):
            return
        what = f"it begins with a byte 1 and the version, and has {least} bytes or more"
    else:
        size = int(key.type.rpartition("-")[2]) // 8
        if len(ciphertext) == size:
            return
        what = f"it has {size} bytes, and this one has {len(ciphertext)}"
    text = " This one looks like text (base64 or hexadecimal); decode it first." if _TEXT.fullmatch(ciphertext) else ""
    raise InvalidRequest(Reason.CIPHERTEXT_INVALID, f"This is no ciphertext of a key of type {key.type}: {what}.{text}")
