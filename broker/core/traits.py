"""What a method is, for all that treat methods differently; its declaration in the API says so, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Effect(StrEnum):
    """What a method does to what there is."""

    READS = "reads"
    """It tells what is, and is the same however often it is sent."""

    USES = "uses"
    """It uses a key; nothing is another afterwards, but each time counts."""

    CHANGES = "changes"
    """Something is another afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Of one method (``MethodTraits`` in traits.proto)."""

    effect: Effect = Effect.READS
    makes_key: bool = False
    """An HSM may take seconds for it, one key after the other."""

    waits: bool = False
    """For somebody else's server: a target, or a CI's issuer."""

    opens_session: bool = False
    """An identity token is good for it."""

    ends_session: bool = False
    """The token of a session that is over is good for it, because ending is repeated."""


NO_METHOD = Traits()
"""Of a method that does not exist: it is good for nothing."""
