"""The server's certificate and the operator CA, read again from their files when these change (no restart)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from broker import secret_files
from broker.core.errors import BrokerError, WrongState
from broker.core.reasons import Reason

MAX_FILE = 256 * 1024

LOOK_EVERY = 0.002
"""Seconds between two looks at the files when thousands connect at once."""

T = TypeVar("T")

TOO_OLD = "The connection does not use TLS 1.3; use a client that does."

_log = structlog.get_logger(__name__)


def current(connection: Mapping[str, Any]) -> bool:
    """Whether a connection (its auth context) uses TLS 1.3; grpc's handshake takes 1.2 and cannot be told not to."""
    return bool(connection.get("ssl_tls_version") == [b"TLSv1.3"])


def read_key(path: Path) -> bytes:
    """The private key's PEM. WrongState ``KEY_FILE_EXPOSED`` unless the file is private (``secret_files``)."""
    try:
        return secret_files.read(path, MAX_FILE, links=True)
    except secret_files.UnusableError as fault:
        missing = fault.why.startswith("cannot")
        reason = Reason.TLS_FILE_MISSING if missing else Reason.KEY_FILE_EXPOSED
        raise WrongState(reason, f"The key file {path.name} {fault.why}; {fault.cure}.") from fault


def read_file(path: Path) -> bytes:
    """A PEM file that is no secret."""
    try:
        with path.open("rb") as opened:
            return opened.read(MAX_FILE)
    except OSError as error:
        raise WrongState(
            Reason.TLS_FILE_MISSING,
            f"The file {path} cannot be read ({error.strerror}); correct its name under [server], or its owner.",
        ) from error


class TlsFiles:
    """Port credentials from three PEM files. A changed set that is not sound is logged, and the old one stays."""

    def __init__(
        self, certificate: Path, key: Path, client_ca: Path | None, arrived: Callable[[], None] = lambda: None
    ) -> None:
        """``client_ca`` None: callers are never asked for a certificate. ``arrived`` is told of each connection."""
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._arrived = arrived
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._look_at = 0.0

    def credentials(self) -> grpc.ServerCredentials:
        """For ``add_secure_port``; raises WrongState when the files will not do."""
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self._changed,  # type: ignore[arg-type]  # may give None (grpc's documentation), which the stub leaves out
            require_client_authentication=self._client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked by grpc before each handshake."""
        self._arrived()
        if time.monotonic() < self._look_at:
            return None
        with self._lock:
            self._look_at = time.monotonic() + LOOK_EVERY
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            try:
                fresh = self._read()
            except BrokerError as error:
                _log.warning("the new TLS files will not do; the old certificate stays", reason=error.reason)
                return None
            self._seen = stamp
            return fresh

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_identity(path) for path in (self._certificate, self._key, self._client_ca) if path)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate, key = read_file(self._certificate), read_key(self._key)
        client_ca = read_file(self._client_ca) if self._client_ca else None
        _check_pair(certificate, key, client_ca)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _loaded(setting: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except (ValueError, TypeError) as error:
        raise WrongState(
            Reason.TLS_FILE_INVALID,
            f"The file of {setting} under [server] is not an unencrypted PEM file of its kind; replace it.",
        ) from error


def _check_pair(certificate: bytes, key: bytes, client_ca: bytes | None) -> None:
    public = _loaded("certificate_file", lambda: x509.load_pem_x509_certificate(certificate)).public_key()
    private = _loaded("key_file", lambda: load_pem_private_key(key, password=None))
    if client_ca is not None:
        _loaded("operator_ca_file", lambda: x509.load_pem_x509_certificate(client_ca))
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if public.public_bytes(*form) != private.public_key().public_bytes(*form):
        raise WrongState(
            Reason.TLS_FILES_DIFFER,
            "The server's certificate (certificate_file under [server]) was not made for its key (key_file); replace "
            "both together.",
        )
