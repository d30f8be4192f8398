"""NT-14: a library's panic costs what it happened in, and no thread that others wait for."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from broker.auth.oidc.key_sets import KeySets
from broker.core.errors import Unavailable
from broker.loop import Loop
from broker.store.driver import Driver
from broker.store.sql import SqlStore
from tests.contracts.store.samples import calls, entry, key, start
from tests.fakes.panics import ENDS, SECRET, PanicException
from tests.unit.broker.test_loop import parts, round_of
from tests.unit.store.test_group import added, names, pool, store, together

__all__ = ["pool", "store"]


@pytest.mark.parametrize("kind", ENDS)
def test_NT_14_the_background_loop_goes_on_after_every_end(kind: type[BaseException]) -> None:
    recorded: list[Any] = []
    serving: list[bool] = []

    def fail(*_: object) -> Any:
        raise kind(SECRET)

    broker = parts(
        hsm=SimpleNamespace(check=fail),
        policies=SimpleNamespace(refresh=fail),
        server=SimpleNamespace(set_serving=serving.append),
        keys=SimpleNamespace(chores=lambda: iter([("key/a", fail), ("key/b", lambda _call: recorded.append("b"))])),
    )
    broker.store.record = lambda each: recorded.append((each.resource, each.outcome, each.reason))
    with structlog.testing.capture_logs() as logs:
        round_of(Loop(broker))
    assert recorded == [("key/a", "UNAVAILABLE", "CHORE_FAILED"), "b"]
    assert serving == [False]
    broke = [(each["work"], each["error"]) for each in logs if each["event"] == "background work broke"]
    assert broke == [(work, kind.__name__) for work in ("health", "policy", "key/a")]
    assert SECRET not in json.dumps(logs)


@pytest.mark.parametrize("kind", ENDS)
def test_NT_14_the_journals_thread_outlives_every_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def fail(*_: object) -> Any:
        raise kind(SECRET)

    threads = set(threading.enumerate())
    journal = start(tmp_path / "journal")
    for place in ("os.write", "encode", "Chain.mark"):
        journal.append(entry(f"before {place}"))
        with monkeypatch.context() as patch:
            # Patched: no system and no value panics when it is told to.
            patch.setattr(f"broker.store.chain.{place}", fail)
            for _ in range(2):
                with pytest.raises((Unavailable, kind)):
                    journal.append(entry(f"lost at {place}"))
        journal.append(entry(f"after {place}"))
    with monkeypatch.context() as patch:  # what cannot be taken back ends the chain, not the journal
        # Patched, as the next: no disk panics.
        patch.setattr("broker.store.chain.os.fdatasync", fail)
        # As above.
        patch.setattr("broker.store.chain.os.ftruncate", fail)
        with pytest.raises((Unavailable, kind)):
            journal.append(entry("lost with its chain"))
    journal.append(entry("in the next chain"))
    began = [each for each in threading.enumerate() if each not in threads]
    journal.close()
    assert began
    assert not [each for each in began if each.is_alive()]
    kept = [call for call in calls(tmp_path / "journal") if not call.startswith("lost")]
    assert sorted(kept) == sorted(
        [f"{when} {place}" for place in ("os.write", "encode", "Chain.mark") for when in ("before", "after")]
        + ["in the next chain"]
    )


def test_NT_14_a_panic_in_a_change_takes_back_that_change_alone(store: SqlStore, pool: Any) -> None:
    def panics() -> None:
        with store.write(entry("panics")) as write:
            write.add(key("panics"))
            raise PanicException(SECRET)

    ends = together(store, pool, added(store, "one"), panics, added(store, "two"))
    assert [type(end) for end in ends] == [type(None), type(None), PanicException, type(None)]
    assert names(store) == {"first", "one", "two"}


def test_NT_14_a_panic_in_the_taking_back_takes_back_the_whole_group(
    store: SqlStore, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the half-made change would be committed with the others, and without its record."""
    sound = Driver.run

    def faulty(driver: Driver, connection: Any, statement: str) -> None:
        if statement.startswith("ROLLBACK TO"):
            raise PanicException(SECRET)
        sound(driver, connection, statement)

    def fails() -> None:
        with store.write(entry("fails")) as write:
            write.add(key("fails"))
            raise ValueError

    with monkeypatch.context() as patch:
        # Patched: SQLite does not panic when it takes back.
        patch.setattr(Driver, "run", faulty)
        ends = together(store, pool, fails)
    assert [type(end) for end in ends] == [Unavailable, PanicException]
    assert names(store) == set()
    added(store, "later")()
    assert names(store) == {"later"}


def test_NT_14_a_panic_in_the_record_of_a_group_is_told_to_all_of_it(
    store: SqlStore, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PanicException(SECRET)

    with monkeypatch.context() as patch:
        patch.setattr("broker.store.chain.os.fdatasync", fail)  # no disk panics
        ends = together(store, pool, added(store, "one"), added(store, "two"))
    assert all(isinstance(end, Unavailable | PanicException) for end in ends)
    assert names(store) == set()
    added(store, "later")()
    assert names(store) == {"later"}


def test_NT_14_a_panic_over_an_issuers_keys_is_the_issuers_alone() -> None:
    lost: list[str] = []
    hook, threading.excepthook = threading.excepthook, lambda what: lost.append(what.exc_type.__name__)

    class Fetcher:
        allowed_hosts = frozenset[str]()

        def get(self, *_: object) -> bytes:
            raise PanicException(SECRET)

    try:
        with structlog.testing.capture_logs() as logs, pytest.raises(Unavailable) as found:
            KeySets(Fetcher()).key("https://issuer", "", "k")  # type: ignore[arg-type]
    finally:
        threading.excepthook = hook
    assert found.value.reason == "ISSUER_UNAVAILABLE"
    assert lost == []
    assert "PanicException" in json.dumps(logs)
    assert SECRET not in json.dumps(logs)
