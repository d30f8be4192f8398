"""The key exchange key of a vault: one of its keys, which can do nothing but import."""

from __future__ import annotations

import hashlib
import re
from itertools import islice
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.errors import InvalidRequest, WrongState
from broker.core.model import WrappingKey
from broker.core.reasons import Reason
from broker.targets.azure_key_vault import forms, refusals
from broker.targets.azure_key_vault.site import Site

MAX_NAMES = 1000
KEK_BITS = 4096
MIN_KEK_BITS = 2048


class Keks:
    """``ports.MakesKek``, and the KEK that the settings name."""

    by_hand = (
        f"an RSA-HSM key of {KEK_BITS} bits that can only import (az keyvault key create --kty RSA-HSM "
        f"--size {KEK_BITS} --ops import)"
    )

    def __init__(self, site: Site) -> None:
        self._site = site
        self._settings = site.settings
        self._host = site.place.host

    def standing(self) -> WrappingKey:
        """The KEK of the settings, as long as nothing can be done with it but importing (BY-02)."""
        settings = self._settings
        if not settings.kek_version:
            raise InvalidRequest(
                Reason.TARGET_SETTINGS_INVALID,
                "The KEK is named without its version; give its id, https://host/keys/name/version, or have one made.",
            )
        with self._site.connection.asking("get", settings.kek_name):
            found = self._site.connection.read(settings.kek_name, settings.kek_version)
            if found is None:
                raise self._no_kek(settings.kek_name, settings.kek_version)
            return self._checked_kek(found, settings.kek)

    def _no_kek(self, name: str, version: str) -> WrongState:
        """Why the KEK is not to be had; asked for only then."""
        there = {one.version: one for one in self._site.connection.listed(name)}
        if version in there:
            why = f"is disabled; {self._enabling(self._settings.kek)} puts it to use again"
        elif there:
            why = f"is not there in the version {version}, though the key is in others; its id is another one"
        else:
            remains = self._site.remains(name)
            why = f"does not show: {remains.rstrip('.')}" if remains else "is not there, nor to be recovered"
        return WrongState(Reason.TARGET_KEK_MISSING, f"The KEK {name} at {self._host} {why}. Nothing was wrapped.")

    def _enabling(self, kid: str) -> str:
        name, _, version = kid.partition("/keys/")[2].partition("/")
        where = f"{refusals.which(self._site.place)} --name {name} --version {version}"
        return f"az keyvault key set-attributes {where} --enabled true"

    def create_wrapping_key(self) -> WrappingKey:
        """RSA-4096 in the vault's HSM, for importing only."""
        name, connection = self._settings.kek_name, self._site.connection
        with connection.asking("get", name):
            there = [one.version for one in connection.listed(name)]
            current = connection.read(name, "") if there else None
        if there:
            version = current.properties.version if current else there[-1]
            raise WrongState(
                Reason.TARGET_KEK_EXISTS,
                f"There is a key {name} at {self._host} already; if it is a KEK, register the target with its "
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
                f"The KEK at {self._host} {' and '.join(unfit)}; nothing is wrapped for it.",
            )
        key = load_der_public_key(public_key or b"")
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < MIN_KEK_BITS:
            raise WrongState(
                Reason.KEK_WEAK,
                f"The KEK at {self._host} is not RSA of at least {MIN_KEK_BITS} bits; nothing is wrapped for it.",
            )
        assert public_key is not None  # noqa: S101 - it was loaded just now
        return WrappingKey(id=kid, public_key=public_key, thumbprint=hashlib.sha256(public_key).hexdigest())

    def names(self) -> list[str]:
        """Names there are case-insensitive; as the vault writes them."""
        with self._site.connection.asking("list", "*"):
            return sorted(
                str(one.name) for one in islice(self._site.connection.keys.list_properties_of_keys(), MAX_NAMES)
            )
