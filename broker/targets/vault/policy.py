"""The least that the broker's token must be allowed at Vault or OpenBao, in the words an operator pastes there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

READING = "keys/+"
DELETABLE = "deletion_allowed"

RIGHTS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "wrapping_key": ("read",),  # the KEK
    "keys": ("list",),
    READING: ("read",),  # reading back
    "keys/+/import": ("create", "update"),
    "keys/+/import_version": ("create", "update"),
    "keys/+/soft-delete": ("delete",),  # OpenBao only: takes a key that was not proven out of use
    "keys/+/soft-delete-restore": ("update",),  # OpenBao only: when such an import is tried again
    "sign/+/+": ("create", "update"),  # from here on: proof by use
    "encrypt/+": ("create", "update"),
    "decrypt/+": ("create", "update"),
})  # fmt: skip
"""Paths below the mount (``+`` stands for one segment) and what must be allowed there.

There is no right to export, to back up or to rotate a key, nor to change anything of its configuration but what
follows; and none to delete one, unless it is given (``deleting``).
"""

RETIRING = "keys/+/config"
"""What puts former versions of a key out of use; a token without it imports all the same."""

OLDEST = ("min_decryption_version", "min_encryption_version")


def policy(mount: str, *, deletes: bool = False) -> str:
    """The whole policy text for a transit engine mounted at ``mount``, in HCL.

    ``deletes``: with the right to delete the copies of keys that are destroyed everywhere.
    """
    rights = {**RIGHTS, **({READING: ("read", "delete")} if deletes else {})}
    rules = "".join(line(f"{mount}/{path}", allowed) for path, allowed in rights.items())
    return rules + retiring(mount, deletes=deletes) + SELF


def retiring(mount: str, *, deletes: bool = False) -> str:
    """The rule that lets former versions be put out of use, and nothing else be changed, in HCL."""
    allowed = ", ".join(f'"{one}" = []' for one in (*OLDEST, *((DELETABLE,) if deletes else ())))
    return f'path "{mount}/{RETIRING}" {{ capabilities = ["update"] allowed_parameters = {{ {allowed} }} }}\n'


def deleting(mount: str) -> str:
    """The two rules, in the place of those for these paths, that let a destroyed key's copies be deleted, in HCL."""
    return f"{line(f'{mount}/{READING}', ('read', 'delete')).strip()} {retiring(mount, deletes=True).strip()}"


def lines(mount: str, path: str) -> str:
    """The rule that allows ``path`` below the mount, for a refusal that says what is missing."""
    for known, rights in RIGHTS.items():
        if len(known.split("/")) == len(path.split("/")) and all(
            want in {"+", have} for want, have in zip(known.split("/"), path.split("/"), strict=True)
        ):
            return line(f"{mount}/{known}", rights).strip()
    return SELF.strip()


def line(path: str, rights: tuple[str, ...]) -> str:
    """One rule of a policy, in HCL."""
    listed = ", ".join(f'"{right}"' for right in rights)
    return f'path "{path}" {{ capabilities = [{listed}] }}\n'


SELF = line("sys/capabilities-self", ("update",))
"""Lets ``broker target check`` say what a token lacks before an import finds out (the default policy has it too)."""
