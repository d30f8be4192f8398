"""The folder that the CLI takes as it is: an operator's key and certificate, where the broker is, and whom to trust."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from cryptography import x509

from broker.core.errors import WrongState
from broker.core.operators.register import operator_uri
from broker.core.reasons import Reason
from broker.private_files import write_private

FILE = "profile.toml"
_FILES = {FILE, "key.pem", "cert.pem", "ca.pem"}


def folder_of(broker: Path, operator: str, trust_domain: str) -> Path:
    """Where the operator's profile is or will be: ``profile``, or ``profile-NAME`` where that is somebody else's.

    WrongState ``PROFILE_IN_THE_WAY`` when both are: no profile is overwritten but the operator's own.
    """
    own = operator_uri(trust_domain, operator)
    for folder in (broker / "profile", broker / f"profile-{operator}"):
        if _holder(folder) in {"", own}:
            return folder
    raise WrongState(
        Reason.PROFILE_IN_THE_WAY, f"{folder} holds something else than {operator}'s profile; move it away."
    )


def write(folder: Path, key: bytes, certificate: bytes, ca: bytes, address: str) -> str:
    """Put the files there. A profile.toml that is there is kept; the address that it names when it is another one."""
    folder.mkdir(mode=0o700, exist_ok=True)
    write_private(folder / "key.pem", key)
    write_private(folder / "cert.pem", certificate)
    write_private(folder / "ca.pem", ca)
    if (there := _address(folder / FILE)) is not None:
        return there if there != address else ""
    settings = f'address = {json.dumps(address)}\nca = "ca.pem"\ncertificate = "cert.pem"\nkey = "key.pem"\n'
    write_private(folder / FILE, settings.encode())
    return ""


def _holder(folder: Path) -> str:
    """The URI in the certificate there; "" when there is nothing, or a half-made profile; "?" for anything else."""
    if not folder.is_dir():
        return "?" if folder.is_symlink() or folder.exists() else ""
    try:
        certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
    except FileNotFoundError:
        strange = [one for one in folder.iterdir() if one.name not in _FILES and one.name[0] != "."]
        return "?" if strange else ""
    except (ValueError, x509.ExtensionNotFound, IndexError):
        return "?"


def _address(file: Path) -> str | None:
    try:
        return str(tomllib.loads(file.read_text("utf-8-sig"))["address"])
    except (OSError, ValueError, KeyError):
        return None
