"""What an operator says of a vault or Managed HSM when registering it, checked before anything is connected to."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from broker.core.addresses import https, parts
from broker.targets import binding

_KEY_NAME = re.compile(r"[0-9A-Za-z-]{1,127}", re.ASCII)
_VERSIONED = re.compile(r"(https://[^/?#@\\]{1,255})/keys/([0-9A-Za-z-]{1,127})/([0-9a-f]{32})", re.ASCII)
_KEY_PATH = re.compile(r"/keys/([0-9A-Za-z-]{1,127})/([0-9A-Fa-f]{32})/?", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_GUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

Credential = Literal["workload-identity", "managed-identity", "client-certificate", "client-secret", "token-file"]


def _address(text: str) -> str:
    if "/keys/" in text:
        raise ValueError("it is the id of a key; give the vault's own URL here, https://host, and the id as the KEK")
    return _spelled(*https(text))


def _kek(text: str) -> str:
    if _KEY_NAME.fullmatch(text):
        return text
    host, port, path = parts(text)
    found = _KEY_PATH.fullmatch(path)
    if found is None:
        raise ValueError(
            "it is no key's id with its version, https://host/keys/name/version; `az keyvault key show` tells it as kid"
        )
    return f"{_spelled(host, port)}/keys/{found[1]}/{found[2].lower()}"


def _spelled(host: str, port: int) -> str:
    return f"https://{host}" if port == 443 else f"https://{host}:{port}"


def _file(text: str) -> str:
    if text and not _FILE.fullmatch(text):
        raise ValueError("give the bare name of a file in the host's folder below the broker's credentials folder")
    return text


def _guid(text: str) -> str:
    bare = text.strip("{}").lower()
    if text and not _GUID.fullmatch(bare):
        raise ValueError("it is no GUID, as 01234567-89ab-cdef-0123-456789abcdef; a name does not do")
    return bare


Guid = Annotated[str, Field(max_length=38), AfterValidator(_guid)]


class AzureKeyVaultSettings(BaseModel):
    """See AzureKeyVaultSettings in targets.proto."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    vault_url: Annotated[str, Field(max_length=255), AfterValidator(_address)]
    kek: Annotated[str, Field(max_length=512), AfterValidator(_kek)]
    credential: Credential
    tenant_id: Guid = ""
    client_id: Guid = ""
    file: Annotated[str, Field(max_length=64), AfterValidator(_file)] = ""

    @model_validator(mode="after")
    def _together(self) -> AzureKeyVaultSettings:
        found = _VERSIONED.fullmatch(self.kek)
        if found and found[1] != self.vault_url:
            raise ValueError("the KEK lies in another vault; a key can only be wrapped for one in the vault it goes to")
        if self.credential in {"workload-identity", "client-certificate", "client-secret"}:
            if not (self.tenant_id and self.client_id):
                raise ValueError(f"{self.credential} needs tenant_id and client_id")
            if self.credential != "workload-identity" and not self.file:
                raise ValueError(f"{self.credential} needs the file that holds it")
        if self.credential == "managed-identity" and self.file:
            raise ValueError("managed-identity takes no file")
        return self

    @property
    def host(self) -> str:
        """``host:port``, as the broker's configuration lists those it may connect to."""
        name = self.vault_url.removeprefix("https://")
        return name if re.search(r":[0-9]+$", name) else f"{name}:443"

    @property
    def shown(self) -> binding.Credential:
        """By its file's name; else by what the broker's host is there, and as which of its identities."""
        if self.file:
            return binding.Credential(host=self.host, name=self.file)
        name = f"{self.credential}:{self.client_id}" if self.client_id else self.credential
        return binding.Credential(host=self.host, name=name, file=False)

    @property
    def kek_name(self) -> str:
        """The KEK's name, with or without a version."""
        found = _VERSIONED.fullmatch(self.kek)
        return found[2] if found else self.kek

    @property
    def kek_version(self) -> str:
        """The KEK's version, or "" while it is still to be made."""
        found = _VERSIONED.fullmatch(self.kek)
        return found[3] if found else ""
