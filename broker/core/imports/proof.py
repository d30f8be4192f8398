"""Proof by use: a target that can do this with a fresh challenge holds the key that the HSM holds.

Nothing here trusts what a target says of its key; only what it can do with it. Each challenge is used once.
"""

from __future__ import annotations

import secrets

from broker.core import signatures
from broker.core.errors import WrongState
from broker.core.keys.use import encrypt_oaep
from broker.core.kinds import EncryptionAlgorithm, KeyUsage, OaepHash
from broker.core.model import RemoteKey
from broker.core.ports import Hsm, KeyRef, Uses
from broker.core.reasons import Reason

PREFIX = b"broker import proof v1\n"
"""Starts every challenge, so that a signature made for a proof can never be taken for one of anything else."""


UNTRIED = frozenset({Reason.REMOTE_KEY_DISABLED, Reason.TARGET_KEY_DISABLED, Reason.TARGET_OPERATION_FORBIDDEN})
"""Refusals with which a key has not shown that it is another one: what it may do there does not suffice for a proof."""


_CHANGEABLE = frozenset({"auto_rotate_period"})
_UNSET = "Set it to 0 there, and prove the key again."
_SET_FOR_GOOD = (
    "That flag cannot be taken away there, and the material may have left: delete the key there, rotate it here, and "
    "import the new version under another name."
)


def prove(hsm: Hsm, target: Uses, key: KeyRef, remote: RemoteKey) -> None:
    """Return if ``remote`` is ``key``, usable at the target and closed to export there; raise WrongState if not.

    ``PROOF_FAILED``: it is another key. ``REMOTE_KEY_EXPOSED``: its flags at the target would let the material leave or
    change. One of ``UNTRIED``: somebody there has limited it, so that it can be compared but not tried. What else the
    target refuses to do is raised as it comes.
    """
    if remote.exposed:
        raise WrongState(
            Reason.REMOTE_KEY_EXPOSED,
            f"The key {remote.name} at the target has {remote.exposed} set, with which its material could leave or "
            f"change there. {_UNSET if remote.exposed in _CHANGEABLE else _SET_FOR_GOOD}",
        )
    if remote.public_key != key.public_key and (remote.enabled or remote.public_key is not None):
        raise _failed(remote)
    if not remote.enabled:
        raise WrongState(
            Reason.REMOTE_KEY_DISABLED,
            f"The key {remote.name} at the target is disabled there, so it cannot be proven; enable it there first.",
        )
    if key.type.symmetric:
        _prove_symmetric(hsm, target, key, remote)
    elif key.usage is KeyUsage.SIGN:
        _prove_signing(target, key, remote)
    else:
        _prove_decryption(target, key, remote)


def opens(hsm: Hsm, target: Uses, key: KeyRef, remote: RemoteKey) -> bool:
    """True when the target opens with ``remote`` what the HSM has encrypted with the symmetric ``key``."""
    challenge = _challenge()
    ciphertext = hsm.encrypt(key, EncryptionAlgorithm.AES_GCM, challenge, b"")
    return _returns(target, remote, EncryptionAlgorithm.AES_GCM, ciphertext, challenge)


def keepsake(hsm: Hsm, key: KeyRef) -> str:
    """What tells the symmetric ``key`` at a target once the HSM has it no more; it is no secret, nor opens anything."""
    challenge = _challenge()
    return f"{challenge.hex()} {hsm.encrypt(key, EncryptionAlgorithm.AES_GCM, challenge, b'').hex()}"


def opens_keepsake(target: Uses, kept: str, remote: RemoteKey) -> bool:
    """True when the target opens with ``remote`` what its key had encrypted in the HSM."""
    challenge, ciphertext = map(bytes.fromhex, kept.split())
    return _returns(target, remote, EncryptionAlgorithm.AES_GCM, ciphertext, challenge)


def _returns(
    target: Uses, remote: RemoteKey, algorithm: EncryptionAlgorithm, ciphertext: bytes, challenge: bytes
) -> bool:
    try:
        opened = target.decrypt(remote.name, remote.version, algorithm, ciphertext)
    except WrongState as error:
        if error.reason != Reason.TARGET_REFUSED:  # refusing what another key has encrypted is the honest answer
            raise
        return False
    return secrets.compare_digest(opened, challenge)


def _prove_symmetric(hsm: Hsm, target: Uses, key: KeyRef, remote: RemoteKey) -> None:
    if not opens(hsm, target, key, remote):
        raise _failed(remote)
    challenge = _challenge()
    ciphertext = target.encrypt(remote.name, remote.version, challenge)
    if not secrets.compare_digest(hsm.decrypt(key, EncryptionAlgorithm.AES_GCM, ciphertext, b""), challenge):
        raise _failed(remote)


def _prove_signing(target: Uses, key: KeyRef, remote: RemoteKey) -> None:
    algorithm, challenge = signatures.choose(key.type, None), _challenge()
    signature = target.sign(remote.name, remote.version, algorithm, challenge)
    if not signatures.verify(key.public_key or b"", algorithm, challenge, signature):
        raise _failed(remote)


def _prove_decryption(target: Uses, key: KeyRef, remote: RemoteKey) -> None:
    challenge = _challenge()
    ciphertext = encrypt_oaep(key.public_key or b"", OaepHash.SHA256, challenge)
    if not _returns(target, remote, EncryptionAlgorithm.RSA_OAEP_SHA256, ciphertext, challenge):
        raise _failed(remote)


def _challenge() -> bytes:
    return PREFIX + secrets.token_bytes(32)


def _failed(remote: RemoteKey) -> WrongState:
    return WrongState(
        Reason.PROOF_FAILED,
        f"Version {remote.version} of {remote.name} at the target is not the key in the HSM; it is not to be used.",
    )
