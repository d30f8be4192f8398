"""Carrying a key out of the token, wrapped for a target's key-exchange key.

The blob is RSA-OAEP(KEK, ephemeral AES-256) followed by AES-KWP(ephemeral, key): what PKCS#11 calls
CKM_RSA_AES_KEY_WRAP. The plaintext exists only inside the token, and the ephemeral key only as a session object that
can do nothing but wrap: a key that could also decrypt would open its own blob (HS-01).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck

from broker.core.errors import InvalidRequest, Unavailable, WrongState
from broker.core.kinds import KeyType, OaepHash
from broker.core.model import WrappingKey
from broker.core.reasons import Reason
from broker.hsm.binding import Binding
from broker.hsm.features import import_lack
from broker.hsm.findings import Findings
from broker.hsm.lending import Finder, LentSecret
from broker.hsm.mechanisms import AES_BITS, OAEP
from broker.hsm.objects import Recipe
from broker.hsm.sessions import TokenSessions, Worker

_NOTHING_ELSE: Final = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)


def parse_kek(kek: WrappingKey) -> rsa.RSAPublicNumbers:
    """The KEK's numbers; InvalidRequest ``KEK_INVALID`` unless it is sound RSA of 2048 to 4096 bits (HS-06, BY-02)."""
    if hashlib.sha256(kek.public_key).hexdigest() != kek.thumbprint:
        raise InvalidRequest(Reason.KEK_INVALID, "The target's wrapping key is not the one that its thumbprint names.")
    try:
        key = load_der_public_key(kek.public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, rsa.RSAPublicKey) or not 2048 <= key.key_size <= 4096:
        raise InvalidRequest(Reason.KEK_INVALID, "The target's wrapping key is not an RSA key of 2048 to 4096 bits.")
    return key.public_numbers()


@contextmanager
def kek_object(worker: Worker, kek: rsa.RSAPublicNumbers, lock: threading.Lock) -> Iterator[Any]:
    """The KEK as a session object that can wrap, for as long as the block runs."""
    template = {
        Attribute.CLASS: ObjectClass.PUBLIC_KEY,
        Attribute.KEY_TYPE: CkKeyType.RSA,
        Attribute.TOKEN: False,
        Attribute.PRIVATE: False,
        Attribute.WRAP: True,
        Attribute.ENCRYPT: False,
        Attribute.VERIFY: False,
        Attribute.MODULUS: kek.n.to_bytes((kek.n.bit_length() + 7) // 8, "big"),
        Attribute.PUBLIC_EXPONENT: kek.e.to_bytes((kek.e.bit_length() + 7) // 8, "big"),
    }
    with lock:
        made = worker.session.create_object(template)
    try:
        yield made
    finally:
        with lock:
            made.destroy()


@contextmanager
def ephemeral_key(worker: Worker, lock: threading.Lock) -> Iterator[Any]:
    """A fresh AES-256 session key that can only wrap, for as long as the block runs (BY-09)."""
    template = {
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: True,
        Attribute.WRAP: True,
        **dict.fromkeys(_NOTHING_ELSE, False),
    }
    with lock:
        made = worker.session.generate_key(
            CkKeyType.AES, 256, store=False, capabilities=MechanismFlag.WRAP, template=template
        )
    try:
        yield made
    finally:
        with lock:
            made.destroy()


class Carrier:
    """Makes the blobs, in the way that the probe found right."""

    def __init__(self, sessions: TokenSessions, finder: Finder, findings: Findings) -> None:
        self._sessions = sessions
        self._finder = finder
        self._findings = findings

    def wrap(self, key: Binding, kek: WrappingKey, oaep_hash: OaepHash, *, exact: bool) -> bytes:
        """See ``Hsm.wrap``."""
        numbers = parse_kek(kek)
        if lacking := import_lack(self._findings, oaep_hash):
            raise WrongState(
                Reason.HSM_MECHANISM_MISSING,
                f"This token cannot wrap a key for this target: it lacks {lacking}; `broker hsm` says what it can.",
            )

        def carry(worker: Worker) -> bytes:
            with self._sessions.objects:
                handle = self._exportable(worker, key)
            if exact:
                self._refuse_inexact(key.type, oaep_hash)
            with kek_object(worker, numbers, self._sessions.objects) as target:
                return self._carried(worker, target, LentSecret(handle), oaep_hash)

        blob = self._sessions.run(carry, f"CKM_RSA_PKCS_OAEP with {oaep_hash} and AES key wrap")
        body = len(blob) - (numbers.n.bit_length() + 7) // 8
        if body < 24 or body % 8 or (key.type in AES_BITS and body != AES_BITS[key.type] // 8 + 8):
            raise Unavailable(
                Reason.HSM_FAULT, "The HSM made a blob of impossible length; it was withheld. Check the device."
            )
        return blob

    def _carried(self, worker: Worker, target: Any, secret: Any, oaep_hash: OaepHash) -> bytes:
        hash_mechanism, mgf = OAEP[oaep_hash]
        if oaep_hash in self._findings.one_call_hashes:
            with _sealed_meanwhile():
                return self._sessions.module.wrap_rsa_aes(worker.session, target, secret, hash_mechanism, mgf)
        with ephemeral_key(worker, self._sessions.objects) as ephemeral:
            parameter = (hash_mechanism, mgf, None)
            first: bytes = target.wrap_key(ephemeral, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=parameter)
            with _sealed_meanwhile():
                second: bytes = ephemeral.wrap_key(secret, mechanism=self._findings.padded_wrap)
            return first + second

    def _exportable(self, worker: Worker, key: Binding) -> int:
        """The key's handle. Attributes can change after creation, so they are read before every export (HS-04)."""
        recipe = Recipe(key.type, key.usage, exportable=True, copyable_known=self._findings.copyable_known)
        wanted = {int(flag): bytes([value]) for flag, value in recipe.secret().items()}
        handle, found = self._finder.secret(worker, key, recipe.secret())
        if found.get(Attribute.EXTRACTABLE) == b"\0":
            raise _not_exportable()
        if found != wanted:
            raise Unavailable(
                Reason.HSM_FAULT,
                "The key's attributes in the HSM are not those that it was made with, so it is not exported. Find "
                "out who can write to the token.",
            )
        return handle

    def _refuse_inexact(self, key_type: KeyType, oaep_hash: OaepHash) -> None:
        if oaep_hash in self._findings.one_call_hashes or key_type in self._findings.exact_types:
            return
        raise WrongState(
            Reason.WRAP_NOT_EXACT,
            f"This token pads before it wraps (not RFC 5649), so a strict target cannot read {key_type} keys from it: "
            "use ec-p384, ec-secp256k1 or AES, a target that tolerates padding, or a token with a right wrap "
            "(SoftHSM from 2.7.0).",
        )


@contextmanager
def _sealed_meanwhile() -> Iterator[None]:
    """The refusal for a key that was sealed between the look and the wrap. For the wrap of the key itself only.

    Any other call that ends so has failed, and leaves its session to be replaced.
    """
    try:
        yield
    except ck.KeyUnextractable as fault:
        raise _not_exportable() from fault


def _not_exportable() -> WrongState:
    return WrongState(
        Reason.KEY_NOT_EXPORTABLE,
        "The key may not leave the HSM: it was made not exportable or has been sealed; make a new, exportable one.",
    )
