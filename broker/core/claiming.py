"""One token, one database: who else has it is noticed, and then nothing is destroyed by either.

A copy of a broker's folder, or of its database, is a second broker with the same keys in the same token, and would
destroy what the other still needs. Nothing in a copy differs; what happens to it afterwards does. So whoever leads the
brokers on a database puts a fresh random number into the token when that begins:

    database: one more number ─▶ token: that one too ─▶ token: that one alone

Wherever a crash ends this, all that is in the token is known to the database. A number that is not is another
database's: then no start, and nothing destroyed. A broker that finds its own number gone while it runs was overtaken by
a copy; it puts a fresh one beside the other's, so that the copy sees it too. For that it has time: nothing is destroyed
for ``QUIET`` after a claim, and all look every ``LOOK_EVERY``. What another has put there is taken out by
``accept-restore`` alone (``take_over``).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from broker.core.call import Call, background_call
from broker.core.errors import Outcome, Unavailable, WrongState
from broker.core.once import closing
from broker.core.ports import Device, Now, Store
from broker.core.reasons import Reason
from broker.core.token_claim import NAME, TokenClaim

LOOK_EVERY = timedelta(seconds=20)
QUIET = 3 * LOOK_EVERY
KEPT = 16
"""Numbers that are remembered: a leader that was stopped may put its own in late, and a token be an older backup."""

MOST = 200
"""Bytes of what stands in the token."""
_VALUE = re.compile(rb"([0-9a-f]{32}) ([ -~]*)")

log = structlog.get_logger("broker")


def claim_call(fence: int, now: Now) -> Call:
    """What a process does for its claim; ``fence`` is 0 in one that does not lead."""
    return background_call("token/claim", fence, now, "-/ClaimToken")


class Claim:
    """Of one process. ``place``: how operators know this broker's host and folder; it stands in the token."""

    def __init__(self, store: Store, device: Device, now: Now, place: str) -> None:
        self._store = store
        self._device = device
        self._now = now
        self._place = place
        self._begun = 0  # the number of the leadership under which the token was claimed
        self._waiting = ""  # a number that the database has, and the token may not have yet
        self.trouble = ""
        """Who else has the token, as a sentence; "" while nobody has."""

    def refuse_taken(self) -> None:
        """WrongState ``TOKEN_CLAIMED`` if a broker on another database has this token."""
        there = self._device.claims()
        if others := _others(there, self._store.get(TokenClaim, NAME)):
            raise _taken(others)

    def is_taken(self) -> bool:
        """Whether one has it."""
        return bool(_others(self._device.claims(), self._store.get(TokenClaim, NAME)))

    def refuse_doubt(self) -> None:
        """Return if nobody else can have the token: asked before anything is destroyed, in the token or at a target.

        WrongState ``TOKEN_CLAIMED``; Unavailable ``TOKEN_CLAIM_NEW`` until others have had time to say so.
        """
        there = self._device.claims()  # first: what is put there is in the database before
        row = self._store.get(TokenClaim, NAME)
        if others := _others(there, row):
            raise _taken(others)
        if row is None or not _stands(there, row) or self._now() < row.quiet_until:
            raise Unavailable(
                Reason.TOKEN_CLAIM_NEW,
                f"Nothing is destroyed in the first {QUIET.total_seconds():.0f} seconds after a broker has begun to "
                "lead, so that another one on the same token can say that it is there; it is tried again then.",
            )

    def kept(self) -> bool:
        """Whether the token keeps what says whose it is, as far as is known."""
        row = self._store.get(TokenClaim, NAME)
        return row is None or not row.unkept

    def look(self, call: Call) -> None:
        """Say if somebody else has the token; in the leader, claim it if that is to be done. To be asked on and on."""
        there = self._device.claims()
        row = self._store.get(TokenClaim, NAME)
        others = _others(there, row)
        self._tell(others)
        standing = row is not None and _stands(there, row)
        overtaken = bool(others) and row is not None and not standing
        to_begin = not others and not (standing and call.fence == self._begun)
        if call.fence and (overtaken or to_begin):
            quiet = timedelta(0) if row is None else QUIET  # nobody was here before, in a token without a number
            status, reason = (Outcome.FAILED_PRECONDITION, Reason.TOKEN_CLAIMED) if overtaken else ("ok", "")
            self._put(call, self._now() + quiet, status, reason)
            self._begun = call.fence

    def take_over(self, call: Call) -> None:
        """Have the token, whoever had it: for an operator who has made sure that the others are stopped."""
        there = self._device.claims()
        self._put(call, self._now() + QUIET, "ok", "")
        self._device.drop_claims(there)

    def _put(self, call: Call, quiet_until: datetime, status: str, reason: str) -> None:
        """A fresh number into the token, instead of those that are known."""
        there = self._device.claims()
        row = self._store.get(TokenClaim, NAME)
        if row is None or row.numbers[-1] != self._waiting:
            row = self._announce(call, {_number(one) for one in there}, quiet_until, status, reason)
        if self._keep(call, row):
            self._device.drop_claims([one for one in there if _number(one) in row.numbers[:-1]])
        self._waiting = ""

    def _announce(self, call: Call, there: set[str], quiet_until: datetime, status: str, reason: str) -> TokenClaim:
        """The number that will be in the token, into the database."""
        self._waiting = number = secrets.token_hex(16)
        with closing(call), self._store.write(call.outcome(status, reason)) as write:
            row = write.get(TokenClaim, NAME)
            if row is None:
                row = TokenClaim(name=NAME, numbers=(number,), quiet_until=quiet_until, unkept=False)
                write.add(row)
                return row
            older = [one for one in row.numbers[:-KEPT] if one in there]
            numbers = (*older, *row.numbers[-KEPT:], number)
            return write.replace(row, replace(row, numbers=numbers, quiet_until=quiet_until, unkept=False))

    def _keep(self, call: Call, row: TokenClaim) -> bool:
        """Put it into the token; False, and written down, if the token keeps nothing of the kind."""
        said = f"{row.numbers[-1]} {self._now():%Y-%m-%dT%H:%M:%SZ} {self._place}"[:MOST]
        try:
            self._device.add_claim(said.encode("ascii", "replace"))
        except WrongState as refusal:
            if refusal.reason != Reason.HSM_NO_DATA_OBJECTS:
                raise
            log.warning("a second broker on the token would not be noticed", sentence=refusal.message)
            with self._store.write(call.outcome()) as write:
                write.replace(row, replace(row, unkept=True))
            return False
        return True

    def _tell(self, others: list[bytes]) -> None:
        said = _taken(others).message if others else ""
        if said and said != self.trouble:
            log.error("the token is another broker's too", sentence=said, reason=Reason.TOKEN_CLAIMED)
        elif self.trouble and not said:
            log.info("the token is this broker's alone again")
        self.trouble = said


def _number(value: bytes) -> str:
    found = _VALUE.fullmatch(value)
    return found[1].decode() if found else ""


def _others(there: Iterable[bytes], row: TokenClaim | None) -> list[bytes]:
    """What is in the token and not of this database."""
    known = row.numbers if row else ()
    return sorted(one for one in there if _number(one) not in known)


def _stands(there: Iterable[bytes], row: TokenClaim) -> bool:
    return row.unkept or row.numbers[-1] in map(_number, there)


def _taken(others: list[bytes]) -> WrongState:
    shown = ", ".join(found[2].decode() if (found := _VALUE.fullmatch(one)) else "illegible" for one in others[:3])
    return WrongState(
        Reason.TOKEN_CLAIMED,
        f"A broker on another database has claimed this token ({shown}): one of the two databases is a copy or an "
        "older backup, and neither destroys anything. Find out which is the true one, put the other away, stop all "
        "brokers, and run `broker accept-restore` for the true one.",
    )
