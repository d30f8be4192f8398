"""The reason that people give for what they do, which is kept and shown with it."""

from __future__ import annotations

from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason

LONGEST = 500


def given_reason(text: str, reason: Reason, *, needed: bool = False) -> str:
    """The reason without blanks around it; InvalidRequest ``reason`` unless it is one line of at most ``LONGEST``."""
    told = text.strip()
    if needed and not told:
        wrong = "is missing"
    elif len(told) > LONGEST:
        wrong = f"has {len(told)} characters"
    elif not told.isprintable():
        wrong = "is more than one line, or holds what does not print"
    else:
        return told
    raise InvalidRequest(reason, f"The reason {wrong}: give one line of at most {LONGEST} characters.")
