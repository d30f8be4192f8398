"""Where the broker is and who we are to it: flag before environment before profile.

A profile is a folder: ``profile.toml`` {address, ca, certificate, key}, the last three naming PEM files beside it.
Profiles live in ``$XDG_CONFIG_HOME/broker/profiles/NAME`` (``~/.config`` when unset); ``default`` is used unless named.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker_cli import ca, files
from broker_cli.refusal import Exit, Refusal

FILE = "profile.toml"
FIELDS = ("address", "ca", "certificate", "key")
MAX_PEM = 64 * 1024
MAX_PORT = 65535
ADDRESS_FROM = "--address, BROKER_ADDRESS or the profile"
_SCHEME = "https://"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", re.ASCII)
ADDRESS = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\]):(\d{1,5})", re.ASCII)


def address(text: str, where: str) -> str:
    """HOST:PORT of what was given as the broker's address at ``where``; ``https://`` and a slash at the end are let be.

    The port is not guessed: operators and pipelines have one each.
    """
    found = text.strip()
    found = found[len(_SCHEME) :] if found[: len(_SCHEME)].lower() == _SCHEME else found
    found = found.removesuffix("/")
    if ADDRESS.fullmatch(found) and int(found.rpartition(":")[2]) <= MAX_PORT:
        return found
    said = f"is {text[:100]!a}" if text else "is not said"
    raise Refusal(
        "ADDRESS_INVALID",
        f"The broker's address {said}: write HOST:PORT ([ADDRESS]:PORT for IPv6), and no path, with {where}.",
        Exit.USAGE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where everything is, before any of it was read. Paths may be None when nobody said."""

    address: str
    ca: Path | None
    certificate: Path | None
    key: Path | None
    folder: Path | None  # the profile's, None when there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a channel needs, read and checked."""

    address: str
    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def profile_folder(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of a profile that is named, or given as a folder (anything with a slash, and ``.``)."""
    if "/" in name or name == ".":
        return Path(name)
    if not NAME.fullmatch(name):
        raise Refusal(
            "PROFILE_NAME_INVALID", "The profile's name is not valid: lower-case letters, digits, - _ .", Exit.USAGE
        )
    return _settings_folder(environ) / "broker" / "profiles" / name


def _settings_folder(environ: Mapping[str, str]) -> Path:
    if told := environ.get("XDG_CONFIG_HOME"):
        return Path(told)
    try:
        return Path(environ.get("HOME") or "~").expanduser() / ".config"
    except RuntimeError:  # neither HOME nor an entry in /etc/passwd, as in many containers
        raise Refusal(
            "PROFILE_MISSING",
            "This user has no home folder, so no profile of its own: name a folder (--profile FOLDER/ or "
            "BROKER_PROFILE), or give --address, --ca-file, --cert and --key.",
            Exit.NOT_LOGGED_IN,
        ) from None


def locate(flags: Mapping[str, str | None], environ: Mapping[str, str] = os.environ) -> Place:
    """Put together where everything is. ``flags`` and the environment go before the profile, one by one."""
    given = {
        "address": flags.get("address") or environ.get("BROKER_ADDRESS"),
        "ca": flags.get("ca_file") or environ.get("BROKER_CA_FILE"),
        "certificate": flags.get("cert") or environ.get("BROKER_CERT"),
        "key": flags.get("key") or environ.get("BROKER_KEY"),
    }
    named = flags.get("profile") or environ.get("BROKER_PROFILE")
    if named is None and all(given.values()):
        return _place(given, {}, None)
    folder = profile_folder(named or "default", environ)
    if not (folder / FILE).is_file():
        raise _missing(folder, named or "default")
    return _place(given, read_profile(folder), folder)


def read_profile(folder: Path) -> dict[str, str]:
    """The settings of a profile; every fault of the file in one refusal."""
    path = folder / FILE
    try:
        settings = tomllib.loads(files.text(files.read(path, MAX_PEM, "profile")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise Refusal("PROFILE_INVALID", f"{path} is not TOML: {fault}.") from None
    faults = [f"unknown setting {name!r}" for name in settings if name not in FIELDS]
    faults += [f"no text for {name!r}" for name in FIELDS if not isinstance(settings.get(name), str)]
    if faults:
        raise Refusal("PROFILE_INVALID", f"{path} cannot be used: {'; '.join(faults)}.")
    return settings


def load(place: Place) -> Identity:
    """Read what ``place`` names; the key must be private to us."""
    reached = address(place.address, ADDRESS_FROM)
    if place.ca is None or place.certificate is None or place.key is None:
        raise Refusal("IDENTITY_INCOMPLETE", "Give --ca-file, --cert and --key together, or a profile.", Exit.USAGE)
    try:
        authorities = ca.read(place.ca)
    except Refusal as refused:
        refused.code = Exit.FAILURE  # the profile is at fault, and not how the command was written
        raise
    found = Identity(
        address=reached,
        ca=authorities,
        certificate=files.read(place.certificate, MAX_PEM, "certificate"),
        key=files.read_private(place.key, MAX_PEM, "private key"),
    )
    # gRPC ends the process when the key is empty.
    if b"PRIVATE KEY-----" not in found.key:
        raise Refusal("KEY_INVALID", f"The private key {place.key} is not a key in PEM.")
    return found


def write(folder: Path, address: str, contents: Mapping[str, bytes]) -> None:
    """Fill a new profile folder: ``contents`` by file name, and ``profile.toml`` last, so that a torn one is none."""
    for name, content in contents.items():
        files.create(folder / name, content)
    settings = {"address": address, "ca": "ca.pem", "certificate": "cert.pem", "key": "key.pem"}
    files.create(folder / FILE, "".join(f'{name} = "{value}"\n' for name, value in settings.items()).encode())


def _missing(folder: Path, name: str) -> Refusal:
    where = f"There is no profile at {folder}"
    if "/" not in name and (Path(name) / FILE).is_file():
        cure = f'a bare name is one of your own profiles; for the folder here, write "./{name}".'
    else:
        cure = (
            'name the folder that "broker operator add" or "broker init" made (--profile FOLDER/ or BROKER_PROFILE), '
            'copy it there, or start a trial broker with "broker dev".'
        )
    return Refusal("PROFILE_MISSING", f"{where}: {cure}", Exit.NOT_LOGGED_IN)


def _place(given: Mapping[str, str | None], settings: Mapping[str, str], folder: Path | None) -> Place:
    def path(name: str) -> Path | None:
        if given[name]:
            return Path(str(given[name]))
        return folder / settings[name] if folder is not None and name in settings else None

    return Place(
        address=given["address"] or settings.get("address", ""),
        ca=path("ca"),
        certificate=path("certificate"),
        key=path("key"),
        folder=folder,
    )
