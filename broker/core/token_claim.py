"""What the database knows of its claim on the token, as it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

NAME = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaim:
    """The numbers (32 hex digits) that brokers on this database have put into the token; there is one row."""

    name: str  # ``NAME``
    numbers: tuple[str, ...]  # each is here before it is in the token; the last one is to be there, and no other
    quiet_until: datetime  # nothing is destroyed before: so long another broker has to say that the token is its own
    unkept: bool  # the token keeps no data objects
    revision: int = 1
