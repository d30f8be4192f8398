"""The PKCS#11 calls that an import cannot do without, by the bare binding: the least that it can take."""

from __future__ import annotations

import os
import secrets
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pkcs11
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import KeyType as CkKeyType
from pkcs11.mechanisms import MGF
from pkcs11.util.ec import encode_named_curve_parameters

from broker.hsm.config import HsmConfig

KEK_BITS = 4096
_RSA = {"rsa-3072": 3072}
_SECRET = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True}
_library: Any  # its end would be the session's
_session: Any
_kek: Any


class Bare:
    """One session in a token, in a process of its own: a process has one module."""

    def __init__(self, config: HsmConfig) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"), _open, (config,))

    def generate(self, kind: str) -> float:
        """Seconds for: generate the pair in the token, generate an ephemeral key, wrap that, wrap the private half."""
        return self._process.submit(_generate, kind).result()

    def close(self) -> None:
        self._process.shutdown()


def _open(config: HsmConfig) -> None:
    global _library, _session, _kek  # noqa: PLW0603 - the process exists for this one session
    os.environ.update(config.environment)
    _library = pkcs11.lib(str(config.module))
    token = _library.get_token(token_label=config.token_label)
    _session = token.open(rw=True, user_pin=config.pin_file.read_text(encoding="ascii").strip())
    kek = rsa.generate_private_key(65537, KEK_BITS).public_key().public_numbers()
    _kek = _session.create_object({
        Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.KEY_TYPE: CkKeyType.RSA, Attribute.TOKEN: False,
        Attribute.WRAP: True, Attribute.MODULUS: kek.n.to_bytes(KEK_BITS // 8, "big"),
        Attribute.PUBLIC_EXPONENT: kek.e.to_bytes(3, "big"),
    })  # fmt: skip


def _generate(kind: str) -> float:
    start = time.perf_counter()
    named: dict[str, Any] = {"store": True, "id": secrets.token_bytes(16), "private_template": _SECRET}
    if kind in _RSA:
        _, private = _session.generate_keypair(CkKeyType.RSA, _RSA[kind], **named)
    else:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
        parameters = _session.create_domain_parameters(CkKeyType.EC, curve, local=True)
        _, private = parameters.generate_keypair(mechanism=Mechanism.EC_KEY_PAIR_GEN, **named)
    ephemeral = _session.generate_key(
        CkKeyType.AES, 256, store=False, capabilities=MechanismFlag.WRAP, template={**_SECRET, Attribute.WRAP: True}
    )
    oaep = (Mechanism.SHA_1, MGF.SHA1, None)
    _kek.wrap_key(ephemeral, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=oaep)
    ephemeral.wrap_key(private, mechanism=Mechanism.AES_KEY_WRAP_PAD)
    took = time.perf_counter() - start
    ephemeral.destroy()
    return took
