"""The ``Hsm`` port on any PKCS#11 module."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from pkcs11 import GCMParams, Mechanism, ObjectClass
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck
from pkcs11.constants import Attribute

from broker.core.errors import AlreadyExists, InvalidRequest, Unavailable, WrongState
from broker.core.model import (
    EncryptionAlgorithm,
    HsmReport,
    KeyType,
    KeyUsage,
    OaepHash,
    SignatureAlgorithm,
    WrappingKey,
)
from broker.core.ports import KeyRef
from broker.hsm import objects, selftest
from broker.hsm.config import HsmConfig
from broker.hsm.lending import lend
from broker.hsm.mechanisms import AES_BITS, OAEP, SCHEMES
from broker.hsm.objects import Recipe
from broker.hsm.probe import Examination, Findings
from broker.hsm.sanity import RSA_BITS, check_public_key
from broker.hsm.sessions import Clock, Sessions, Worker
from broker.hsm.wrapping import ephemeral_key, kek_object, parse_kek, wrap_in_two_steps

R = TypeVar("R")
_STALE: Final = (ck.ObjectHandleInvalid, ck.KeyHandleInvalid)
_GCM_IV, _GCM_TAG = 12, 16
_MAX_HANDLES = 65_536
_OAEP_OF: Final = {
    EncryptionAlgorithm.RSA_OAEP_SHA1: OaepHash.SHA1,
    EncryptionAlgorithm.RSA_OAEP_SHA256: OaepHash.SHA256,
}


class Pkcs11Hsm:
    """Keys in one token of one PKCS#11 module; see ``broker.core.ports.Hsm`` for the contract.

    Building it loads the module, logs in (one attempt) and probes the token. A fault in the set-up is WrongState or
    Unavailable with a reason beginning ``HSM_``. A module serves one instance of a process at a time. ``clock`` gives
    seconds and paces the recovery.
    """

    def __init__(self, config: HsmConfig, clock: Clock = time.monotonic) -> None:
        self._sessions = Sessions(config, clock)
        try:
            self._findings = self._sessions.run(self._examine)
            self._report = self._describe(config)
        except BaseException:
            self._sessions.close()
            raise

    def _examine(self, worker: Worker) -> Findings:
        selftest.refuse_lax_token(self._sessions, worker)
        with self._sessions.objects:
            selftest.refuse_conflicting_keys(worker)
        return Examination(self._sessions, worker).findings()

    def _describe(self, config: HsmConfig) -> HsmReport:
        token, library, found = self._sessions.token, self._sessions.module.library, self._findings
        return HsmReport(
            module=str(config.module),
            library=f"{library.library_description} {'.'.join(map(str, library.library_version))}".strip(),
            token_label=token.label,
            token_serial=token.serial.decode("ascii", "replace"),
            manufacturer=token.manufacturer_id,
            model=token.model,
            firmware=".".join(map(str, token.firmware_version)),
            key_types=found.key_types,
            oaep_hashes=found.oaep_hashes,
            exact_wrap=found.exact,
            one_call_wrap=bool(found.one_call_hashes),
            probes=found.probes,
        )

    def generate(self, hsm_id: bytes, key_type: KeyType, usage: KeyUsage, *, exportable: bool) -> bytes | None:
        """See the port."""
        objects.check_usage(key_type, usage, exportable=exportable)
        if key_type not in self._findings.key_types:
            raise WrongState("HSM_MECHANISM_MISSING", f"This token cannot make {key_type} keys; choose another type.")
        recipe = Recipe(key_type, usage, exportable, self._findings.copyable_known)
        # Repeating after a loss is safe: the operation begins by looking for what an earlier run has made.
        return self._sessions.run(lambda worker: self._found_or_made(worker, hsm_id, recipe))

    def _found_or_made(self, worker: Worker, hsm_id: bytes, recipe: Recipe) -> bytes | None:
        with self._sessions.objects:
            there = objects.search(worker, hsm_id)
            whole = {recipe.secret_class} if recipe.key_type.symmetric else {recipe.secret_class, ObjectClass.PUBLIC_KEY}
            if there and {thing.object_class for thing in there} >= whole:
                return _accepted(there, recipe)
            for remnant in there:  # half a pair: a call that was cut short
                remnant.destroy()
            made = objects.make(worker, hsm_id, recipe)
            try:
                return _accepted(made, recipe)
            except (AlreadyExists, Unavailable) as fault:
                for thing in made:
                    thing.destroy()
                raise Unavailable("HSM_FAULT", "The HSM made another key than it was asked for; it was removed.") from fault

    def public_key(self, key: KeyRef) -> bytes | None:
        """See the port."""

        def read(worker: Worker) -> bytes | None:
            kind = ObjectClass.SECRET_KEY if key.type.symmetric else ObjectClass.PUBLIC_KEY
            with self._sessions.objects:
                found = self._only(worker, key.hsm_id, kind)
                return None if key.type.symmetric else objects.read_public_key(found, key.type)

        return self._sessions.run(read)

    def sign(
        self, key: KeyRef, algorithm: SignatureAlgorithm, messages: list[bytes], *, prehashed: bool = False
    ) -> list[bytes]:
        """See the port."""
        scheme = SCHEMES[algorithm]
        if key.type not in scheme.key_types or key.usage is not KeyUsage.SIGN or key.public_key is None:
            raise InvalidRequest("ALGORITHM_MISMATCH", f"A {key.type} key for '{key.usage}' cannot make {algorithm}.")
        public_key = key.public_key
        digests = scheme.prepare(messages, prehashed=prehashed)

        def sign_all(lent: Any) -> list[bytes]:
            return [
                lent.sign(scheme.prefix + digest, mechanism=scheme.mechanism, mechanism_param=scheme.parameter)
                for digest in digests
            ]

        raw = self._sessions.run(lambda worker: self._with_key(worker, key, sign_all))
        return [scheme.release(public_key, *pair) for pair in zip(raw, digests, strict=True)]

    def encrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, plaintext: bytes, aad: bytes) -> bytes:
        """See the port."""
        if algorithm is not EncryptionAlgorithm.AES_GCM or key.type not in AES_BITS:
            raise InvalidRequest("ALGORITHM_MISMATCH", f"The HSM does not encrypt {algorithm} with a {key.type} key.")
        # Never the caller's, and random: 2^32 encryptions under one key keep the collision risk below 2^-32 (HS-08).
        iv = os.urandom(_GCM_IV)
        parameters = GCMParams(iv, aad or None, _GCM_TAG * 8)

        def there_and_back(lent: Any) -> tuple[bytes, bytes]:
            sealed = lent.encrypt(plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
            return sealed, lent.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)

        sealed, opened = self._sessions.run(lambda worker: self._with_key(worker, key, there_and_back))
        if opened != plaintext or len(sealed) != len(plaintext) + _GCM_TAG:
            raise Unavailable("HSM_FAULT", "The HSM made a ciphertext that does not open; it was withheld.")
        return iv + sealed

    def decrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> bytes:
        """See the port."""
        if key.usage is not KeyUsage.ENCRYPT or (algorithm is EncryptionAlgorithm.AES_GCM) != (key.type in AES_BITS):
            raise InvalidRequest("ALGORITHM_MISMATCH", f"A {key.type} key for '{key.usage}' cannot undo {algorithm}.")
        if algorithm is EncryptionAlgorithm.AES_GCM:
            if len(ciphertext) < _GCM_IV + _GCM_TAG:
                raise _bad_ciphertext()
            parameter: Any = GCMParams(ciphertext[:_GCM_IV], aad or None, _GCM_TAG * 8)
            mechanism, body = Mechanism.AES_GCM, ciphertext[_GCM_IV:]
        else:
            if aad or len(ciphertext) * 8 != RSA_BITS.get(key.type):
                raise _bad_ciphertext()
            parameter = (*OAEP[_OAEP_OF[algorithm]], None)
            mechanism, body = Mechanism.RSA_PKCS_OAEP, ciphertext
        return self._sessions.run(lambda worker: self._opened(worker, key, mechanism, parameter, body))

    def _opened(self, worker: Worker, key: KeyRef, mechanism: Mechanism, parameter: Any, body: bytes) -> bytes:
        try:
            return self._with_key(
                worker, key, lambda lent: lent.decrypt(body, mechanism=mechanism, mechanism_param=parameter)
            )
        except (ck.ArgumentsBad, ck.MechanismParamInvalid) as fault:
            raise ck.MechanismInvalid from fault
        except (ck.EncryptedDataInvalid, ck.EncryptedDataLenRange, ck.DataInvalid, ck.DataLenRange) as fault:
            raise _bad_ciphertext() from fault
        except (ck.GeneralError, ck.FunctionFailed) as fault:
            # SoftHSM says this for a ciphertext that does not open, other tokens when they are ill: look which it is.
            with self._sessions.objects:
                self._only(worker, key.hsm_id, _secret_class(key))
            raise _bad_ciphertext() from fault

    def wrap(self, key: KeyRef, kek: WrappingKey, oaep_hash: OaepHash, *, exact: bool) -> bytes:
        """See the port."""
        numbers = parse_kek(kek.public_key)
        if hashlib.sha256(kek.public_key).hexdigest() != kek.thumbprint:
            raise InvalidRequest("KEK_INVALID", "The target's wrapping key is not the one its thumbprint names.")
        one_call = oaep_hash in self._findings.one_call_hashes
        padded_wrap = self._findings.padded_wrap
        if oaep_hash not in self._findings.oaep_hashes or not (one_call or padded_wrap):
            raise WrongState("HSM_MECHANISM_MISSING", f"This token cannot wrap with OAEP-{oaep_hash}; see 'broker hsm'.")
        if exact and not one_call and key.type not in self._findings.exact_types:
            raise _not_exact(key.type)

        def carried(worker: Worker) -> bytes:
            with self._sessions.objects:
                secret = self._only(worker, key.hsm_id, _secret_class(key))
                self._refuse_unexportable(secret, key)
            with kek_object(worker, numbers, self._sessions.objects) as target:
                if one_call or padded_wrap is None:
                    hash_number = int(OAEP[oaep_hash][0])
                    return self._sessions.module.wrap_rsa_aes(
                        worker.session.handle, target.handle, secret.handle, hash_number
                    )
                with ephemeral_key(worker, self._sessions.objects) as ephemeral:
                    return wrap_in_two_steps(target, ephemeral, secret, oaep_hash, padded_wrap)

        try:
            blob = self._sessions.run(carried)
        except ck.KeyUnextractable as fault:
            raise _not_exportable() from fault
        body = len(blob) - (numbers.n.bit_length() + 7) // 8
        if body < 24 or body % 8 or (key.type in AES_BITS and body != AES_BITS[key.type] // 8 + 8):
            raise Unavailable("HSM_FAULT", "The HSM made a blob of impossible length; it was withheld.")
        return blob

    def _refuse_unexportable(self, secret: Any, key: KeyRef) -> None:
        """Attributes can change after creation, so they are read again before every export (HS-04)."""
        if not secret[Attribute.EXTRACTABLE]:
            raise _not_exportable()
        if not objects.matches(secret, Recipe(key.type, key.usage, True, self._findings.copyable_known).secret()):
            raise Unavailable("HSM_FAULT", "The key's attributes in the HSM were changed; it is not exported.")

    def seal(self, key: KeyRef) -> None:
        """See the port."""

        def seal(worker: Worker) -> None:
            with self._sessions.objects:
                secret = self._only(worker, key.hsm_id, _secret_class(key))
                if secret[Attribute.EXTRACTABLE]:
                    secret[Attribute.EXTRACTABLE] = False
                if secret[Attribute.EXTRACTABLE]:
                    raise Unavailable("HSM_FAULT", "The HSM did not take the key's exportability away.")

        self._sessions.run(seal)

    def destroy(self, key: KeyRef) -> None:
        """See the port."""

        def destroy(worker: Worker) -> None:
            with self._sessions.objects:
                for thing in objects.search(worker, key.hsm_id):
                    thing.destroy()
                worker.handles.pop(key.hsm_id, None)
            if not self._sessions.logged_in():  # private halves were invisible: nothing is certain
                raise ck.UserNotLoggedIn

        self._sessions.run(destroy)

    def random(self, length: int) -> bytes:
        """See the port."""
        if not 1 <= length <= 1024:
            raise InvalidRequest("RANDOM_LENGTH", "The HSM gives 1 to 1024 random bytes at a time.")
        drawn: bytes = self._sessions.run(lambda worker: worker.session.generate_random(length * 8))
        if len(drawn) != length or (length >= 16 and len(set(drawn)) == 1):
            raise Unavailable("HSM_FAULT", "The HSM's random generator does not work; nothing was released.")
        return drawn

    def report(self) -> HsmReport:
        """See the port."""
        return self._report

    def check(self) -> None:
        """See the port."""

        def check(worker: Worker) -> None:
            if not self._sessions.logged_in():
                raise ck.UserNotLoggedIn
            worker.session.generate_random(64)

        self._sessions.run(check)

    def close(self) -> None:
        """See the port."""
        self._sessions.close()

    def _with_key(self, worker: Worker, key: KeyRef, use: Callable[[Any], R]) -> R:
        """Call ``use`` with the key on this session; a handle that died meanwhile is looked up anew, once."""
        kind = _ck_type(key.type)
        cached = worker.handles.get(key.hsm_id)
        if cached is not None:
            try:
                return use(lend(worker.session, cached, kind))
            except _STALE:
                worker.handles.pop(key.hsm_id, None)
        with self._sessions.objects:
            handle = self._only(worker, key.hsm_id, _secret_class(key)).handle
        if len(worker.handles) >= _MAX_HANDLES:
            worker.handles.clear()
        worker.handles[key.hsm_id] = handle
        return use(lend(worker.session, handle, kind))

    def _only(self, worker: Worker, hsm_id: bytes, kind: ObjectClass) -> Any:
        return objects.only(objects.search(worker, hsm_id, kind), logged_in=self._sessions.logged_in())


def _accepted(things: list[Any], recipe: Recipe) -> bytes | None:
    """The public key, after everything that was asked for was read back; AlreadyExists if it is another key."""
    by_class = {thing.object_class: thing for thing in things}
    secret, public = by_class[recipe.secret_class], by_class.get(ObjectClass.PUBLIC_KEY)
    right = len(by_class) == len(things) and objects.matches(secret, recipe.secret())
    if public is None:
        right = right and secret[Attribute.VALUE_LEN] * 8 == AES_BITS[recipe.key_type]
    elif right := right and objects.matches(public, recipe.public()):
        spki = objects.read_public_key(public, recipe.key_type)
        check_public_key(recipe.key_type, spki)
        return spki
    if not right:
        raise AlreadyExists("HSM_ID_TAKEN", "The HSM already holds another key under this id; choose a fresh id.")
    return None


def _secret_class(key: KeyRef) -> ObjectClass:
    return ObjectClass.SECRET_KEY if key.type.symmetric else ObjectClass.PRIVATE_KEY


def _ck_type(key_type: KeyType) -> CkKeyType:
    if key_type in AES_BITS:
        return CkKeyType.AES
    if key_type in RSA_BITS:
        return CkKeyType.RSA
    return CkKeyType.EC_EDWARDS if key_type is KeyType.ED25519 else CkKeyType.EC


def _bad_ciphertext() -> InvalidRequest:
    return InvalidRequest("CIPHERTEXT_INVALID", "The ciphertext does not open with this key and these parameters.")


def _not_exportable() -> WrongState:
    return WrongState(
        "KEY_NOT_EXPORTABLE", "The key may not leave the HSM: it was made not exportable or has been sealed; make a new one."
    )


def _not_exact(key_type: KeyType) -> WrongState:
    return WrongState(
        "WRAP_NOT_EXACT",
        f"This token pads before it wraps (not RFC 5649), so a strict target cannot read {key_type} keys from it: use "
        "ec-p384, ec-secp256k1 or AES, a target that tolerates padding, or a token with a right wrap (SoftHSM 2.7.0).",
    )
