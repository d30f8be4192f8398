"""A CI's token endpoint that fails once is asked again, within the time that the whole call has (P07)."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from broker_cli.budget import Budget, bounded
from broker_cli.ci import identity
from broker_cli.refusal import Exit, Refusal

from tests.live.run.test_standin import jwt
from tests.servers.patience import busy

OURS = "broker.test"
TOKEN = jwt(OURS)
Fault = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def endpoint(*faults: Fault, every: Fault | None = None) -> Iterator[tuple[str, list[float]]]:
    """An endpoint that has these faults, one after the other, and its address with the times at which it was asked."""
    times: list[float] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            times.append(time.monotonic())
            fault = faults[len(times) - 1] if len(times) <= len(faults) else every
            if fault:
                fault(self)
            else:
                answer(self, 200, json.dumps({"value": TOKEN, "oidcToken": TOKEN}).encode())

        do_POST = do_GET  # noqa: N815  the name that the standard library looks for

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token", times
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        over.clear()


over = threading.Event()


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int, **headers: str) -> Fault:
    return lambda handler: answer(handler, code, b"", **headers)


def _drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def _cut(handler: BaseHTTPRequestHandler) -> None:
    answer(handler, 200, b'{"val', Content_Length="500")
    handler.connection.shutdown(socket.SHUT_RDWR)


def _hang(_: BaseHTTPRequestHandler) -> None:
    over.wait(60)


def _drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    while not over.wait(0.05):
        handler.wfile.write(b"X-More: 1\r\n")


def github(url: str) -> dict[str, str]:
    return {"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": url, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "bearer"}


def azure(url: str) -> dict[str, str]:
    return {"TF_BUILD": "True", "SYSTEM_OIDCREQUESTURI": url, "SYSTEM_ACCESSTOKEN": "bearer"}


PASSING: dict[str, Fault] = {
    **{str(code): status(code) for code in (500, 502, 503, 504, 408, 429)},
    "429, in a second": status(429, Retry_After="1"),
    "503, at a date": status(503, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
    "dropped": _drop,
    "cut short": _cut,
}  # fmt: skip


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING.keys())
@pytest.mark.parametrize("ci", [github, azure])
def test_P07_an_endpoint_that_fails_once_is_asked_again(ci: Callable[[str], dict[str, str]], fault: Fault) -> None:
    with endpoint(fault) as (url, times):
        assert identity.token(ci(url), OURS, None, Budget(20)) == TOKEN
    assert len(times) == 2


def test_P07_an_endpoint_is_left_the_time_that_it_asks_for() -> None:
    with endpoint(status(429, Retry_After="1")) as (url, times):
        identity.token(github(url), OURS, None, Budget(20))
    assert times[1] - times[0] >= 1


@pytest.mark.parametrize("fault", [_hang, pytest.param(_drip, marks=pytest.mark.soak)])
def test_P07_one_that_hangs_leaves_time_for_the_next_try(fault: Fault) -> None:
    with endpoint(fault) as (url, times):
        assert identity.token(github(url), OURS, None, Budget(7)) == TOKEN
    assert len(times) == 2


@pytest.mark.parametrize("fault", [status(503), status(429), _drop, _hang, _drip])
def test_P07_one_that_stays_away_is_exit_5_within_the_time(fault: Fault) -> None:
    begun = time.monotonic()
    with endpoint(every=fault) as (url, _), pytest.raises(Refusal) as found:
        identity.token(github(url), OURS, None, Budget(0.5))
    assert (found.value.code, found.value.reason) == (Exit.UNAVAILABLE, "IDENTITY_UNAVAILABLE")
    assert time.monotonic() - begun < busy(3)


def test_P07_one_that_asks_for_more_time_than_there_is_is_said_at_once() -> None:
    begun = time.monotonic()
    with endpoint(every=status(503, Retry_After="90")) as (url, times), pytest.raises(Refusal) as found:
        identity.token(github(url), OURS, None, Budget(20))
    assert (found.value.code, "in 90 s" in found.value.message, len(times)) == (Exit.UNAVAILABLE, True, 1)
    assert time.monotonic() - begun < busy(5)


@pytest.mark.parametrize("code", [401, 403])
def test_P07_one_that_refuses_is_exit_4_at_once_and_says_so(code: int) -> None:
    with endpoint(every=status(code)) as (url, times), pytest.raises(Refusal) as found:
        identity.token(github(url), OURS, None, Budget(20))
    assert (found.value.code, found.value.reason, len(times)) == (Exit.NOT_LOGGED_IN, "IDENTITY_REFUSED", 1)
    assert f"status {code}" in found.value.message


def test_P07_a_name_that_is_not_found_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's look-up, which fails once."""
    real, asked = socket.getaddrinfo, list[str]()

    def once(host: str, *rest: object, **more: object) -> object:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "later")
        return real(host, *rest, **more)  # type: ignore[arg-type]

    # Patched: a name server that fails once would be that of the whole machine.
    monkeypatch.setattr(socket, "getaddrinfo", once)
    with endpoint() as (url, _):
        assert identity.token(github(url), OURS, None, Budget(20)) == TOKEN
    assert len(asked) == 2


@pytest.mark.parametrize(("body", "code"), [("exit 1", Exit.UNAVAILABLE), ("sleep 60", Exit.UNAVAILABLE)])
def test_P07_a_cis_program_is_asked_again_too(
    body: str, code: Exit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "buildkite-agent"
    program.write_text(f"#!/bin/sh\necho x >> {tmp_path}/asked\n[ -e {tmp_path}/fails ] || exec echo {TOKEN}\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "fails").touch()
    with pytest.raises(Refusal) as found:
        identity.token({"BUILDKITE": "true"}, OURS, None, Budget(0.6))
    assert found.value.code is code
    if body == "exit 1":
        threading.Timer(0.1, (tmp_path / "fails").unlink).start()
    else:
        (tmp_path / "fails").unlink()
    assert identity.token({"BUILDKITE": "true"}, OURS, None, Budget(30)) == TOKEN


def test_P07_what_hangs_is_left_behind() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        bounded(lambda: over.wait(100), 0.2)
    assert time.monotonic() - begun < busy(2)
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 5)
    assert bounded(lambda: 7, 5) == 7
