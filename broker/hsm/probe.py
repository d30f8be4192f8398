"""What this token can really do, tried at start with throw-away keys (a mechanism list is only a claim)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)
from cryptography.hazmat.primitives.serialization import load_der_private_key
from pkcs11 import Attribute, Mechanism, ObjectClass
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck
from pkcs11.constants import TokenFlag

from broker.core.errors import Unavailable
from broker.core.kinds import KeyType, KeyUsage, OaepHash
from broker.core.report import Probe
from broker.hsm.binding import CK_TYPES
from broker.hsm.ciphers import encrypt
from broker.hsm.codes import told
from broker.hsm.findings import Findings
from broker.hsm.lending import lend
from broker.hsm.mechanisms import AES_BITS, OAEP, generator, standard_name
from broker.hsm.module import CKM_RSA_AES_KEY_WRAP
from broker.hsm.objects import Recipe, make
from broker.hsm.sanity import RSA_BITS
from broker.hsm.sessions import TokenSessions, Worker
from broker.hsm.wrapping import kek_object

# KWP is PKCS#11 3.1's unambiguous name for RFC 5649; 0x210A may or may not mean it.
_PADDED_WRAPS: Final = (Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD)
T = TypeVar("T")
_NINE: Final = bytes(range(0x61, 0x6A))
_NO_COPYABLE: Final = (ck.AttributeTypeInvalid, ck.AttributeValueInvalid, ck.TemplateInconsistent)
_OAEP_HASHES: Final[dict[OaepHash, hashes.HashAlgorithm]] = {
    OaepHash.SHA1: hashes.SHA1(),  # noqa: S303 - RSAES-OAEP with SHA-1 is what Azure's import demands
    OaepHash.SHA256: hashes.SHA256(),
    OaepHash.SHA384: hashes.SHA384(),
    OaepHash.SHA512: hashes.SHA512(),
}


class Examination:
    """One run of the probes on one borrowed session. The caller holds no lock."""

    def __init__(self, sessions: TokenSessions, worker: Worker, throw_away: rsa.RSAPrivateKey) -> None:
        self._sessions = sessions
        self._worker = worker
        self._throw_away = throw_away  # plays the KEK, so that the RSA half can be opened here
        self._probes: list[Probe] = []
        self._lacks: dict[str, str] = {}
        self._refused: dict[str, str] = {}  # by the probe's name: the token's code
        self._mechanisms = {int(mechanism) for mechanism in sessions.token.slot.get_mechanisms()}
        self._wrapping_value = os.urandom(32)

    def findings(self) -> Findings:
        """Try everything; a part that the token refuses becomes a failed probe, never an error."""
        copyable = self._copyable_known()
        self._claims()
        self._cipher(copyable)
        key_types = tuple(kind for kind in KeyType if self._can_make(kind, copyable_known=copyable))
        padded_wrap, exact = self._padded_wrap()
        exact_types = frozenset(
            kind for kind in key_types if padded_wrap and (exact or self._is_exact(kind, padded_wrap, copyable))
        )
        hashes_done, one_call = self._transport()
        return Findings(
            key_types=key_types,
            lacks=self._lacks,
            closed=self._closed(),
            copyable_known=copyable,
            padded_wrap=padded_wrap,
            exact=exact,
            exact_types=exact_types - {KeyType.ED25519},
            oaep_hashes=hashes_done,
            one_call_hashes=one_call,
            probes=tuple(self._probes),
        )

    def _note(self, name: str, passed: bool, detail: str) -> bool:  # noqa: FBT001 - the probe's own fields, in order
        self._probes.append(Probe(name=name, passed=passed, detail=detail))
        return passed

    def _make(self, recipe: Recipe) -> list[Any]:
        with self._sessions.objects:
            return make(self._worker, None, recipe)

    def _create(self, template: dict[Attribute, Any]) -> Any:
        with self._sessions.objects:
            return self._worker.session.create_object({Attribute.TOKEN: False, **template})

    def _discard(self, *made: Any) -> None:
        with self._sessions.objects:
            for thing in made:
                thing.destroy()

    def _copyable_known(self) -> bool:
        try:
            self._discard(*self._make(Recipe(KeyType.AES_256, KeyUsage.ENCRYPT, exportable=False)))
        except _NO_COPYABLE:
            return self._note("template copyable", False, "The token does not know CKA_COPYABLE (PKCS#11 2.40).")
        except ck.PKCS11Error as fault:
            return self._note("template copyable", False, f"No AES key could be made ({told(fault)}).")
        return self._note("template copyable", True, "Keys are made not copyable.")

    def _closed(self) -> str:
        """By the token's own flag and by what the system shows: for a trial something lasting would have to be made."""
        if self._sessions.token.flags & TokenFlag.WRITE_PROTECTED:
            return "the token is write-protected"
        return self._sessions.trouble()

    def _claims(self) -> None:
        """Mechanisms for which a trial would take an RSA key, which is slow to make: by the token's own list."""
        for mechanism in (Mechanism.RSA_PKCS, Mechanism.RSA_PKCS_PSS, Mechanism.RSA_PKCS_OAEP):
            if int(mechanism) not in self._mechanisms:
                self._lacks[standard_name(mechanism)] = "not in its list"

    def _cipher(self, copyable_known: bool) -> None:  # noqa: FBT001
        recipe = Recipe(KeyType.AES_256, KeyUsage.ENCRYPT, exportable=False, copyable_known=copyable_known)
        try:
            made = self._make(recipe)
        except ck.PKCS11Error:
            return  # told as a key type
        try:
            encrypt(lend(self._worker.session, made[0].handle, CkKeyType.AES), b"trial", b"aad")
            self._note("AES-GCM", True, "Sealed and opened.")
        except ck.PKCS11Error as fault:
            self._lack("AES-GCM", "CKM_AES_GCM", told(fault))
        except Unavailable:
            self._lack("AES-GCM", "CKM_AES_GCM", "what it encrypts does not open")
        finally:
            self._discard(*made)

    def _lack(self, probe: str, what: str, why: str) -> bool:
        self._lacks[what] = why
        return self._note(probe, False, f"The token refuses {what} ({why}).")

    def _can_make(self, kind: KeyType, *, copyable_known: bool) -> bool:
        if kind in RSA_BITS:
            return self._claims_rsa(kind)
        usage = KeyUsage.ENCRYPT if kind.symmetric else KeyUsage.SIGN
        try:
            made = self._make(Recipe(kind, usage, exportable=False, copyable_known=copyable_known))
        except ck.PKCS11Error as fault:
            return self._lack(f"key type {kind}", f"{generator(kind)} for {kind}", told(fault))
        try:
            if not kind.symmetric:
                self._sign(kind, made[0])
        finally:
            self._discard(*made)
        return self._note(f"key type {kind}", True, "A throw-away key was made.")

    def _sign(self, kind: KeyType, secret: Any) -> None:
        mechanism = Mechanism.EDDSA if kind is KeyType.ED25519 else Mechanism.ECDSA
        try:
            lend(self._worker.session, secret.handle, CK_TYPES[kind]).sign(bytes(32), mechanism=mechanism)
        except ck.PKCS11Error as fault:
            self._lack(f"signature {kind}", standard_name(mechanism), told(fault))

    def _claims_rsa(self, kind: KeyType) -> bool:
        """By the token's own words: making an RSA key for trial would take seconds on real devices."""
        what = f"{generator(kind)} for {kind}"
        try:
            said = self._sessions.token.slot.get_mechanism_info(Mechanism.RSA_PKCS_KEY_PAIR_GEN)
        except ck.PKCS11Error as fault:
            return self._lack(f"key type {kind}", what, told(fault))
        sizes = f"{said.min_key_length} to {said.max_key_length} bits"
        if not (said.min_key_length or 0) <= RSA_BITS[kind] <= (said.max_key_length or 0):
            return self._lack(f"key type {kind}", what, f"key sizes {sizes}")
        return self._note(f"key type {kind}", True, f"Key sizes {sizes}.")

    def _wrapping_key(self, value: bytes) -> Any:
        return self._create(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: CkKeyType.AES,
                Attribute.VALUE: value,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: True,
                Attribute.WRAP: True,
                Attribute.ENCRYPT: False,
                Attribute.DECRYPT: False,
            }
        )

    def _nine_bytes(self) -> Any:
        return self._create(
            {
                Attribute.CLASS: ObjectClass.SECRET_KEY,
                Attribute.KEY_TYPE: CkKeyType.GENERIC_SECRET,
                Attribute.VALUE: _NINE,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: True,
            }
        )

    def _padded_wrap(self) -> tuple[Mechanism | None, bool]:
        """The best padded wrap and whether it is RFC 5649 for a length that is not a multiple of 8."""
        usable: Mechanism | None = None
        for mechanism in _PADDED_WRAPS:
            if int(mechanism) not in self._mechanisms:
                continue
            verdict = self._attempt(f"key wrap {mechanism.name}", lambda m=mechanism: self._wrap_nine(m))  # type: ignore[misc]
            if verdict == "exact":
                return mechanism, True
            if verdict == "zero-padded" and usable is None:
                usable = mechanism
        if usable is None:
            self._lacks["CKM_AES_KEY_WRAP_KWP or CKM_AES_KEY_WRAP_PAD"] = "none that works"
            self._note("key wrap", False, "The token has no AES key wrap with padding; no key can be exported.")
        return usable, False

    def _wrap_nine(self, mechanism: Mechanism) -> str:
        key, nine = self._wrapping_key(self._wrapping_value), self._nine_bytes()
        try:
            blob = key.wrap_key(nine, mechanism=mechanism)
        finally:
            self._discard(key, nine)
        name = f"key wrap {mechanism.name}"
        if blob == aes_key_wrap_with_padding(self._wrapping_value, _NINE):
            self._note(name, True, "Follows RFC 5649 for every length.")
            return "exact"
        if blob == aes_key_wrap_with_padding(self._wrapping_value, _NINE.ljust(16, b"\0")):
            self._note(name, False, "Not RFC 5649: zero bytes are added before wrapping, so 9 bytes come back as 16.")
            return "zero-padded"
        self._note(name, False, "Not RFC 5649, and not readable by anybody who follows it; it is not used.")
        return "unusable"

    def _is_exact(self, kind: KeyType, mechanism: Mechanism, copyable_known: bool) -> bool:  # noqa: FBT001
        """Whether this type's plaintext happens to need no padding: wrap a throw-away key and open it strictly.

        RSA lengths differ from key to key, so RSA is never exact under a wrap that is not.
        """
        if kind in RSA_BITS or kind is KeyType.ED25519:
            return False
        usage = KeyUsage.ENCRYPT if kind.symmetric else KeyUsage.SIGN
        name = f"exact wrap {kind}"
        verdict = self._attempt(
            name, lambda: self._wrapped_plaintext(Recipe(kind, usage, True, copyable_known), mechanism)
        )
        if not isinstance(verdict, bytes):
            return False
        exact = len(verdict) * 8 == AES_BITS[kind] if kind in AES_BITS else _parses(verdict)
        return self._note(name, exact, f"{len(verdict)} bytes, {'none' if exact else 'some'} of them padding.")

    def _wrapped_plaintext(self, recipe: Recipe, mechanism: Mechanism) -> bytes:
        made = self._make(recipe)
        try:
            key = self._wrapping_key(self._wrapping_value)
            try:
                return aes_key_unwrap_with_padding(self._wrapping_value, key.wrap_key(made[0], mechanism=mechanism))
            finally:
                self._discard(key)
        finally:
            self._discard(*made)

    def _transport(self) -> tuple[tuple[OaepHash, ...], frozenset[OaepHash]]:
        """Which OAEP hashes the token really applies, in two steps and in the one-call wrap."""
        private = self._throw_away
        opened: list[OaepHash] = []
        one_call: list[OaepHash] = []
        try:
            with kek_object(self._worker, private.public_key().public_numbers(), self._sessions.objects) as kek:
                for oaep_hash in OaepHash:
                    self._try_transport(kek, oaep_hash, opened, one_call)
        except ck.PKCS11Error as fault:
            self._refused["OAEP"] = f"no RSA key can be put there: {told(fault)}"
            self._note("OAEP", False, f"The token takes no RSA key-exchange key ({told(fault)}).")
        if CKM_RSA_AES_KEY_WRAP not in self._mechanisms:
            self._note("one-call wrap", False, "The token has no CKM_RSA_AES_KEY_WRAP; two steps are used.")
        for oaep_hash in set(OaepHash) - set(opened):
            why = self._refused.get(f"OAEP {oaep_hash}", self._refused.get("OAEP", "its result does not open"))
            self._lacks[f"CKM_RSA_PKCS_OAEP with {oaep_hash}"] = why
        return tuple(h for h in OaepHash if h in opened or h in one_call), frozenset(one_call)

    def _try_transport(self, kek: Any, oaep_hash: OaepHash, opened: list[OaepHash], one_call: list[OaepHash]) -> None:
        private = self._throw_away
        if self._attempt(f"OAEP {oaep_hash}", lambda: self._oaep(kek, private, oaep_hash)):
            opened.append(oaep_hash)
        if CKM_RSA_AES_KEY_WRAP in self._mechanisms and self._attempt(
            f"one-call wrap {oaep_hash}", lambda: self._one_call(kek, private, oaep_hash)
        ):
            one_call.append(oaep_hash)

    def _oaep(self, kek: Any, private: rsa.RSAPrivateKey, oaep_hash: OaepHash) -> bool:
        value = os.urandom(32)
        key = self._wrapping_key(value)
        try:
            blob = kek.wrap_key(key, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=(*OAEP[oaep_hash], None))
        finally:
            self._discard(key)
        right = _opens(private, blob, oaep_hash) == value
        return self._note(f"OAEP {oaep_hash}", right, "Opened here." if right else "The token applied another hash.")

    def _one_call(self, kek: Any, private: rsa.RSAPrivateKey, oaep_hash: OaepHash) -> bool:
        nine = self._nine_bytes()
        try:
            blob = self._sessions.module.wrap_rsa_aes(self._worker.session, kek, nine, *OAEP[oaep_hash])
        finally:
            self._discard(nine)
        ephemeral = _opens(private, blob[:256], oaep_hash)
        right = len(ephemeral) == 32 and blob[256:] == aes_key_wrap_with_padding(ephemeral, _NINE)
        return self._note(f"one-call wrap {oaep_hash}", right, "Both halves opened here." if right else "Wrong result.")

    def _attempt(self, name: str, trial: Callable[[], T]) -> T | None:
        try:
            return trial()
        except ck.PKCS11Error as fault:
            self._refused[name] = told(fault)
            self._note(name, False, f"The token refuses ({told(fault)}).")
        except InvalidUnwrap:
            self._note(name, False, "The token's result cannot be opened.")
        return None


def _opens(private: rsa.RSAPrivateKey, blob: bytes, oaep_hash: OaepHash) -> bytes:
    algorithm = _OAEP_HASHES[oaep_hash]
    try:
        return private.decrypt(blob, padding.OAEP(padding.MGF1(algorithm), algorithm, None))
    except ValueError:
        return b""


def _parses(pkcs8: bytes) -> bool:
    """True for a PKCS#8 key without a byte too many."""
    try:
        load_der_private_key(pkcs8, None)
    except ValueError:
        return False
    return True
