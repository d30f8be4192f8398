"""What an operator says of a Vault or OpenBao server when registering it, checked before anything is connected to."""

from __future__ import annotations

import re
from typing import Annotated

from cryptography import x509
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from broker.targets.binding import Credential

# No URL parser decides what is connected to: what passes here reads the same to every one of them (BY-03).
_ADDRESS = re.compile(r"https://((?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]):[1-9][0-9]{0,4})", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(?:/[A-Za-z0-9][A-Za-z0-9_-]*)*", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_CERTIFICATES = re.compile(
    r"\s*(?:-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*){1,16}", re.ASCII
)


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("give https://host:port in lower case, with no user, path or query")
    return text


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise ValueError("use letters, digits, hyphens and underscores, parts separated by single slashes")
    return text


def _file(text: str) -> str:
    if not _FILE.fullmatch(text):
        raise ValueError("give the bare name of a file in the host's folder below the broker's credentials folder")
    return text


def _certificates(text: str) -> str:
    # Nothing but certificates: what is registered is shown to whoever may read targets, and a key must not be in it.
    if not _CERTIFICATES.fullmatch(text):
        raise ValueError("give 1 to 16 PEM certificates and nothing else")
    try:
        x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        raise ValueError("a certificate cannot be read; give the PEM file of the server's CA") from None
    return text


class VaultSettings(BaseModel):
    """See VaultSettings in targets.proto."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    address: Annotated[str, Field(max_length=255), AfterValidator(_address)]
    mount: Annotated[str, Field(max_length=128), AfterValidator(_path)]
    ca_pem: Annotated[str, Field(max_length=65536), AfterValidator(_certificates)]
    token_file: Annotated[str, Field(max_length=64), AfterValidator(_file)]
    namespace: Annotated[str, Field(max_length=128), AfterValidator(lambda text: _path(text) if text else "")] = ""

    @property
    def host(self) -> str:
        """``host:port``, as the broker's configuration lists those it may connect to."""
        return self.address.removeprefix("https://")

    @property
    def shown(self) -> Credential:
        """The token, by its file's name."""
        return Credential(host=self.host, name=self.token_file)
