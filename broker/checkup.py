"""`check`: look at a broker's set-up from the inside, fault by fault, without serving anything."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import ssl
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from broker import belonging, own_ends, own_files, own_keys, secret_files, setup
from broker.app import counted, now, place
from broker.config import Config, load
from broker.core.claiming import Claim
from broker.core.clock import Clock
from broker.core.errors import BrokerError, WrongState
from broker.core.holding import held_work
from broker.core.kinds import Own, Purpose
from broker.core.model import Operator, PolicyDocument
from broker.core.policy import approvers
from broker.core.policy.guard import Guard
from broker.core.reasons import Reason
from broker.hsm.features import described, fit
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.row_key import row_key
from broker.rpc import addresses
from broker.rpc.tls import TlsFiles
from broker.store.dialects import open_database
from broker.store.inspection import told
from broker.store.sql import SqlStore

SOON = timedelta(days=14)
LONG = timedelta(days=180)
"""How long before its end a CA is told of: each client that trusts it must be given another one."""
CONNECT_SECONDS = 5.0
SHOWN = 5
"""Files with a fault that are named; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check. ``doubtful``: it works, and the operator in charge should know of it."""

    name: str
    passed: bool
    detail: str
    doubtful: bool = False

    @property
    def verdict(self) -> str:
        """Four characters for a list."""
        return "FAIL" if not self.passed else "WARN" if self.doubtful else "ok  "


class _Doubt(Exception):
    """What a check found to be working and yet worth a second thought."""


def run(asked: argparse.Namespace) -> int:
    """Print every finding; 0 when all passed, 10 when one did not."""
    findings = list(findings_for(asked.config))
    if asked.format == "json":
        print(json.dumps([asdict(one) for one in findings], indent=2))
    else:
        for one in findings:
            print(f"{one.verdict}  {one.name}: {one.detail}")
    return 0 if all(one.passed for one in findings) else 10


def findings_for(file: Path) -> Iterator[Finding]:
    """Every check in order; those that need a part that failed are left out."""
    try:
        config = load(file)
    except BrokerError as error:
        yield Finding(name="config", passed=False, detail=error.message)
        return
    if fault := _fault(file, file.stat(), 0o022):
        yield Finding(name="config", passed=False, detail=fault)
    else:
        yield Finding(name="config", passed=True, detail=f"{file} is complete and has no unknown key")
    for name, check in _CHECKS:
        yield _finding(name, lambda check=check: check(config))  # type: ignore[misc]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, passed=True, detail=check())
    except _Doubt as doubt:
        return Finding(name=name, passed=True, doubtful=True, detail=str(doubt))
    except BrokerError as error:
        return Finding(name=name, passed=False, detail=error.message)
    except OSError as error:
        return Finding(name=name, passed=False, detail=f"{error.filename}: {error.strerror}.")


def _private_files(config: Config) -> str:
    """Modes and owners, whatever the database is: some parts look at their own files only once they use them."""
    private, own = set(_secret_files(config)), set(_trusted_files(config))
    faults = [fault for path in sorted(private) if (fault := _secret_fault(config, path))]
    faults += [fault for path in sorted(own - private) if (fault := _fault(path, path.stat(), 0o022))]
    faults += [fault for path in _needed_files(config) if (fault := _unreadable(path))]
    if faults:
        more = f" {len(faults) - SHOWN} more are like that." if len(faults) > SHOWN else ""
        raise WrongState(Reason.FILE_TOO_OPEN, " ".join(faults[:SHOWN]) + more)
    return f"{len(private)} files and folders are the broker's alone, {len(own - private)} more nobody else may change"


def _secret_files(config: Config) -> Iterator[Path]:
    """What nobody else may read: files that hold a secret, the journal, and the folders of both."""
    yield from (config.hsm.pin_file, config.server.key_file, *config.certificates.glob("*.key"))
    yield from (one for one in config.targets.credentials.rglob("*") if not one.is_dir())
    yield from (vault.token_file for vault in config.targets.private_vaults)
    yield from (config.store.journal, *config.store.journal.iterdir())
    yield from (one for one in (config.store.password_file, config.store.passfile) if one)
    if config.store.sqlite:
        database = Path(config.store.parsed.database or "")
        yield from (one for end in ("", "-wal", "-shm") if (one := database.with_name(database.name + end)).exists())


def _trusted_files(config: Config) -> Iterator[Path]:
    """What nobody else may change: whom and what the broker believes, and what it loads."""
    yield from (config.certificates, *(one for one in config.certificates.iterdir() if one.name[0] != "."))  # no drafts
    yield from (config.server.certificate_file, config.server.operator_ca_file, Path(config.hsm.module))
    yield from (config.targets.credentials, *(one for one in config.targets.credentials.rglob("*") if one.is_dir()))
    yield from (vault.ca_file for vault in config.targets.private_vaults)
    if config.store.tls_root:
        yield config.store.tls_root


def _needed_files(config: Config) -> Iterator[Path]:
    """What is read only when it is used: at an import, a login, or the next connection."""
    yield from (one for one in config.targets.credentials.rglob("*") if not one.is_dir())
    for vault in config.targets.private_vaults:
        yield from (vault.ca_file, vault.token_file)
    for review in config.oidc.token_review:
        yield from (review.ca_file, review.token_file)


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); let the broker's user read it."
    return ""


def _secret_fault(config: Config, path: Path) -> str:
    """As ``_fault`` for what nobody else may read; a file is also judged as its reader will judge it."""
    fault = _fault(path, path.lstat(), 0o077)
    if not fault or path.is_dir():
        return fault
    try:
        secret_files.check(path, links=not path.is_relative_to(config.targets.credentials))
    except secret_files.UnusableError as error:
        return fault if path.lstat().st_uid == os.geteuid() else f"{path} {error.why}; {error.cure}."
    return ""


def _fault(path: Path, found: os.stat_result, forbidden: int) -> str:
    """What is wrong with it in a sentence; "" when nothing is."""
    mode = stat.S_IMODE(found.st_mode)
    if mode & forbidden:
        return f"{path} has mode {mode:04o}; run: chmod {mode & ~forbidden:o} {path}."
    if found.st_uid not in {0, os.geteuid()}:
        return f"{path} belongs to another user; run the doctor as the broker's user, or chown it."
    return ""


_OVERDUE = "a running broker renews it 30 days before that, so see its log for why it did not; else start it"
_NOT_OURS = "its issuer renews it, for the broker renews only what its own CA has signed"


def _certificates(config: Config) -> str:
    server = config.server
    TlsFiles(server.certificate_file, server.key_file, server.operator_ca_file).credentials()
    setup.refuse_future_ca(config, now())
    certificate = own_keys.certificate(server.certificate_file)
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    ours = setup.signed_here(certificate, config)
    if start > now():
        raise WrongState(
            Reason.CERTIFICATE_NOT_YET_VALID,
            f"The server certificate starts at {start:%Y-%m-%d %H:%M:%S} UTC, and this host's clock says "
            f"{now():%Y-%m-%d %H:%M:%S}: set the clock. If it is right, "
            f"{'start the broker again, which makes a new one' if ours else _NOT_OURS}.",
        )
    if end - now() < SOON:
        raise WrongState(
            Reason.CERTIFICATE_LAPSES, f"The server certificate ends {_day(end)}; {_OVERDUE if ours else _NOT_OURS}."
        )
    for purpose in (Purpose.SERVER_CA, Purpose.OPERATOR_CA):
        last = own_keys.certificate(config.certificates / f"{purpose}.pem").not_valid_after_utc
        if last - now() < LONG:
            raise WrongState(
                Reason.CA_LAPSES,
                f"The CA certificate {purpose}.pem ends {_day(last)}; a running broker rotates it a year before that, "
                f"so see its log for why it did not, or run `broker authority rotate {purpose}`.",
            )
    if not ours:
        raise _Doubt(
            f"the server certificate is good until {_day(end)} and not signed by server-ca.pem: {_NOT_OURS}, and every "
            "profile has to name the CA that did"
        )
    setup.check_renewable(config)
    return f"the server certificate is good until {_day(end)}, and can be renewed"


def _own_keys(config: Config) -> str:
    """How old each key of the broker's own is, and when what it is good for ends."""
    versions = [one for name in Own for one in own_files.known(config, name)]
    if found := own_ends.ending(versions, now()):
        raise _Doubt(" ".join(found))
    return own_ends.ages(versions, now())


def _hsm(config: Config) -> str:
    hsm = Pkcs11Hsm(config.hsm)
    try:
        own_keys.check_internal_keys(config, hsm)
        report = hsm.report()
    finally:
        hsm.close()
    sentence = (
        f"{report.manufacturer} {report.model}, token {report.token_label} (serial number {report.token_serial}): "
        f"login and the broker's own keys are there; {described(report)}"
    )
    if not fit(report):
        raise _Doubt(sentence)
    return sentence


def _store(config: Config) -> str:
    with closing(Pkcs11Hsm(config.hsm)) as hsm:
        own_keys.check_internal_keys(config, hsm)
        return _database(config, hsm)


def _database(config: Config, hsm: Pkcs11Hsm) -> str:
    key = row_key(config, hsm)
    try:
        genuine = own_keys.genuine(config)
        store = SqlStore(config.store, key, now, genuine, role="check", passing=True)  # checks the schema and every row
    except WrongState as error:
        if error.reason == Reason.STORE_IN_USE and _runs(config, config.server.operators_address):
            return "the running broker has the database open; stop it for a closer look"
        raise
    try:
        if store.findings:
            raise WrongState(Reason.ROW_FORGED, told(store.findings))
        if not store.page(PolicyDocument, limit=1) or not store.page(Operator, limit=1):
            raise WrongState(
                Reason.NOT_INITIALISED,
                "The database holds no policy or no operator, so `broker init` has not ended; run it again for this "
                "folder.",
            )
        keys = belonging.refuse_absent_keys(store, hsm)
        claim = Claim(store, hsm, now, place(config))
        claim.refuse_taken()
        if not claim.kept():
            raise _Doubt(
                "the database answers; the token keeps no data object, so a second broker on it with a copy of the "
                "database is not noticed: see to it that there is none"
            )
        if held := held_work(store):
            raise _Doubt(
                f"the database answers; {held} thing(s) are held since it was restored and wait for an operator: "
                "`broker key list`, `broker key versions`, `broker key where` and `broker secret root` show them"
            )
        if config.approvals.suspended:
            raise _Doubt("approvals are suspended in the configuration: nothing waits for anybody")
        guard = Guard(setup.policy_in_force(store), config.approvals.counts)
        if lacking := approvers.lacking(store, guard):
            raise _Doubt(f"the database answers; {lacking}")
    finally:
        store.close()
    return f"the database answers, every row is as brokers left it, and {keys} of its keys are in the token"


def _clocks(config: Config) -> str:
    if config.store.sqlite:
        return "no other host shares the database, so there is none to differ from"
    with closing(open_database(config.store)) as database:
        clock = Clock(now, counted)
        clock.look(database.clock)
        clock.check()
    return "this host's and the database's agree"


def _sqlite(config: Config) -> str:
    version = sqlite3.sqlite_version
    if not config.store.sqlite:
        return "not used: the database is PostgreSQL"
    return f"SQLite {version}; one writer, one process, so its WAL-reset fault (before 3.51.3) cannot be met"


def _ports(config: Config) -> str:
    addresses = (config.server.operators_address, config.server.pipelines_address)
    running = [address for address in addresses if not _is_free(config, address)]
    return "the running broker listens on its ports" if running else "both listeners' ports are free"


def _is_free(config: Config, address: str) -> bool:
    """False when this broker listens there already; WrongState when somebody else does."""
    try:
        addresses.try_listening(address)
    except (OSError, ValueError) as fault:
        if _runs(config, address):
            return False
        raise WrongState(Reason.PORT_TAKEN, addresses.why_not(address, fault)) from fault
    return True


def _runs(config: Config, address: str) -> bool:
    """Whether what listens at the address shows this broker's server certificate."""
    try:
        shown = ssl.get_server_certificate(_split(address), timeout=CONNECT_SECONDS)
        own = config.server.certificate_file.read_bytes()
        return x509.load_pem_x509_certificate(shown.encode()) == x509.load_pem_x509_certificate(own)
    except (OSError, ValueError):
        return False


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _disk(config: Config) -> str:
    room = os.statvfs(config.store.journal)
    free = room.f_bavail * room.f_frsize // 2**20
    if free < 256:
        raise WrongState(
            Reason.DISK_ALMOST_FULL,
            f"Only {free} MiB are free for the audit journal in {config.store.journal}, and without room nothing is "
            "served; make room there.",
        )
    return f"{free} MiB free for the audit journal"


def _targets(config: Config) -> str:
    if config.targets.private_vaults:
        hosts = ", ".join(sorted(f"{one.host} ({one.kind})" for one in config.targets.private_vaults))
        raise _Doubt(
            f"private vaults are configured: {hosts}. They are trusted by the CA and token files that you gave, not by "
            "Azure's; keys that are imported there are protected as well as those servers are"
        )
    if not config.targets.allowed_hosts:
        return "no host is allowed as a target; add host:port under [targets] allowed_hosts before `broker target add`"
    return f"{len(config.targets.allowed_hosts)} host(s) allowed as targets"


def _day(moment: datetime) -> str:
    return moment.date().isoformat()


_CHECKS: tuple[tuple[str, Callable[[Config], str]], ...] = (
    ("private files", _private_files),
    ("certificates", _certificates),
    ("own keys", _own_keys),
    ("hsm", _hsm),
    ("store", _store),
    ("clocks", _clocks),
    ("sqlite", _sqlite),
    ("ports", _ports),
    ("disk", _disk),
    ("targets", _targets),
)
