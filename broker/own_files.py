"""The broker's own keys in the folder of certificates, as this host last knew them.

The rows of the database say which versions there are. The file ``own-keys.json`` repeats them, so that a command
without the database, and a start on a database that was put back, know the keys of the token by it; whatever it says is
held against the token. Without it each key is the one that ``init`` made. The other files follow for those who read
them: TLS, and people.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from broker.config import Config
from broker.core.authorities.known import INTERNAL_KEYS, Founding, OwnKeys, links_of
from broker.core.authorities.plans import MOST_AT_ONCE, TITLES
from broker.core.errors import WrongState
from broker.core.kinds import Own, OwnKeyState
from broker.core.own_key import OwnKey
from broker.core.reasons import Reason
from broker.private_files import taking_turns, write_private

FILE = "own-keys.json"
PAGE_FILE = "page.key"
MAX_FILE = 4 * 1024 * 1024

_ORDER = tuple(OwnKeyState)


def mirror(config: Config) -> list[OwnKey]:
    """What this host last knew; [] where nothing was ever rotated. WrongState ``FILE_DAMAGED``."""
    file = config.certificates / FILE
    try:
        with file.open("rb") as opened:
            return _whole([_read(one) for one in json.loads(opened.read(MAX_FILE))])
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WrongState(
            Reason.FILE_DAMAGED, f"{file} cannot be read ({error.strerror}); let the broker do so."
        ) from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise not_written(file) from error


def not_written(file: Path) -> WrongState:
    """The refusal of a file that says what no broker has written."""
    return WrongState(Reason.FILE_DAMAGED, f"{file} is not what the broker has written; put it back from a backup.")


def _whole(found: list[OwnKey]) -> list[OwnKey]:
    """ValueError unless each is there once, and of each key one is in force; only few that were given up are newer."""
    if len({(one.name, one.version) for one in found}) != len(found):
        raise ValueError("a version is there twice")
    for name in {one.name for one in found}:
        versions = [one for one in found if one.name == name]
        newest = max(one.version for one in versions if one.state is OwnKeyState.ACTIVE)
        if not all(1 <= one.version <= newest + MOST_AT_ONCE for one in versions):
            raise ValueError("a version of another number than the broker gives")
    return found


def known(config: Config, name: Own) -> tuple[OwnKey, ...]:
    """The versions of one key as this host knows them, oldest first."""
    return tuple(one for one in mirror(config) if one.name == name) or (first(config, name),)


def active(config: Config, name: Own) -> OwnKey:
    """The one in force as this host knows it."""
    return next(one for one in reversed(known(config, name)) if one.state is OwnKeyState.ACTIVE)


def rotated(config: Config, name: Own) -> bool:
    """Whether this host knows of a rotation of the key."""
    return any(one.name == name for one in mirror(config))


def links(config: Config) -> bytes:
    """What leads a client from an earlier server CA to the one in force, PEM."""
    return links_of(known(config, Own.SERVER_CA))


def founding(config: Config) -> Founding:
    """What each key is where the database has no row of it."""
    return {name: active(config, name) for name in Own}


def first(config: Config, name: Own) -> OwnKey:
    """The version that ``init`` made; of a CA's file the first certificate alone.

    WrongState ``NOT_INITIALISED`` when its file is missing, so that a broker never makes itself a new identity, and
    ``FILE_DAMAGED`` when it is no PEM.
    """
    file = config.certificates / (PAGE_FILE if name is Own.PAGE else f"{name}.pem")
    pem = b"" if name is Own.PAGE else _pem(file)
    public_key = None if name is Own.PAGE else public_keys(file, pem)[0]
    ca = certificate(file) if name in TITLES else None
    return OwnKey(
        name=name.value,
        version=1,
        state=OwnKeyState.ACTIVE,
        hsm_id=b"" if name is Own.PAGE else INTERNAL_KEYS[name.purpose],
        public_key=public_key,
        certificate=ca.public_bytes(serialization.Encoding.PEM).decode("ascii") if ca else "",
        link="",
        handover={},
        sealed=None,
        created_at=ca.not_valid_before_utc if ca else _changed_at(file),
    )


def public_keys(file: Path, pem: bytes) -> list[bytes]:
    """The public keys (SubjectPublicKeyInfo, DER) in a file of certificates, or of one key."""
    try:
        keys = (
            [one.public_key() for one in x509.load_pem_x509_certificates(pem)]
            if b"BEGIN CERTIFICATE" in pem
            else [serialization.load_pem_public_key(pem)]
        )
    except ValueError as error:
        raise damaged(file) from error
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return [key.public_bytes(*form) for key in keys]


def shown(config: Config, name: Own) -> list[bytes]:
    """The public keys in a key's own file; of a CA's all that somebody who takes the file trusts."""
    file = config.certificates / f"{name}.pem"
    return public_keys(file, _pem(file))


def certificate(file: Path) -> x509.Certificate:
    """The first certificate in a file; WrongState ``NOT_INITIALISED`` or ``FILE_DAMAGED``."""
    try:
        return x509.load_pem_x509_certificate(_pem(file))
    except ValueError as error:
        raise damaged(file) from error


def damaged(file: Path) -> WrongState:
    """The refusal of a file in which there should be PEM."""
    return WrongState(Reason.FILE_DAMAGED, f"{file} is not PEM any more; put it back from a backup.")


def _pem(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise WrongState(
            Reason.NOT_INITIALISED,
            f"{file} cannot be read ({error.strerror}); put it back, or run `broker init` for a new folder first.",
        ) from error


def _changed_at(file: Path) -> datetime:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)
    except OSError:
        return datetime.fromtimestamp(0, UTC)


# ---- what follows the rows -------------------------------------------------------------------------------------------


def follow(config: Config, own: OwnKeys) -> bool:
    """Bring the files to what the rows say; whether one was written. The caller renews the server's certificate then.

    Nothing is written where nothing was ever rotated, nor by a process that knows less than the files.
    """
    versions = [one for name in Own for one in own.versions(name) if _is_rotated(own, name)]
    versions = [one for one in versions if one.state is not OwnKeyState.PENDING]
    if not versions and not (config.certificates / FILE).exists():
        return False
    try:
        return _brought(config, own, versions)
    except OSError as error:
        raise WrongState(
            Reason.CERTIFICATE_NOT_WRITTEN,
            f"What belongs to a rotated key cannot be written in {config.certificates} ({error.strerror}); make that "
            "folder writable to the broker's user, on each host.",
        ) from error


def _is_rotated(own: OwnKeys, name: Own) -> bool:
    return [(one.version, one.state) for one in own.versions(name)] != [(1, OwnKeyState.ACTIVE)]


def _brought(config: Config, own: OwnKeys, versions: list[OwnKey]) -> bool:
    wanted = _wanted(versions, own)
    folder = config.certificates
    if all(_content(folder / name) == content for name, content in wanted.items()):
        return _without_page_file(config, own)
    with taking_turns(folder):
        if behind(versions, mirror(config)):
            return False
        for name, content in wanted.items():  # that which the token is known by comes first
            if _content(folder / name) != content:
                write_private(folder / name, content)
    _without_page_file(config, own)
    return True


def behind(versions: Iterable[OwnKey], there: Iterable[OwnKey]) -> bool:
    """Whether the second list knows of a version, or of what became of it, what the first does not.

    A version that is only to come may have been taken back.
    """
    ours = {(one.name, one.version): one for one in versions}
    for one in there:
        own = ours.get((one.name, one.version))
        if own is None and one.state is not OwnKeyState.NEXT:
            return True
        if own is not None and own.hsm_id == one.hsm_id and _ORDER.index(own.state) < _ORDER.index(one.state):
            return True
    return False


def _wanted(versions: list[OwnKey], own: OwnKeys) -> dict[str, bytes]:
    """The files by name, in the order in which they are written."""
    audit = serialization.load_der_public_key(own.active(Own.AUDIT).public_key or b"")
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return {
        FILE: json.dumps([_written(one) for one in versions], indent=1).encode("ascii"),
        f"{Own.OPERATOR_CA}.pem": own.certificates(Own.OPERATOR_CA),
        f"{Own.SERVER_CA}.pem": own.certificates(Own.SERVER_CA),
        f"{Own.AUDIT}.pem": audit.public_bytes(*form),
    }


def _without_page_file(config: Config, own: OwnKeys) -> bool:
    """Remove the first page key's file once nobody takes what it has made."""
    file = config.certificates / PAGE_FILE
    if own.versions(Own.PAGE)[0].state is not OwnKeyState.DESTROYED or not file.exists():
        return False
    file.unlink(missing_ok=True)
    return True


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _written(one: OwnKey) -> dict[str, object]:
    return {
        "name": one.name,
        "version": one.version,
        "state": one.state.value,
        "hsm_id": one.hsm_id.hex(),
        "public_key": one.public_key.hex() if one.public_key is not None else None,
        "certificate": one.certificate,
        "link": one.link,
        "handover": dict(one.handover),
        "sealed": one.sealed.hex() if one.sealed is not None else None,
        **{name: moment.isoformat() if moment else None for name, moment in _moments(one)},
    }


def _moments(one: OwnKey) -> list[tuple[str, datetime | None]]:
    return [("created_at", one.created_at), ("since", one.since), ("until", one.until)]


def _read(one: dict[str, Any]) -> OwnKey:
    return OwnKey(
        name=Own(one["name"]).value,
        version=int(one["version"]),
        state=OwnKeyState(one["state"]),
        hsm_id=bytes.fromhex(one["hsm_id"]),
        public_key=bytes.fromhex(one["public_key"]) if one["public_key"] is not None else None,
        certificate=str(one["certificate"]),
        link=str(one["link"]),
        handover={str(name): str(value) for name, value in dict(one["handover"]).items()},
        sealed=bytes.fromhex(one["sealed"]) if one["sealed"] is not None else None,
        created_at=_moment(one["created_at"]),
        since=_moment(one["since"]) if one["since"] else None,
        until=_moment(one["until"]) if one["until"] else None,
    )


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError("a time of no zone")
    return found
