"""The time zones that this host knows, by their names in the IANA data base."""

from __future__ import annotations

from datetime import tzinfo
from zoneinfo import ZoneInfo


def time_zone(name: str) -> tzinfo | None:
    """The zone of this name, with its rules as they are installed here; None for one that is not."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: a folder of the data base, such as Europe
        return None
