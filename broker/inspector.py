"""Looks through the database again and again, beside everything else, and says what somebody else has changed there."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable

import structlog

from broker.core.call import Call, background_call
from broker.core.errors import BrokerError, Outcome
from broker.core.ports import Now, RowFinding, Store
from broker.core.reasons import Reason
from broker.core.records import DECIDING

log = structlog.get_logger("broker")

PAUSE = 10.0
"""Seconds between two looks at the tables that decide."""

SHARE, LONGEST = 100, 900.0
"""The pause between two looks at all tables: so many times as long as the look took, and how many seconds at most."""

TOLD = 100
"""Findings that are told by name; there may be as many as there are rows."""


class Inspector:
    """One thread; each finding is logged and recorded once, as long as it stands."""

    def __init__(self, store: Store, now: Now) -> None:
        self._store = store
        self._now = now
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inspector", daemon=True)
        self._standing: set[RowFinding] = set()

    def start(self, found: Iterable[RowFinding]) -> None:
        """Tell what was found when the store was opened, and begin."""
        self.tell(found, ())
        self._thread.start()

    def stop(self) -> None:
        """End after the look that is under way, and wait a moment for it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def tell(self, found: Iterable[RowFinding], tables: Collection[str]) -> None:
        """Log and record what is new among the findings in these tables, or in all."""
        now = {one for one in self._standing if tables and one.table not in tables} | set(found)
        new = sorted(now - self._standing, key=lambda one: (one.table, one.name, one.how))
        for one in new[:TOLD]:
            log.error("a row of the database was changed by somebody else", table=one.table, name=one.name, how=one.how)
        if new:
            self._store.record(
                *(self._entry(one).outcome(Outcome.FAILED_PRECONDITION, Reason.ROW_FORGED) for one in new[:TOLD])
            )
        if len(new) > TOLD:
            log.error("more rows of the database were changed by somebody else", count=len(new) - TOLD)
        self._standing = now

    def look(self, tables: Collection[str] = ()) -> None:
        """Look once at these tables, or at all; whatever comes of it, the next look is taken."""
        try:
            self.tell(self._store.inspect(tables), tables)
        except BrokerError as error:
            log.warning("background work failed", work="inspection", reason=error.reason, sentence=error.message)
        except BaseException as error:  # noqa: BLE001 (a bug, a journal file that is gone; its text may hold anything)
            log.error("background work broke", work="inspection", error=type(error).__name__)  # noqa: TRY400

    def _run(self) -> None:
        whole = 0.0  # when all tables are due
        while not self._stop.wait(PAUSE):
            begun = time.monotonic()
            self.look(DECIDING if begun < whole else ())
            if begun >= whole:
                took = time.monotonic() - begun
                whole = begun + took + min(SHARE * took, LONGEST)

    def _entry(self, one: RowFinding) -> Call:
        call = background_call(f"row/{one.table}/{one.name or '*'}", 0, self._now, "-/Inspect")
        call.note(state=one.how)
        return call
