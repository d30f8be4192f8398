"""Operators by client certificate."""

from __future__ import annotations

from broker.auth.mtls.authenticator import Mtls, MtlsConfig

__all__ = ["Mtls", "MtlsConfig"]
