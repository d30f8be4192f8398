"""The keys of all issuers, kept for minutes. One fetch for all who wait; no issuer is asked in quick succession.

Each issuer's keys are fetched by a thread of their own, one at a time. Who names a known key never waits for it. Who
finds none waits for the fetch that is under way, and with patience for the next one too. That comes soon after a
failure, ever more slowly while failures go on, and soon after a success, since an issuer may have rotated its keys
right then. Made-up names of keys can bring fetches about no faster than ``issuer.VAIN_PAUSES`` says.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import structlog

from broker.auth.oidc import keys
from broker.auth.oidc.compact import strict_object
from broker.auth.oidc.fetch import SECONDS, Fault, Fetcher, NotFetchedError, place
from broker.auth.oidc.issuer import STALE, Issuer
from broker.auth.oidc.keys import Key
from broker.auth.oidc.refusals import keyless
from broker.core.errors import Exhausted
from broker.core.identity import Patience

MAX_ISSUERS = 256
SHARE = 16
"""An issuer's calls that wait may be so many times as many as the places that are left then for those of others."""

LOOK = 0.25
"""Seconds after which a call that waits looks whether its caller is still there."""

CROWDED = Fault("so many calls wait for them already")
VAIN = 2
"""Sets without a key that show that the issuer does not publish it: a cache before it may give out an old one once."""

NOT_YET = Fault("they were fetched a moment ago and have no such key; they are fetched again in a moment")

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class _Look:
    """A call that looks for a key. ``not_this``: the known one of that name, under which a signature does not hold."""

    place: tuple[str, str]
    known: Issuer
    kid: str
    not_this: Key | None
    patience: Patience | None
    since: int  # fetches that had begun before it came; none of them tells that the key is not published
    until: float
    found: Key | None = None
    once: bool = False  # one fetch is all that is waited for
    told: int = 0  # the last fetch that has told that there is no such key
    vain: int = 0  # fetches that have


class KeySets:
    """Keys by (issuer, CA of its server) and kid."""

    def __init__(self, fetcher: Fetcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._lock = threading.Lock()
        self._issuers: OrderedDict[tuple[str, str], Issuer] = OrderedDict()
        self._waiting = 0

    def key(
        self, issuer: str, ca_pem: str, kid: str, patience: Patience | None = None, *, not_this: Key | None = None
    ) -> Key | None:
        """The issuer's key of that name; None, or ``not_this``, when it publishes no other.

        Unavailable ``ISSUER_UNAVAILABLE`` while that cannot be told, Unauthenticated ``ISSUER_MISCONFIGURED`` or
        ``ISSUER_KEYS_REFUSED`` when it cannot without an operator.
        """
        with self._lock:
            look = self._look(issuer, ca_pem, kid, not_this, patience)
            if self._settled(look):
                return look.found
            self._check_room(look)
            self._wait_more(look.known, 1)
        try:
            with patience.aside() if patience else nullcontext():
                self._await(look)
        except Exhausted as error:
            raise keyless(CROWDED) from error
        finally:
            with self._lock:
                self._wait_more(look.known, -1)
        return look.found

    def _look(self, issuer: str, ca_pem: str, kid: str, not_this: Key | None, patience: Patience | None) -> _Look:
        known = self._known((issuer, ca_pem))
        until = patience.until if patience else time.monotonic() + SECONDS
        return _Look(
            place=(issuer, ca_pem), known=known, kid=kid, not_this=not_this, patience=patience,
            since=known.begun, until=until, once=patience is None or patience.once,
        )  # fmt: skip

    def _await(self, look: _Look) -> None:
        known = look.known
        with known.changed:
            while not self._settled(look):
                left = look.until - time.monotonic()
                if left <= 0 or (look.patience and not look.patience.alive()):
                    self._give_up(look, self._clock())
                    return
                pause = left if known.under_way else min(left, max(0.01, known.due - self._clock()))
                known.changed.wait(min(LOOK, pause))

    def _settled(self, look: _Look) -> bool:
        """Whether it is known what is to be found (``look.found``); raised when it will not be. Begins due fetches."""
        known, now = look.known, self._clock()
        look.found = known.serving(look.kid, now)
        if look.found is not None and look.found != look.not_this:
            if now - known.fetched > STALE:
                self._begin(look, now)
            return True
        if known.fresh(now) and known.good > max(look.since, look.told):
            look.told, look.vain = known.good, look.vain + 1
        if look.vain >= (VAIN if look.found is None else 1) or (known.fresh(now) and known.lacks(look.kid, now)):
            return self._give_up(look, now)
        if look.once and known.begun > look.since and not known.under_way:
            return self._give_up(look, now)
        if known.under_way or self._begin(look, now):
            return False
        lasting = known.fault.lasting and known.failures > 1 and not known.fresh(now)
        if look.once or lasting or known.due - now > look.until - time.monotonic():
            return self._give_up(look, now)
        return False

    @staticmethod
    def _give_up(look: _Look, now: float) -> bool:
        """Wait no longer: there is no other key than what was found, or, raised, that cannot be told."""
        known = look.known
        if look.vain and look.found is None:
            known.note_missing(look.kid, now)
        if look.vain or look.found is not None or (known.fresh(now) and known.lacks(look.kid, now)):
            return True
        raise keyless(NOT_YET if known.fresh(now) else known.fault)

    def _check_room(self, look: _Look) -> None:
        """Who waits for one issuer leaves places for calls of others; with keys there, half of all."""
        if look.patience is None:
            return
        room, known = look.patience.room, look.known
        most = room // 2 if known.fresh(self._clock()) else SHARE * (room - self._waiting)
        if known.waiting >= most:
            raise keyless(CROWDED)

    def _wait_more(self, known: Issuer, calls: int) -> None:
        known.waiting += calls
        self._waiting += calls

    def _known(self, place_: tuple[str, str]) -> Issuer:
        known = self._issuers.get(place_)
        if known is None:
            known = self._issuers[place_] = Issuer(changed=threading.Condition(self._lock))
        self._issuers.move_to_end(place_)
        if len(self._issuers) > MAX_ISSUERS:
            self._issuers.popitem(last=False)
        return known

    def _begin(self, look: _Look, now: float) -> bool:
        """Begin a fetch, if none is under way and it is time for one."""
        known = look.known
        if known.under_way or now < known.due:
            return False
        known.begun, known.under_way = known.begun + 1, True
        args = (*look.place, known, known.begun)
        threading.Thread(target=self._refetch, args=args, name="issuer-keys", daemon=True).start()
        return True

    def _refetch(self, issuer: str, ca_pem: str, known: Issuer, number: int) -> None:
        found, fault = None, Fault("its keys cannot be read")
        try:
            found = self._fetch(issuer, ca_pem, known)
        except NotFetchedError as error:
            fault = error.fault
        except ValueError:
            pass  # what it sent is not quoted
        except BaseException as error:  # noqa: BLE001 (a library's panic over what it sent must not end the broker)
            _log.error("issuer keys broke the reader", issuer=issuer, error=type(error).__name__)
        with known.changed:
            known.under_way = False
            if found is None:
                known.failed(fault, self._clock())
            else:
                known.succeeded(found, number, self._clock())
            known.changed.notify_all()
        if found is None:
            _log.warning("issuer keys not fetched", issuer=issuer, fault=fault.text)

    def _fetch(self, issuer: str, ca_pem: str, known: Issuer) -> dict[str, Key]:
        deadline = time.monotonic() + SECONDS
        address, known.address = known.address or self._discovered(issuer, ca_pem, deadline), ""
        try:
            document = self._fetcher.get(address, ca_pem, deadline)
        except NotFetchedError as error:
            if not error.fault.lasting:
                known.address = address  # the next try goes on from here, and only that
            raise
        found, left_out = keys.load(strict_object(document))
        if left_out:
            _log.warning("issuer keys left out", issuer=issuer, count=left_out)
        return found

    def _discovered(self, issuer: str, ca_pem: str, deadline: float) -> str:
        discovery = f"{issuer.removesuffix('/')}/.well-known/openid-configuration"
        document = strict_object(self._fetcher.get(discovery, ca_pem, deadline))
        if document.get("issuer") != issuer:
            raise NotFetchedError("its discovery document names another issuer", lasting=True)
        address = document.get("jwks_uri")
        if not isinstance(address, str):
            raise NotFetchedError("its discovery document names no keys", lasting=True)
        host, port, _ = place(address)
        if (host, port) != place(issuer)[:2] and f"{host}:{port}" not in self._fetcher.allowed_hosts:
            text = f"its keys are at another host, and [oidc] allowed_hosts does not name it: {host}:{port}"
            raise NotFetchedError(text, lasting=True)
        return address
