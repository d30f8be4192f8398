"""Proof by use: a target that can do this with a fresh challenge holds the key that the HSM holds.

Nothing here trusts what a target says of its key; only what it can do with it. Each challenge is used once.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.errors import WrongState
from broker.core.model import EncryptionAlgorithm, KeyType, KeyUsage, RemoteKey, SignatureAlgorithm
from broker.core.ports import Hsm, KeyRef, Target

PREFIX = b"broker import proof v1\n"
"""Starts every challenge, so that a signature made for a proof can never be taken for one of anything else."""

_SIGNATURES: Mapping[KeyType, SignatureAlgorithm] = MappingProxyType({
    KeyType.RSA_2048: SignatureAlgorithm.PS256,
    KeyType.RSA_3072: SignatureAlgorithm.PS256,
    KeyType.RSA_4096: SignatureAlgorithm.PS256,
    KeyType.EC_P256: SignatureAlgorithm.ES256,
    KeyType.EC_P384: SignatureAlgorithm.ES384,
    KeyType.EC_P521: SignatureAlgorithm.ES512,
})  # fmt: skip

_HASHES: Mapping[str, type[hashes.HashAlgorithm]] = MappingProxyType({
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
})  # fmt: skip


def prove(hsm: Hsm, target: Target, key: KeyRef, remote: RemoteKey) -> None:
    """Return if ``remote`` is ``key``, usable at the target and closed to export there; raise WrongState if not.

    ``PROOF_FAILED``: it is another key. ``REMOTE_KEY_DISABLED``: it cannot be used. ``REMOTE_KEY_EXPOSED``: its flags
    at the target would let the material leave or change. What the target refuses to try is raised as it comes.
    """
    if remote.exposed:
        raise WrongState(
            "REMOTE_KEY_EXPOSED",
            f"The key {remote.name} at the target has {remote.exposed} set, with which its material could leave or "
            "change there; take that flag away, or delete the key there and import it again.",
        )
    if not remote.enabled:
        raise WrongState(
            "REMOTE_KEY_DISABLED", f"The key {remote.name} at the target is disabled there; enable it there."
        )
    if remote.public_key != key.public_key:
        raise _failed(remote)
    if key.type.symmetric:
        _prove_symmetric(hsm, target, key, remote)
    elif key.usage is KeyUsage.SIGN:
        _prove_signing(target, key, remote)
    else:
        _prove_decryption(target, key, remote)


def opens(hsm: Hsm, target: Target, key: KeyRef, remote: RemoteKey) -> bool:
    """True when the target opens with ``remote`` what the HSM has encrypted with the symmetric ``key``."""
    challenge = _challenge()
    ciphertext = hsm.encrypt(key, EncryptionAlgorithm.AES_GCM, challenge, b"")
    return _returns(target, remote, EncryptionAlgorithm.AES_GCM, ciphertext, challenge)


def _returns(
    target: Target, remote: RemoteKey, algorithm: EncryptionAlgorithm, ciphertext: bytes, challenge: bytes
) -> bool:
    try:
        opened = target.decrypt(remote.name, remote.version, algorithm, ciphertext)
    except WrongState as error:
        if error.reason != "TARGET_REFUSED":  # refusing what another key has encrypted is the honest answer
            raise
        return False
    return secrets.compare_digest(opened, challenge)


def _prove_symmetric(hsm: Hsm, target: Target, key: KeyRef, remote: RemoteKey) -> None:
    if not opens(hsm, target, key, remote):
        raise _failed(remote)
    challenge = _challenge()
    ciphertext = target.encrypt(remote.name, remote.version, challenge)
    if not secrets.compare_digest(hsm.decrypt(key, EncryptionAlgorithm.AES_GCM, ciphertext, b""), challenge):
        raise _failed(remote)


def _prove_signing(target: Target, key: KeyRef, remote: RemoteKey) -> None:
    algorithm, challenge = _SIGNATURES[key.type], _challenge()
    signature = target.sign(remote.name, remote.version, algorithm, challenge)
    public, digest = load_der_public_key(key.public_key or b""), _HASHES[algorithm[2:]]()
    try:
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, challenge, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, challenge, ec.ECDSA(digest))
        else:
            raise _failed(remote)
    except InvalidSignature as error:
        raise _failed(remote) from error


def _prove_decryption(target: Target, key: KeyRef, remote: RemoteKey) -> None:
    public, challenge = load_der_public_key(key.public_key or b""), _challenge()
    if not isinstance(public, rsa.RSAPublicKey):
        raise _failed(remote)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    ciphertext = public.encrypt(challenge, oaep)
    if not _returns(target, remote, EncryptionAlgorithm.RSA_OAEP_SHA256, ciphertext, challenge):
        raise _failed(remote)


def _challenge() -> bytes:
    return PREFIX + secrets.token_bytes(32)


def _failed(remote: RemoteKey) -> WrongState:
    return WrongState(
        "PROOF_FAILED",
        f"Version {remote.version} of {remote.name} at the target is not the key in the HSM; it is not to be used.",
    )
