"""The keys that the token has, held against those that the record says were made there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from broker.core.errors import NotFound, WrongState
from broker.core.findings import Finding
from broker.core.keys.refs import ref
from broker.core.kinds import Drift, VersionState
from broker.core.model import Key, KeyVersion
from broker.core.ports import Hsm, Store
from broker.core.records import key_of

BATCH = 100


def findings(store: Store, hsm: Hsm, now: datetime) -> Iterator[Finding]:
    """Of each version that is to be there; Unavailable when the token cannot be asked."""
    after: tuple[str | int, ...] = ()
    where = {"state": VersionState.ENABLED.value}
    while rows := store.page(KeyVersion, after=after, limit=BATCH, where=where, sound_only=True):
        after = key_of(rows[-1])
        keys = {name: store.get(Key, name) for name in {row.key for row in rows}}
        for row in rows:
            key = keys[row.key]
            found = _differs(hsm, key, row) if key is not None else None
            if found is not None:
                drift, detail = found
                yield Finding(
                    key=row.key, version=row.number, remote_name="", remote_version="", drift=drift, detail=detail,
                    found_at=now,
                )  # fmt: skip


def _differs(hsm: Hsm, key: Key, version: KeyVersion) -> tuple[Drift, str] | None:
    try:
        differing = hsm.differing(ref(key, version), exportable=key.exportable and not version.sealed)
    except NotFound:
        return Drift.KEY_MISSING, ""
    except WrongState as error:
        return Drift.KEY_DIFFERS, error.message
    if not differing:
        return None
    return Drift.KEY_DIFFERS, f"{', '.join(differing)} {'is' if len(differing) == 1 else 'are'} not as it was made"
