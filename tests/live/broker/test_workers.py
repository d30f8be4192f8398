"""Two supervisors with two workers each on one PostgreSQL and one token: they are one broker."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import grpc
import pytest
from broker_api.v1 import sessions_pb2, trust_pb2
from google.protobuf.duration_pb2 import Duration

from tests.servers.hosts import Host, await_leader, leader, two_hosts
from tests.servers.issuer import Issuer, issuing
from tests.servers.live import METHODS, Client, within
from tests.servers.patience import busy
from tests.servers.postgres import Postgres
from tests.servers.refusals import Refused, on_the_wire

GRANT = """
@id("deploy")
permit (principal == Pipeline::"deploy", action == Action::"FetchSecrets", resource in Folder::"team");
"""
AT_ONCE = 50
ROUNDS = 4  # of as many callers each; `make soak` has two hundred
PACE = 0.2  # of a caller between two calls: the load is to go on meanwhile, not to be as much as can be


class House:
    """Both hosts, a connection to each of the four workers on either port, and what was measured."""

    def __init__(self, hosts: tuple[Host, Host], database: str, issuer: Issuer) -> None:
        self.hosts, self.database, self.issuer = hosts, database, issuer
        self.admins = [client for host in hosts for client in host.by_worker().values()]
        self.jobs = [Client(host.pipelines, host.ca, None, None) for host in hosts for _ in range(8)]

    def close(self) -> None:
        for job in self.jobs:
            job.close()

    def login(self, client: Client, token: str) -> Any:
        return as_job(client, "Login", token, ttl=Duration(seconds=300))


def as_job(client: Client, rpc: str, token: str, **fields: Any) -> Any:
    method = METHODS[rpc]
    request = getattr(sessions_pb2, method.input_type.name)(**fields)
    call = client.channel.unary_unary(
        f"/{method.containing_service.full_name}/{rpc}",
        request_serializer=None,
        response_deserializer=getattr(sessions_pb2, method.output_type.name).FromString,
    )
    try:
        return call(request.SerializeToString(), timeout=200, metadata=(("authorization", f"Bearer {token}"),))
    except grpc.RpcError as error:
        raise on_the_wire(error) from None


def outcome(work: Callable[[], Any]) -> str:
    """The reason of the refusal, or "" for success."""
    try:
        work()
    except Refused as error:
        return error.reason or error.code
    return ""


@pytest.fixture(scope="module")
def house(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("hosts")
    with (
        issuing(folder / "issuer") as issuer,
        two_hosts(folder, postgres, "--allow-issuer", issuer.host) as (first, second, database),
    ):
        with first.client() as admin:
            policy = admin.ask("GetPolicy").policy
            admin.ask("SetPolicy", text=policy.text + GRANT, expected_version=policy.version)
            admin.ask("PutSecret", name="team/app", fields={"password": b"canary"})
            admin.ask("CreateTrustRule", rule=rule(issuer))
        found = House((first, second), database, issuer)
        for admin in found.admins:
            within(2, partial(honoured, admin, policy.version + 1))
        try:
            yield found
        finally:
            found.close()


def rule(issuer: Issuer, name: str = "deploy", repository: str = "42") -> trust_pb2.TrustRule:
    return trust_pb2.TrustRule(
        name=name,
        preset=trust_pb2.PRESET_GENERIC,
        issuer=issuer.url,
        audience="broker",
        matchers=[
            trust_pb2.Matcher(claim="sub", exact="job"),
            trust_pb2.Matcher(claim="repository_id", exact=repository),
        ],
        pipeline="deploy",
        max_session=Duration(seconds=600),
        single_use=True,
        ca_pem=issuer.ca_pem,
    )


def together(pool: ThreadPoolExecutor, work: Sequence[Callable[[], Any]]) -> Counter[str]:
    """All at one moment; how often each outcome came."""
    gate = threading.Barrier(len(work))

    def wait_and(one: Callable[[], Any]) -> str:
        gate.wait(60)
        return outcome(one)

    return Counter(pool.map(wait_and, work))


def one_winner(house: House, rounds: int) -> Counter[str]:
    """In each round one identity token and one version are tried for by fifty; how the losers lost."""
    losers: Counter[str] = Counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for number in range(rounds):
            token = house.issuer.token()
            logins = [partial(house.login, house.jobs[one % len(house.jobs)], token) for one in range(AT_ONCE)]
            admins = [house.admins[one % len(house.admins)] for one in range(AT_ONCE)]
            wish = {"name": "team/cas", "fields": {"by": b"somebody"}, "expected_version": number}
            for work in (logins, [partial(admin.ask, "PutSecret", **wish) for admin in admins]):
                found = together(pool, work)
                assert found.pop("") == 1, (number, found)
                losers += found
            assert house.admins[0].ask("GetSecret", name="team/cas").secret.latest_version == number + 1
    return losers


def honoured(admin: Client, version: int) -> bool:
    return bool(admin.ask("GetPolicy").policy.version == version)


def fetched(house: House, token: str, reference: str) -> set[str]:
    """How it ends for a job at each of the workers."""
    return {outcome(partial(as_job, job, "FetchSecrets", token, references=[reference])) for job in house.jobs}


def logged_in(house: House, repository: str) -> set[str]:
    return {outcome(partial(house.login, job, house.issuer.token(repository_id=repository))) for job in house.jobs}


def test_one_identity_token_and_one_version_have_one_winner(house: House) -> None:
    losers = one_winner(house, ROUNDS)
    # Before the keys of an issuer are known, two calls wait for them; the others are told to try again.
    later = {"CHANGED_MEANWHILE", "STORE_UNAVAILABLE", "ISSUER_UNAVAILABLE"}
    assert set(losers) <= {"TOKEN_REPLAYED", "VERSION_MISMATCH", *later}, losers
    assert losers["TOKEN_REPLAYED"] + losers["VERSION_MISMATCH"] > sum(losers.values()) * 0.5, losers


def test_a_policy_set_by_one_worker_is_honoured_by_all_within_two_seconds(house: House) -> None:
    for setter in house.admins:
        before = setter.ask("GetPolicy").policy
        version = setter.ask("SetPolicy", text=before.text, expected_version=before.version).policy.version
        begun = time.monotonic()
        for admin in house.admins:
            within(2, partial(honoured, admin, version))
        assert time.monotonic() - begun <= busy(2)


def test_a_session_ended_by_one_worker_is_refused_by_all_at_once(house: House) -> None:
    for ender in house.jobs[4:12]:
        token = house.login(house.jobs[0], house.issuer.token()).session_token
        assert fetched(house, token, "team/app") == {""}
        as_job(ender, "EndSession", token)
        assert fetched(house, token, "team/app") == {"SESSION_INVALID"}


def test_a_trust_rule_and_a_secret_are_gone_for_all_at_once(house: House) -> None:
    first, *_, last = house.admins
    first.ask("CreateTrustRule", rule=rule(house.issuer, "other", "43"))
    assert logged_in(house, "43") == {""}
    last.ask("DeleteTrustRule", name="other")
    assert logged_in(house, "43") == {"TRUST_CLAIM_MISMATCH"}
    last.ask("PutSecret", name="team/gone", fields={"a": b"b"})
    token = house.login(house.jobs[0], house.issuer.token()).session_token
    assert fetched(house, token, "team/gone") == {""}  # so that each keeps the data key
    first.ask("DestroySecretVersions", name="team/gone", versions=[1])
    assert fetched(house, token, "team/gone") == {"SECRET_DESTROYED"}


def test_a_removed_operator_is_refused_by_all_at_once(house: House) -> None:
    first, *_, last = house.admins
    of_worker = [host.operator(first, f"op-{host.name}", "admins") for host in house.hosts]
    for client in of_worker:
        client.ask("GetPolicy")
    for host in house.hosts:
        last.ask("RemoveOperator", name=f"op-{host.name}")
    assert {outcome(partial(client.ask, "GetPolicy")) for client in of_worker} == {"OPERATOR_UNKNOWN"}


def test_a_key_and_a_page_token_of_one_worker_are_everybodys(house: House) -> None:
    first, *_ = house.admins
    for name in ("shared-a", "shared-b"):
        first.ask("CreateKey", name=name, type=1, usage=1)
    page = first.ask("ListKeys", page_size=1)
    for admin in house.admins:
        following = admin.ask("ListKeys", page_size=1, page_token=page.next_page_token)
        assert [key.name for key in following.keys] == ["shared-b"]


def test_P10_a_stopped_leader_is_replaced_within_ten_seconds(house: House, postgres: Postgres) -> None:
    name = await_leader(postgres, house.database, 10)
    host = next(host for host in house.hosts if host.name == name.partition("-")[0])
    process = host.workers()[int(name.partition("-w")[2])]
    os.kill(process, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        next_one = await_leader(postgres, house.database, 10, other_than=name)
        took = time.monotonic() - begun
    finally:
        os.kill(process, signal.SIGCONT)
    assert took <= busy(10)
    within(5, lambda: "leads no more" in host.said)
    assert leader(postgres, house.database) == next_one


def test_P10_a_killed_leader_is_replaced_within_ten_seconds(house: House, postgres: Postgres) -> None:
    name = await_leader(postgres, house.database, 10)
    host = next(host for host in house.hosts if host.name == name.partition("-")[0])
    os.kill(host.workers()[int(name.partition("-w")[2])], signal.SIGKILL)
    begun = time.monotonic()
    await_leader(postgres, house.database, 10, other_than=name)
    assert time.monotonic() - begun <= busy(10)
    within(20, lambda: len(host.workers()) == 2)
    within(20, lambda: set(host.by_worker()) == {1, 2})


class Load:
    """Callers that put secrets one after the other; what was acknowledged, and when calls were answered."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._stop = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.answered: list[float] = []
        self.refusals: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(6)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def answered_since(self, moment: float) -> bool:
        return any(one > moment for one in self.answered[-50:])

    def _work(self, number: int) -> None:
        name, host = f"load/s{number}", self._house.hosts[number % 2]
        with host.client() as client:
            while not self._stop.is_set():
                try:
                    put = client.ask("PutSecret", name=name, fields={"a": b"x"})
                except Refused as error:
                    self.refusals[f"{error.code} {error.reason}"] += 1
                else:
                    self.acknowledged[name] = put.secret.latest_version
                    self.answered.append(time.monotonic())
                self._stop.wait(PACE)


def check_kept(house: House, load: Load) -> None:
    """Nothing that was acknowledged is lost, and nothing was refused otherwise than as unavailable."""
    assert len(load.acknowledged) == 6
    with house.hosts[0].client() as admin:
        for name, version in load.acknowledged.items():
            assert admin.ask("GetSecret", name=name).secret.latest_version >= version
    assert {refusal.split()[0] for refusal in load.refusals} <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, load.refusals


def test_a_killed_worker_is_started_again_and_calls_go_on(house: House) -> None:
    with Load(house) as load:
        within(10, lambda: len(load.acknowledged) == 6)
        killed = {host: host.workers()[2] for host in house.hosts}  # one of each host, at once
        for worker in killed.values():
            os.kill(worker, signal.SIGKILL)
        begun = time.monotonic()
        within(2, lambda: load.answered_since(begun))
        for host, old in killed.items():
            within(20, lambda: host.workers().get(2, old) != old)  # noqa: B023
            within(20, lambda: set(host.by_worker()) == {1, 2})  # noqa: B023
    check_kept(house, load)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_P22_the_database_comes_back_under_load(house: House, postgres: Postgres, how: str) -> None:
    with Load(house) as load:
        within(10, lambda: len(load.acknowledged) == 6)
        if how == "kill":
            postgres.kill()
        else:
            postgres.stop(how)
        postgres.start()
        begun = time.monotonic()
        within(10, lambda: load.answered_since(begun))
        await_leader(postgres, house.database, 10)
    check_kept(house, load)


def signed(host: Host, chains: set[str]) -> bool:
    return chains <= {record["chain"] for record in host.records() if record.get("kind") == "head"}


def test_each_worker_writes_a_chain_of_its_own_and_all_verify(house: House) -> None:
    for host in house.hosts:
        chains = {record["chain"] for record in host.records() if "chain" in record}
        assert {chain.rsplit("-", 2)[0] for chain in chains} >= {f"{host.name}-w1", f"{host.name}-w2"}
        within(30, partial(signed, host, chains))  # a worker that was started just now signs in its first seconds
        host.verify()
        assert json.dumps("canary") not in host.said
