"""A vault or Managed HSM as a target: imports, read-back, terms and proof by use."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import RemoteKey, WrappingKey
from broker.core.ports import Cargo, Offer
from broker.core.reasons import Reason
from broker.targets import Surroundings, https
from broker.targets.azure_key_vault import forms, rights
from broker.targets.azure_key_vault.byok import TransferFiles
from broker.targets.azure_key_vault.clouds import locate
from broker.targets.azure_key_vault.kek import Keks
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings
from broker.targets.azure_key_vault.site import VERSION, Site
from broker.targets.azure_key_vault.terms import Keeping

if TYPE_CHECKING:
    from azure.keyvault.keys import KeyProperties

    from broker.targets.azure_key_vault.connection import Connection

MAX_REMEMBERED = 4096
GCM_IV = 12
GCM_TAG = 16
NAME = re.compile(r"[0-9A-Za-z-]{1,127}", re.ASCII)


class AzureKeyVaultTarget:
    """``ports.Target`` for one vault or Managed HSM. ``rights`` has what its identity must be allowed.

    ``exact_wrap`` is True: the service takes no byte after the PKCS#8 structure.
    """

    exact_wrap = True
    fresh = False

    def __init__(self, settings: AzureKeyVaultSettings, surroundings: Surroundings) -> None:
        self._place = locate(settings, surroundings)
        self._site = Site(settings, self._place, surroundings.credentials)
        self._halves: dict[str, tuple[bytes | None, bool]] = {}
        self.files = TransferFiles(self._place.tier)
        self.terms = Keeping(self._site)
        self.keks = Keks(self._site)

    def __repr__(self) -> str:
        return f"AzureKeyVaultTarget({self._site.settings.vault_url})"

    def offer(self, cargo: Cargo | None = None) -> Offer:  # noqa: ARG002 (the same for all)
        """The KEK of the settings."""
        return Offer(key=self.keks.standing())

    def oaep_hash(self, offered: tuple[OaepHash, ...]) -> OaepHash:
        """SHA-1, which is all that the service opens (RFC 8017 B.1: OAEP does not need its collision resistance)."""
        if OaepHash.SHA1 in offered:
            return OaepHash.SHA1
        raise WrongState(
            Reason.OAEP_HASH_UNSUPPORTED,
            "Azure opens RSA-OAEP with SHA-1 only, which this HSM cannot do (`broker hsm` says what it can), so no "
            "key of it can be imported there.",
        )

    # ---- imports -------------------------------------------------------------------------------------------------

    def supports(self, key_type: KeyType, usage: KeyUsage) -> None:
        """RSA for both usages and EC for signing; AES for a Managed HSM only."""
        forms.check_type(key_type, usage, self._place.tier)

    def spelled(self, name: str) -> str:
        """In lower case, as the service takes names that differ by case for one."""
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                Reason.NAME_INVALID, "Azure has no key of such a name: use 1 to 127 letters, digits and hyphens."
            )
        return name.lower()

    def import_key(self, cargo: Cargo, blob: bytes, oaep_hash: OaepHash, token: str = "") -> None:  # noqa: ARG002
        """Upload once. Nothing of what would expose the key can be set by any caller (BY-08).

        A name that is in use is not refused by the service, which would make a further version of somebody's key, so
        it is asked for first (BY-10).
        """
        name, kid = cargo.name, self._site.settings.kek
        kek = WrappingKey(id=kid, public_key=b"", thumbprint="")
        file = self.files.transfer_file(cargo.type, cargo.usage, blob, kek, oaep_hash)
        jwk: dict[str, Any] = {"kty": forms.kty(cargo.type), "key_ops": list(forms.operations(cargo.usage)), "t": file}
        if cargo.type in forms.CURVES:
            jwk["crv"] = forms.CURVES[cargo.type]
        connection, about = self._connection, f"; it was sent a blob of {len(blob)} bytes for {kid}"
        with connection.asking("import", name, about):
            before = {one.version for one in cargo.held} or self._there(name)
            if cargo.first and before:
                raise WrongState(
                    Reason.TARGET_NAME_TAKEN,
                    f"A key of this name exists at {self._place.host}; choose another name there.",
                )
            connection.upload(name, jwk, before)

    def versions(self, name: str) -> list[RemoteKey]:
        """By the second in which they were made, and the one that the vault calls current last."""
        connection = self._connection
        with connection.asking("list", name, seconds=https.LISTING_SECONDS):
            listed = connection.listed(name)
            # Asked for only where it decides: two of the same second
            current = self._remember(connection.read(name, "")) if _abreast(listed) else ""
            listed.sort(key=lambda one: (one.created_on is not None, one.created_on, one.version == current))
            return [self._remote(name, one) for one in listed]

    def _there(self, name: str) -> set[str]:
        with self._connection.asking("list", name):
            return {str(one.version) for one in self._connection.listed(name)}

    def hidden(self, name: str) -> list[str]:  # noqa: ARG002 (of no key)
        """A vault lists all versions."""
        return []

    def remains(self, name: str) -> str:
        """Whatever is deleted there can be recovered until it is purged, by hand or by its time."""
        return self._site.remains(name)

    def _remote(self, name: str, listed: Any) -> RemoteKey:
        if listed.version not in self._halves:
            self._remember(self._connection.read(name, listed.version))
        public_key, released = self._halves.get(listed.version, (None, False))
        exposed = "exportable" if listed.exportable else "release_policy" if released else ""
        return RemoteKey(
            name=name, version=listed.version, public_key=public_key, enabled=listed.enabled is True, exposed=exposed
        )

    def _remember(self, found: Any) -> str:
        """Keep what can never change of a version; its id, or "" when it cannot be read."""
        if found is None:
            return ""
        if len(self._halves) >= MAX_REMEMBERED:
            self._halves.clear()
        version = str(found.properties.version)
        self._halves[version] = (forms.public_key(found.key), found.properties.release_policy is not None)
        return version

    def check(self) -> None:
        """Ask for what cannot be, so that the refusal says whether it is for want of the right."""
        rights.check(self._connection, self._site.settings, self._place)

    def disable(self, name: str, version: str) -> None:
        """Of one version; the others stay as they are."""
        self._switch(name, version, on=False)

    def enable(self, name: str, version: str) -> None:
        """Undo ``disable``."""
        self._switch(name, version, on=True)

    def delete(self, name: str) -> None:
        """And purged, where the broker may do that and the vault does not protect deleted keys."""
        self._site.delete(name)

    def _switch(self, name: str, version: str, *, on: bool) -> None:
        if not VERSION.fullmatch(version):
            return  # no version of this service's, so it is not there
        try:
            with self._connection.asking("update", name):
                found = self._connection.keys.update_key_properties(name, version, enabled=on)
                enabled = found.properties.enabled  # taken apart only now, so it may fail here
        except WrongState as error:
            if error.reason != Reason.REMOTE_KEY_MISSING:
                raise
            return
        if enabled is not on:
            raise WrongState(
                Reason.TARGET_CANNOT_DISABLE,
                f"Version {version} of {name} at {self._place.host} stays {'disabled' if on else 'enabled'}, though "
                "the vault took the change; set it there (az keyvault key set-attributes), and tell its owner.",
            )

    # ---- use -----------------------------------------------------------------------------------------------------

    def sign(self, name: str, version: str, algorithm: SignatureAlgorithm, message: bytes) -> bytes:
        """The vault is sent the digest; it answers with r and s of equal length for ECDSA (RFC 7518 3.4)."""
        if algorithm is SignatureAlgorithm.EDDSA:
            raise WrongState(Reason.TARGET_REFUSED, "Azure makes no EdDSA signatures.")
        digest = hashlib.new(f"sha{algorithm[2:5]}", message).digest()
        with self._connection.asking("sign", name):
            made = self._connection.keys.using(name, self._site.pinned(name, version)).sign(algorithm.value, digest)
            return _der(made.signature) if algorithm.startswith("ES") else bytes(made.signature)

    def encrypt(self, name: str, version: str, plaintext: bytes) -> bytes:
        """The IV is the vault's."""
        return self._gcm(
            "encrypt", name, version, lambda using, algorithm: _sealed(using.encrypt(algorithm, plaintext))
        )

    def decrypt(self, name: str, version: str, algorithm: EncryptionAlgorithm, ciphertext: bytes) -> bytes:
        """RSA-OAEP with either hash, or AES-GCM."""
        if algorithm is not EncryptionAlgorithm.AES_GCM:
            with self._connection.asking("decrypt", name):
                using = self._connection.keys.using(name, self._site.pinned(name, version))
                return bytes(using.decrypt(forms.OAEP[algorithm], ciphertext).plaintext)
        iv, body, tag = ciphertext[:GCM_IV], ciphertext[GCM_IV:-GCM_TAG], ciphertext[-GCM_TAG:]
        opening = {"iv": iv, "authentication_tag": tag}
        return self._gcm(
            "decrypt", name, version, lambda using, gcm: bytes(using.decrypt(gcm, body, **opening).plaintext)
        )

    def _gcm(self, right: str, name: str, version: str, use: Callable[[Any, str], bytes]) -> bytes:
        """Nothing that the vault tells of a symmetric key says how long it is, so both lengths are tried."""
        try:
            with self._connection.asking(right, name):
                return use(self._connection.keys.using(name, self._site.pinned(name, version)), "A256GCM")
        except WrongState as error:
            if error.reason != Reason.TARGET_REFUSED:
                raise
        with self._connection.asking(right, name):
            return use(self._connection.keys.using(name, self._site.pinned(name, version)), "A128GCM")

    @property
    def _connection(self) -> Connection:
        return self._site.connection


def _abreast(listed: list[KeyProperties]) -> bool:
    """Whether the times at which they were made do not tell which of them is the newest."""
    times = {one.created_on for one in listed}
    return len(times) < len(listed) or None in times


def _sealed(made: Any) -> bytes:
    if (len(made.iv or b""), len(made.tag or b"")) != (GCM_IV, GCM_TAG):
        raise ValueError("not a 12-byte IV and a 16-byte tag")
    return bytes(made.iv + made.ciphertext + made.tag)


def _der(signature: bytes) -> bytes:
    half, odd = divmod(len(signature), 2)
    if odd or not 32 <= half <= 66:
        raise ValueError("not r and s of equal length")
    r, s = int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big")
    return encode_dss_signature(r, s)
