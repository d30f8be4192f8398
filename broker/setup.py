"""`init`: a token with the broker's own keys, its CAs, the first policy and operator. What is there is kept."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker import belonging, first, own_files, own_keys, profiles, row_key
from broker.adoption import adopt
from broker.config import DRAFT, Config, load
from broker.core.audit.heads import Heads
from broker.core.errors import InvalidRequest, WrongState
from broker.core.kinds import Own, Purpose
from broker.core.model import PolicyDocument
from broker.core.names import check_name
from broker.core.operators.authority import BACKDATED, Authority, check_server_names
from broker.core.operators.register import note_certificate, operator_uri
from broker.core.ports import Device, Now, Store
from broker.core.reasons import Reason
from broker.hsm.config import HsmConfig
from broker.hsm.features import refuse_unfit
from broker.hsm.login import serial_number
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.hsm.tokens import create_softhsm_token, find_softhsm, softhsm_environment
from broker.private_files import taking_turns, write_private
from broker.rpc.tls import read_key
from broker.store.condition import Condition
from broker.store.sql import SqlStore
from broker.wishes import Token, Wishes, ignored, planned, reached, refuse_other, server_names

__all__ = ["Token", "Wishes"]

Tell = Callable[[str], None]

FILE = "broker.toml"
SERVER_LIFE = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)
RENEW_AT_LAST = timedelta(days=20)
"""How long before its end a certificate is renewed by a process that is not the one to do it."""
PAGE_KEY_BYTES = 32
ADMIN_LIFE = timedelta(hours=12)
ROOM = 16 * 2**20
"""Bytes that must be free where a broker is made."""


def initialise(wishes: Wishes, now: Now, tell: Tell = lambda _: None) -> Config:
    """Make what is missing below ``wishes.folder``, once all that was wished has been tried; else nothing is made.

    Tried are names and addresses, the folder, the database and, unless it is to be made too, the token. The
    configuration has the name of a draft until all is there, so that what a crash leaves is known for that, and the
    next run goes on with it as that one wishes. A finished broker.toml is obeyed and not rewritten; what it does not
    follow is told. The certificate is made good for further hosts, and the operator's profile is renewed; one of
    another name is added, as an admin too, with a profile of its own. The broker must not be running on the same SQLite
    file. ``tell`` gets a sentence for whatever was kept, ignored or changed besides.
    """
    file = wishes.folder / FILE
    draft = wishes.folder / (FILE + DRAFT)
    existed = file.exists()
    text, config = ("", load(file)) if existed else planned(wishes, _token(wishes), file)
    check_name(wishes.operator, "operator")
    _refuse_leftover(wishes, file if existed else draft)
    check_server_names(list(server_names(config, wishes.hosts)))
    profile = profiles.folder_of(wishes.folder, wishes.operator, config.trust_domain)
    before = _tried(config, wishes.folder)
    with ExitStack() as open_parts:
        hsm = open_parts.enter_context(closing(Pkcs11Hsm(config.hsm))) if existed or wishes.token else None
        if hsm:
            _check_token(config, hsm, anew=not existed)
        _lay_out(config, wishes)
        if not existed:
            write_private(draft, text.encode())
        if hsm is None:
            softhsm_token(wishes.folder)
            hsm = open_parts.enter_context(closing(Pkcs11Hsm(config.hsm)))
            _check_token(config, hsm, anew=True)
        _make(config, wishes, hsm, profile, now, tell, anew=not existed)
    if not existed:
        draft.replace(file)
        return config
    for one in ignored(wishes, config):
        tell(f"ignored: {one}")
    if before.older:
        tell(f"the database was migrated from revision {before.revision}; there is no way back but a backup")
    return config


def _refuse_leftover(wishes: Wishes, there: Path) -> None:
    """What was begun with one token and database is not gone on with in another."""
    if there.exists():
        refuse_other(wishes, load(there), there)


def _tried(config: Config, folder: Path) -> Condition:
    """What the database is; refused when there, or in the folder, nothing could be made."""
    ancestor = next(one for one in (folder, *folder.parents) if one.exists())
    if not ancestor.is_dir():
        raise InvalidRequest(Reason.FOLDER_INVALID, f"{ancestor} is a file; name a folder.")
    if not os.access(ancestor, os.W_OK | os.X_OK, effective_ids=True):
        raise InvalidRequest(
            Reason.FOLDER_INVALID, f"Nothing can be made in {ancestor}: it is read-only for this user."
        )
    room = os.statvfs(ancestor)
    if room.f_blocks and room.f_bavail * room.f_frsize < ROOM:
        raise WrongState(
            Reason.DISK_ALMOST_FULL, f"Less than {ROOM // 2**20} MiB are free in {ancestor}; make room first."
        )
    found = SqlStore.condition(config.store)
    belonging.refuse_unknown_rows(config, found)
    return found


def _lay_out(config: Config, wishes: Wishes) -> None:
    folder = wishes.folder
    hosts = (folder / "credentials" / host for host in wishes.allowed_targets if host in config.targets.allowed_hosts)
    for part in (folder, folder / "certificates", folder / "credentials", *hosts, folder / "journal"):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)


def _make(config: Config, wishes: Wishes, hsm: Pkcs11Hsm, profile: Path, now: Now, tell: Tell, *, anew: bool) -> None:
    SqlStore.migrate(config.store)
    new = new_row_key(config, hsm)
    key, genuine = row_key.row_key(config, hsm, new), own_keys.genuine(config)
    with closing(SqlStore(config.store, key, now, genuine, role="init", passing=True, adopting=bool(new))) as store:
        keep_row_key(config)
        _fill(config, wishes, store, hsm, profile, now, tell, anew=anew)


def new_row_key(config: Config, hsm: Device) -> str:
    """The file of a key that has vouched for nothing yet, made if it must be; "" when there is one that has.

    Rows are vouched for as they are under a new key alone: else an attacker who emptied the ledger would only have to
    wait for the next run of `init`.
    """
    file, draft = config.certificates / row_key.FILE, config.certificates / row_key.NEW
    with taking_turns(config.certificates):
        if file.exists():
            return ""
        if not draft.exists():
            write_private(draft, row_key.wrapped(config, hsm))
        return draft.name


def keep_row_key(config: Config) -> None:
    """From now on the new key is the key."""
    draft = config.certificates / row_key.NEW
    with taking_turns(config.certificates):
        if draft.exists():
            draft.replace(config.certificates / row_key.FILE)


def page_key(config: Config) -> bytes:
    """The key of the page tokens, which all processes on one database must share; WrongState ``NOT_INITIALISED``."""
    file = config.certificates / own_files.PAGE_FILE
    found = read_key(file) if file.exists() else b""
    if len(found) != PAGE_KEY_BYTES:
        raise WrongState(
            Reason.NOT_INITIALISED, f"{file} is missing or damaged; remove it and run `broker init` for this folder."
        )
    return found


def renew_server_certificate(
    config: Config, device: Device, now: datetime, hosts: tuple[str, ...] = (), *, before: timedelta = RENEW_BEFORE
) -> bool:
    """Sign a new server certificate if it is time to; True when one was written.

    That is when there is none, or it lapses within ``before``, is not valid yet (the clock was ahead), is of a former
    version of the CA, or lacks one of ``hosts``. The names are those of the certificate it replaces, and ``hosts``. A
    certificate that another CA has signed is left alone: the one who put it there renews it. Processes take turns.
    WrongState ``CERTIFICATE_NOT_WRITTEN`` when the system does not let it.
    """
    try:
        with taking_turns(config.certificates):
            return _renew_server_certificate(config, device, now, hosts, before)
    except OSError as error:
        raise WrongState(
            Reason.CERTIFICATE_NOT_WRITTEN,
            f"The new server certificate cannot be written ({error.filename}: {error.strerror}); {_MEND}",
        ) from error


_MEND = (
    "make that folder writable to the broker's user, or name a certificate of your own CA (certificate_file and "
    "key_file under [server]), which the broker leaves to you."
)


def check_renewable(config: Config) -> None:
    """WrongState ``CERTIFICATE_NOT_RENEWABLE`` if the broker's own certificate could not be replaced when due."""
    file = config.server.certificate_file
    if not signed_here(own_keys.certificate(file), config):
        return
    for folder in {file.parent, config.server.key_file.parent}:
        probe = folder / f".writable.{secrets.token_hex(8)}"
        try:
            write_private(probe, b"")
            probe.unlink()
        except OSError as error:
            raise WrongState(
                Reason.CERTIFICATE_NOT_RENEWABLE,
                f"Nothing can be written in {folder} ({error.strerror}), and the server's certificate is to be renewed "
                f"there before it lapses; {_MEND}",
            ) from error


def refuse_future_ca(config: Config, now: datetime) -> None:
    """WrongState ``CERTIFICATE_NOT_YET_VALID`` for a CA whose certificate starts after ``now``: a clock is wrong."""
    for purpose in (Purpose.SERVER_CA, Purpose.OPERATOR_CA):
        file = config.certificates / f"{purpose}.pem"
        start = own_keys.certificate(file).not_valid_before_utc
        if start > now:
            raise WrongState(
                Reason.CERTIFICATE_NOT_YET_VALID,
                f"{file} starts at {start:%Y-%m-%d %H:%M:%S} UTC, and this host's clock says {now:%Y-%m-%d %H:%M:%S}: "
                "set the clock. Was it ahead when the broker was made, make the broker anew, in another folder and "
                "token.",
            )


def _renew_server_certificate(
    config: Config, device: Device, now: datetime, hosts: tuple[str, ...], before: timedelta
) -> bool:
    file = config.server.certificate_file
    if file.exists():
        old = own_keys.certificate(file)
        names = _names_in(old)
        further = [name for name in hosts if name not in names]
        sound = old.not_valid_before_utc <= now < old.not_valid_after_utc - before
        sound &= _issued(old, own_files.active(config, Own.SERVER_CA).certificate)
        if (sound and not further) or not signed_here(old, config):
            return False
        hosts = (*names, *further)
    ca = own_keys.authority(config, device, Purpose.SERVER_CA)
    key, csr = make_request()
    pem, _ = ca.server(csr, list(hosts), now - BACKDATED, SERVER_LIFE)
    write_private(config.server.key_file, key)
    write_private(file, pem + own_files.links(config))
    return True


def _names_in(certificate: x509.Certificate) -> tuple[str, ...]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return tuple(str(name.value) for name in names)


def signed_here(certificate: x509.Certificate, config: Config) -> bool:
    """Whether the broker's own CA has signed it, in whichever version, so that the broker renews it."""
    return any(_issued(certificate, one.certificate) for one in own_files.known(config, Own.SERVER_CA))


def _issued(certificate: x509.Certificate, ca: str) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.encode()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def policy_in_force(store: Store) -> PolicyDocument:
    """The newest document; WrongState ``NOT_INITIALISED`` when there is none, ``ROW_FORGED`` for one that is not it."""
    newest = store.last(PolicyDocument)
    if newest is None:
        raise WrongState(
            Reason.NOT_INITIALISED, "The database holds no policy; run `broker init` for this folder again."
        )
    store.get(PolicyDocument, newest.version + 1)  # refused if a newer one was removed by somebody else
    return newest


def make_request() -> tuple[bytes, bytes]:
    """A fresh EC P-256 key and a CSR for it: (PKCS#8 PEM, PKCS#10 PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, csr.public_bytes(serialization.Encoding.PEM)


def _token(wishes: Wishes) -> Token:
    """The token to use, with the serial number that tells it from one that is labelled so later."""
    token = wishes.token
    if token is None:
        return _own_token(wishes.folder)
    meant = HsmConfig(
        module=Path(token.module),
        token_label=token.label,
        token_serial=token.serial or None,
        pin_file=token.pin_file,
        environment=dict(token.environment),
    )
    return replace(token, serial=serial_number(meant))


def _check_token(config: Config, hsm: Pkcs11Hsm, *, anew: bool) -> None:
    """Refuse a token that another broker uses, or on which none can be made."""
    if anew:
        refuse_unfit(hsm.report())
    if own_keys.refuse_taken(config, hsm):
        hsm.drop_claims(hsm.claims())  # left by a broker whose keys are gone


def _own_token(folder: Path) -> Token:
    """The token that `init` makes where none is named."""
    environment = {"SOFTHSM2_CONF": str(folder / "softhsm" / "softhsm2.conf")}
    return Token(module=str(find_softhsm()), label="broker", pin_file=folder / "hsm-pin", environment=environment)


def softhsm_token(folder: Path) -> Token:
    """A fresh token, or the one that an earlier run had made when it was interrupted."""
    token = _own_token(folder)
    if not token.pin_file.exists():
        write_private(token.pin_file, secrets.token_urlsafe(18).encode())
    if not softhsm_environment(folder / "softhsm"):
        pin = token.pin_file.read_text(encoding="ascii")
        create_softhsm_token(folder / "softhsm", token.label, pin, secrets.token_urlsafe(18))
    return token


def _fill(
    config: Config,
    wishes: Wishes,
    store: SqlStore,
    device: Pkcs11Hsm,
    profile: Path,
    now: Now,
    tell: Tell,
    *,
    anew: bool,
) -> None:
    if count := adopt(config, store, device):
        call = first.call("-/AdoptKeys", "broker/broker", now)
        call.note(count=count)
        store.record(call.outcome())
    own_keys.make(config, device, now())
    own_keys.check_internal_keys(config, device)  # what is there already goes into a profile
    refuse_future_ca(config, now())
    if not (file := config.certificates / own_files.PAGE_FILE).exists() and not own_files.rotated(config, Own.PAGE):
        write_private(file, secrets.token_bytes(PAGE_KEY_BYTES))
    _certify(config, wishes, device, now(), tell, anew=anew)
    audit_key = own_keys.internal_key(config, Purpose.AUDIT)
    heads = Heads.unasked(store, device.keyring(Purpose.AUDIT), audit_key, now)
    heads.begin()
    first.policy(store, now)
    first.root(store, device.keyring(Purpose.ROOT), config.trust_domain, policy_in_force(store), now)
    first.operator(store, wishes.operator, now)
    ca = own_keys.authority(config, device, Purpose.OPERATOR_CA)
    _profile(config, wishes, store, ca, profile, now, tell)
    store.finish()
    heads.sign_due()


def _certify(config: Config, wishes: Wishes, device: Device, now: datetime, tell: Tell, *, anew: bool) -> None:
    """The server's certificate; what an `init` that did not end has signed is signed again, for today's hosts alone."""
    file = config.server.certificate_file
    if anew and file.exists() and signed_here(own_keys.certificate(file), config):
        file.unlink()
    hosts = wishes.hosts if file.exists() else server_names(config, wishes.hosts)
    written = renew_server_certificate(config, device, now, hosts)
    names = _names_in(own_keys.certificate(file))
    if lacking := [host for host in wishes.hosts if host not in names]:
        tell(f"ignored: --host {', '.join(lacking)} (the server's certificate is of another CA)")
    elif written and not anew:
        tell(f"a new server certificate is for {', '.join(names)}")


def _profile(config: Config, wishes: Wishes, store: Store, ca: Authority, folder: Path, now: Now, tell: Tell) -> None:
    """The first operator's profile, with a client certificate, as the CLI takes it."""
    key, csr = make_request()
    uri = operator_uri(config.trust_domain, wishes.operator)
    pem, serial = ca.client(csr, uri, first.since(store, wishes.operator, now), ADMIN_LIFE)
    call = first.call("-/FirstCertificate", f"operator/{wishes.operator}", now)
    call.note(certificate_serial=serial)
    with store.write(call.outcome()) as write:
        until = x509.load_pem_x509_certificate(pem).not_valid_after_utc
        note_certificate(write, wishes.operator, ca.certificate, until)
    address = reached(config.server.operators_address)
    server_ca = own_files.active(config, Own.SERVER_CA).certificate.encode()
    other = profiles.write(folder, key, pem, server_ca, address)
    if other:
        tell(f"{folder / profiles.FILE} is kept; it calls {other}, and the broker is at {address}")
