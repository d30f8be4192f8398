"""A version of one of the broker's own keys, as it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from broker.core.kinds import OwnKeyState


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnKey:
    """A version of one of the broker's own keys; 1 is the one that ``init`` made. What has been stays on record."""

    name: str  # an ``Own``
    version: int
    state: OwnKeyState
    hsm_id: bytes  # b"" for the page key
    public_key: bytes | None  # SubjectPublicKeyInfo, DER; None for the page key, and until it is made
    certificate: str  # of a CA: self-signed, PEM
    link: str  # of a CA: the same key, certified by the version before, PEM
    handover: Mapping[str, str]  # of the audit key: what the version before and this one have signed
    sealed: bytes | None  # the page key, wrapped by the HSM
    created_at: datetime  # when everybody could know of it
    since: datetime | None = None  # it is in force
    until: datetime | None = None  # what a FORMER one has made is taken
    revision: int = 1
