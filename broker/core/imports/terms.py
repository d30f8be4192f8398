"""Terms as a text: of an operation's memory while a key is brought to a place, and of the copy's row from then on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from broker.core.imports.rules import NO_TERMS
from broker.core.kinds import ImportState
from broker.core.model import Import, Terms

_KEPT = frozenset({ImportState.PROVEN, ImportState.DISABLED})
"""Of these copies the terms hold, or held to the end."""


def written(terms: Terms) -> str:
    """Terms as an operation remembers them."""
    moments = {"not_before": terms.not_before, "expires_at": terms.expires_at}
    told = {name: moment.isoformat() for name, moment in moments.items() if moment is not None}
    return json.dumps(
        {"operations": terms.operations, "tags": dict(terms.tags), "enabled": terms.enabled, **told}, sort_keys=True
    )


def read(told: str) -> Terms:
    """The terms that were ``written``."""
    given = json.loads(told)
    moments = {name: datetime.fromisoformat(given[name]) for name in ("not_before", "expires_at") if name in given}
    return Terms(operations=tuple(given["operations"]), tags=given["tags"], enabled=given["enabled"], **moments)


def repeated(rows: Iterable[Import], version: int, remote_name: str, now: datetime) -> Terms:
    """What the next version is held to at a place: what the one before it there was asked for.

    It is valid for as long as that one was, from now on.
    """
    before = [one for one in rows if one.remote_name == remote_name and one.version < version and one.state in _KEPT]
    former = max(before, key=lambda one: one.version, default=None)
    if former is None or former.terms is None:
        return NO_TERMS
    terms = read(former.terms)
    expires_at = now + (terms.expires_at - former.started_at) if terms.expires_at else None
    return replace(terms, not_before=None, expires_at=expires_at)
