"""The newest certificate of an operator, as it is kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """Which operator CA signed an operator's newest certificate, so that it is known whom the end of a CA locks out.

    It permits nothing.
    """

    operator: str
    authority: str  # ``print_of`` the CA's certificate
    until: datetime
    revision: int = 1


def print_of(certificate: bytes) -> str:
    """By what a CA is known here: SHA-256 of its certificate, PEM."""
    return hashlib.sha256(certificate.strip()).hexdigest()
