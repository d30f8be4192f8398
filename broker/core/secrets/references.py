"""What a caller asks to fetch, and what it gets: a secret in the clear, for as long as the call lasts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from broker.core.errors import InvalidRequest
from broker.core.names import check_field, check_path
from broker.core.reasons import Reason

MAX_NUMBER = 2**31 - 1
KNOWN = 1024
"""References that need not be read again: jobs ask for the same ones all day."""

REFERENCE = re.compile(r"([^@#]{1,512})(?:@([1-9][0-9]{0,9}))?(?:#([^@#]{1,64}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One thing to fetch: "team/app/db", "team/app/db@3", "team/app/db#password", "team/app/db@3#password"."""

    text: str
    name: str
    version: int  # 0: the latest
    field: str  # "": all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A fetched secret in the clear; never logged, never kept. ``repr`` shows no value."""

    reference: Reference
    version: int
    fields: Mapping[str, bytes]
    expires_at: datetime | None

    def __repr__(self) -> str:
        return f"Opened({self.reference.text!r}, version={self.version})"


@lru_cache(KNOWN)
def parse_reference(text: str) -> Reference:
    """Read a reference; InvalidRequest ``REFERENCE_INVALID``, which never quotes it."""
    found = REFERENCE.fullmatch(text)
    if found is None or int(found[2] or 0) > MAX_NUMBER:
        raise _invalid("")
    name, version, field = found.groups()
    try:
        check_path(name, "secret")
        check_field(field or "any")
    except InvalidRequest as cause:
        raise _invalid(f" {cause.message}") from cause
    return Reference(text=text, name=name, version=int(version or 0), field=field or "")


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(
        Reason.REFERENCE_INVALID,
        'A reference is not valid: write a secret\'s name, with "@version" or "#field" behind it if you mean one.'
        + why,
    )
