"""The ``Hsm`` port on any PKCS#11 module."""

from __future__ import annotations

import threading
import time
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, ObjectClass
from pkcs11 import exceptions as ck

from broker.core.errors import BrokerError, InvalidRequest, Unavailable, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import HsmReport, WrappingKey
from broker.core.ports import KeyRef
from broker.hsm import ciphers, objects, selftest
from broker.hsm.config import HsmConfig
from broker.hsm.findings import Findings
from broker.hsm.lending import Finder
from broker.hsm.mechanisms import SCHEMES
from broker.hsm.objects import Recipe, secret_class
from broker.hsm.probe import Examination
from broker.hsm.sessions import Clock, Sessions, Worker
from broker.hsm.wrapping import Carrier

FRESH_SECONDS = 1.0
"""For how long an id that was drawn just now is taken to be unknown to everybody else."""


class Pkcs11Hsm:
    """Keys in one token of one PKCS#11 module; see ``broker.core.ports.Hsm`` for the contract.

    Building it loads the module, logs in (one attempt) and probes the token. A fault in the set-up is WrongState or
    Unavailable with a reason beginning ``HSM_``. A module serves one instance of a process at a time. ``clock`` gives
    seconds and paces the recovery.
    """

    def __init__(self, config: HsmConfig, clock: Clock = time.monotonic) -> None:
        self._sessions = Sessions(config, clock)
        self._finder = Finder(self._sessions)
        self._birth = threading.Lock()
        self._clock = clock
        try:
            self._findings = self._sessions.run(self._examine)
            self._report = _describe(config, self._sessions, self._findings)
        except BaseException:
            self._sessions.close()
            raise
        self._carrier = Carrier(self._sessions, self._finder, self._findings)

    def generate(
        self, hsm_id: bytes, key_type: KeyType, usage: KeyUsage, *, exportable: bool, fresh: bool = False
    ) -> bytes | None:
        """See the port."""
        objects.check_usage(key_type, usage, exportable=exportable)
        if key_type not in self._findings.key_types:
            raise WrongState("HSM_MECHANISM_MISSING", f"This token cannot make {key_type} keys; choose another type.")
        recipe = Recipe(key_type, usage, exportable, self._findings.copyable_known)
        # One at a time, as the objects lock has it anyway: those that wait for it must not hold the sessions meanwhile.
        # Two secret keys under one id would go unnoticed; two pairs would not, as the public key checks what they do.
        fresh_until = self._clock() + FRESH_SECONDS if fresh and not key_type.symmetric else float("-inf")

        def make(worker: Worker) -> bytes | None:
            nonlocal fresh_until
            with self._sessions.objects:
                unseen, fresh_until = self._clock() < fresh_until, float("-inf")
                if unseen and hsm_id not in worker.handles:
                    return self._made(worker, hsm_id, recipe)
                # Repeating after a loss is safe: it begins by looking for what an earlier run has made.
                return self._found_or_made(worker, hsm_id, recipe)

        with self._birth:
            return self._sessions.run(make)

    def public_key(self, key: KeyRef) -> bytes | None:
        """See the port."""

        def read(worker: Worker) -> bytes | None:
            kind = ObjectClass.SECRET_KEY if key.type.symmetric else ObjectClass.PUBLIC_KEY
            with self._sessions.objects:
                found = self._finder.only(worker, key.hsm_id, kind)
                return None if key.type.symmetric else objects.read_public_key(found, key.type)

        return self._sessions.run(read)

    def sign(
        self, key: KeyRef, algorithm: SignatureAlgorithm, messages: list[bytes], *, prehashed: bool = False
    ) -> list[bytes]:
        """See the port."""
        scheme = SCHEMES[algorithm]
        if key.type not in scheme.key_types or key.usage is not KeyUsage.SIGN or key.public_key is None:
            raise InvalidRequest(
                "ALGORITHM_MISMATCH", f"A key of type {key.type} for '{key.usage}' cannot sign {algorithm}."
            )
        public_key = key.public_key
        digests = scheme.prepare(messages, prehashed=prehashed)

        def sign_all(lent: Any) -> list[bytes]:
            return [
                lent.sign(scheme.prefix + digest, mechanism=scheme.mechanism, mechanism_param=scheme.parameter)
                for digest in digests
            ]

        raw = self._sessions.run(lambda worker: self._finder.use(worker, key, sign_all))
        return [scheme.release(public_key, *pair) for pair in zip(raw, digests, strict=True)]

    def encrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, plaintext: bytes, aad: bytes) -> bytes:
        """See the port."""
        ciphers.check_encryption(key, algorithm)
        return self._sessions.run(
            lambda worker: self._finder.use(worker, key, lambda lent: ciphers.seal(lent, plaintext, aad))
        )

    def decrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> bytes:
        """See the port."""
        order = ciphers.decryption(key, algorithm, ciphertext, aad)

        def decrypt(worker: Worker) -> bytes:
            try:
                return self._finder.use(worker, key, order.apply)
            except ck.ArgumentsBad as fault:  # SoftHSM's word for an OAEP hash it cannot do
                raise ck.MechanismParamInvalid from fault
            except ciphers.REFUSED as fault:
                raise ciphers.invalid() from fault
            except ciphers.AMBIGUOUS as fault:
                self._sessions.confirm()
                raise ciphers.invalid() from fault

        return self._sessions.run(decrypt)

    def wrap(self, key: KeyRef, kek: WrappingKey, oaep_hash: OaepHash, *, exact: bool) -> bytes:
        """See the port."""
        return self._carrier.wrap(key, kek, oaep_hash, exact=exact)

    def seal(self, key: KeyRef) -> None:
        """See the port."""

        def seal(worker: Worker) -> None:
            with self._sessions.objects:
                secret = self._finder.only(worker, key.hsm_id, secret_class(key.type))
                if secret[Attribute.EXTRACTABLE]:
                    secret[Attribute.EXTRACTABLE] = False
                if secret[Attribute.EXTRACTABLE]:
                    raise Unavailable("HSM_FAULT", "The HSM did not take the key's exportability away.")

        self._sessions.run(seal)

    def destroy(self, key: KeyRef) -> None:
        """See the port."""

        def destroy(worker: Worker) -> None:
            with self._sessions.objects:
                for thing in self._sessions.search(worker, {Attribute.ID: key.hsm_id}):
                    thing.destroy()
                worker.handles.pop(key.hsm_id, None)
                self._sessions.confirm()  # else a half may have been invisible

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
        self._sessions.run(lambda _: self._sessions.confirm())

    def close(self) -> None:
        """See the port."""
        self._sessions.close()

    def _examine(self, worker: Worker) -> Findings:
        throw_away = rsa.generate_private_key(65537, 2048)
        selftest.refuse_lax_token(self._sessions, worker, throw_away.public_key().public_numbers())
        with self._sessions.objects:
            selftest.refuse_conflicting_keys(self._sessions, worker)
        return Examination(self._sessions, worker, throw_away).findings()

    def _found_or_made(self, worker: Worker, hsm_id: bytes, recipe: Recipe) -> bytes | None:
        there = self._sessions.search(worker, {Attribute.ID: hsm_id})
        if any(thing.object_class is not ObjectClass.PUBLIC_KEY and objects.generated(thing) for thing in there):
            return objects.accept(there, recipe)
        self._sessions.confirm()  # else the private half may only be invisible
        for remnant in there:  # a public half alone, or a half without its value: a call that was cut short
            remnant.destroy()
        return self._made(worker, hsm_id, recipe)

    def _made(self, worker: Worker, hsm_id: bytes, recipe: Recipe) -> bytes | None:
        made = objects.make(worker, hsm_id, recipe)
        try:
            accepted = objects.accept(made, recipe)
        except BrokerError as fault:
            for thing in made:
                thing.destroy()
            raise Unavailable(
                "HSM_FAULT", "The HSM made another key than it was asked for; it was removed. Check the device."
            ) from fault
        if accepted is not None:
            self._finder.remember(worker, hsm_id, made[0].handle)
        return accepted


def _describe(config: HsmConfig, sessions: Sessions, found: Findings) -> HsmReport:
    token, library = sessions.token, sessions.module.library
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
