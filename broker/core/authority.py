"""A certificate authority whose key is in the HSM (RFC 5280)."""

from __future__ import annotations

from datetime import datetime, timedelta

from broker.core import ports
from broker.core.ports import KeyRef


class Authority:
    """Signs with one internal EC P-256 key. ``certificate`` is its self-signed CA certificate, PEM."""

    certificate: bytes

    def __init__(self, hsm: ports.Hsm, key: KeyRef, certificate: bytes) -> None:
        raise NotImplementedError

    @staticmethod
    def create(hsm: ports.Hsm, hsm_id: bytes, common_name: str, now: datetime) -> tuple[KeyRef, bytes]:
        """Make the key if it is not there, and a self-signed CA certificate (10 years, path length 0), PEM."""
        raise NotImplementedError

    def client(self, csr_pem: bytes, uri: str, not_before: datetime, ttl: timedelta) -> tuple[bytes, str]:
        """A client-auth leaf for the CSR's public key and one URI SAN; (PEM, serial hex). All else is built here."""
        raise NotImplementedError

    def server(self, csr_pem: bytes, names: list[str], not_before: datetime, ttl: timedelta) -> tuple[bytes, str]:
        """A server-auth leaf for DNS names and IP addresses; (PEM, serial hex)."""
        raise NotImplementedError
