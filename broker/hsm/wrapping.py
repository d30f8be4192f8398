"""Carrying a key out of the token, wrapped for a target's key-exchange key.

The blob is RSA-OAEP(KEK, ephemeral AES-256) followed by AES-KWP(ephemeral, key): what PKCS#11 calls
CKM_RSA_AES_KEY_WRAP. The plaintext exists only inside the token, and the ephemeral key only as a session object that
can do nothing but wrap: a key that could also decrypt would open its own blob (HS-01).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import KeyType as CkKeyType

from broker.core.errors import InvalidRequest
from broker.core.model import OaepHash
from broker.hsm.mechanisms import OAEP
from broker.hsm.sessions import Worker

_NOTHING_ELSE: Final = (
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)


def parse_kek(spki: bytes) -> rsa.RSAPublicNumbers:
    """The KEK's numbers; InvalidRequest ``KEK_INVALID`` unless it is RSA with 2048 to 4096 bits (HS-06)."""
    try:
        key = load_der_public_key(spki)
    except ValueError:
        key = None
    if not isinstance(key, rsa.RSAPublicKey) or not 2048 <= key.key_size <= 4096:
        raise InvalidRequest("KEK_INVALID", "The target's wrapping key is not an RSA key of 2048 to 4096 bits.")
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


def wrap_in_two_steps(kek: Any, ephemeral: Any, key: Any, oaep_hash: OaepHash, padded_wrap: Mechanism) -> bytes:
    """RSA-OAEP(kek, ephemeral) ‖ padded AES key wrap(ephemeral, key)."""
    carried: bytes = kek.wrap_key(
        ephemeral, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=(*OAEP[oaep_hash], None)
    )
    wrapped: bytes = ephemeral.wrap_key(key, mechanism=padded_wrap)
    return carried + wrapped
