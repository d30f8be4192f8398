"""`accept-restore`: go on knowingly with a database that this host's journal, or the token, does not know (ST-04).

What the database forgot is made good as far as the journal and caution can: all sessions end, the identity tokens of
the last day are used up again, and all work that was still to be done is held (``core.holding``). What operators did
since the backup is theirs to do again (docs/incidents/database-restored.md).
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path

from broker import app, own_keys, own_rows
from broker.app import now
from broker.config import Config, load
from broker.core.audit.heads import Heads
from broker.core.call import Call
from broker.core.claiming import Claim
from broker.core.holding import Holding
from broker.core.kinds import LeaseState, Purpose
from broker.core.leases.ending import BATCH, Ending
from broker.core.model import Principal, Session, UsedToken
from broker.core.ports import Device, Now, Store
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.row_key import row_key
from broker.store.config import StoreConfig
from broker.store.restored import logins
from broker.store.sql import SqlStore

LONGEST_TOKEN = timedelta(hours=24)
"""How long an identity token can be good (P-09 of the threat model)."""


def run(asked: argparse.Namespace) -> int:
    """Accept, and say what came of it; 0 also when there is nothing to accept."""
    config = load(asked.config)
    with closing(Pkcs11Hsm(config.hsm)) as hsm:
        own_rows.check(config, hsm, now)
        genuine, key = own_keys.genuine(config), row_key(config, hsm)
        with closing(
            SqlStore(place(config), key, now, genuine, accept_restored=True, passing=True, role="accept")
        ) as store:
            claim = Claim(store, hsm, now, app.place(config))
            said = accept(store, config.store.journal, now, claim)
            _sign(config, store, hsm)
    print(f"broker: {said}")
    return 0


def _sign(config: Config, store: SqlStore, hsm: Device) -> None:
    """The last record and the head of what was recorded here, if it was anything: no later start vouches for it."""
    store.finish()
    audit_key = own_keys.internal_key(config, Purpose.AUDIT)
    Heads.unasked(store, hsm.keyring(Purpose.AUDIT), audit_key, now).sign_due()


def place(config: Config) -> StoreConfig:
    """In whose journal it is recorded: the broker's own, or that of the first of its workers."""
    return config.store.of_worker(1) if config.server.workers > 1 else config.store


def accept(store: SqlStore, journal: Path, now: Now, claim: Claim) -> str:
    """Go on with the database, if journals in that folder or the token know another; what came of it."""
    heads, taken = store.forgotten(), claim.is_taken()
    if not heads and not store.doubted and not taken:
        return "the database is not older than this host's journal; nothing was changed"
    ended = _end_sessions(store, now)
    used = _use_up(store, logins(journal, now() - LONGEST_TOKEN), now)
    holding = Holding(store, partial(_call, now))
    held, unreadable = holding.hold(), holding.unreadable()
    call = _call(now, "database/restored")
    call.note(count=ended)
    store.make_good()
    with store.write(call.outcome()) as write:  # whatever stops before it, a start is still refused
        write.add(*heads)
    if taken:  # the last, since it alone tells that a start is to be refused
        claim.take_over(_call(now, "token/claim"))
    return (
        f"accepted; {ended} sessions were ended and {used} identity tokens are used up again; {held} things that were "
        f"still to be done are held until an operator says so{_damaged(unreadable)}{_CLAIMED if taken else ''}; what "
        "else the backup has undone, `broker audit show` lists"
    )


_CLAIMED = "; the token is this database's now, and no broker on the other one starts or destroys anything"


def _damaged(count: int) -> str:
    return f", and {count} more have rows that cannot be read, so nothing is done with them" if count else ""


def _end_sessions(store: Store, now: Now) -> int:
    ending, total = Ending(store, now), 0
    after: tuple[str, ...] = ()
    while found := store.page(Session, after=after, limit=BATCH, where={"state": "active"}, sound_only=True):
        waiting = [session.id for session in found]
        after = (waiting[-1],)
        while waiting:
            call = _call(now, "session/all")
            with store.write(call.outcome()) as write:
                seen, ended = ending.sessions(write, call, waiting, LeaseState.REVOKED, lambda _: True)
                write.note(count=ended)
            waiting, total = waiting[seen:], total + ended
    return total


def _use_up(store: Store, tokens: Iterable[tuple[str, str]], now: Now) -> int:
    total, until = 0, now() + LONGEST_TOKEN
    waiting = sorted(set(tokens))
    for first in range(0, len(waiting), BATCH):
        some = waiting[first : first + BATCH]
        call = _call(now, "token/used")
        call.note(count=len(some))
        with store.write(call.outcome()) as write:
            for issuer, jti in some:
                if write.get(UsedToken, issuer, jti) is None:
                    write.add(UsedToken(issuer=issuer, jti=jti, until=until))
                    total += 1
    return total


def _call(now: Now, resource: str) -> Call:
    principal = Principal(kind="broker", name="accept-restore")
    call_id = secrets.token_hex(16)
    return Call(id=call_id, rpc="-/AcceptRestore", principal=principal, peer="", now=now, resource=resource)
