"""The broker's own keys in the token, known by the files of the folder of certificates."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from cryptography.hazmat.primitives import serialization

from broker import own_files
from broker.config import Config
from broker.core.audit.handover import related
from broker.core.authorities.known import INTERNAL_KEYS, Founding, ref
from broker.core.authorities.page_keys import opened
from broker.core.authorities.plans import TITLES
from broker.core.authorities.proofs import coherent
from broker.core.errors import NotFound, WrongState
from broker.core.kinds import KeyType, KeyUsage, Own, OwnKeyState, Purpose
from broker.core.operators.authority import Authority
from broker.core.own_key import OwnKey
from broker.core.ports import Device, KeyRef
from broker.core.reasons import Reason
from broker.own_files import certificate, damaged
from broker.private_files import write_private
from broker.store.genuine import genuine_by
from broker.store.restored import Genuine

__all__ = ["INTERNAL_KEYS", "certificate", "damaged", "write_private"]

AUDIT_KEY, OPERATOR_CA, SERVER_CA = INTERNAL_KEYS.values()


def make(config: Config, device: Device, now: datetime) -> None:
    """Make those that are missing, and the files that speak of them; what is there is kept."""
    for name, title in TITLES.items():
        if not (file := config.certificates / f"{name}.pem").exists():
            ring, hsm_id = device.keyring(name.purpose), INTERNAL_KEYS[name.purpose]
            write_private(file, Authority.create(ring, hsm_id, title, now)[1])
    if not (file := config.certificates / f"{Own.AUDIT}.pem").exists():
        spki = device.keyring(Purpose.AUDIT).generate(unmade(Purpose.AUDIT), exportable=False)
        key = serialization.load_der_public_key(spki or b"")
        pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        write_private(file, pem)


def refuse_taken(config: Config, device: Device) -> bool:
    """WrongState ``HSM_TAKEN`` when the token holds a broker's own keys, and this folder is of no broker yet.

    Whether neither folder nor token are of a broker. Two brokers in one token would have the same CAs: an operator of
    the one would be an operator of the other.
    """
    if any(config.certificates.glob("*.pem")) or any(config.certificates.glob("rows.key*")):
        return False  # a broker's, or one that an interrupted `init` has begun: that file comes before the keys
    for purpose in INTERNAL_KEYS:
        with suppress(NotFound):
            device.keyring(purpose).public_key(unmade(purpose))
            raise WrongState(
                Reason.HSM_TAKEN,
                "The token holds the keys of another broker, whose CAs and audit key this one would share; make a "
                "token of its own, or put that broker's folder `certificates` back.",
            )
    return True


def internal_key(config: Config, purpose: Purpose) -> KeyRef:
    """The version in force of one of the broker's own keys, by the files.

    WrongState ``NOT_INITIALISED`` when the file is missing, so that a broker never makes itself a new identity, and
    ``FILE_DAMAGED`` when it is no PEM.
    """
    return ref(own_files.active(config, Own(purpose.value)))


def unmade(purpose: Purpose) -> KeyRef:
    """One of the keys that ``init`` makes, of which no file says anything yet."""
    return KeyRef(hsm_id=INTERNAL_KEYS[purpose], type=KeyType.EC_P256, usage=KeyUsage.SIGN, public_key=None, name="")


def check_internal_keys(config: Config, device: Device) -> None:
    """WrongState ``HSM_NOT_OURS`` unless the token holds the very keys that the files speak of.

    So a CA that somebody else has put into the folder is not trusted. NotFound ``KEY_NOT_IN_HSM`` when the token has
    not got the one in force by these files: they may be older than a rotation. A former one may be gone.
    """
    for name in INTERNAL_KEYS:
        _check_files(config, device, Own(name.value))
    for one in own_files.known(config, Own.PAGE):
        holds(config, device, one)


def _check_files(config: Config, device: Device, name: Own) -> None:
    versions, shown = own_files.known(config, name), own_files.shown(config, name)
    for one in versions:
        holds(config, device, one)
    if shown[0] not in {one.public_key for one in versions}:
        raise _not_ours(f"{name}.pem")
    if len(shown) > 1 and not (config.certificates / own_files.FILE).exists():  # else the file follows the rows
        raise own_files.not_written(config.certificates / f"{name}.pem")


def holds(config: Config, device: Device, one: OwnKey) -> bool:
    """Whether the token holds a version of which a file speaks; not asked of one that is destroyed.

    WrongState ``HSM_NOT_OURS`` when it holds another, ``FILE_DAMAGED`` when the version is not of one key alone;
    NotFound ``KEY_NOT_IN_HSM`` when it is to be in force and is not there.
    """
    if not coherent(one):
        raise own_files.not_written(config.certificates / _file_of(config, one))
    if one.state is OwnKeyState.DESTROYED:
        return False
    return _holds_page_key(config, device, one) if one.name == Own.PAGE else _holds(config, device, one)


def _file_of(config: Config, one: OwnKey) -> str:
    return own_files.FILE if own_files.rotated(config, Own(one.name)) else f"{one.name}.pem"


def _holds_page_key(config: Config, device: Device, one: OwnKey) -> bool:
    """The first one is a file of its own, in which whatever is there is the key."""
    if one.version > 1:
        opened(device, config.trust_domain, one)
    return True


def _holds(config: Config, device: Device, one: OwnKey) -> bool:
    try:
        there = device.keyring(Own(one.name).purpose).public_key(ref(one))
    except NotFound as error:
        if one.state is not OwnKeyState.ACTIVE:
            return False
        raise NotFound(
            Reason.KEY_NOT_IN_HSM,
            f"The token has not got the key that {_file_of(config, one)} speaks of. Was it rotated since that file was "
            "written, a start takes what the database says of it. Is the database as old, or the token an older copy, "
            "put the newest backups of token, folder `certificates` and database together.",
        ) from error
    if there != one.public_key:
        raise _not_ours(_file_of(config, one))
    return True


def founding(config: Config, device: Device) -> Founding:
    """As ``own_files.founding``; each is held against the token as it was read, for the files may change meanwhile."""
    found = own_files.founding(config)
    for one in found.values():
        holds(config, device, one)
    return found


def _not_ours(file: str) -> WrongState:
    return WrongState(
        Reason.HSM_NOT_OURS,
        f"The token holds another key than {file}, which this broker was initialised with, speaks of; "
        "put the right file or the right token back.",
    )


def authority(config: Config, device: Device, purpose: Purpose) -> Authority:
    """A CA in force by the files, ready to sign."""
    one = own_files.active(config, Own(purpose.value))
    return Authority(device.keyring(purpose), ref(one), one.certificate.encode())


def genuine(config: Config) -> Genuine:
    """Tells the heads that the audit key has signed, in whichever version; none where ``init`` has made none yet."""
    handovers = [one.handover for one in own_files.mirror(config) if one.handover]

    def keys() -> set[bytes]:
        if not (config.certificates / f"{Own.AUDIT}.pem").exists():
            return set()
        public_key = own_files.active(config, Own.AUDIT).public_key
        return related([public_key] if public_key else [], handovers)

    return genuine_by(keys, config.store.journal)
