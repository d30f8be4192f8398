"""`init`: a token with the broker's own keys, its CAs, the first policy and operator. What is there is kept."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker import own_keys, row_key
from broker.adoption import adopt
from broker.config import Config, load
from broker.core import policy
from broker.core.authority import Authority
from broker.core.call import Call
from broker.core.errors import InvalidRequest, WrongState
from broker.core.guard import Guard
from broker.core.heads import Heads
from broker.core.kinds import OperatorState, Purpose
from broker.core.model import Operator, PolicyDocument, Principal
from broker.core.names import check_name
from broker.core.operators import operator_uri
from broker.core.ports import Device, Hsm, Now, Store
from broker.core.roots import Roots, known_roots
from broker.core.sealing import Sealing
from broker.hsm.config import HsmConfig
from broker.hsm.features import refuse_unfit
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.hsm.tokens import create_softhsm_token, find_softhsm, softhsm_environment
from broker.own_keys import write_private
from broker.rpc.tls import read_key
from broker.store.genuine import genuine_by
from broker.store.sql import SqlStore

SERVER_LIFE = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)
RENEW_AT_LAST = timedelta(days=20)
"""How long before its end a certificate is renewed by a process that is not the one to do it."""
PAGE_KEY_BYTES = 32
ADMIN_LIFE = timedelta(hours=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An initialised PKCS#11 token and how to log in to it."""

    module: str
    label: str
    pin_file: Path
    serial: str = ""  # "": there is one of the label only
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What can be chosen when a broker is made; everything else follows from it."""

    folder: Path  # absolute
    operator: str = "admin"
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    operators_address: str = "127.0.0.1:7443"
    pipelines_address: str = "127.0.0.1:7444"
    allowed_targets: tuple[str, ...] = ()
    credentials_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    allowed_issuers: tuple[str, ...] = ()  # "host:port", those at private addresses only
    database: str = ""  # "" is SQLite in the folder
    development: bool = False
    token: Token | None = None  # None: make a SoftHSM token in the folder


def initialise(wishes: Wishes, now: Now) -> Config:
    """Make what is missing below ``wishes.folder``; a second run only renews the first operator's certificate.

    An existing broker.toml is obeyed and not rewritten. An operator of another name than at the first run is added, as
    an admin too. The broker must not be running on the same SQLite file.
    """
    check_name(wishes.operator, "operator")
    folder = wishes.folder
    hosts = (folder / "credentials" / host for host in wishes.allowed_targets)
    for part in (folder, folder / "certificates", folder / "credentials", *hosts, folder / "journal"):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "broker.toml"
    if not file.exists():
        draft = folder / "broker.toml.draft"
        token = _tried(wishes.token) if wishes.token else _softhsm(folder)
        write_private(draft, _toml(wishes, token).encode())
        try:
            load(draft)  # what cannot be read is refused now, and not found by the next start
        except InvalidRequest:
            draft.unlink()
            raise
        draft.replace(file)
    config = load(file)
    SqlStore.migrate(config.store)
    with closing(Pkcs11Hsm(config.hsm)) as hsm:
        own_keys.refuse_taken(config, hsm)
        new = _new_row_key(config, hsm)
        key, genuine = row_key.row_key(config, hsm, new), genuine_by(config.certificates / "audit.pem")
        with closing(SqlStore(config.store, key, now, genuine, role="init", passing=True, adopting=bool(new))) as store:
            _keep_row_key(config)
            _fill(config, wishes, store, hsm, now)
    return config


def _new_row_key(config: Config, hsm: Device) -> str:
    """The file of a key that has vouched for nothing yet, made if it must be; "" when there is one that has.

    Rows are vouched for as they are under a new key alone: else whoever emptied the ledger would only have to wait for
    the next run of `init`.
    """
    file, draft = config.certificates / row_key.FILE, config.certificates / row_key.NEW
    with _taking_turns(config.certificates):
        if file.exists():
            return ""
        if draft.exists():
            return draft.name
        if SqlStore.vouched(config.store):
            raise WrongState(
                "ROW_KEY_MISSING",
                f"{file} is gone, and the database's rows are vouched for by it: put it back from a backup, or name an "
                "empty database.",
            )
        write_private(draft, row_key.wrapped(config, hsm))
        return draft.name


def _keep_row_key(config: Config) -> None:
    """From now on the new key is the key."""
    draft = config.certificates / row_key.NEW
    with _taking_turns(config.certificates):
        if draft.exists():
            draft.replace(config.certificates / row_key.FILE)


def page_key(config: Config) -> bytes:
    """The key of the page tokens, which all processes on one database must share; WrongState ``NOT_INITIALISED``."""
    file = config.certificates / "page.key"
    found = read_key(file) if file.exists() else b""
    if len(found) != PAGE_KEY_BYTES:
        raise WrongState("NOT_INITIALISED", f"{file} is missing or spoilt; run `broker init` for this folder first.")
    return found


def renew_server_certificate(
    config: Config, device: Device, now: datetime, hosts: tuple[str, ...] = (), *, before: timedelta = RENEW_BEFORE
) -> bool:
    """Sign a new server certificate when there is none or it lapses within ``before``; True when one was written.

    The names are those of the certificate it replaces, or ``hosts`` for the first one. A certificate that another CA
    has signed is left alone: whoever put it there renews it. Processes take turns.
    """
    with _taking_turns(config.certificates):
        return _renew_server_certificate(config, device, now, hosts, before)


@contextmanager
def _taking_turns(folder: Path) -> Iterator[None]:
    """Alone among all processes with this folder: a key and a certificate of two of them would not fit together."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _renew_server_certificate(
    config: Config, device: Device, now: datetime, hosts: tuple[str, ...], before: timedelta
) -> bool:
    file = config.server.certificate_file
    if file.exists():
        try:
            old = x509.load_pem_x509_certificate(file.read_bytes())
        except ValueError as error:
            raise own_keys.damaged(file) from error
        if old.not_valid_after_utc - now > before or not _signed_here(old, config):
            return False
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = tuple(str(name.value) for name in names)
    ca = own_keys.authority(config, device, Purpose.SERVER_CA)
    key, csr = make_request()
    pem, _ = ca.server(csr, list(hosts), now, SERVER_LIFE)
    write_private(config.server.key_file, key)
    write_private(file, pem)
    return True


def _signed_here(certificate: x509.Certificate, config: Config) -> bool:
    try:
        certificate.verify_directly_issued_by(
            x509.load_pem_x509_certificate((config.certificates / "server-ca.pem").read_bytes())
        )
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def policy_in_force(store: Store) -> PolicyDocument:
    """The newest document; WrongState ``NOT_INITIALISED`` when there is none, ``ROW_FORGED`` for one that is not it."""
    newest: PolicyDocument | None = None
    while batch := store.page(PolicyDocument, after=(newest.version,) if newest else (), limit=1000):
        newest = batch[-1]
    if newest is None:
        raise WrongState("NOT_INITIALISED", "The store holds no policy; run `broker init` for this broker first.")
    store.get(PolicyDocument, newest.version + 1)  # refused if a newer one was removed by somebody else
    return newest


def make_request() -> tuple[bytes, bytes]:
    """A fresh EC P-256 key and a CSR for it: (PKCS#8 PEM, PKCS#10 PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, csr.public_bytes(serialization.Encoding.PEM)


def _tried(token: Token) -> Token:
    """The token with its serial number, once it was seen that a broker can be made on it."""
    config = HsmConfig(
        module=Path(token.module),
        token_label=token.label,
        token_serial=token.serial or None,
        pin_file=token.pin_file,
        environment=dict(token.environment),
    )
    with closing(Pkcs11Hsm(config)) as hsm:
        refuse_unfit(hsm.report())
        return replace(token, serial=hsm.report().token_serial)


def _softhsm(folder: Path) -> Token:
    """A fresh token, or the one that an earlier run had made when it was interrupted."""
    pin_file = folder / "hsm-pin"
    if not pin_file.exists():
        write_private(pin_file, secrets.token_urlsafe(18).encode())
    environment = softhsm_environment(folder / "softhsm")
    if not environment:
        pin = pin_file.read_text(encoding="ascii")
        environment = create_softhsm_token(folder / "softhsm", "broker", pin, secrets.token_urlsafe(18))
    return Token(module=str(find_softhsm()), label="broker", pin_file=pin_file, environment=environment)


def _free(address: str) -> str:
    """``address``, with a port that is free now in place of port 0."""
    host, _, port = address.rpartition(":")
    if port != "0":
        return address
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def _toml(wishes: Wishes, token: Token) -> str:
    folder = wishes.folder
    database = wishes.database or f"sqlite:///{folder / 'broker.db'}"
    parts: dict[str, dict[str, object]] = {
        "": {
            "trust_domain": "broker.internal",
            "certificates": str(folder / "certificates"),
            "development": wishes.development,
        },
        "hsm": {
            "module": token.module,
            "token_label": token.label,
            **({"token_serial": token.serial} if token.serial else {}),
            "pin_file": str(token.pin_file),
        },
        "hsm.environment": dict(token.environment),
        "store": {"url": database, "journal": str(folder / "journal")},
        "server": {
            "operators_address": _free(wishes.operators_address),
            "pipelines_address": _free(wishes.pipelines_address),
            "certificate_file": str(folder / "certificates" / "server.pem"),
            "key_file": str(folder / "certificates" / "server.key"),
            "operator_ca_file": str(folder / "certificates" / "operator-ca.pem"),
        },
        "targets": {"allowed_hosts": list(wishes.allowed_targets), "credentials": str(folder / "credentials")},
        "targets.credentials_for": {json.dumps(name): list(whose) for name, whose in wishes.credentials_for.items()},
        "oidc": {"allowed_hosts": list(wishes.allowed_issuers)},
    }
    lines = []
    for title, values in parts.items():
        lines += [f"\n[{title}]"] if title else []
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _fill(config: Config, wishes: Wishes, store: SqlStore, device: Pkcs11Hsm, now: Now) -> None:
    if count := adopt(config, store, device):
        call = _call("-/AdoptKeys", "broker/broker", now)
        call.note(count=count)
        store.record(call.outcome())
    own_keys.make(config, device, now())
    if not (file := config.certificates / "page.key").exists():
        write_private(file, secrets.token_bytes(PAGE_KEY_BYTES))
    renew_server_certificate(config, device, now(), _names(config, wishes))
    audit_key = own_keys.internal_key(config, Purpose.AUDIT)
    heads = Heads.unasked(store, device.keyring(Purpose.AUDIT), audit_key, now)
    heads.begin()
    _first_policy(store, now)
    _first_root(config, store, device.keyring(Purpose.ROOT), now)
    _first_operator(store, wishes.operator, now)
    _profile(config, wishes, store, own_keys.authority(config, device, Purpose.OPERATOR_CA), now)
    store.finish()
    heads.sign_due()


def _names(config: Config, wishes: Wishes) -> tuple[str, ...]:
    """What the first server certificate is for: what was wished, and what the addresses themselves say."""
    addresses = (config.server.operators_address, config.server.pipelines_address)
    own = (_reached(address).rpartition(":")[0].strip("[]") for address in addresses)
    return tuple(dict.fromkeys((*wishes.hosts, *own)))


def _reached(address: str) -> str:
    """How the broker is called from its own host: nobody can call an address that only says "all of mine"."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in {"0.0.0.0", "[::]"} else address  # noqa: S104  compared, not bound to


def _call(rpc: str, resource: str, now: Now) -> Call:
    principal = Principal(kind="broker", name="init")
    return Call(id=secrets.token_hex(16), rpc=rpc, principal=principal, peer="", now=now, resource=resource)


def _first_policy(store: Store, now: Now) -> None:
    if store.get(PolicyDocument, 1):
        return
    document = PolicyDocument(version=1, text=policy.FIRST_POLICY, author="broker/init", created_at=now())
    call = _call("-/FirstPolicy", "broker/broker", now)
    call.note(policy_version=1)
    with store.write(call.outcome()) as write:
        write.add(document)


def _first_root(config: Config, store: Store, hsm: Hsm, now: Now) -> None:
    """The root key that the data keys of secrets are wrapped with; one that a crash left half made is completed."""
    sealing = Sealing(hsm, known_roots(store), now, timedelta(0), tenant=config.trust_domain)
    roots = Roots(store, hsm, sealing, Guard(policy_in_force(store)), now)
    roots.ensure(_call("-/FirstRootKey", "root/1", now))


def _first_operator(store: Store, name: str, now: Now) -> None:
    if store.get(Operator, name):
        return
    start = now().replace(microsecond=0)
    operator = Operator(name=name, groups=("admins",), state=OperatorState.ENABLED, not_before=start, created_at=start)
    call = _call("-/FirstOperator", f"operator/{name}", now)
    with store.write(call.outcome()) as write:
        write.add(operator)


def _profile(config: Config, wishes: Wishes, store: Store, ca: Authority, now: Now) -> None:
    """A folder that the CLI takes as it is: the first operator's key and certificate, and whom to trust."""
    folder = wishes.folder / "profile"
    folder.mkdir(mode=0o700, exist_ok=True)
    key, csr = make_request()
    start = now().replace(microsecond=0)
    pem, serial = ca.client(csr, operator_uri(config.trust_domain, wishes.operator), start, ADMIN_LIFE)
    call = _call("-/FirstCertificate", f"operator/{wishes.operator}", now)
    call.note(certificate_serial=serial)
    store.record(call.outcome())
    write_private(folder / "key.pem", key)
    write_private(folder / "cert.pem", pem)
    write_private(folder / "ca.pem", (config.certificates / "server-ca.pem").read_bytes())
    address = json.dumps(_reached(config.server.operators_address))
    write_private(
        folder / "profile.toml",
        f'address = {address}\nca = "ca.pem"\ncertificate = "cert.pem"\nkey = "key.pem"\n'.encode(),
    )
