"""`accept-restore`: go on knowingly with a database that is older than this host's journal (ST-04).

What the database forgot is made good as far as the journal and caution can: all sessions end, and the identity tokens
of the last day are used up again. What operators did since the backup is theirs to do again
(docs/incidents/database-restored.md).
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Iterable
from datetime import timedelta

from broker import setup
from broker.app import now
from broker.config import Config, load
from broker.core.call import Call
from broker.core.ending import BATCH, Ending
from broker.core.heads import Heads
from broker.core.kinds import LeaseState
from broker.core.model import Principal, Session, UsedToken
from broker.core.ports import Hsm, Store
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.store.config import StoreConfig
from broker.store.genuine import genuine_by
from broker.store.restored import logins
from broker.store.sql import SqlStore

LONGEST_TOKEN = timedelta(hours=24)
"""How long an identity token can be good (P-09 of the threat model)."""


def run(asked: argparse.Namespace) -> int:
    """Accept, and say what came of it; 0 also when there is nothing to accept."""
    config = load(asked.config)
    store = SqlStore(
        place(config), now, genuine_by(config.certificates / "audit.pem"), accept_restored=True, passing=True
    )
    try:
        hsm = Pkcs11Hsm(config.hsm)
        try:
            setup.check_internal_keys(config, hsm)
            said = _accept(config, store)
            _sign(config, store, hsm)
        finally:
            hsm.close()
    finally:
        store.close()
    print(f"broker: {said}")
    return 0


def _sign(config: Config, store: SqlStore, hsm: Hsm) -> None:
    """The last record and the head of what was recorded here, if it was anything: no later start vouches for it."""
    store.finish()
    Heads.unasked(store, hsm, setup.internal_key(config, "audit", setup.AUDIT_KEY), now).sign_due()


def place(config: Config) -> StoreConfig:
    """In whose journal it is recorded: the broker's own, or that of the first of its workers."""
    return config.store.of_worker(1) if config.server.workers > 1 else config.store


def _accept(config: Config, store: SqlStore) -> str:
    heads = store.forgotten()
    if not heads:
        return "the database is not older than this host's journal; nothing was changed"
    ended = _end_sessions(store)
    used = _use_up(store, logins(config.store.journal, now() - LONGEST_TOKEN))
    call = _call("database/restored")
    call.note(count=ended)
    with store.write(call.outcome()) as write:  # the last: whatever stops before it, a start is still refused
        write.add(*heads)
    return (
        f"accepted; {ended} sessions were ended and {used} identity tokens are used up again; what else the backup has "
        "undone, `broker audit show` lists"
    )


def _end_sessions(store: Store) -> int:
    ending, total = Ending(store, now), 0
    after: tuple[str, ...] = ()
    while found := store.page(Session, after=after, limit=BATCH, where={"state": "active"}, sound_only=True):
        waiting = [session.id for session in found]
        after = (waiting[-1],)
        while waiting:
            call = _call("session/all")
            with store.write(call.outcome()) as write:
                seen, ended = ending.sessions(write, call, waiting, LeaseState.REVOKED, lambda _: True)
                write.note(count=ended)
            waiting, total = waiting[seen:], total + ended
    return total


def _use_up(store: Store, tokens: Iterable[tuple[str, str]]) -> int:
    total, until = 0, now() + LONGEST_TOKEN
    waiting = sorted(set(tokens))
    for first in range(0, len(waiting), BATCH):
        some = waiting[first : first + BATCH]
        call = _call("token/used")
        call.note(count=len(some))
        with store.write(call.outcome()) as write:
            for issuer, jti in some:
                if write.get(UsedToken, issuer, jti) is None:
                    write.add(UsedToken(issuer=issuer, jti=jti, until=until))
                    total += 1
    return total


def _call(resource: str) -> Call:
    principal = Principal(kind="broker", name="accept-restore")
    call_id = secrets.token_hex(16)
    return Call(id=call_id, rpc="-/AcceptRestore", principal=principal, peer="", now=now, resource=resource)
