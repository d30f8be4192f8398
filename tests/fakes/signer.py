"""As much of an HSM as signs with EC P-256 keys, in software and in memory."""

from __future__ import annotations

from typing import cast

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.errors import NotFound
from broker.core.kinds import KeyType, KeyUsage, Purpose, SignatureAlgorithm
from broker.core.ports import Hsm, KeyRef


class Signer:
    """``broken`` makes every signature one of another message."""

    def __init__(self) -> None:
        self.keys: dict[bytes, ec.EllipticCurvePrivateKey] = {}
        self.signed: list[bytes] = []
        self.broken = False

    def generate(self, ref: KeyRef, *, exportable: bool) -> bytes:
        assert (ref.type, ref.usage, ref.name, exportable) == (KeyType.EC_P256, KeyUsage.SIGN, "", False)
        key = self.keys.setdefault(ref.hsm_id, ec.generate_private_key(ec.SECP256R1()))
        return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, key: KeyRef, algorithm: SignatureAlgorithm, messages: list[bytes]) -> list[bytes]:
        assert algorithm is SignatureAlgorithm.ES256
        if key.hsm_id not in self.keys:
            raise NotFound("KEY_NOT_IN_HSM", "The token holds no such key.")
        self.signed += messages
        end = b"!" if self.broken else b""
        return [self.keys[key.hsm_id].sign(message + end, ec.ECDSA(SHA256())) for message in messages]

    def keyring(self, _purpose: Purpose) -> Hsm:
        """This, whatever it is for."""
        return self.hsm

    @property
    def hsm(self) -> Hsm:
        """This, as the port that the core asks for."""
        return cast(Hsm, self)
