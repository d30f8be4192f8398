"""Tells an older database from the one that this host's journal speaks of (ST-04).

A signed head is durable in the database before the journal has its line (``SqlStore.save_head``), and no head is ever
deleted. So a database that lacks a head of the journal is a backup, or a replica that had not caught up. Nothing is
added to any call for it: heads are signed every half minute in any case. What it cannot tell is a backup that was made
after the last head before a crash. A head counts only with the audit key's signature: anybody who can write into the
folder could else keep the broker from starting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from broker.core.errors import WrongState
from broker.core.model import AuditHead
from broker.core.reasons import Reason
from broker.store.chain import FILE, Tail
from broker.store.database import Database
from broker.store.lines import backwards
from broker.store.rows import PLACES, record_of
from broker.store.tables import BY_KEY, HEADS_OF, key_cells

Genuine = Callable[[AuditHead], bool]
"""Whether the audit key has signed a head. What stands in the folder, or in a row, is no head before this says so."""

CANDIDATES = 64
"""Rows that are looked at to find a replica's newest head: there are more only if somebody has added some."""

FILES = 8
"""How many of a replica's files are asked for their last head: in the order of a clock, which may be set back."""

MARK = b'"kind":"head"'
LOGIN = b'"rpc":"SessionService/Login"'
"""In no other lines than these: a quotation mark within a value is escaped."""


def nobody(_: AuditHead) -> bool:
    """Where no audit key is known, no head is one."""
    return False


def newest_heads(folder: Path, genuine: Genuine) -> list[AuditHead]:
    """The last heads of each replica that keeps its journal here, one of each of its newest files that have any."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        if found := FILE.fullmatch(path.name):
            files.setdefault(found["replica"], []).append(path)
    return [head for paths in files.values() for head in islice(_last_of_each(paths, genuine), FILES)]


def _last_of_each(paths: list[Path], genuine: Genuine) -> Iterator[AuditHead]:
    for path in paths:
        yield from islice(filter(genuine, _heads(path)), 1)


def newest_head(database: Database, replica: str, known: Iterable[AuditHead], genuine: Genuine) -> Tail | None:
    """How far the replica's newest chain is signed, by the database or by the heads that its journal has."""
    chain = re.compile(rf"{re.escape(replica)}-\d{{8}}T\d{{12}}Z-[0-9a-f]{{16}}")
    pattern = f"{replica}-________T____________Z-________________"
    rows = database.read(HEADS_OF, {"pattern": pattern, "most": CANDIDATES})
    heads = [head for head in (*known, *_stored(rows)) if chain.fullmatch(head.chain)]
    for head in sorted(heads, key=lambda head: (head.chain, head.sequence), reverse=True):
        if genuine(head):
            return Tail(head.chain, head.sequence, head.hash, 0)
    return None


def _stored(rows: Iterable[Sequence[Any]]) -> Iterator[AuditHead]:
    for row in rows:
        with suppress(WrongState):  # a row that somebody has written: it vouches for nothing
            yield record_of(AuditHead, row[:-1])


def missing(database: Database, heads: Iterable[AuditHead]) -> list[AuditHead]:
    """Those that the database does not hold, or not with that hash."""
    return [head for head in heads if not _held(database, head)]


def refuse_older(database: Database, heads: Iterable[AuditHead]) -> None:
    """WrongState ``STORE_RESTORED`` unless the database holds every one of these heads."""
    for head in missing(database, heads):
        raise WrongState(
            Reason.STORE_RESTORED,
            f"The database is older than this host's audit journal: it lacks record {head.sequence} of {head.chain}, "
            "signed there; put the newer one back, or run `broker accept-restore`, which ends all sessions.",
        )


def logins(folder: Path, since: datetime) -> Iterator[tuple[str, str]]:
    """(issuer, token id) of the identity tokens that have opened sessions here since then."""
    for path in folder.iterdir():
        if FILE.fullmatch(path.name) and path.lstat().st_mtime >= since.timestamp():
            yield from _logins(path)


def _logins(path: Path) -> Iterator[tuple[str, str]]:
    for line in backwards(path):
        if LOGIN in line and (found := _login(line)) is not None:
            yield found


def _login(line: bytes) -> tuple[str, str] | None:
    try:
        body = json.loads(line)
        issuer, token, outcome = body["facts"]["issuer"], body["facts"]["token_id"], body["outcome"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return (str(issuer), str(token)) if outcome == "ok" and token else None


_HASH = PLACES[AuditHead]["hash"]


def _held(database: Database, head: AuditHead) -> bool:
    rows = database.read(BY_KEY[AuditHead], key_cells(AuditHead, (head.chain, head.sequence)))
    return bool(rows) and rows[0][_HASH] == head.hash


def _heads(path: Path) -> Iterator[AuditHead]:
    """The heads of one file, the last one first."""
    for line in backwards(path):
        if MARK in line and (head := _read(line)) is not None:
            yield head


def _read(line: bytes) -> AuditHead | None:
    """The head in a line; None for one that was damaged, which is the verifier's to find."""
    try:
        body = json.loads(line)
        return AuditHead(
            chain=str(body["chain"]),
            sequence=int(body["head_seq"]),
            hash=str(body["head_hash"]),
            signed_at=datetime.fromisoformat(body["time"]),
            signature=bytes.fromhex(body["signature"]),
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
