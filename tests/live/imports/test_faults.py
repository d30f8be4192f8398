"""Imports whose target does not answer, answers too late, dies, or is asked by many at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.core.errors import Unavailable, WrongState
from broker.core.imports.places import ARRIVAL_GRACE
from broker.core.kinds import ImportState, KeyType
from broker.targets.vault.policy import RIGHTS, line, policy
from tests.fakes.refusals import refused
from tests.live.imports.bench import Bench, Mount
from tests.live.imports.fault_proxy import LOSE_ANSWER, LOSE_REQUEST, PASS, FaultProxy
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm


@pytest.fixture
def mount(openbao: OpenBao, tmp_path: Path) -> Mount:
    """The engine that all share; the names of keys are fresh ones."""
    return Mount(openbao, tmp_path, openbao.mount)


@pytest.fixture
def own_mount(openbao: OpenBao, tmp_path: Path) -> Mount:
    return Mount(openbao, tmp_path / "own")


@pytest.fixture
def proxy(openbao: OpenBao, tmp_path: Path) -> Iterator[FaultProxy]:
    hop = FaultProxy(openbao, tmp_path / "proxy")
    yield hop
    hop.close()


@pytest.fixture
def bench(mount: Mount, hsm: KeysHsm, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(mount, hsm, tmp_path)
    made.register()
    yield made
    made.close()


@pytest.fixture
def hopped(mount: Mount, hsm: KeysHsm, tmp_path: Path, proxy: FaultProxy) -> Iterator[Bench]:
    """As ``bench``, with the fault proxy between the broker and the server."""
    made = Bench(mount, hsm, tmp_path, frozenset({proxy.host}))
    made.settings = mount.settings(proxy.address, proxy.ca_pem)
    made.register()
    yield made
    made.close()


def test_BY_14_a_kek_that_changes_between_fetch_and_upload_opens_nothing(
    own_mount: Mount, hsm: KeysHsm, tmp_path: Path, proxy: FaultProxy
) -> None:
    bench = Bench(own_mount, hsm, tmp_path, frozenset({proxy.host}))
    bench.settings = own_mount.settings(proxy.address, proxy.ca_pem)
    bench.register()
    key, successor = bench.key(), own_mount.successor()

    def change_kek(_method: str, path: str) -> int:
        if path.endswith("/import"):
            own_mount.renew(successor)
        return PASS

    proxy.rule = change_kek
    refused(lambda: bench.run(key), WrongState, "TARGET_REFUSED")
    first = bench.row(key)
    assert first is not None
    assert first.state is ImportState.FAILED
    refused(lambda: bench.run(key), WrongState, "KEK_CHANGED")
    offered = bench.connect("bao", "vault", bench.settings).offer().key.thumbprint
    bench.targets.repin(bench.call("RepinTarget"), "bao", offered)
    proxy.rule = lambda _method, _path: PASS
    done = bench.run(key)
    assert done.state is ImportState.PROVEN
    assert done.blob_sha256 != first.blob_sha256  # a fresh wrap, never the old blob
    assert done.kek_thumbprint == offered
    bench.close()


# ---- answers that do not come ------------------------------------------------------------------------------------


@pytest.mark.sampled(1, each="fate")
@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
@pytest.mark.parametrize("fate", [LOSE_ANSWER, 503, 429, 500])
def test_BY_15_an_answer_lost_after_the_upload_is_settled_by_reading_back(
    hopped: Bench, proxy: FaultProxy, fate: int, key_type: KeyType
) -> None:
    key = hopped.key(key_type)
    proxy.rule = lambda _method, path: fate if path.endswith("/import") else PASS
    assert hopped.run(key).state is ImportState.PROVEN
    assert proxy.count("/import") == 1
    assert hopped.mount.versions(key.name) == ["1"]


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
def test_BY_15_silence_from_the_upload_on_is_settled_by_the_next_call(
    hopped: Bench, proxy: FaultProxy, key_type: KeyType
) -> None:
    key = hopped.key(key_type)
    proxy.rule = lambda _method, path: PASS if path.endswith("wrapping_key") else LOSE_ANSWER
    refused(lambda: hopped.run(key), Unavailable, "TARGET_UNREACHABLE")
    row = hopped.row(key)
    assert row is not None
    assert row.state is ImportState.PENDING
    proxy.rule = lambda _method, _path: PASS
    assert hopped.run(key).state is ImportState.PROVEN
    assert proxy.count("/import") == 1
    assert hopped.mount.versions(key.name) == ["1"]


def test_BY_15_a_further_version_is_not_uploaded_twice_either(hopped: Bench, proxy: FaultProxy) -> None:
    key = hopped.key()
    hopped.run(key)
    rotated = hopped.rotate(key)
    arrived: list[str] = []

    def silence(_method: str, path: str) -> int:
        if path.endswith("/import_version"):
            arrived.append(path)
        return LOSE_ANSWER if arrived else PASS

    proxy.rule = silence
    refused(lambda: hopped.run(rotated), Unavailable, "TARGET_UNREACHABLE")
    proxy.rule = lambda _method, _path: PASS
    assert hopped.run(rotated).remote_version == "2"
    assert hopped.mount.versions(key.name) == ["1", "2"]


def test_BY_15_a_request_that_may_still_be_on_its_way_is_waited_for(hopped: Bench, proxy: FaultProxy) -> None:
    key = hopped.key()
    proxy.rule = lambda _method, path: LOSE_REQUEST if path.endswith("/import") else PASS
    refused(lambda: hopped.run(key), Unavailable, "TARGET_UNREACHABLE")
    proxy.rule = lambda _method, _path: PASS
    error = refused(lambda: hopped.run(key), Unavailable, "TARGET_UNREACHABLE")  # what is wrong, and no other words
    assert "may still arrive" in error.message
    assert "60 s" in error.message or "61 s" in error.message
    hopped.clock.forward(seconds=ARRIVAL_GRACE.total_seconds())
    assert hopped.run(key).state is ImportState.PROVEN
    assert hopped.mount.versions(key.name) == ["1"]


def test_a_target_that_goes_away_during_the_proof_leaves_it_pending(hopped: Bench, proxy: FaultProxy) -> None:
    key = hopped.key()
    proxy.rule = lambda _method, path: LOSE_ANSWER if "/sign/" in path else PASS
    refused(lambda: hopped.run(key), Unavailable, "TARGET_UNREACHABLE")
    row = hopped.row(key)
    assert row is not None
    assert row.state is ImportState.PENDING
    proxy.rule = lambda _method, _path: PASS
    assert hopped.run(key).state is ImportState.PROVEN
    assert proxy.count("/import") == 1


def test_an_upload_that_may_not_be_read_back_stays_pending_until_it_may(bench: Bench) -> None:
    key, path = bench.key(), bench.mount.path
    bench.mount.give("".join(line(f"{path}/{at}", rights) for at, rights in RIGHTS.items() if at != "keys/+"))
    error = refused(lambda: bench.run(key), Unavailable, "IMPORT_UNSETTLED")
    assert f'path "{path}/keys/+"' in error.message
    row = bench.row(key)
    assert row is not None
    assert row.state is ImportState.PENDING
    bench.mount.give(policy(path))
    assert bench.run(key).state is ImportState.PROVEN
    assert bench.mount.versions(key.name) == ["1"]


def test_an_upload_that_is_not_allowed_has_failed_and_may_be_tried_at_once(bench: Bench) -> None:
    key, path = bench.key(), bench.mount.path
    bench.mount.give("".join(line(f"{path}/{at}", rights) for at, rights in RIGHTS.items() if at != "keys/+/import"))
    refused(lambda: bench.run(key), WrongState, "TARGET_DENIED")
    row = bench.row(key)
    assert row is not None
    assert (row.state, row.failure) == (ImportState.FAILED, "TARGET_DENIED")
    bench.mount.give(policy(path))
    assert bench.run(key).state is ImportState.PROVEN


class _Killed(BaseException):
    """What a test ends an import with, as a crash would: nobody catches it, nothing is cleaned up."""


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
@pytest.mark.parametrize(("step", "before"), [
    ("import_key", True), ("import_key", False), ("versions", True), ("sign", True), ("decrypt", True),
])  # fmt: skip
def test_killed_at_any_step_it_ends_as_if_it_never_was(
    bench: Bench,
    key_type: KeyType,
    step: str,
    before: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    key = bench.key(key_type)
    port = bench.connect("bao", "vault", bench.settings)
    killed: list[str] = []

    class Killing:
        def __getattr__(self, name: str) -> object:
            real = getattr(port, name)
            if name != step:
                return real

            def die(*given: object, **named: object) -> object:
                killed.append(name)
                if not before:
                    real(*given, **named)
                raise _Killed

            return die

    imports = bench.imports_with(lambda _name, _kind, _settings: Killing())
    with contextlib.suppress(_Killed):  # a key that does not come by that step is simply imported
        imports.import_key(bench.call("ImportKey"), key.name, 0, "bao", "")
    row = bench.row(key)
    assert row is not None
    assert row.state is (ImportState.PENDING if killed else ImportState.PROVEN)
    bench.clock.forward(seconds=61)
    assert bench.run(key).state is ImportState.PROVEN
    assert bench.mount.versions(key.name) == ["1"]


@pytest.mark.parametrize("key_type", [KeyType.EC_P256, KeyType.AES_256])
def test_BY_06_the_same_import_twenty_times_at_once_makes_one_remote_version(
    hopped: Bench, proxy: FaultProxy, key_type: KeyType
) -> None:
    key = hopped.key(key_type)
    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(lambda _: hopped.run(key), range(20)))
    assert {row.state for row in done} == {ImportState.PROVEN}
    assert len({row.blob_sha256 for row in done}) == 1
    assert proxy.count("/import") == 1
    assert hopped.mount.versions(key.name) == ["1"]


def test_BY_06_two_broker_processes_make_one_remote_version(bench: Bench) -> None:
    # A second noun has locks of its own, as another process has: only the rows stand between them.
    key = bench.key()
    nouns = [bench.imports_with(bench.connect) for _ in range(6)]

    def run(noun: object) -> str:
        try:
            row = noun.import_key(bench.call("ImportKey"), key.name, 0, "bao", "").row  # type: ignore[attr-defined]
        except Unavailable as error:
            return error.reason
        return str(row.state)

    with ThreadPoolExecutor(6) as pool:
        ends = set(pool.map(run, nouns))
    assert ends <= {"proven", "IMPORT_IN_PROGRESS"}
    assert bench.run(key).state is ImportState.PROVEN
    assert bench.mount.versions(key.name) == ["1"]


# ---- FT-31 -------------------------------------------------------------------------------------------------------


def test_FT_31_down_sealed_and_throttling_are_told_and_come_right(
    openbao_own: OpenBao, hsm: KeysHsm, tmp_path: Path
) -> None:
    bench = Bench(Mount(openbao_own, tmp_path), hsm, tmp_path)
    bench.register()
    key = bench.key()
    openbao_own.seal()
    assert "unseal" in refused(lambda: bench.run(key), Unavailable, "TARGET_SEALED").message
    openbao_own.unseal()
    openbao_own.stop()
    refused(lambda: bench.run(key), Unavailable, "TARGET_UNREACHABLE")
    assert bench.row(key) is None
    openbao_own.start()
    limit = {"rate": 1, "interval": 60, "path": bench.mount.path}
    openbao_own.request("POST", "sys/quotas/rate-limit/tight", limit)
    bench.connect("bao", "vault", bench.settings).versions("nothing")
    refused(lambda: bench.run(key), Unavailable, "TARGET_THROTTLED")
    openbao_own.request("DELETE", "sys/quotas/rate-limit/tight")
    assert bench.run(key).state is ImportState.PROVEN
    bench.close()
