"""A vault or Managed HSM as a target: imports, read-back, terms and proof by use."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, SignatureAlgorithm
from broker.core.model import RemoteKey, Terms, WrappingKey
from broker.core.reasons import Reason
from broker.targets import Surroundings, https
from broker.targets.azure_key_vault import byok, forms, refusals, rights, wishes
from broker.targets.azure_key_vault.clouds import locate
from broker.targets.azure_key_vault.settings import AzureKeyVaultSettings

if TYPE_CHECKING:
    from broker.targets.azure_key_vault.connection import Connection

MAX_NAMES = 1000
MAX_REMEMBERED = 4096
KEK_BITS = 4096
MIN_KEK_BITS = 2048
GCM_IV = 12
GCM_TAG = 16
NAME = re.compile(r"[0-9A-Za-z-]{1,127}", re.ASCII)
_VERSION = re.compile(r"[0-9a-f]{32}", re.ASCII)


class AzureKeyVaultTarget:
    """``ports.Target`` for one vault or Managed HSM. ``rights`` has what its identity must be allowed.

    ``exact_wrap`` is True: the service takes no byte after the PKCS#8 structure.
    """

    exact_wrap = True

    def __init__(self, settings: AzureKeyVaultSettings, surroundings: Surroundings) -> None:
        self._settings = settings
        self._credentials = surroundings.credentials
        self._place = locate(settings, surroundings)
        self._lock = threading.Lock()
        self._made: Connection | None = None
        self._halves: dict[str, tuple[bytes | None, bool]] = {}

    def __repr__(self) -> str:
        return f"AzureKeyVaultTarget({self._settings.vault_url})"

    # ---- the KEK -------------------------------------------------------------------------------------------------

    def wrapping_key(self) -> WrappingKey:
        """The KEK of the settings, as long as nothing can be done with it but importing (BY-02)."""
        settings = self._settings
        if not settings.kek_version:
            raise InvalidRequest(
                Reason.TARGET_SETTINGS_INVALID,
                "The KEK is named without its version; give its id, https://host/keys/name/version, or have one made.",
            )
        with self._connection.asking("get", settings.kek_name):
            found = self._connection.read(settings.kek_name, settings.kek_version)
            if found is None:
                raise self._no_kek(settings.kek_name, settings.kek_version)
            return self._checked_kek(found, settings.kek)

    def _no_kek(self, name: str, version: str) -> WrongState:
        """Why the KEK is not to be had; asked for only then."""
        there = {one.version: one for one in self._connection.listed(name)}
        if version in there:
            why = f"is disabled; {self._enabling(self._settings.kek)} puts it to use again"
        elif there:
            why = f"is not there in the version {version}, though the key is in others; its id is another one"
        else:
            remains = self.remains(name)
            why = f"does not show: {remains.rstrip('.')}" if remains else "is not there, nor to be recovered"
        return WrongState(
            Reason.TARGET_KEK_MISSING, f"The KEK {name} at {self._place.host} {why}. Nothing was wrapped."
        )

    def _enabling(self, kid: str) -> str:
        name, _, version = kid.partition("/keys/")[2].partition("/")
        where = f"{refusals.which(self._place)} --name {name} --version {version}"
        return f"az keyvault key set-attributes {where} --enabled true"

    def create_wrapping_key(self) -> WrappingKey:
        """RSA-4096 in the vault's HSM, for importing only."""
        name, connection = self._settings.kek_name, self._connection
        with connection.asking("get", name):
            there = [one.version for one in connection.listed(name)]
            current = connection.read(name, "") if there else None
        if there:
            version = current.properties.version if current else there[-1]
            raise WrongState(
                Reason.TARGET_KEK_EXISTS,
                f"There is a key {name} at {self._place.host} already; if it is a KEK, register the target with its "
                f"id, {self._settings.vault_url}/keys/{name}/{version}, else choose another name.",
            )
        with connection.asking("create", name):
            made = connection.keys.make_kek(name, KEK_BITS)
            return self._checked_kek(made, self._sound_id(name, str(made.id)))

    def _sound_id(self, name: str, kid: str) -> str:
        """What a vault calls the key that it has just made, if it can be so: the id is stored, and pinned."""
        # The service may write the name in another case than it was asked in.
        if not re.fullmatch(
            rf"{re.escape(self._settings.vault_url)}/keys/(?i:{re.escape(name)})/[0-9a-f]{{32}}", kid, re.ASCII
        ):
            raise ValueError("an id that cannot be that of the new key")
        return kid

    def _checked_kek(self, found: Any, kid: str) -> WrappingKey:
        public_key = forms.public_key(found.key)
        properties, now_or_never = found.properties, found.key.key_ops or []
        unfit = [
            what
            for what, is_so in (
                ("has another id than was asked for", str(found.id).lower() != kid.lower()),  # names differ by no case
                ("is not protected by the vault's HSM (RSA-HSM)", forms.text(found.key.kty) != "RSA-HSM"),
                ("can do more than import", [forms.text(one) for one in now_or_never] != ["import"]),
                ("is exportable", bool(properties.exportable) or properties.release_policy is not None),
                (f"is disabled ({self._enabling(kid)} puts it to use again)", properties.enabled is not True),
            )
            if is_so
        ]
        if unfit:
            raise WrongState(
                Reason.KEK_UNSUITABLE,
                f"The KEK at {self._place.host} {' and '.join(unfit)}; nothing is wrapped for it.",
            )
        key = load_der_public_key(public_key or b"")
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_KEK_BITS:
            raise WrongState(
                Reason.KEK_WEAK,
                f"The KEK at {self._place.host} is not RSA of at least {MIN_KEK_BITS} bits; nothing is wrapped for it.",
            )
        assert public_key is not None  # noqa: S101 - it was loaded just now
        return WrappingKey(id=kid, public_key=public_key, thumbprint=hashlib.sha256(public_key).hexdigest())

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

    def check_transfer(self) -> None:
        """Out of the service such a key goes only under a release policy, which shows when it is confirmed."""

    def transfer_file(
        self, key_type: KeyType, usage: KeyUsage, blob: bytes, kek: WrappingKey, oaep_hash: OaepHash
    ) -> bytes:
        """The ``.byok`` file that ``az keyvault key import --byok-file`` takes."""
        self.supports(key_type, usage)
        if oaep_hash is not OaepHash.SHA1 or not byok.is_whole(blob):
            raise WrongState(
                Reason.TARGET_REFUSED, "The blob is not an RSA-OAEP-SHA-1 block and AES-KWP; Azure opens nothing else."
            )
        return byok.transfer_file(kek.id, blob)

    def spelled(self, name: str) -> str:
        """In lower case, as the service takes names that differ by case for one."""
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                Reason.NAME_INVALID, "Azure has no key of such a name: use 1 to 127 letters, digits and hyphens."
            )
        return name.lower()

    def import_key(
        self, name: str, key_type: KeyType, usage: KeyUsage, blob: bytes, oaep_hash: OaepHash, *, first: bool
    ) -> None:
        """Upload once. Nothing of what would expose the key can be set by any caller (BY-08).

        A name that is in use is not refused by the service, which would make a further version of somebody's key, so
        it is asked for first (BY-10).
        """
        kek = WrappingKey(id=self._settings.kek, public_key=b"", thumbprint="")
        file = self.transfer_file(key_type, usage, blob, kek, oaep_hash)
        jwk: dict[str, Any] = {"kty": forms.kty(key_type), "key_ops": list(forms.operations(usage)), "t": file}
        if key_type in forms.CURVES:
            jwk["crv"] = forms.CURVES[key_type]
        connection, about = self._connection, f"; it was sent a blob of {len(blob)} bytes for {self._settings.kek}"
        with connection.asking("import", name, about):
            with connection.asking("list", name):
                before = connection.listed(name)
            if first and before:
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
            current = self._remember(connection.read(name, "")) if listed else ""
            listed.sort(key=lambda one: (one.created_on is not None, one.created_on, one.version == current))
            return [self._remote(name, one) for one in listed]

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

    def names(self) -> list[str]:
        """Names there are case-insensitive; as the vault writes them."""
        with self._connection.asking("list", "*"):
            return sorted(str(one.name) for one in islice(self._connection.keys.list_properties_of_keys(), MAX_NAMES))

    def check(self) -> None:
        """Ask for what cannot be, so that the refusal says whether it is for want of the right."""
        rights.check(self._connection, self._settings, self._place)

    def remains(self, name: str) -> str:
        """Whatever is deleted there can be recovered until it is purged, by hand or by its time."""
        with self._connection.asking("get", name):
            answer = self._connection.send("GET", f"/deletedkeys/{name}", None)
        if answer is not None and answer.status == 404 and answer.says("KeyNotFound"):
            return ""
        if answer is not None and (answer.status == 429 or answer.status >= 500):
            raise refusals.refusal(answer, self._place, "get", name)
        return refusals.deleted(self._place, name, answer)

    # ---- terms ---------------------------------------------------------------------------------------------------

    def check_terms(self, key_type: KeyType, usage: KeyUsage, terms: Terms) -> None:
        """Operations of the key's usage, tags and dates as the service keeps them."""
        wishes.check(key_type, usage, terms)

    def settle(self, name: str, version: str, terms: Terms) -> None:
        """One update of this version's properties, looked at as it comes back."""
        if terms == Terms():
            return
        changes = wishes.properties(terms)
        with self._connection.asking("update", name):
            found = self._connection.keys.update_key_properties(name, self._pinned(name, version), **changes)
            if not wishes.are_kept(terms, found):
                raise refusals.malformed(self._place, "the terms that it was given")

    def disable(self, name: str, version: str) -> None:
        """Of one version; the others stay as they are."""
        self._switch(name, version, on=False)

    def enable(self, name: str, version: str) -> None:
        """Undo ``disable``."""
        self._switch(name, version, on=True)

    def _switch(self, name: str, version: str, *, on: bool) -> None:
        if not _VERSION.fullmatch(version):
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
            made = self._connection.keys.using(name, self._pinned(name, version)).sign(algorithm.value, digest)
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
                using = self._connection.keys.using(name, self._pinned(name, version))
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
                return use(self._connection.keys.using(name, self._pinned(name, version)), "A256GCM")
        except WrongState as error:
            if error.reason != Reason.TARGET_REFUSED:
                raise
        with self._connection.asking(right, name):
            return use(self._connection.keys.using(name, self._pinned(name, version)), "A128GCM")

    def _pinned(self, name: str, version: str) -> str:
        if not _VERSION.fullmatch(version):
            raise refusals.missing(self._place, name)
        return version

    @property
    def _connection(self) -> Connection:
        """Made when it is first needed, and Azure's client loaded with it."""
        with self._lock:
            if self._made is None:
                from broker.targets.azure_key_vault.connection import connect  # noqa: PLC0415 - see the docstring

                self._made = connect(self._settings, self._place, self._credentials)
            return self._made


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
