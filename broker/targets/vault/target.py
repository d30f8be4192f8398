"""The transit engine as a target: imports, read-back and proof by use."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from itertools import islice
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from hvac.api.secrets_engines import Transit
from hvac.api.system_backend import Capabilities

from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import RemoteKey, WrappingKey
from broker.core.ports import Cargo, Offer
from broker.core.reasons import Reason
from broker.targets import Surroundings
from broker.targets.token import read_token
from broker.targets.vault import refusals
from broker.targets.vault.adapter import Adapter
from broker.targets.vault.files import TransferFiles
from broker.targets.vault.forms import TYPES, b64, first, upload
from broker.targets.vault.policy import DELETABLE, OLDEST, RIGHTS, deleting, lines, retiring
from broker.targets.vault.settings import VaultSettings

UNSUPPORTED = MappingProxyType({
    KeyType.EC_SECP256K1: "the transit engine knows no secp256k1",
    KeyType.ED25519: "an HSM wraps no Ed25519 key for import",
})  # fmt: skip

HASHES = (OaepHash.SHA256, OaepHash.SHA384, OaepHash.SHA512, OaepHash.SHA1)
"""The transit engine's own default first; SHA-1 last, for tokens that can do no other."""

EXPOSING = (
    "exportable",
    "allow_plaintext_backup",
    "imported_key_allow_rotation",  # as both servers answer
    "allow_imported_key_rotation",  # as some documentation has it
    "auto_rotate_period",
    "derived",
)
"""Flags that must read false or 0, or the key could leave, change or be another one than the HSM's (BY-08)."""

MOST_HIDDEN = 2000
"""Of one key, that are told; more than there are of the broker's."""

NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?", re.ASCII)


class VaultTarget:
    """``ports.Target`` for one mount of one server. See ``policy`` for the rights that its token needs.

    ``exact_wrap`` is False: Go's PKCS#8 parser ignores the zero tail that some tokens leave (SoftHSM 2.6.1). The engine
    has one wrapping key, for as long as its mount is there. It holds no key to terms: what a key may do there goes by
    its type and the callers' policies.
    """

    exact_wrap = False
    fresh = False
    terms = None
    keks = None

    def __init__(self, settings: VaultSettings, surroundings: Surroundings) -> None:
        if settings.host not in surroundings.allowed_hosts:
            raise InvalidRequest(
                Reason.TARGET_HOST_NOT_ALLOWED,
                f"{settings.host} is not among the hosts and ports that the broker's configuration allows (443 is the "
                "port of an address without one); if it is right, have it added to allowed_hosts under [targets] "
                "there, and the broker started again.",
            )
        self._settings = settings
        self.files = TransferFiles(allowed=surroundings.vault_transfer_files)
        tokens = surroundings.credentials / settings.host
        self._adapter = Adapter(settings, lambda: read_token(tokens, settings.token_file))
        self._transit = Transit(self._adapter)
        self._capabilities = Capabilities(self._adapter)

    def __repr__(self) -> str:
        return f"VaultTarget({self._settings.address}, {self._settings.mount})"

    def check(self) -> None:
        """Ask the server what the token may do, so that nothing has to be tried out."""
        mount = self._settings.mount
        wanted = {f"{mount}/{path.replace('+', 'broker-check')}": rights for path, rights in RIGHTS.items()}
        answer = self._capabilities.get_capabilities(list(wanted)) or {}
        have = {path: set(answer.get(path) or ()) for path in wanted}
        missing = [
            lines(mount, path.removeprefix(f"{mount}/"))
            for path, rights in wanted.items()
            if "root" not in have[path] and not set(rights) <= have[path]
        ]
        if missing:
            raise WrongState(
                Reason.TARGET_DENIED,
                f"The token at {self._settings.host} lacks rights; add to its policy: {' '.join(missing)}",
            )

    def offer(self, cargo: Cargo | None = None) -> Offer:  # noqa: ARG002 (the same for all)
        """Its id is the URL it was read from, so that it names server, namespace and mount (BY-12)."""
        answer = self._adapter.get(self._unknown_to_hvac("wrapping_key"))
        if answer is None:
            raise refusals.no_transit(self._settings.mount, self._settings.host)
        der = _public_key(answer.get("public_key"))
        if der is None:
            raise refusals.malformed(self._settings.host, "a wrapping key")
        parts = [self._settings.address, "v1", self._settings.namespace, self._settings.mount, "wrapping_key"]
        kid = "/".join(filter(None, parts))
        return Offer(key=WrappingKey(id=kid, public_key=der, thumbprint=hashlib.sha256(der).hexdigest()))

    def oaep_hash(self, offered: tuple[OaepHash, ...]) -> OaepHash:
        """The transit engine takes any of them, and is told which with each import."""
        for candidate in HASHES:
            if candidate in offered:
                return candidate
        raise WrongState(
            Reason.OAEP_HASH_UNSUPPORTED,
            "The HSM can do none of the OAEP hashes that the target can open (`broker hsm` says what it can), so no "
            "key of it can be imported there.",
        )

    def supports(self, key_type: KeyType, usage: KeyUsage) -> None:
        """RSA for both usages, EC for signing, AES for encryption."""
        if key_type not in TYPES:
            known = ", ".join(TYPES)
            raise InvalidRequest(
                Reason.KEY_TYPE_UNSUPPORTED,
                f"A key of type {key_type} cannot be imported, since {UNSUPPORTED[key_type]}; it takes {known}.",
            )
        if not key_type.startswith("rsa") and (usage is KeyUsage.ENCRYPT) != key_type.symmetric:
            raise InvalidRequest(
                Reason.KEY_TYPE_UNSUPPORTED, f"A key of type {key_type} cannot be imported to {usage}."
            )

    def spelled(self, name: str) -> str:
        """As it is: names there differ by case. The grammar is that of the engine's paths (``GenericNameRegex``)."""
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                Reason.NAME_INVALID,
                "The transit engine has no key of such a name: use 1 to 255 letters, digits, underscores, hyphens and "
                "dots, with a letter, digit or underscore at both ends.",
            )
        return name

    def import_key(self, cargo: Cargo, blob: bytes, oaep_hash: OaepHash, token: str = "") -> None:  # noqa: ARG002
        """Upload. Nothing of what would expose the key can be set by any caller (BY-08)."""
        self.supports(cargo.type, cargo.usage)
        body = upload(blob, oaep_hash)
        if not cargo.first:
            self._import_version(cargo.name, body, list(cargo.held) or self.versions(cargo.name))
            return
        self._adapter.post(self._unknown_to_hvac(f"keys/{cargo.name}/import"), json=first(cargo.type) | body)

    def _import_version(self, name: str, body: dict[str, Any], found: list[RemoteKey]) -> None:
        """A key that is deleted softly takes none, so it is restored first; what was out of use with it stays so."""
        path = self._unknown_to_hvac(f"keys/{name}/import_version")
        if not found or any(one.enabled for one in found):
            self._adapter.post(path, json=body)
            return
        self._restore(name)
        try:
            self._adapter.post(path, json=body)
            self._hide_below(name, int(found[-1].version) + 1)
        except BaseException:
            self._soft_delete(name)
            raise

    def versions(self, name: str) -> list[RemoteKey]:
        """Those below the key's ``min_decryption_version`` do not show. A soft-deleted key's are not enabled."""
        answer = self._transit.read_key(name, mount_point=self._settings.mount)
        return self._versions(name, answer) if answer is not None else []

    def _versions(self, name: str, answer: dict[str, Any]) -> list[RemoteKey]:
        keys = answer.get("keys")
        if not isinstance(keys, dict) or not all(str(number).isascii() and str(number).isdigit() for number in keys):
            raise refusals.malformed(self._settings.host, "the versions of the key")
        return [
            RemoteKey(
                name=name,
                version=number,
                public_key=_public_key(entry.get("public_key")) if isinstance(entry, dict) else None,
                enabled=not answer.get("soft_deleted", False),
                exposed=next((flag for flag in EXPOSING if answer.get(flag)), ""),
            )
            for number, entry in sorted(keys.items(), key=lambda item: int(item[0]))
        ]

    def hidden(self, name: str) -> list[str]:
        """Those below the key's ``min_decryption_version``; what its owner has trimmed away is not there any more."""
        answer = self._transit.read_key(name, mount_point=self._settings.mount)
        if answer is None:
            return []
        shown = {one.version for one in self._versions(name, answer)}
        newest = max([int(answer.get("latest_version") or 0), *map(int, shown)])
        first = max(1, int(answer.get("min_available_version") or 0))
        missing = (str(number) for number in range(first, newest + 1) if str(number) not in shown)
        return list(islice(missing, MOST_HIDDEN))

    def remains(self, name: str) -> str:
        """Deleted is gone there; what is deleted softly still shows. Of a key that is there, versions can be hidden."""
        if self._transit.read_key(name, mount_point=self._settings.mount) is None:
            return ""
        return (
            f"what is there as {name} is another key, or hides older versions by its min_decryption_version or "
            "min_available_version."
        )

    def sign(self, name: str, version: str, algorithm: SignatureAlgorithm, message: bytes) -> bytes:
        """PSS with a salt as long as the hash (RFC 7518 3.5)."""
        answer = self._transit.sign_data(
            f"{name}/sha2-{algorithm[2:]}",  # not as hash_algorithm: the token's policy names this path
            hash_input=b64(message),
            key_version=int(version),
            signature_algorithm="pss" if algorithm.startswith("PS") else "pkcs1v15",
            salt_length="hash",
            mount_point=self._settings.mount,
        )
        return self._unpacked(answer, "signature", version)

    def encrypt(self, name: str, version: str, plaintext: bytes) -> bytes:
        """The transit engine's layout is the port's: IV ‖ ciphertext ‖ tag."""
        answer = self._transit.encrypt_data(
            name, b64(plaintext), key_version=int(version), mount_point=self._settings.mount
        )
        return self._unpacked(answer, "ciphertext", version)

    def decrypt(self, name: str, version: str, algorithm: EncryptionAlgorithm, ciphertext: bytes) -> bytes:
        """OAEP there is always SHA-256."""
        if algorithm is EncryptionAlgorithm.RSA_OAEP_SHA1:
            raise WrongState(Reason.TARGET_REFUSED, "The transit engine decrypts RSA-OAEP with SHA-256 only.")
        text = f"vault:v{int(version)}:{b64(ciphertext)}"
        answer = self._transit.decrypt_data(name, text, mount_point=self._settings.mount) or {}
        return self._decoded(answer.get("plaintext"), "a plaintext")

    def disable(self, name: str, version: str) -> None:
        """A former version by ``min_decryption_version``, once the ones before it are out of use; the only one softly.

        Neither server can disable the newest version of a key alone: ``min_encryption_version`` and
        ``min_decryption_version`` reach at most up to it. So that one can be disabled only without predecessors, by
        soft delete, which OpenBao has (since 2.2) and Vault has not; it takes all versions of a key, but those that are
        hidden are out of use already.
        """
        found = self.versions(name)
        if version not in {one.version for one in found if one.enabled}:
            return
        if version != found[-1].version:
            self._retire(name, version, found)
            return
        if len(found) > 1:
            raise WrongState(
                Reason.TARGET_CANNOT_DISABLE,
                f"The transit engine at {self._settings.host} cannot disable version {version} of {name} without the "
                "other versions, which may be in use; tell its owner not to use this version.",
            )
        self._soft_delete(name)

    def enable(self, name: str, version: str) -> None:
        """Undo the soft delete."""
        if any(one.version == version and not one.enabled for one in self.versions(name)):
            self._restore(name)

    def delete(self, name: str) -> None:
        """For good: nothing of a deleted key is left there."""
        if self._transit.read_key(name, mount_point=self._settings.mount) is None:
            return
        try:
            self._adapter.post(self._unknown_to_hvac(f"keys/{name}/config"), json={DELETABLE: True})
            self._adapter.delete(self._unknown_to_hvac(f"keys/{name}"))
        except WrongState as error:
            raise WrongState(
                Reason.TARGET_CANNOT_DELETE,
                f"The broker's token at {self._settings.host} could not delete the key {name} ({error.reason}); its "
                f"policy needs: {deleting(self._settings.mount)}. Or set deletion_allowed=true at "
                f"{self._settings.mount}/keys/{name}/config and delete {self._settings.mount}/keys/{name}.",
            ) from error

    def _restore(self, name: str) -> None:
        self._adapter.post(self._unknown_to_hvac(f"keys/{name}/soft-delete-restore"), json={})

    def _retire(self, name: str, version: str, found: list[RemoteKey]) -> None:
        """Hide a former version, and with it the ones before it, if they are out of use already."""
        before = [one.version for one in found if int(one.version) < int(version)]
        if before:
            raise WrongState(
                Reason.TARGET_CANNOT_DISABLE,
                f"The transit engine at {self._settings.host} hides former versions from the oldest on, so it cannot "
                f"disable version {version} of {name} without version {before[0]}, which may be in use. If that is the "
                f"broker's, retire it first; if it is not, its owner sets min_decryption_version={int(version) + 1} at "
                f"{self._settings.mount}/keys/{name}/config once nobody uses either.",
            )
        self._hide_below(name, int(version) + 1)

    def _hide_below(self, name: str, oldest: int) -> None:
        """Put all versions before ``oldest`` out of use; what their owner has hidden beyond that stays hidden."""
        answer = self._transit.read_key(name, mount_point=self._settings.mount) or {}
        least = {each: max(oldest, int(answer.get(each) or 0)) for each in OLDEST}
        try:
            self._adapter.post(self._unknown_to_hvac(f"keys/{name}/config"), json=least)
        except WrongState as error:
            if error.reason != Reason.TARGET_DENIED:
                raise
            raise WrongState(
                Reason.TARGET_CANNOT_DISABLE,
                f"The broker's token at {self._settings.host} may not put former versions of {name} out of use; its "
                f"policy needs: {retiring(self._settings.mount).strip()}",
            ) from error

    def _soft_delete(self, name: str) -> None:
        try:
            self._adapter.delete(self._unknown_to_hvac(f"keys/{name}/soft-delete"))
        except WrongState as error:
            path = f"{self._settings.mount}/keys/{name}"
            raise WrongState(
                Reason.TARGET_CANNOT_DISABLE,
                f"The key {name} at {self._settings.host} could not be disabled there ({error.reason}; Vault has "
                f"no soft delete); set deletion_allowed=true at {path}/config and delete {path}.",
            ) from error

    def _unknown_to_hvac(self, path: str) -> str:
        """Where a call goes that hvac 2.4 has no method for: all of imports, and OpenBao's soft delete."""
        return f"/v1/{self._settings.mount}/{path}"

    def _unpacked(self, answer: dict[str, Any] | None, name: str, version: str) -> bytes:
        text, prefix = (answer or {}).get(name), f"vault:v{int(version)}:"
        if not isinstance(text, str) or not text.startswith(prefix):
            raise refusals.malformed(self._settings.host, f"a result of version {version}")
        return self._decoded(text.removeprefix(prefix), "a result in base64")

    def _decoded(self, text: object, what: str) -> bytes:
        try:
            return base64.b64decode(text if isinstance(text, str) else "", validate=True)
        except binascii.Error as error:
            raise refusals.malformed(self._settings.host, what) from error


def _public_key(pem: object) -> bytes | None:
    """SubjectPublicKeyInfo DER; None when it is no PEM (a symmetric key, or a type we never import)."""
    if not isinstance(pem, str) or "BEGIN PUBLIC KEY" not in pem:
        return None
    try:
        return load_pem_public_key(pem.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError:
        return None
