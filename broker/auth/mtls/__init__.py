"""Operators by client certificate."""

from __future__ import annotations

from broker.auth import Kind
from broker.auth.mtls.authenticator import Mtls, MtlsConfig

__all__ = ["KIND", "Mtls", "MtlsConfig"]

KIND: Kind[MtlsConfig] = Kind(name="mtls", config=MtlsConfig, build=Mtls)
