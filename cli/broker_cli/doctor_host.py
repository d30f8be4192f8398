"""The doctor's look at a broker's host, by its config file and without the server's code.

The config is walked by the names of its settings, so that a config which the server would not load is still looked at:
``…file``, ``…folder``, ``module``, ``certificate``, ``key``, ``ca`` and ``database`` name places; ``listen`` and
``…address`` name ports.
"""

from __future__ import annotations

import configparser
import fcntl
import os
import shutil
import socket
import sqlite3
import stat
import struct
import tomllib
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from broker_cli import journal
from broker_cli.doctor_checks import Check, environment, failed, lifetime, ok, skipped, warning

MAX_CONFIG = 1024 * 1024
HEAD_SECONDS = 120
FREE_BYTES = 64 * 1024 * 1024
FIXED_SQLITE = (3, 51, 3)
_SECRET = ("pin", "token", "password", "secret", "key")
_PLACES = ("file", "folder", "module", "certificate", "key", "ca", "database", "path", "journal", "root")


def checks(config: Path) -> Iterator[Check]:
    """Everything about the host that can be seen from outside the server."""
    yield from environment()
    yield _sqlite_version()
    settings = yield from _config(config)
    if settings is None:
        yield skipped("settings", "not looked at: mend the config first")
        return
    for name, value in _walk(settings):
        last = name.rpartition(".")[2]
        if last.endswith(("listen", "address")):
            yield from _port(name, value)
        elif value.startswith("sqlite:///"):
            yield from _place(name, "database", Path(value.removeprefix("sqlite:///")))
        elif last.endswith(_PLACES) and "://" not in value:
            yield from _place(name, last, config.parent / value)
    yield from _softhsm(settings)


def _config(config: Path) -> Generator[Check, None, Any]:
    try:
        with config.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            settings = tomllib.loads(file.read(MAX_CONFIG).decode("utf-8-sig"))
    except OSError as fault:
        yield failed("config", f"{config} cannot be read: {fault.strerror}.")
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        yield failed("config", f"{config} is not TOML: {fault}.")
        return None
    if mode & 0o022:
        yield failed("config", f"{config} can be changed by others: chmod go-w {config}")
    else:
        yield ok("config", f"{config} is TOML, and only its owner can change it")
    return settings


def _walk(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value:
            yield f"{prefix}{name}", value


def _place(name: str, last: str, path: Path) -> Iterator[Check]:
    try:
        state = path.stat()
    except (OSError, ValueError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "that is no path"
        yield failed(name, f"{path}: {why}; correct the setting {name}, or make it.")
        return
    if stat.S_ISDIR(state.st_mode):
        yield _folder(name, path, state)
        if last.endswith("journal"):
            yield from _heads(path)
    elif "public" not in last and any(word in last for word in _SECRET):
        yield _secret(name, path, state)
    elif last.endswith("database"):
        yield _database(name, path)
    elif not os.access(path, os.R_OK):
        yield failed(name, f"{path} cannot be read by this user: run the doctor as the broker's user, or chown it.")
    elif "cert" in last or last.endswith("ca"):
        yield _certificate(name, path)
    else:
        yield ok(name, f"{path} is there")


def _secret(name: str, path: Path, state: os.stat_result) -> Check:
    if state.st_mode & 0o077 and not (state.st_uid == 0 and not state.st_mode & 0o337):  # systemd's, Kubernetes'
        return failed(
            name,
            f"{path} can be read by others (mode {state.st_mode & 0o777:04o}): chmod 600 {path}, and renew it.",
        )
    if state.st_uid not in {0, os.geteuid()}:
        return failed(name, f"{path} belongs to another user: chown it to the broker's.")
    if state.st_size == 0:
        return failed(name, f"{path} is empty: write the secret into it.")
    return ok(name, f"{path} is private")


def _folder(name: str, path: Path, state: os.stat_result) -> Check:
    if state.st_mode & 0o002:
        return failed(name, f"Everybody can write in {path}: chmod o-w {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return failed(name, f"{path} is not readable and writable for this user: chown it to the broker's.")
    free = shutil.disk_usage(path).free
    if free < FREE_BYTES:
        return failed(
            name, f"Only {free // 2**20} MiB are free in {path}; the broker refuses all work when it is full."
        )
    return ok(name, f"{path} is writable, {free // 2**20} MiB free")


def _heads(folder: Path) -> Iterator[Check]:
    """How much of the newest journal file is not signed yet."""
    try:
        newest = max(journal.files((folder,)), key=lambda path: path.stat().st_mtime, default=None)
        if newest is not None:
            yield _waiting(newest)
    except journal.NotAJournalError as fault:
        yield failed("audit-head", f"The newest journal in {folder} is none: {fault}.")
    except OSError as fault:
        yield failed("audit-head", f"A journal in {folder} cannot be read: {fault.strerror}.")


def _waiting(newest: Path) -> Check:
    head = entry = None
    for line in journal.lines(newest):
        if line.record is not None and line.record["kind"] == "head":
            head, entry = journal.moment(line.record["time"]), None
        elif line.record is not None:
            entry = entry or journal.moment(line.record["time"])  # the first one that no head of this file covers
    late = (datetime.now(UTC) - entry).total_seconds() if entry is not None else 0
    if late > HEAD_SECONDS:
        cure = "start the broker, or if it runs look why its loop does not sign"
        return warning("audit-head", f"Records in {newest.name} have waited {late:.0f} s for a signed head: {cure}.")
    return ok(
        "audit-head", f"{newest.name} is signed up to {head:%Y-%m-%d %H:%M:%S} UTC" if head else "nothing is late"
    )


def _database(name: str, path: Path) -> Check:
    holder = _lock_holder(path) or _lock_holder(path.with_name(path.name + "-shm"))
    if holder:
        return warning(name, f"{path} is in use by process {holder}; a second broker on it would be refused.")
    return ok(name, f"{path} is there, and free")


def _lock_holder(path: Path) -> int:
    """The process that holds a lock on a file, 0 for none. F_GETLK only asks; SQLite itself is not disturbed."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, process = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else int(process)


def _certificate(name: str, path: Path) -> Check:
    from cryptography import x509  # noqa: PLC0415  slow to load

    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except ValueError:
        return failed(name, f"{path} is not a PEM certificate.")
    now = datetime.now(UTC)
    return lifetime(name, str(path), found.not_valid_before_utc, found.not_valid_after_utc, now, "renew it.")


def _port(name: str, value: str) -> Iterator[Check]:
    host, _, port = value.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or not 0 <= int(port) < 65536 or "/" in host:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host.strip("[]"), int(port)))
    except (OSError, ValueError, TypeError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else "that is no host"
        yield warning(name, f"{value} cannot be listened on now ({why}): fine if it is the running broker.")
    else:
        yield ok(name, f"{value} is free")


def _softhsm(settings: Mapping[str, Any]) -> Iterator[Check]:
    if not any("softhsm" in value for name, value in _walk(settings) if name.endswith("module")):
        return
    told = dict(_walk(settings)).get("hsm.environment.SOFTHSM2_CONF") or os.environ.get("SOFTHSM2_CONF")
    path = Path(told or "/etc/softhsm/softhsm2.conf")
    named = "SOFTHSM2_CONF" if told else "SOFTHSM2_CONF is not set, so"
    try:
        lines = configparser.ConfigParser(interpolation=None)
        lines.read_string("[softhsm]\n" + path.read_text())
        tokens = Path(lines["softhsm"].get("directories.tokendir", ""))
    except (OSError, configparser.Error, UnicodeDecodeError):
        yield failed("softhsm", f"{named} {path} cannot be read: set SOFTHSM2_CONF to the file that set-up wrote.")
        return
    if not tokens.is_dir() or not os.access(tokens, os.R_OK | os.W_OK | os.X_OK):
        yield failed(
            "softhsm", f"The token folder {tokens} of {path} is missing or not ours: set the token up, or chown it."
        )
    elif not any(tokens.iterdir()):
        yield failed("softhsm", f"The token folder {tokens} holds no token: set one up first.")
    else:
        yield ok("softhsm", f"{path}, tokens in {tokens}")


def _sqlite_version() -> Check:
    if sqlite3.sqlite_version_info < FIXED_SQLITE:
        fixed = ".".join(map(str, FIXED_SQLITE))
        return warning(
            "sqlite",
            f"SQLite {sqlite3.sqlite_version} has the WAL-reset fault ({fixed} mends it): the broker works around it "
            "by one writer; let nothing else open its database.",
        )
    return ok("sqlite", f"SQLite {sqlite3.sqlite_version}")
