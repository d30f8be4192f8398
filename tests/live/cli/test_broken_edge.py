"""The edge under callers that ask for more than their share, and under a system that gives it less than it needs."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from broker_api.v1 import keys_pb2
from grpc_health.v1 import health_pb2

from broker import __main__, app
from broker.core.errors import Unavailable
from broker.rpc import descriptors, threads
from broker.rpc.health import CHECK
from broker.rpc.server import ServerConfig, ServerLimits
from tests.live.rpc.gate_parts import Silent, raw
from tests.servers.edge import plain_services, running
from tests.servers.refusals import refused_on_the_wire

GET = "/broker_api.v1.KeyService/GetKey"
FILES: dict[str, Any] = dict.fromkeys(("certificate_file", "key_file", "operator_ca_file"), Path("file"))
CREATE = "/broker_api.v1.KeyService/CreateKey"


class Slow:
    """A method that does not end before it is let go."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, _call: Any, _request: Any) -> Any:
        self.inside.release()
        assert self.release.wait(60)
        return keys_pb2.CreateKeyResponse()


def create(channel: Any) -> Any:
    request = keys_pb2.CreateKeyRequest(name="slow", type=keys_pb2.KEY_TYPE_RSA_4096, usage=keys_pb2.KEY_USAGE_SIGN)
    return channel.unary_unary(CREATE).future(request.SerializeToString())


def test_a_flood_of_keys_to_be_made_leaves_the_threads_of_the_others_alone(tmp_path: Path) -> None:
    slow = Slow()
    services = plain_services({"KeyService/CreateKey": slow})
    with running(tmp_path, services, limits=ServerLimits(calls=40), threads=2) as edge, edge.channel() as channel:
        waiting = [create(channel) for _ in range(10)]
        assert slow.inside.acquire(timeout=200)
        for _ in range(3):
            assert raw(channel, GET, timeout=200) == b""
        found = refused_on_the_wire(lambda: create(channel).result(200))  # a quarter of all calls may be of this kind
        assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
        assert raw(channel, GET, timeout=200) == b""
        slow.release.set()
        assert [each.result(200) for each in waiting] == [b""] * 10
        assert create(channel).result(200) == b""


def test_NT_05_a_slow_writer_does_not_hold_up_the_prompt_calls_behind_it(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(message_seconds=30), threads=4) as edge, edge.channel() as channel:
        raw(channel, GET)
        silent = Silent()
        slow = [channel.stream_unary(GET).future(silent) for _ in range(20)]
        assert raw(channel, GET, timeout=200) == b""
        assert edge.journal.wait_for(lambda entries: sum(each.reason == "MESSAGE_LATE" for each in entries) >= 18)
        silent.end.set()
        for each in slow:
            assert isinstance(each.exception(60), grpc.RpcError)


def test_NT_05_unauthenticated_callers_with_slow_health_checks_leave_the_others_theirs(
    tmp_path: Path,
) -> None:
    check = health_pb2.HealthCheckRequest().SerializeToString()
    silent = Silent()
    with running(tmp_path, limits=ServerLimits(message_seconds=30)) as edge:
        trust = grpc.ssl_channel_credentials(edge.server_ca.pem)
        place = f"localhost:{edge.server.pipelines_port}"
        channels = [grpc.secure_channel(place, trust, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(13)]
        slow: list[Any] = [each.stream_unary(CHECK, bytes, bytes).future(silent) for each in channels[1:]]
        for each in channels[1:]:
            grpc.channel_ready_future(each).result(200)
        assert raw(channels[0], CHECK, check, timeout=200) == b"\x08\x01"
        silent.end.set()
        for call in slow:
            assert isinstance(call.exception(60), grpc.RpcError)
        for each in channels:
            each.close()


def test_a_pool_needs_no_thread_that_it_has_not_got(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = threads.pool(3, "test")

    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    # Patched: a limit of threads would be that of the whole machine's user.
    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert sorted(each.result(200) for each in [pool.submit(int, n) for n in range(20)]) == list(range(20))
    with pytest.raises(Unavailable) as caught:
        threads.pool(3, "test")
    assert caught.value.reason == "THREADS_UNAVAILABLE"
    pool.shutdown()


@pytest.mark.parametrize(("soft", "hard", "raised", "each"), [
    (1024, resource.RLIM_INFINITY, 2256, 1000),
    (1024, 4096, 2256, 1000),
    (1024, 1024, None, 384),
    (4096, 4096, None, 1000),
    (64, 64, None, descriptors.FEWEST),
])  # fmt: skip
def test_connections_leave_descriptors_for_the_token_and_the_store(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised: int | None, each: int
) -> None:
    done: list[tuple[int, int]] = []
    # Patched, as the next: a limit that this process lowered it could not raise again.
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, hard))
    # As above.
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: done.append(limits))
    assert descriptors.connections(1000, 2) == each
    assert done == ([(raised, hard)] if raised else [])


def test_a_lost_thread_ends_the_broker_instead_of_leaving_it_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Broker:
        def __init__(self, _config: object) -> None:
            self.thread = threading.Thread(target=int, args=("no number",))

        def serve(self) -> None:
            self.thread.start()

        def drain(self) -> None:
            self.thread.join()
            done.append("drained")

        def close(self) -> None:
            done.append("closed")

    # Patched, as the next two: what it sets is the process's own, and what it starts is the whole broker.
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    # As above.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    # As above.
    monkeypatch.setattr(app, "Broker", Broker)
    server = SimpleNamespace(operators_address="a:1", pipelines_address="b:2", workers=1, one_processor=False)
    config: Any = SimpleNamespace(server=server, development=False)
    assert __main__.run(config) == 1
    assert done == ["drained", "closed"]


def test_the_end_waits_for_no_thread_that_hangs() -> None:
    code = (
        "import threading\n"
        "from broker.__main__ import end\n"
        "from broker.rpc.threads import pool\n"
        "pool(1, 'held').submit(threading.Event().wait)\n"
        "print('said')\n"
        "end(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (3, b"said\n"), done.stderr


@pytest.mark.parametrize("address", ["bogus", "", ":7443", "https://localhost:1", "localhost:", "::1:7443", "a b:1"])
def test_an_address_that_is_none_is_refused_when_the_configuration_is_read(address: str) -> None:
    with pytest.raises(ValueError, match="an address is written host:port"):
        ServerConfig(**FILES, operators_address=address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "0.0.0.0:7443", "[::]:7443", "broker.example.org:65535"])
def test_an_address_that_is_one_is_taken(address: str) -> None:
    ServerConfig(**FILES, pipelines_address=address)
