"""A job on real parts: a real OpenBao as the issuer, the broker's process, its ports, its database and its journal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_api.v1 import leases_pb2, sessions_pb2, trust_pb2
from google.protobuf.duration_pb2 import Duration

from tests.servers.bao_issuer import AUDIENCE, BaoIssuer
from tests.servers.live import Client, Live, cli, within
from tests.servers.live_jobs import GRANT, Job
from tests.servers.openbao import OpenBao
from tests.servers.warm import as_text, run_command_line

PASSWORD = b"canary-s3cret-of-the-database"
TWO = ["team/app/db#password", "team/app/api"]


@pytest.fixture(scope="module")
def ci(openbao: OpenBao) -> BaoIssuer:
    return BaoIssuer(openbao)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao, ci: BaoIssuer) -> Iterator[Live]:
    """A broker that trusts the issuer, with two secrets for the pipeline and one that it may not have."""
    broker = Live(tmp_path_factory.mktemp("live") / "broker", "--allow-issuer", openbao.host)
    try:
        broker.start()
        with broker.client() as admin:
            policy = admin.ask("GetPolicy").policy
            admin.ask("SetPolicy", text=policy.text + GRANT, expected_version=policy.version)
            admin.ask("PutSecret", name="team/app/db", fields={"password": PASSWORD, "user": b"app"})
            admin.ask("PutSecret", name="team/app/api", fields={"key": b"another-canary"})
            admin.ask("PutSecret", name="team/other", fields={"key": b"not-for-the-job"})
            admin.ask("CreateTrustRule", rule=rule(ci, openbao))
        yield broker
    finally:
        broker.close()


@pytest.fixture
def place(running: Live) -> Iterator[tuple[Live, Client]]:
    """That broker, on which no session is alive."""
    with running.client() as admin:
        admin.ask("RevokeSessions", principal="pipeline/deploy")
        yield running, admin


def rule(ci: BaoIssuer, bao: OpenBao) -> trust_pb2.TrustRule:
    matchers = [trust_pb2.Matcher(claim="sub", exact=ci.entity), trust_pb2.Matcher(claim="project_id", exact="42")]
    return trust_pb2.TrustRule(
        name="deploy",
        preset=trust_pb2.PRESET_GENERIC,
        issuer=ci.url,
        audience=AUDIENCE,
        matchers=matchers,
        pipeline="deploy",
        max_session=Duration(seconds=600),
        single_use=False,
        ca_pem=bao.ca_pem,
    )


def leases_of(admin: Client, session: str) -> list[int]:
    return [lease.state for lease in admin.everything("ListLeases", "leases") if lease.session == session]


def state_of(admin: Client, session: str) -> int:
    [found] = [one.state for one in admin.everything("ListSessions", "sessions") if one.id == session]
    return int(found)


def test_a_job_gets_its_secrets_in_one_call_and_loses_them_when_it_ends(
    place: tuple[Live, Client], ci: BaoIssuer
) -> None:
    broker, admin = place
    job = Job(broker)
    got = job.ask("FetchSecrets", ci.token(), references=TWO, ttl=Duration(seconds=60))
    assert [dict(each.fields) for each in got.secrets] == [{"password": PASSWORD}, {"key": b"another-canary"}]
    assert got.session.principal == "pipeline/deploy"
    assert all(each.lease.expire_time == got.session.expire_time for each in got.secrets)
    renewed = job.ask("RenewSession", got.session_token, ttl=Duration(seconds=3600)).session
    assert renewed.expire_time == renewed.last_time
    job.ask("FetchSecrets", got.session_token, references=TWO[:1])
    assert job.why_not("FetchSecrets", ci.token(), references=[*TWO, "team/other"]) == "POLICY_DENIED"
    assert job.why_not("Login", got.session_token) == "IDENTITY_TOKEN_MISSING"
    assert job.why_not("RenewSession", ci.token()) == "TOKEN_NOT_HERE"
    # What a session has a lease on already comes under that one.
    assert len(leases_of(admin, got.session.id)) == 2
    job.ask("EndSession", got.session_token)
    job.ask("EndSession", got.session_token)  # its answer may have been lost
    assert job.why_not("FetchSecrets", got.session_token, references=TWO) == "SESSION_INVALID"
    assert state_of(admin, got.session.id) == sessions_pb2.SESSION_STATE_ENDED
    assert leases_of(admin, got.session.id) == [leases_pb2.LEASE_STATE_REVOKED] * 2
    job.close()
    broker.verify(*broker.torn())  # another test may have killed it before
    told = [record for record in broker.records() if record.get("rpc") == "SessionService/FetchSecrets"]
    assert {record["resource"] for record in told} >= {"secret/team/app/db", "secret/team/app/api", "secret/team/other"}
    assert broker.holding(PASSWORD, got.session_token.encode(), b"another-canary") == []


def test_what_a_dead_job_held_ends_by_itself_also_across_a_crash_of_the_broker(
    place: tuple[Live, Client], ci: BaoIssuer
) -> None:
    broker, _ = place
    job = Job(broker)
    token = ci.token()
    first = job.ask("FetchSecrets", token, references=TWO, ttl=Duration(seconds=3))
    second = job.ask("FetchSecrets", token, references=TWO, ttl=Duration(seconds=300))
    job.close()  # and nobody renews
    broker.kill()
    broker.start()
    with broker.client() as again:
        within(15, lambda: ended_by_itself(broker, first.session.id))
        held = {session.id: session.state for session in again.everything("ListSessions", "sessions")}
        assert held[second.session.id] == sessions_pb2.SESSION_STATE_ACTIVE
        answer = again.ask("RevokeSessions", claim=f"{ci.url} project_id=42")
        assert answer.ended == 1
        leases = again.everything("ListLeases", "leases")
    of_first = {lease.state for lease in leases if lease.session == first.session.id}
    of_second = {lease.state for lease in leases if lease.session == second.session.id}
    assert (of_first, of_second) == ({leases_pb2.LEASE_STATE_EXPIRED}, {leases_pb2.LEASE_STATE_REVOKED})


def test_broker_run_is_killed_and_its_session_dies(place: tuple[Live, Client], ci: BaoIssuer, tmp_path: Path) -> None:
    broker, admin = place
    (tmp_path / "token").write_text(ci.token())
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "ca.pem").write_bytes(broker.ca)
    words = [
        "run", "--address", broker.pipelines, "--ca-file", str(tmp_path / "ca.pem"), "--ttl", "15",
        "--token-file", str(tmp_path / "token"), "--secret", "DB=broker://team/app/db#password",
        "--", sys.executable, "-u", "-c", "import os,sys; print(os.environ['DB'] and 'has it'); sys.stdin.read()",
    ]  # fmt: skip
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-m", "broker_cli", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"has it\n"
        active = sessions_pb2.SESSION_STATE_ACTIVE
        (session,) = [one for one in admin.everything("ListSessions", "sessions") if one.state == active]
        process.send_signal(signal.SIGKILL)
    await_ended(admin, session.id, 30)


def test_the_operator_sees_and_ends_sessions_and_leases(place: tuple[Live, Client], ci: BaoIssuer) -> None:
    broker, _ = place
    profile = broker.folder / "profile"
    job = Job(broker)
    got = job.ask("FetchSecrets", ci.token(), references=TWO)
    listed = cli("session", "list", "--principal", "pipeline/deploy", profile=profile)
    assert got.session.id in listed.stdout, listed.stderr
    leases = cli("lease", "list", "--session", got.session.id, "--format", "json", profile=profile)
    assert leases.stdout.count("secret/team/app") == 2
    assert got.session_token not in listed.stdout + leases.stdout
    assert cli("lease", "revoke", got.secrets[0].lease.id, profile=profile).returncode == 0
    assert cli("lease", "revoke", "--prefix", "team/app", "--yes", profile=profile).returncode == 0
    assert cli("session", "revoke", profile=profile).returncode == 2
    assert cli("session", "revoke", "--principal", "pipeline/deploy", profile=profile).returncode != 0  # nobody to ask
    assert cli("session", "revoke", "--principal", "pipeline/deploy", "--yes", profile=profile).returncode == 0
    assert job.why_not("RenewSession", got.session_token) == "SESSION_INVALID"
    job.close()


def ended_by_itself(broker: Live, name: str) -> bool:
    """Whether the audit says that the background loop ended the session."""
    told = [record for record in broker.records() if record.get("resource") == f"session/{name}"]
    return [record["principal"] for record in told] == ["broker/background"]


def await_ended(admin: Client, name: str, seconds: float) -> None:
    within(seconds, lambda: state_of(admin, name) == sessions_pb2.SESSION_STATE_ENDED)
    assert set(leases_of(admin, name)) == {leases_pb2.LEASE_STATE_EXPIRED}


def run_of(broker: Live, token: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of a job, with an identity token in a file."""
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    (folder / "ca.pem").write_bytes(broker.ca)
    place = ["--address", broker.pipelines, "--ca-file", str(folder / "ca.pem"), "--token-file", str(folder / "token")]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    return as_text(run_command_line((words[0], *place, *words[1:]), environment=environment))


def test_P50_the_job_is_told_every_reference_that_fails(
    place: tuple[Live, Client], ci: BaoIssuer, tmp_path: Path
) -> None:
    broker, admin = place
    before = {one.id for one in admin.everything("ListSessions", "sessions")}
    (tmp_path / "env").write_text("USER=broker://team/app/db#user\nAPI=broker://team/app/api@2#key\n")
    secrets = ["DB=broker://team/app/db#pasword", "OTHER=broker://team/other#key", "NONE=broker://team/never#key"]
    options = [word for one in secrets for word in ("--secret", one)]
    ran = run_of(
        broker, ci.token(), tmp_path, "run", "--env-file", str(tmp_path / "env"), *options, "--", "echo", "ran"
    )
    assert (ran.returncode, ran.stdout) == (6, "")
    first, *lines = ran.stderr.splitlines()
    assert "4 of 5 references are refused, so nothing was fetched. [SECRET_VERSION_NOT_FOUND, call " in first
    reasons = {line.split("(")[0].strip(): (line.split("(")[1].split(")")[0], line.rsplit("[")[-1]) for line in lines}
    assert reasons == {
        "API": ("broker://team/app/api@2#key", "SECRET_VERSION_NOT_FOUND]"),
        "DB": ("broker://team/app/db#pasword", "FIELD_NOT_FOUND]"),
        "OTHER": ("broker://team/other#key", "POLICY_DENIED]"),
        "NONE": ("broker://team/never#key", "POLICY_DENIED]"),
    }
    fetched = run_of(broker, ci.token(), tmp_path, "fetch", "--format", "json", "broker://team/app/db#x")
    assert (fetched.returncode, fetched.stdout) == (6, "")
    assert "broker://team/app/db#x: Version 1 of the secret team/app/db has no field x" in fetched.stderr
    assert {one.id for one in admin.everything("ListSessions", "sessions")} == before
