"""A strict fake of Azure Key Vault Premium and Managed HSM, for tests and for trying the broker out.

It speaks the REST API of keys over real HTTPS, opens transfer files with its own key exchange keys, and signs and
decrypts with what was in them. What the documentation forbids it refuses. It is no part of what ships.
"""

from __future__ import annotations

from .faults import Effect, insufficient_claims, unauthorized
from .listener import Answer, Request
from .refusals import Refused, bad_parameter, conflict, forbidden, key_not_found, throttled, unavailable
from .shelf import KeyVersion
from .vault import FakeVault

__all__ = [
    "Answer", "Effect", "FakeVault", "KeyVersion", "Refused", "Request", "bad_parameter", "conflict",
    "forbidden", "insufficient_claims", "key_not_found", "throttled", "unauthorized", "unavailable",
]  # fmt: skip
