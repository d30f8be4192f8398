"""What the probe found that a token can really do; everything that follows from the token's kind reads it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pkcs11 import Mechanism

from broker.core.kinds import KeyType, OaepHash
from broker.core.report import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found. ``padded_wrap`` None: no usable key wrap; ``exact_types``: whose wrap follows RFC 5649.

    ``lacks``: what does not work, as "MECHANISM" or "MECHANISM for TYPE", and what the token said of it.
    ``closed``: why no object can be written; "" when nothing speaks against it.
    """

    key_types: tuple[KeyType, ...]
    lacks: Mapping[str, str]
    closed: str
    copyable_known: bool
    padded_wrap: Mechanism | None
    exact: bool
    exact_types: frozenset[KeyType]
    oaep_hashes: tuple[OaepHash, ...]
    one_call_hashes: frozenset[OaepHash]
    probes: tuple[Probe, ...]

    def lack(self, what: str) -> str:
        """What is missing for this, with the token's word; "" when it works."""
        return f"{what} ({self.lacks[what]})" if what in self.lacks else ""
