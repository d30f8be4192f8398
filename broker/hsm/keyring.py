"""The ``Hsm`` port: the keys of one purpose in a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pkcs11 import Attribute
from pkcs11 import exceptions as ck

from broker.core.errors import InvalidRequest, Unavailable
from broker.core.kinds import EncryptionAlgorithm, KeyUsage, OaepHash, Purpose, SignatureAlgorithm
from broker.core.model import WrappingKey
from broker.core.ports import KeyRef
from broker.core.reasons import Reason
from broker.core.report import HsmReport, Origin
from broker.hsm import ciphers, objects
from broker.hsm.binding import bind, not_this
from broker.hsm.generation import Generation
from broker.hsm.lending import SECRETS, Finder, strange
from broker.hsm.mechanisms import SCHEMES, standard_name
from broker.hsm.objects import Recipe
from broker.hsm.sessions import TokenSessions, Worker
from broker.hsm.wrapping import Carrier


@dataclass(slots=True)
class Parts:
    """What all keyrings of a token share. ``guard``: asked before any key is destroyed."""

    sessions: TokenSessions
    finder: Finder
    generation: Generation
    carrier: Carrier
    report: HsmReport
    guard: Callable[[], None] = lambda: None


class Keyring:
    """See ``broker.core.ports.Hsm`` for the contract."""

    def __init__(self, purpose: Purpose, parts: Parts) -> None:
        self._purpose = purpose
        self._parts = parts
        self._sessions = parts.sessions
        self._finder = parts.finder
        self._generation = parts.generation
        self._carrier = parts.carrier
        self._report = parts.report

    def __repr__(self) -> str:
        return f"Keyring({self._purpose})"

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        """See the port."""
        binding = bind(self._purpose, key)._replace(check=None)
        return self._generation.make(binding, exportable=exportable, fresh=fresh)

    def check_value(self, key: KeyRef) -> bytes:
        """See the port."""
        binding = bind(self._purpose, key)
        ciphers.check_encryption(key, EncryptionAlgorithm.AES_GCM)
        return self._sessions.run(
            lambda worker: self._finder.use(
                worker, binding, lambda lent: ciphers.check_value(lent, binding.label), asked=True
            ),
            "CKM_AES_GCM",
        )

    def public_key(self, key: KeyRef) -> bytes | None:
        """See the port."""
        binding = bind(self._purpose, key)

        def read(worker: Worker) -> bytes | None:
            with self._sessions.objects:
                if key.type.symmetric:
                    self._finder.secret_half(worker, binding)
                    return None
                found = self._finder.public_half(worker, binding)
                recipe = Recipe(key.type, key.usage, exportable=False)
                if objects.type_of(found) not in {None, key.type} or not objects.matches(found, recipe.public()):
                    raise not_this(binding.label, "the object under its id is of another type, size or usage")
                return objects.read_public_key(found, key.type)

        return self._sessions.run(read)

    def origin(self, key: KeyRef) -> Origin:
        """See the port."""
        binding = bind(self._purpose, key)

        def read(worker: Worker) -> Origin:
            with self._sessions.objects:
                return objects.origin_of(self._finder.secret_half(worker, binding))

        return self._sessions.run(read)

    def sign(
        self, key: KeyRef, algorithm: SignatureAlgorithm, messages: list[bytes], *, prehashed: bool = False
    ) -> list[bytes]:
        """See the port."""
        scheme = SCHEMES[algorithm]
        if key.type not in scheme.key_types or key.usage is not KeyUsage.SIGN or key.public_key is None:
            raise InvalidRequest(
                Reason.ALGORITHM_MISMATCH, f"A key of type {key.type} for '{key.usage}' cannot sign {algorithm}."
            )
        binding, public_key = bind(self._purpose, key), key.public_key
        digests = scheme.prepare(messages, prehashed=prehashed)

        def sign_all(lent: Any) -> list[bytes]:
            return [
                lent.sign(scheme.prefix + digest, mechanism=scheme.mechanism, mechanism_param=scheme.parameter)
                for digest in digests
            ]

        # A handle of another key would show: each signature is verified under this one's public key.
        raw = self._sessions.run(
            lambda worker: self._finder.use(worker, binding, sign_all, asked=False), standard_name(scheme.mechanism)
        )
        return [scheme.release(public_key, *pair) for pair in zip(raw, digests, strict=True)]

    def encrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, plaintext: bytes, aad: bytes) -> bytes:
        """See the port."""
        ciphers.check_encryption(key, algorithm)
        binding = bind(self._purpose, key)
        return self._sessions.run(
            lambda worker: self._finder.use(
                worker, binding, lambda lent: ciphers.encrypt(lent, plaintext, aad), asked=True
            ),
            "CKM_AES_GCM",
        )

    def decrypt(self, key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> bytes:
        """See the port."""
        order = ciphers.decryption(key, algorithm, ciphertext, aad)
        binding = bind(self._purpose, key)

        def decrypt(worker: Worker) -> bytes:
            try:
                return self._finder.use(worker, binding, order.apply, asked=True)
            except ck.ArgumentsBad as fault:  # SoftHSM's word for an OAEP hash it cannot do
                raise ck.MechanismParamInvalid from fault
            except ciphers.REFUSED as fault:
                raise ciphers.invalid() from fault
            except ciphers.AMBIGUOUS as fault:
                self._sessions.confirm()
                raise ciphers.invalid() from fault

        return self._sessions.run(decrypt, order.name)

    def wrap(self, key: KeyRef, kek: WrappingKey, oaep_hash: OaepHash, *, exact: bool) -> bytes:
        """See the port."""
        return self._carrier.wrap(bind(self._purpose, key), kek, oaep_hash, exact=exact)

    def differing(self, key: KeyRef, *, exportable: bool) -> tuple[str, ...]:
        """See the port."""
        binding, recipe = bind(self._purpose, key), Recipe(key.type, key.usage, exportable=exportable)

        def read(worker: Worker) -> tuple[str, ...]:
            with self._sessions.objects:
                _, flags = self._finder.secret(worker, binding, objects.marks(recipe))
            return objects.differing(flags, recipe)

        return self._sessions.run(read)

    def seal(self, key: KeyRef) -> None:
        """See the port."""
        binding = bind(self._purpose, key)

        def seal(worker: Worker) -> None:
            with self._sessions.objects:
                secret = self._finder.secret_half(worker, binding)
                if secret[Attribute.EXTRACTABLE]:
                    secret[Attribute.EXTRACTABLE] = False
                if secret[Attribute.EXTRACTABLE]:
                    raise Unavailable(
                        Reason.HSM_FAULT,
                        "The HSM did not take the key's exportability away, so it can still be exported. Check the "
                        "device, or make a key that is not exportable.",
                    )

        self._sessions.run(seal)

    def destroy(self, key: KeyRef) -> None:
        """See the port."""
        binding = bind(self._purpose, key)
        self._parts.guard()

        def destroy(worker: Worker) -> None:
            with self._sessions.objects:
                halves = self._finder.halves(worker, key.hsm_id)
                own = [half for half in halves if half.label == binding.label]
                if halves and not own:
                    raise strange(binding, halves)
                for half in own:
                    if half.kind in SECRETS:
                        self._finder.refuse_misfit(worker, binding, half.thing)
                for half in own:
                    half.thing.destroy()
                worker.handles.pop(binding, None)
                self._sessions.confirm()  # else a half may have been invisible

        self._sessions.run(destroy)

    def report(self) -> HsmReport:
        """See the port."""
        return self._report
