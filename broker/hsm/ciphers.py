"""AES-GCM and RSAES-OAEP in the token: the layout of ciphertexts, and one answer to every failed decryption."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

from pkcs11 import GCMParams, Mechanism
from pkcs11 import exceptions as ck

from broker.core.errors import InvalidRequest, Unavailable
from broker.core.kinds import EncryptionAlgorithm, KeyUsage, OaepHash
from broker.core.ports import KeyRef
from broker.core.reasons import Reason
from broker.hsm.mechanisms import AES_BITS, OAEP, standard_name
from broker.hsm.sanity import RSA_BITS

_IV, _TAG = 12, 16
_CHECK: Final = b"broker check value"
_OAEP_OF: Final = {
    EncryptionAlgorithm.RSA_OAEP_SHA1: OaepHash.SHA1,
    EncryptionAlgorithm.RSA_OAEP_SHA256: OaepHash.SHA256,
}
REFUSED: Final = (ck.EncryptedDataInvalid, ck.EncryptedDataLenRange, ck.DataInvalid, ck.DataLenRange)
"""What a token says of a ciphertext that does not open."""
AMBIGUOUS: Final = (ck.GeneralError, ck.FunctionFailed)
"""What SoftHSM says of one, and other tokens when they are ill."""


@dataclass(frozen=True, slots=True)
class Decryption:
    """What the token is asked to undo."""

    mechanism: Mechanism
    parameter: Any
    body: bytes

    @property
    def name(self) -> str:
        """The mechanism, as the standard has it; of RSA together with the hash."""
        hashed = f" with {self.parameter[0].name}" if self.mechanism is Mechanism.RSA_PKCS_OAEP else ""
        return standard_name(self.mechanism) + hashed

    def apply(self, lent: Any) -> bytes:
        """Run on a lent key; raises PKCS11Error."""
        opened: bytes = lent.decrypt(self.body, mechanism=self.mechanism, mechanism_param=self.parameter)
        return opened


def encrypt(lent: Any, plaintext: bytes, aad: bytes) -> bytes:
    """IV ‖ ciphertext ‖ tag, opened once more before it is released (FT-18).

    The IV is never the caller's, and random: up to 2^32 encryptions under one key keep the risk of a repetition below
    2^-32 (NIST SP 800-38D 8.3, HS-08).
    """
    iv = os.urandom(_IV)
    parameters = GCMParams(iv, aad or None, _TAG * 8)
    encrypted: bytes = lent.encrypt(plaintext, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
    opened = lent.decrypt(encrypted, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
    if opened != plaintext or len(encrypted) != len(plaintext) + _TAG:
        raise Unavailable(
            Reason.HSM_FAULT, "The HSM made a ciphertext that does not open; it was withheld. Check the device."
        )
    return iv + encrypted


def check_value(lent: Any, label: bytes) -> bytes:
    """What ``proves`` takes for the key under this label, and for no other."""
    return encrypt(lent, _CHECK, label)


def proves(lent: Any, check: bytes, label: bytes) -> bool:
    """Whether the lent key has made this check value; PKCS11Error as of any decryption when it has not."""
    if len(check) != _IV + len(_CHECK) + _TAG:
        return False
    order = Decryption(Mechanism.AES_GCM, GCMParams(check[:_IV], label, _TAG * 8), check[_IV:])
    return order.apply(lent) == _CHECK


def check_encryption(key: KeyRef, algorithm: EncryptionAlgorithm) -> None:
    """Return if the HSM encrypts so; else InvalidRequest ``ALGORITHM_MISMATCH``."""
    if algorithm is not EncryptionAlgorithm.AES_GCM or key.type not in AES_BITS:
        raise InvalidRequest(
            Reason.ALGORITHM_MISMATCH, f"The HSM does not encrypt {algorithm} with a key of type {key.type}."
        )


def decryption(key: KeyRef, algorithm: EncryptionAlgorithm, ciphertext: bytes, aad: bytes) -> Decryption:
    """Take a ciphertext apart; InvalidRequest ``ALGORITHM_MISMATCH`` or ``CIPHERTEXT_INVALID``."""
    gcm = algorithm is EncryptionAlgorithm.AES_GCM
    if key.usage is not KeyUsage.ENCRYPT or gcm != (key.type in AES_BITS):
        raise InvalidRequest(
            Reason.ALGORITHM_MISMATCH, f"A key of type {key.type} for '{key.usage}' cannot undo {algorithm}."
        )
    if gcm:
        if len(ciphertext) < _IV + _TAG:
            raise invalid()
        return Decryption(Mechanism.AES_GCM, GCMParams(ciphertext[:_IV], aad or None, _TAG * 8), ciphertext[_IV:])
    if aad or len(ciphertext) * 8 != RSA_BITS.get(key.type):
        raise invalid()
    return Decryption(Mechanism.RSA_PKCS_OAEP, (*OAEP[_OAEP_OF[algorithm]], None), ciphertext)


def invalid() -> InvalidRequest:
    """The one error for every failed decryption (HS-07)."""
    return InvalidRequest(
        Reason.CIPHERTEXT_INVALID,
        "The ciphertext does not open with this key and these parameters: it was changed or cut, or was made with "
        "another key, version, algorithm or associated data.",
    )
