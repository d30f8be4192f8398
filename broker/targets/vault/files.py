"""Wrapped keys in files, for people to import with the servers' own tools."""

from __future__ import annotations

import json

from broker.core.errors import WrongState
from broker.core.kinds import KeyType, KeyUsage, OaepHash
from broker.core.model import WrappingKey
from broker.core.reasons import Reason
from broker.targets.vault.forms import first, upload


class TransferFiles:
    """``ports.Carries``, where the broker's configuration allows it."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed

    def check_transfer(self) -> None:
        """Nothing in the wrapped key says how it is to be imported: anybody who does that can make it exportable."""
        if not self._allowed:
            raise WrongState(
                Reason.TRANSFER_FILES_OFF,
                "Anybody who imports a file into Vault or OpenBao can make the key exportable there, so none is "
                "written unless the configuration has vault_transfer_files = true under [targets]; import the key "
                "instead.",
            )

    def transfer_file(
        self,
        key_type: KeyType,
        usage: KeyUsage,  # noqa: ARG002 (the engine goes by the type alone)
        blob: bytes,
        kek: WrappingKey,  # noqa: ARG002 (it has but one)
        oaep_hash: OaepHash,
    ) -> bytes:
        """The body of the import as JSON: ``bao write MOUNT/keys/NAME/import @FILE`` (or ``import_version``)."""
        return json.dumps(first(key_type) | upload(blob, oaep_hash), indent=1).encode("ascii") + b"\n"
