"""Jobs and an operator's puts on a running broker, and what must be true of it once it was broken under them.

What was acknowledged must be there afterwards; what was not answered may be there or not, and never by half.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from broker_api.v1 import leases_pb2, sessions_pb2
from google.protobuf.duration_pb2 import Duration

from tests.servers.issuer import Issuer
from tests.servers.live import Client, Live, within
from tests.servers.live_jobs import Job, grant, rule_for
from tests.servers.live_load import BROKEN
from tests.servers.refusals import Refused

JOBS = 3
PACE = 0.1
"""How long each rests between two jobs or puts where the load only has to go on; to hit a call with a kill it is dense.
"""
REFERENCES = ["team/app/db", "team/app/api"]
ACTIVE, ENDED = sessions_pb2.SESSION_STATE_ACTIVE, sessions_pb2.SESSION_STATE_ENDED
LEASED = leases_pb2.LEASE_STATE_ACTIVE


@dataclass
class Given:
    """A session that was handed out: its leases, and whether its end was ``asked`` for and ``acknowledged``."""

    token: str
    leases: set[str]
    asked: bool = False
    over: bool = False


@dataclass
class Acknowledged:
    """What callers have been told, and what they never heard of."""

    sessions: dict[str, Given] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)  # identity tokens that opened their session
    unanswered: list[str] = field(default_factory=list)  # identity tokens of which nobody knows
    puts: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # secret: its newest version and what is in it
    unanswered_puts: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[Refused] = field(default_factory=list)


class FetchLoad:
    """``JOBS`` threads of short jobs and one that puts, until they are stopped or the broker is away.

    ``stay``: go on with new jobs while the broker (or its database) is away.
    """

    def __init__(self, live: Live, issuer: Issuer, told: Acknowledged, *, stay: bool = False) -> None:
        self._live, self._issuer, self._told, self._stay = live, issuer, told, stay
        self._stop = threading.Event()
        self._faults: list[BaseException] = []
        self._lock = threading.Lock()
        work = [*([self._jobs] * JOBS), self._puts]
        self._threads = [threading.Thread(target=self._run, args=(one,), name="fetch-load") for one in work]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the call that each thread is at."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        if self._faults:
            raise self._faults[0]

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as fault:  # noqa: BLE001 (raised again by stop)
            self._faults.append(fault)

    def _jobs(self) -> None:
        job = Job(self._live)
        try:
            while not self._stop.is_set() and (self._job(job) or self._stay):
                self._rest()
        finally:
            job.close()

    def _rest(self) -> None:
        if self._stay:
            self._stop.wait(PACE)

    def _job(self, job: Job) -> bool:
        """One job's life; whether the broker was there all along."""
        identity = self._issuer.token()
        opened = self._asked(
            lambda: job.ask("FetchSecrets", identity, references=REFERENCES, ttl=Duration(seconds=600))
        )
        if opened is None:
            self._told.unanswered.append(identity)
            return False
        given = Given(opened.session_token, {each.lease.id for each in opened.secrets})
        with self._lock:
            self._told.used.append(identity)
            self._told.sessions[opened.session.id] = given
        more = self._asked(lambda: job.ask("FetchSecrets", given.token, references=REFERENCES[:1]))
        if more is None or self._asked(lambda: job.ask("RenewSession", given.token)) is None:
            return False
        given.leases |= {each.lease.id for each in more.secrets}
        given.asked = random.random() < 0.9  # noqa: S311 (no secret)
        if given.asked:
            given.over = self._asked(lambda: job.ask("EndSession", given.token)) is not None
        return given.over or not given.asked

    def _puts(self) -> None:
        client = self._live.client()
        for number in range(100_000):
            if self._stop.is_set() or not (self._put(client, number) or self._stay):
                return
            self._rest()

    def _put(self, client: Client, number: int) -> bool:
        put: dict[str, Any] = {"name": f"team/put/n{number % 7}", "request_id": str(uuid.uuid4())}
        put["fields"] = {"value": put["request_id"].encode()}
        answer = self._asked(lambda: client.ask("PutSecret", **put))
        if answer is None:
            self._told.unanswered_puts.append(put)
            return False
        self._told.puts[put["name"]] = (answer.secret.latest_version, put["fields"]["value"])
        return True

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """The answer, None when nobody knows what became of the call; any other refusal is a fault."""
        try:
            return ask()
        except Refused as error:
            self._told.refusals.append(error)
            if error.code not in BROKEN:
                raise
            return None


@contextmanager
def fetching(live: Live, issuer: Issuer, told: Acknowledged, *, stay: bool = False) -> Iterator[None]:
    """Load for as long as the block lasts."""
    load = FetchLoad(live, issuer, told, stay=stay)
    load.start()
    try:
        yield
    finally:
        load.stop()


def furnish(live: Live, issuer: Issuer) -> None:
    """The secrets, the grant and the trust rule that the load is about."""
    with live.client() as admin:
        grant(admin)
        for name in REFERENCES:
            admin.ask("PutSecret", name=name, fields={"password": b"canary-" + name.encode()})
        admin.ask("CreateTrustRule", rule=rule_for(issuer))


def check_kept(live: Live, told: Acknowledged) -> None:
    """Nothing that was acknowledged is lost, no token opens a second session, and no lease lives unknown."""
    job = Job(live)
    with live.client() as admin:
        _check_tokens(job, told)
        for put in told.unanswered_puts:
            admin.ask("PutSecret", **put)  # the same version again, or a newer one than any that was acknowledged
        told.unanswered_puts.clear()
        sessions = {one.id: one.state for one in admin.everything("ListSessions", "sessions")}
        leases = {one.id: one for one in admin.everything("ListLeases", "leases")}
        _check_puts(admin, told)
    _check_sessions(told, sessions, leases)
    holders = {one.session for one in leases.values() if one.state == LEASED}
    assert {sessions.get(name) for name in holders} <= {ACTIVE}, "a lease outlives its session"
    _check_answers(job, told)
    job.close()
    with live.client() as admin:  # a pipeline holds so many and no more
        admin.ask("RevokeSessions", principal="pipeline/deploy")


def _check_tokens(job: Job, told: Acknowledged) -> None:
    """Each used token is used up; of one that nobody knows of, the first use after the restart settles it."""
    for token in told.unanswered:
        first = _why_not(job, token)
        assert first in {"", "TOKEN_REPLAYED"}, first
        told.used.append(token)
    told.unanswered.clear()
    for token in told.used:
        again = _why_not(job, token)
        assert again == "TOKEN_REPLAYED", again
    told.used.clear()


def _why_not(job: Job, token: str) -> str:
    """Why a token opens no session any more; one that it opens is ended, because a pipeline has only so many leases."""
    try:
        opened = job.ask("FetchSecrets", token, references=REFERENCES)
    except Refused as error:
        return error.reason
    job.ask("EndSession", opened.session_token)
    return ""


def _check_puts(admin: Client, told: Acknowledged) -> None:
    if told.puts:
        names = sorted(told.puts)
        found = admin.ask("FetchSecrets", references=names).secrets
        for name, each in zip(names, found, strict=True):
            version, value = told.puts[name]
            assert each.version >= version, f"{name} is at {each.version}, acknowledged was {version}"
            assert each.version > version or each.fields["value"] == value


def _check_sessions(told: Acknowledged, sessions: dict[str, int], leases: dict[str, Any]) -> None:
    for name, given in told.sessions.items():
        assert name in sessions, "a session that was handed out is gone"
        assert given.leases <= leases.keys(), "a lease that was handed out is gone"
        states = {leases[one].state == LEASED for one in given.leases}
        if not given.asked or given.over:
            assert (sessions[name], states) == ((ENDED, {False}) if given.over else (ACTIVE, {True})), name
        else:  # nobody knows whether it was ended, but it was not ended by half
            assert states == {sessions[name] == ACTIVE}, name


def _check_answers(job: Job, told: Acknowledged) -> None:
    """The newest sessions answer to their tokens, or do not, as they were told."""
    for given in list(told.sessions.values())[-8:]:
        if given.over:
            assert job.why_not("RenewSession", given.token) == "SESSION_INVALID"
        elif not given.asked:
            job.ask("RenewSession", given.token)


def check_recorded(live: Live, told: Acknowledged) -> None:
    """Of every lease that was handed out, and of every one that is there, the audit knows."""
    recorded = {record["facts"]["lease"] for record in live.records() if "lease" in record.get("facts", {})}
    assert {lease for given in told.sessions.values() for lease in given.leases} <= recorded


def crash_rounds(live: Live, issuer: Issuer, rounds: int) -> None:
    """SIGKILL after 0 to 500 ms of jobs, of one a round at least, restart, compare with what was acknowledged."""
    furnish(live, issuer)
    whole = Acknowledged()
    for number in range(rounds):
        told = Acknowledged()
        with fetching(live, issuer, told):
            threading.Event().wait(random.uniform(0, 0.5))  # noqa: S311 (no secret)
            within(20, lambda: len(whole.sessions) + len(told.sessions) >= number)  # noqa: B023 (of this round)
            live.kill()
        took = live.start()
        assert took <= live.back_seconds, f"it took {took:.1f} s to come back"
        check_kept(live, told)
        whole.sessions |= told.sessions
    assert len(whole.sessions) >= rounds - 1, "there was hardly any load"
    check_recorded(live, whole)
    assert live.terminate() == 0
    assert live.verify(*live.torn()).count("\nbroker-") >= rounds
    assert live.holding(b"canary-team", *[given.token.encode() for given in whole.sessions.values()]) == []
    assert "Traceback" not in live.said, live.said[-2000:]


def away_and_back(live: Live, issuer: Issuer, away: Callable[[], None], back: Callable[[], None]) -> None:
    """What the broker stands on goes and returns while jobs go on; it serves again within 10 s of the return."""
    told = Acknowledged()
    with fetching(live, issuer, told, stay=True):
        within(20, lambda: len(told.sessions) >= 5 and len(told.puts) >= 5)
        away()
        refused = len(told.refusals)
        within(10, lambda: len(told.refusals) > refused)
        back()
        had = len(told.sessions), sum(version for version, _ in told.puts.values())
        within(10, lambda: len(told.sessions) > had[0] and sum(one for one, _ in told.puts.values()) > had[1])
    assert {error.code for error in told.refusals} <= {"UNAVAILABLE"}, told.refusals
    check_kept(live, told)
