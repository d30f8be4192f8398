"""What an operator says of a Vault or OpenBao server when registering it, checked before anything is connected to."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from broker.core.addresses import https
from broker.core.armour import MAX_BYTES, certificates
from broker.targets.binding import Credential

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
MAX_CA = 128 * 1024


def _address(text: str) -> str:
    host, port = https(text)
    return f"https://{host}:{port}"


def _path(text: str) -> str:
    """A mount or a namespace; a slash at either end means nothing to the server."""
    bare = text.removeprefix("/").removesuffix("/")
    if not _PATH.fullmatch(bare):
        raise ValueError(
            "use letters, digits, hyphens, underscores and dots, no dot first, parts separated by single slashes"
        )
    return bare


def _file(text: str) -> str:
    if not _FILE.fullmatch(text):
        raise ValueError("give the bare name of a file in the host's folder below the broker's credentials folder")
    return text


def _certificates(text: str) -> str:
    # Nothing but certificates: what is registered is shown to all who may read targets, and a key must not be in it.
    try:
        found = certificates(text.encode())
    except ValueError as error:
        raise ValueError(f"the CA's file {error}") from None
    if len(found) > MAX_CA:
        raise ValueError(f"the CA's certificates are longer than {MAX_CA >> 10} KiB together; give fewer")
    return found


class VaultSettings(BaseModel):
    """See VaultSettings in targets.proto."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    address: Annotated[str, Field(max_length=255), AfterValidator(_address)]
    mount: Annotated[str, Field(max_length=128), AfterValidator(_path)]
    ca_pem: Annotated[str, Field(max_length=MAX_BYTES), AfterValidator(_certificates)]
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
