"""The keys of all issuers, kept for minutes: asked for at most once a minute, however many tokens name unknown ones.

Each issuer's keys are fetched by a thread of their own, one at a time. Who names a known key never waits for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from broker.auth.oidc import keys
from broker.auth.oidc.compact import strict_object
from broker.auth.oidc.fetch import SECONDS, Fetcher, NotFetchedError, place
from broker.auth.oidc.keys import Key
from broker.core.errors import Unavailable

REFETCH = 60.0
"""Seconds between two fetches of one issuer's keys, successful or not."""

STALE = 300.0
"""Seconds after which keys are fetched anew, while the old ones go on serving."""

OVER = 600.0
"""Seconds after which keys that could not be fetched anew serve no longer."""

MAX_ISSUERS = 256
MAX_WAITING, MAX_WAITING_IN_ALL = 2, 4
"""Calls that wait for the fetch of one issuer's keys, and of all issuers'; more are told to come back, which the CLI
does by itself within a second. A fetch can take ``SECONDS``, and each of those calls holds a thread of the few."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Issuer:
    keys: dict[str, Key] = field(default_factory=dict)
    fetched: float = float("-inf")
    tried: float = float("-inf")
    fault: str = ""
    ended: threading.Event | None = None  # of the fetch that is under way
    waiting: int = 0


class KeySets:
    """Keys by (issuer, CA of its server) and kid."""

    def __init__(self, fetcher: Fetcher, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetcher = fetcher
        self._clock = clock
        self._lock = threading.Lock()
        self._issuers: OrderedDict[tuple[str, str], _Issuer] = OrderedDict()
        self._waiting = 0

    def key(self, issuer: str, ca_pem: str, kid: str) -> Key | None:
        """The issuer's key of that name, or None; Unavailable ``ISSUER_UNAVAILABLE`` while there are no keys."""
        with self._lock:
            known = self._known(issuer, ca_pem)
            age = self._clock() - known.fetched
            found = known.keys.get(kid) if age <= OVER else None
            ended = self._begin(issuer, ca_pem, known) if found is None or age > STALE else None
            if found is not None:
                return found
            if ended is not None and (known.waiting >= MAX_WAITING or self._waiting >= MAX_WAITING_IN_ALL):
                raise _unavailable("other calls wait for them already")
            self._wait_more(known, 1)
        try:
            if ended is not None:
                ended.wait(SECONDS)
        finally:
            with self._lock:
                self._wait_more(known, -1)
        return self._now(known, kid)

    def _wait_more(self, known: _Issuer, calls: int) -> None:
        known.waiting += calls
        self._waiting += calls

    def _now(self, known: _Issuer, kid: str) -> Key | None:
        with self._lock:
            if self._clock() - known.fetched > OVER:
                raise _unavailable(known.fault or "it did not answer in time")
            return known.keys.get(kid)

    def _known(self, issuer: str, ca_pem: str) -> _Issuer:
        known = self._issuers.setdefault((issuer, ca_pem), _Issuer())
        self._issuers.move_to_end((issuer, ca_pem))
        if len(self._issuers) > MAX_ISSUERS:
            self._issuers.popitem(last=False)
        return known

    def _begin(self, issuer: str, ca_pem: str, known: _Issuer) -> threading.Event | None:
        """The end of the fetch that is under way, one begun now if it is time; None when there is nothing to await."""
        if known.ended is None and self._clock() - known.tried >= REFETCH:
            known.tried = self._clock()
            args = (issuer, ca_pem, known)
            threading.Thread(target=self._refetch, args=args, name="issuer-keys", daemon=True).start()
            known.ended = threading.Event()  # the thread looks for it under the lock that is held here
        return known.ended

    def _refetch(self, issuer: str, ca_pem: str, known: _Issuer) -> None:
        found, fault = None, "its keys cannot be read"
        try:
            found = self._fetch(issuer, ca_pem)
            fault = ""
        except NotFetchedError as error:
            fault = str(error)
        except ValueError:
            pass  # what it sent is not quoted
        except BaseException as error:  # noqa: BLE001 (a library's panic over what it sent must not end the broker)
            _log.error("issuer keys broke the reader", issuer=issuer, error=type(error).__name__)
        finally:
            with self._lock:
                known.fault = fault
                if found is not None:
                    known.keys, known.fetched = found, self._clock()
                ended, known.ended = known.ended, None
            if ended is not None:
                ended.set()
        if fault:
            _log.warning("issuer keys not fetched", issuer=issuer, fault=fault)

    def _fetch(self, issuer: str, ca_pem: str) -> dict[str, Key]:
        deadline = time.monotonic() + SECONDS
        discovery = f"{issuer.removesuffix('/')}/.well-known/openid-configuration"
        document = strict_object(self._fetcher.get(discovery, ca_pem, deadline))
        if document.get("issuer") != issuer:
            raise NotFetchedError("its discovery document names another issuer")
        address = document.get("jwks_uri")
        if not isinstance(address, str):
            raise NotFetchedError("its discovery document names no keys")
        host, port, _ = place(address)
        if (host, port) != place(issuer)[:2] and f"{host}:{port}" not in self._fetcher.allowed_hosts:
            raise NotFetchedError("its keys are at another host, and [oidc] allowed_hosts does not name it")
        found, left_out = keys.load(strict_object(self._fetcher.get(address, ca_pem, deadline)))
        if left_out:
            _log.warning("issuer keys left out", issuer=issuer, count=left_out)
        return found


def _unavailable(why: str) -> Unavailable:
    error = Unavailable(
        "ISSUER_UNAVAILABLE", "The keys of the identity token's issuer cannot be had right now; try again in a minute."
    )
    error.facts = {"claim": "issuer keys", "claim_found": why}
    return error
