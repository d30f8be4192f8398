"""Sessions and leases against a small reference model, on a real SQLite file that outlives every crash."""

# ruff: noqa: FBT001 (what Hypothesis draws)

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.core.errors import BrokerError
from broker.core.kinds import LeaseState, SessionState
from broker.core.leases.ending import KEEP
from broker.core.model import Lease, Session
from broker.core.policy import guard
from broker.core.policy.cedar import FIRST_POLICY, Policy
from broker.core.quota import LeaseQuota
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from broker.store.waits import LONGEST
from tests.contracts.store.samples import ROW_KEY
from tests.fakes.calls import Clock
from tests.unit.sessions.bench import GRANTS, Bench, pipeline

MOST = 12
HOUR = timedelta(hours=1)
REFERENCES = ("app/db", "app/brief", "app/sub/x", "other/x", "app/none")
NARROW = FIRST_POLICY + GRANTS.replace('Folder::"app"', 'Folder::"app/sub"')
LOCKED = FIRST_POLICY.replace('Action::"RenewSession", ', "") + GRANTS
POLICIES = {"wide": FIRST_POLICY + GRANTS, "narrow": NARROW, "locked": LOCKED}
ACTIVE, EXPIRED, REVOKED = LeaseState.ACTIVE, LeaseState.EXPIRED, LeaseState.REVOKED
seconds = st.integers(1, 4000)


@dataclass
class ModelLease:
    """What a lease should be."""

    name: str
    end: datetime
    state: LeaseState = ACTIVE

    def finish(self, state: LeaseState, now: datetime) -> None:
        """What ends before its time is over from now on."""
        if self.state is ACTIVE:
            self.state, self.end = state, min(self.end, now)


@dataclass
class ModelSession:
    """What a session should be."""

    token: str
    who: str
    revision: int
    created: datetime
    expires: datetime
    last: datetime
    over: bool = False
    leases: dict[str, ModelLease] = field(default_factory=dict)

    def finish(self, state: LeaseState, now: datetime) -> None:
        self.over, self.expires = True, min(self.expires, now)
        for lease in self.leases.values():
            lease.finish(state, now)


class KilledError(BaseException):
    """The process is gone, in the middle of a call."""


class Machine(RuleBasedStateMachine):
    """Each rule does the same to the broker and to the model; the invariant compares every row."""

    template: ClassVar[Path]
    steps: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=self.template.parent))
        shutil.copy(self.template / "broker.db", self.folder / "broker.db")
        self.config = StoreConfig(
            url=f"sqlite:///{self.folder}/broker.db", journal=self.folder / "journal", patience_seconds=LONGEST
        )
        self.clock = Clock()
        self.store = SqlStore(self.config, ROW_KEY, self.clock)
        self.bench = Bench(self.store, LeaseQuota(per_principal=MOST))
        self.clock = self.bench.clock
        self.policy = "wide"
        self.revisions = {"deploy": 1, "other": 1}
        self.model: dict[str, ModelSession] = {}
        self.orphans: dict[str, ModelLease] = {}  # leases that are listed for longer than their session
        self.gone: list[str] = []  # tokens of sessions that are forgotten
        self.start = self.clock()
        self.brief = self.clock() + timedelta(minutes=30)
        for name in ("deploy", "other"):
            self.bench.add_rule(name)
        for name in ("app/db", "app/sub/x", "other/x"):
            self.bench.put(name)
        self.bench.put("app/brief", self.brief)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def alive(self, session: ModelSession) -> bool:
        return not session.over and session.expires > self.clock()

    def granted(self, who: str, name: str) -> bool:
        if who == "other":
            return name.startswith("other/")
        return name.startswith("app/sub/" if self.policy == "narrow" else "app/")

    def readable(self, who: str, name: str) -> bool:
        there = name != "app/none" and (name != "app/brief" or self.brief > self.clock())
        return there and self.granted(who, name)

    def held(self, who: str) -> int:
        mine = [session for session in self.model.values() if session.who == who]
        return sum(lease.state is ACTIVE for session in mine for lease in session.leases.values())

    def pick(self, draw: Any) -> tuple[str, ModelSession]:
        name = draw.draw(st.sampled_from([name for name, each in self.model.items() if each.token]))
        return name, self.model[name]

    def check(self, expected: bool, act: Any) -> Any:
        if expected:
            return act()
        with pytest.raises(BrokerError):
            act()
        return None

    def remember(self, opening: Any, who: str, length: int) -> ModelSession:
        now = self.clock()
        cut = min(timedelta(seconds=length), HOUR)
        made = ModelSession(opening.token, who, self.revisions[who], now, now + cut, now + HOUR)
        self.model[opening.session.id] = made
        return made

    def lent(self, session: ModelSession, found: list[Any]) -> None:
        for each in found:
            if each.lease:
                name = each.lease.resource.removeprefix("secret/")
                end = min(session.last, self.brief) if name == "app/brief" else session.last
                session.leases[each.lease.id] = ModelLease(name, end)
                assert each.lease.expires_at == min(end, session.expires)

    @rule(who=st.sampled_from(["deploy", "other"]), length=seconds, late=st.booleans())
    def login(self, who: str, length: int, late: bool) -> None:
        room = sum(not each.over for each in self.model.values() if each.who == who) < MOST
        revision = self.revisions[who] - late
        job = pipeline(who, revision=revision)
        opening = self.check(room and not late, lambda: self.bench.login(job, length))
        if opening:
            self.remember(opening, who, length)

    @rule(
        who=st.sampled_from(["deploy", "other"]),
        names=st.lists(st.sampled_from(REFERENCES), min_size=1, unique=True),
        partial=st.booleans(),
        length=seconds,
    )
    def job(self, who: str, names: list[str], partial: bool, length: int) -> None:
        good = [name for name in names if self.readable(who, name)]
        room = sum(not each.over for each in self.model.values() if each.who == who) < MOST
        fits = room and self.held(who) + len(good) <= MOST
        identity = pipeline(who, revision=self.revisions[who])
        act = lambda: self.bench.fetch(identity, *names, partial=partial, seconds=length)  # noqa: E731
        done = self.check(fits and (partial or good == names), act)
        if done:
            assert [each.text for each in done[0] if each.secret] == good
            self.lent(self.remember(done[1], who, length), done[0])

    @precondition(lambda self: any(each.token for each in self.model.values()))
    @rule(draw=st.data(), names=st.lists(st.sampled_from(REFERENCES), min_size=1, unique=True), partial=st.booleans())
    def fetch(self, draw: Any, names: list[str], partial: bool) -> None:
        _, session = self.pick(draw)
        good = [name for name in names if self.readable(session.who, name)]
        now = self.clock()
        had = {lease.name for lease in session.leases.values() if lease.state is ACTIVE and lease.end > now}
        fits = self.alive(session) and self.ruled(session) and self.held(session.who) + len(set(good) - had) <= MOST
        act = lambda: self.bench.fetch(session.token, *names, partial=partial)  # noqa: E731
        done = self.check(fits and (partial or good == names), act)
        if done:
            self.lent(session, done[0])

    def ruled(self, session: ModelSession) -> bool:
        """Whether the trust rule is still the one that let it in."""
        return session.revision == self.revisions[session.who] and session.created >= self.start

    @precondition(lambda self: any(each.token for each in self.model.values()))
    @rule(draw=st.data(), length=seconds)
    def renew(self, draw: Any, length: int) -> None:
        _, session = self.pick(draw)
        allowed = self.alive(session) and self.ruled(session) and self.policy != "locked"
        if self.check(allowed, lambda: self.bench.renew(session.token, length)):
            session.expires = min(self.clock() + timedelta(seconds=length), session.last)
            for lease in session.leases.values():
                if not self.granted(session.who, lease.name):
                    lease.finish(REVOKED, self.clock())

    @precondition(lambda self: any(each.token for each in self.model.values()))
    @rule(draw=st.data())
    def end(self, draw: Any) -> None:
        _, session = self.pick(draw)
        self.bench.end(session.token)
        if not session.over:
            session.finish(REVOKED, self.clock())

    @precondition(lambda self: any(each.token for each in self.model.values()))
    @rule(draw=st.data(), by=st.sampled_from(["session", "principal", "claim"]))
    def revoke(self, draw: Any, by: str) -> None:
        name, session = self.pick(draw)
        which = {"session": name, "principal": f"pipeline/{session.who}"}
        which["claim"] = f"https://ci.example project_id={session.who}"
        hit = [session] if by == "session" else [each for each in self.model.values() if each.who == session.who]
        hit = [each for each in hit if not each.over]
        assert self.bench.revoke(**{by: which[by]}) == len(hit)
        for each in hit:
            each.finish(REVOKED, self.clock())

    @precondition(lambda self: any(each.leases for each in self.model.values()))
    @rule(draw=st.data(), by=st.sampled_from(["lease", "prefix"]))
    def revoke_leases(self, draw: Any, by: str) -> None:
        leases = {name: lease for each in self.model.values() for name, lease in each.leases.items()}
        name = draw.draw(st.sampled_from(list(leases)))
        which = name if by == "lease" else leases[name].name.split("/")[0]
        hit = [leases[name]] if by == "lease" else [e for e in leases.values() if e.name.startswith(which + "/")]
        hit = [each for each in hit if each.state is ACTIVE]
        made = self.bench.call("LeaseService/RevokeLeases")
        assert self.bench.leases.revoke(made, **{by: which}) == len(hit)
        for each in hit:
            each.finish(REVOKED, self.clock())

    @rule()
    def chores(self) -> None:
        self.bench.chores()
        now = self.clock()
        for session in self.model.values():
            if not session.over and session.expires <= now:
                session.finish(EXPIRED, now)
            for lease in session.leases.values():
                if lease.end <= now:
                    lease.finish(EXPIRED, now)
            kept = session.leases.items()
            session.leases = {n: e for n, e in kept if e.state is ACTIVE or e.end > now - KEEP}
        gone = {name for name, each in self.model.items() if each.over and each.expires <= now - KEEP}
        self.gone = [*self.gone, *(self.model[name].token for name in gone)][-5:]
        for name in gone:
            self.orphans.update(self.model.pop(name).leases)
        self.orphans = {name: lease for name, lease in self.orphans.items() if lease.end > now - KEEP}

    @rule(step=st.one_of(st.integers(-120, 600), st.integers(-7200, 7200)))
    def time(self, step: int) -> None:
        self.clock.forward(seconds=step)

    @rule(policy=st.sampled_from(sorted(POLICIES)))
    def set_policy(self, policy: str) -> None:
        self.policy = policy
        self.bench.set_policy(POLICIES[policy])

    @rule(who=st.sampled_from(["deploy", "other"]))
    def change_rule(self, who: str) -> None:
        self.bench.change_rule(who)
        self.revisions[who] += 1

    @rule()
    def crash(self) -> None:
        self.store.close()
        self.store = SqlStore(self.config, ROW_KEY, self.clock)
        self.bench.restart(store=self.store)

    @rule(length=seconds, late=st.booleans())
    def killed_in_the_middle_of_a_job(self, length: int, late: bool) -> None:
        """Before the journal nothing is there; after the commit everything is, and nobody was told."""
        before = {session.id for session in self.rows(Session)}
        with killing(self.store, late=late), pytest.raises((KilledError, BrokerError)):
            self.bench.fetch(pipeline(revision=self.revisions["deploy"]), "app/sub/x", seconds=length)
        self.crash()
        made = [session for session in self.rows(Session) if session.id not in before]
        assert len(made) <= late
        for session in made:
            found = ModelSession("", "deploy", 0, self.clock(), session.expires_at, session.last_at)
            (lease,) = self.rows(Lease, {"session": session.id})
            found.leases[lease.id] = ModelLease("app/sub/x", session.last_at)
            found.finish(REVOKED, self.clock())
            assert self.bench.revoke(session=session.id) == 1  # what nobody was told of is there to be revoked
            self.model[session.id] = found

    @invariant()
    def every_row_is_as_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        sessions, leases = self.rows(Session), self.rows(Lease)
        expected = {name: (each.over, each.expires, each.last) for name, each in self.model.items()}
        assert {s.id: (s.state is SessionState.ENDED, s.expires_at, s.last_at) for s in sessions} == expected
        wanted = dict(self.orphans)
        for each in self.model.values():
            wanted |= each.leases
        assert {lease.id: (lease.state, lease.expires_at) for lease in leases} == {
            name: (lease.state, lease.end) for name, lease in wanted.items()
        }
        held = {session.id for session in sessions if session.state is SessionState.ACTIVE}
        assert {lease.session for lease in leases if lease.state is ACTIVE} <= held
        assert all(session.expires_at <= session.last_at for session in sessions)

    @invariant()
    def a_token_is_good_for_as_long_as_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        Machine.steps += 1
        for session in [each for each in self.model.values() if each.token][-6:]:
            self.check(self.alive(session), lambda token=session.token: self.bench.sessions.authenticate(token))
        for token in self.gone:
            self.check(False, lambda token=token: self.bench.sessions.authenticate(token, ended=True))

    def rows(self, kind: Any, where: Any = None) -> list[Any]:
        return list(self.store.page(kind, limit=1000, where=where or {}))


@contextmanager
def killing(store: Any, *, late: bool) -> Iterator[None]:
    """End the next write before its entries are in the journal, or (late) when it is committed already."""
    real = store.write

    @contextmanager
    def write(entry: Any) -> Iterator[Any]:
        with real(entry) as found:
            yield found
            if not late:
                raise KilledError
        raise KilledError

    # Put in its place: the process has to end between the statements and what becomes of them.
    store.write = write
    yield


@pytest.fixture(autouse=True)
def each_policy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "Policy", cache(Policy))  # patched for time: three texts, set thousands of times


def run(folder: Path, examples: int, length: int) -> int:
    """Run the machine; how many steps that were."""
    template = folder / "template"
    template.mkdir(mode=0o700)
    SqlStore.migrate(StoreConfig(url=f"sqlite:///{template}/broker.db", journal=folder / "journal"))
    Machine.template, Machine.steps = template, 0
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=length,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
    return Machine.steps


@pytest.mark.timeout(300)  # seconds of computing, on computers that others use too
def test_sessions_and_leases_are_those_of_the_model(tmp_path: Path) -> None:
    """Some two hundred steps, as chance has it; the long form is for ``make soak``."""
    assert run(tmp_path, 4, 70) >= 120


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sessions_and_leases_are_those_of_the_model_for_long(tmp_path: Path) -> None:
    assert run(tmp_path, 1000, 200) >= 200_000
