"""Sessions: opened by proof, used by token, renewed within bounds, and ended with all that hangs on them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.errors import (
    Exhausted,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from broker.core.kinds import LeaseState, SessionState
from broker.core.model import Lease, Session, UsedToken
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.quota import LeaseQuota
from broker.core.sessions import tokens
from tests.fakes.calls import operator
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.unit.sessions.bench import ADMIN, GRANTS, ISSUER, Bench, pipeline

ENDED, ACTIVE = SessionState.ENDED, SessionState.ACTIVE


@pytest.fixture
def bench() -> Bench:
    made = Bench(MemoryStore())
    made.add_rule()
    made.add_rule("other")
    for name in ("app/db", "app/api", "other/x"):
        made.put(name)
    return made


def journal(bench: Bench) -> list[Any]:
    assert isinstance(bench.store, MemoryStore)
    return bench.store.entries


def test_a_login_gives_a_session_and_a_token_that_is_shown_once(bench: Bench) -> None:
    opening = bench.login(seconds=60)
    session = bench.session(opening.session.id)
    assert (session.principal, session.rule, session.subject) == ("pipeline/deploy", "deploy", "repo:deploy")
    assert session.expires_at - session.created_at == timedelta(seconds=60)
    assert session.last_at - session.created_at == timedelta(hours=1)
    principal = bench.sessions.authenticate(opening.token)
    assert (str(principal), principal.method, principal.credential) == ("pipeline/deploy", "session", session.id)
    assert principal.proof is None
    assert opening.token not in repr(opening) + repr(session)
    assert opening.token.encode() not in repr(journal(bench)).encode()
    assert journal(bench)[-1].facts["session"] == session.id


def test_AN_32_every_bad_token_gets_one_answer(bench: Bench) -> None:
    ended, lapsed = bench.login(), bench.login(seconds=1)
    bench.end(ended.token)
    bench.clock.forward(seconds=2)
    unknown = tokens.new_token(tokens.new_id())
    stolen_id = tokens.new_token(bench.login().session.id)
    bad = ["", "brs_", "x" * 100_000, ended.token, lapsed.token, unknown, stolen_id, ended.token[:-1]]
    answers = set()
    for token in bad:
        with pytest.raises(Unauthenticated) as found:
            bench.sessions.authenticate(token)
        answers.add((found.value.reason, found.value.message, str(found.value.metadata)))
    assert len(answers) == 1


def test_what_is_no_token_never_reaches_the_store(bench: Bench) -> None:
    class Untouched:
        """Read while the process starts, and no more."""

        started = False

        def __getattr__(self, name: str) -> Any:
            assert not self.started, name
            return getattr(bench.store, name)

    token, store = bench.login().token, Untouched()
    sessions = bench.elsewhere(store=store).sessions
    store.started = True
    for text in ("brs_x", token[:-1] + ("a" if token[-1] != "a" else "b"), token + " ", token.swapcase()):
        refused(lambda text=text: sessions.authenticate(text), Unauthenticated, "SESSION_INVALID")  # type: ignore[misc]


def test_TL_17_a_token_is_one_text(bench: Bench) -> None:
    token = bench.login().token
    for text in (token + "\n", " " + token, token.upper(), token + "=", token.replace("brs_", "BRS_")):
        refused(lambda text=text: bench.sessions.authenticate(text), Unauthenticated, "SESSION_INVALID")  # type: ignore[misc]


def test_only_an_identity_token_opens_a_session(bench: Bench) -> None:
    again = bench.sessions.authenticate(bench.login().token)
    refused(lambda: bench.login(again), InvalidRequest, "IDENTITY_TOKEN_MISSING")
    refused(lambda: bench.login(ADMIN), PermissionDenied, "POLICY_DENIED")


def test_AZ_14_a_rule_that_changed_since_the_token_matched_opens_nothing(bench: Bench) -> None:
    bench.change_rule(max_session_seconds=10)
    refused(bench.login, Unauthenticated, "TRUST_RULE_CHANGED")
    assert bench.login(pipeline(revision=2)).session.rule_revision == 2
    bench.delete_rule()
    refused(lambda: bench.login(pipeline(revision=2)), Unauthenticated, "TRUST_RULE_CHANGED")


def test_AN_15_a_single_use_token_opens_one_session(bench: Bench) -> None:
    bench.change_rule(single_use=True)
    job = pipeline(jti="once", revision=2)
    bench.login(job)
    refused(lambda: bench.login(job), Unauthenticated, "TOKEN_REPLAYED")
    refused(lambda: bench.fetch(job, "app/db"), Unauthenticated, "TOKEN_REPLAYED")
    assert bench.store.count(Session, {}) == 1
    assert bench.store.count(Lease, {}) == 0
    bench.clock.forward(minutes=61)
    bench.chores()
    assert bench.store.count(UsedToken, {}) == 1  # a clock that is set back does not bring the token back to life
    bench.clock.forward(minutes=61)
    bench.chores()
    assert bench.store.count(UsedToken, {}) == 0


def test_AN_15_a_token_without_an_id_is_not_for_single_use(bench: Bench) -> None:
    bench.change_rule(single_use=True)
    job = pipeline(revision=2)
    assert job.proof is not None
    nameless = replace(job, proof=replace(job.proof, token_id=""))
    refused(lambda: bench.login(nameless), Unauthenticated, "TOKEN_NOT_SINGLE_USE")


def test_TL_01_no_renewal_passes_the_last_moment(bench: Bench) -> None:
    opening = bench.login(seconds=3600)
    last = opening.session.last_at
    bench.clock.time = last - timedelta(microseconds=1)
    assert bench.renew(opening.token, 3600).expires_at == last
    assert bench.renew(opening.token, 1).expires_at == last
    bench.clock.time = last
    refused(lambda: bench.renew(opening.token, 3600), Unauthenticated, "SESSION_INVALID")


@given(st.one_of(st.timedeltas(), st.sampled_from([timedelta.max, timedelta.min, timedelta(0), timedelta(seconds=-1)])))
def test_TL_02_every_length_is_refused_or_cut(ttl: timedelta) -> None:
    bench = Bench(MemoryStore())
    bench.add_rule()
    opening = bench.login()
    renewal = bench.call("SessionService/RenewSession", bench.sessions.authenticate(opening.token))
    if ttl < timedelta(seconds=1):
        refused(
            lambda: bench.sessions.login(bench.call("SessionService/Login", pipeline()), ttl),
            InvalidRequest,
            "DURATION_INVALID",
        )
        refused(lambda: bench.sessions.renew(renewal, ttl), InvalidRequest, "DURATION_INVALID")
        return
    made = bench.sessions.login(bench.call("SessionService/Login", pipeline()), ttl)
    assert made.session.expires_at == bench.clock() + min(ttl, timedelta(hours=1))
    assert bench.sessions.renew(renewal, ttl).expires_at == bench.clock() + min(ttl, timedelta(hours=1))


def test_TL_03_a_lease_never_outlives_its_session(bench: Bench) -> None:
    bench.put("app/brief", bench.clock() + timedelta(minutes=10))
    found, opening = bench.fetch(pipeline(), "app/db", "app/brief", seconds=60)
    assert opening is not None
    end = bench.clock() + timedelta(seconds=60)
    assert [each.lease.expires_at for each in found if each.lease] == [end, end]
    bench.renew(opening.token, 1800)  # the leases move with their session, and no further than their secret
    made = bench.call("LeaseService/ListLeases")
    page = bench.leases.page(made, "", opening.session.id, (), 10)
    ends = sorted(lease.expires_at - bench.clock() for lease in page.items)
    assert ends == [timedelta(minutes=10), timedelta(minutes=30)]
    bench.clock.forward(minutes=11)
    bench.chores()
    assert sorted(bench.states(opening.session.id)) == [LeaseState.ACTIVE, LeaseState.EXPIRED]
    bench.clock.forward(minutes=20)
    page = bench.leases.page(made, "", opening.session.id, (), 10)  # before any chore has been done
    assert {lease.state for lease in page.items} == {LeaseState.EXPIRED}
    bench.chores()
    assert set(bench.states(opening.session.id)) == {LeaseState.EXPIRED}
    assert bench.session(opening.session.id).state is ENDED


def test_TL_04_a_token_renews_and_ends_its_own_session_only(bench: Bench) -> None:
    mine, theirs = bench.login(seconds=60), bench.login(seconds=60)
    bench.renew(mine.token, 600)
    assert bench.session(theirs.session.id) == theirs.session
    bench.end(mine.token)
    assert bench.session(theirs.session.id) == theirs.session
    refused(lambda: bench.sessions.end(bench.call("SessionService/EndSession")), PermissionDenied, "POLICY_DENIED")
    made = bench.call("SessionService/RenewSession", pipeline())
    refused(lambda: bench.sessions.renew(made, None), InvalidRequest, "SESSION_TOKEN_MISSING")


def test_TL_06_ending_and_revoking_twice_is_the_same_as_once(bench: Bench) -> None:
    _, opening = bench.fetch(pipeline(), "app/db")
    assert opening is not None
    before = len(journal(bench))
    bench.end(opening.token)
    bench.end(opening.token)
    assert [entry.rpc for entry in journal(bench)[before:]] == ["SessionService/EndSession"] * 2
    assert bench.revoke(session=opening.session.id) == 0
    assert bench.states(opening.session.id) == [LeaseState.REVOKED]
    refused(lambda: bench.revoke(session=tokens.new_id()), NotFound, "SESSION_NOT_FOUND")


def test_revoking_finds_by_session_by_principal_and_by_claim(bench: Bench) -> None:
    one, two, other = bench.login(), bench.login(), bench.login(pipeline("other"))
    assert bench.revoke(claim=f"{ISSUER} project_id=nobody") == 0
    assert bench.revoke(claim="https://else project_id=deploy") == 0
    assert bench.revoke(session=one.session.id) == 1
    assert bench.revoke(claim=f"{ISSUER} sub=repo:other") == 1
    assert bench.session(other.session.id).state is ENDED
    assert bench.session(two.session.id).state is ACTIVE
    more = [bench.login() for _ in range(5)]
    assert bench.revoke(principal="pipeline/deploy") == 6
    assert {bench.session(each.session.id).state for each in more} == {ENDED}
    for which in ({}, {"session": "a", "claim": "b c=d"}, {"claim": "x"}, {"claim": "x y"}, {"claim": " a=b"}):
        refused(lambda which=which: bench.revoke(**which), InvalidRequest, "SELECTION_INVALID")  # type: ignore[misc]


def test_a_repeated_revocation_answers_as_the_first_did(bench: Bench) -> None:
    bench.login()
    request = "7f9c24e8-3b1d-4a5e-9c6f-0123456789ab"
    for _ in range(2):
        made = bench.call("SessionService/RevokeSessions", request_id=request)
        assert bench.sessions.revoke(made, principal="pipeline/deploy") == 1
        bench.login()
    dry = bench.call("SessionService/RevokeSessions", validate_only=True)
    assert bench.sessions.revoke(dry, principal="pipeline/deploy") == 2
    assert bench.store.count(Session, {"state": "active"}) == 2


def test_TL_15_a_renewal_is_authorised_by_todays_policy(bench: Bench) -> None:
    _, opening = bench.fetch(pipeline(), "app/db", "app/api")
    assert opening is not None
    bench.set_policy(FIRST_POLICY + GRANTS.replace('Folder::"app"', 'Folder::"app/none"'))
    assert bench.renew(opening.token).state is ACTIVE
    assert bench.states(opening.session.id) == [LeaseState.REVOKED] * 2
    assert [entry.resource for entry in journal(bench)[-2:]] != []
    bench.set_policy(FIRST_POLICY.replace('Action::"RenewSession"', 'Action::"WhoAmI"'))
    refused(lambda: bench.renew(opening.token), PermissionDenied, "POLICY_DENIED")


@pytest.mark.parametrize("change", ["changed", "deleted", "made anew"])
def test_TL_15_a_renewal_is_authorised_by_todays_trust_rule(bench: Bench, change: str) -> None:
    opening = bench.login()
    bench.clock.forward(seconds=1)
    if change == "changed":
        bench.change_rule(audience="elsewhere")
    else:
        bench.delete_rule()
    if change == "made anew":
        bench.add_rule()
    refused(lambda: bench.renew(opening.token), Unauthenticated, "TRUST_RULE_CHANGED")
    assert bench.session(opening.session.id).expires_at == opening.session.expires_at


def test_AZ_08_each_reference_is_decided_and_audited_on_its_own(bench: Bench) -> None:
    before = len(journal(bench))
    refused(lambda: bench.fetch(pipeline(), "app/db", "other/x", "app/api"), PermissionDenied, "POLICY_DENIED")
    entries = journal(bench)[before:]
    assert [(entry.resource, entry.decision, entry.outcome) for entry in entries] == [
        ("broker/broker", "allow", "PERMISSION_DENIED"),
        ("secret/app/db", "allow", "ABORTED"),
        ("secret/other/x", "deny", "PERMISSION_DENIED"),
        ("secret/app/api", "allow", "ABORTED"),
    ]
    assert (bench.store.count(Session, {}), bench.store.count(Lease, {})) == (0, 0)
    before = len(journal(bench))
    found, opening = bench.fetch(pipeline(), "app/db", "other/x", "app/none", partial=True)
    assert opening is not None
    assert [each.refusal and each.refusal.reason for each in found] == [None, "POLICY_DENIED", "SECRET_NOT_FOUND"]
    assert [each.secret and dict(each.secret.fields) for each in found] == [{"value": b"app/db"}, None, None]
    entries = journal(bench)[before:]
    assert [(entry.rpc.split("/")[1], entry.resource, entry.reason) for entry in entries] == [
        ("Login", "broker/broker", ""),
        ("FetchSecrets", "secret/app/db", ""),
        ("FetchSecrets", "secret/other/x", "POLICY_DENIED"),
        ("FetchSecrets", "secret/app/none", "SECRET_NOT_FOUND"),
    ]
    assert entries[1].facts["session"] == opening.session.id
    assert len({entry.call_id for entry in entries}) == 1


def test_AZ_08_a_fetch_is_bounded(bench: Bench) -> None:
    for references in ([], ["app/db"] * 2, ["app/db", "app/db@0"], [f"app/x{n}" for n in range(101)], ["x"] * 10_000):
        with pytest.raises(InvalidRequest):
            bench.fetch(pipeline(), *references)
    assert bench.store.count(Session, {}) == 0
    assert len(bench.fetch(pipeline(), *(f"app/x{n}" for n in range(100)), partial=True)[0]) == 100


def test_AZ_06_a_pipeline_cannot_tell_whether_anothers_session_exists(bench: Bench) -> None:
    theirs = bench.login(pipeline("other"))
    mine = bench.sessions.authenticate(bench.login().token)
    answers = set()
    for name in (theirs.session.id, tokens.new_id()):
        for rpc, noun, which in (
            ("RevokeSessions", bench.sessions, "session"),
            ("RevokeLeases", bench.leases, "lease"),
        ):
            made = bench.call(f"X/{rpc}", mine)
            error = refused(lambda: noun.revoke(made, **{which: name}), PermissionDenied, "POLICY_DENIED")  # noqa: B023
            answers.add(error.message.replace(rpc, ""))
    assert len(answers) == 1
    assert bench.session(theirs.session.id).state is ACTIVE


def test_a_session_fetches_again_and_an_operator_without_leases(bench: Bench) -> None:
    opening = bench.login()
    found, none = bench.fetch(opening.token, "app/db", "app/api#value")
    assert none is None
    assert [each.lease and each.lease.session for each in found] == [opening.session.id] * 2
    bench.end(opening.token)
    found, none = bench.fetch(operator("bob", "readers"), "app/db")
    assert (none, found[0].lease) == (None, None)
    assert found[0].secret is not None
    assert journal(bench)[-1].principal == "operator/bob"


def test_a_session_that_ended_meanwhile_gives_nothing(bench: Bench) -> None:
    opening = bench.login()
    principal = bench.sessions.authenticate(opening.token)
    bench.end(opening.token)
    refused(lambda: bench.fetch(principal, "app/db"), Unauthenticated, "SESSION_INVALID")
    assert bench.store.count(Lease, {}) == 0
    assert journal(bench)[-1].outcome == "ABORTED"


def test_TL_11_a_principal_holds_so_many_leases_and_no_more() -> None:
    bench = Bench(MemoryStore(), LeaseQuota(per_principal=3, in_all=5))
    for name in ("deploy", "other"):
        bench.add_rule(name)
    for name in ("app/a", "app/b", "app/c", "app/d", "other/a", "other/b", "other/c"):
        bench.put(name)
    _, opening = bench.fetch(pipeline(), "app/a", "app/b")
    assert opening is not None
    refused(lambda: bench.fetch(opening.token, "app/c", "app/d"), Exhausted, "LEASE_QUOTA")
    bench.fetch(pipeline("other"), "other/a", "other/b", "other/c")
    refused(lambda: bench.fetch(opening.token, "app/c"), Exhausted, "LEASE_CAP")
    bench.fetch(opening.token, "app/a", "app/b")  # what it has already is no further lease
    bench.end(opening.token)
    bench.clock.forward(seconds=1)
    bench.fetch(pipeline(), "app/a", "app/b")
    for _ in range(2):
        bench.login()
    refused(bench.login, Exhausted, "SESSION_QUOTA")


def test_TL_12_nothing_is_live_when_the_audit_cannot_be_written(bench: Bench) -> None:
    assert isinstance(bench.store, MemoryStore)
    bench.store.journal_full = True
    for act in (bench.login, lambda: bench.fetch(pipeline(), "app/db")):
        refused(act, Unavailable, "AUDIT_UNAVAILABLE")
    assert (bench.store.count(Session, {}), bench.store.count(Lease, {})) == (0, 0)


def test_what_is_over_is_ended_and_later_forgotten(bench: Bench) -> None:
    _, opening = bench.fetch(pipeline(), "app/db", seconds=60)
    assert opening is not None
    bench.clock.forward(seconds=59)
    assert bench.chores() == 0
    bench.clock.forward(seconds=1)
    assert bench.chores() == 1
    assert bench.session(opening.session.id).state is ENDED
    assert journal(bench)[-1].facts == {"session": opening.session.id, "count": 1}
    bench.clock.forward(hours=3)
    bench.chores()
    assert (bench.store.count(Session, {}), bench.store.count(Lease, {})) == (0, 0)
    assert bench.chores() == 0
