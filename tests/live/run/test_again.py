"""`broker run` and `broker fetch` while the CI, the way, or the broker fails once: one budget, one login (P07, P08)."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self

import grpc
import pytest

from tests.live.run.test_standin import DB, Job, Pipelines, job, jwt, pipelines, pipelines_authority
from tests.servers.patience import busy
from tests.unit.cli.test_ci_identity_again import TOKEN, endpoint, github, status

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

AWAY = (grpc.StatusCode.UNAVAILABLE, "DRAINING", "The broker restarts.")


def from_github(url: str) -> dict[str, str]:
    return {**github(url), "BROKER_ID_TOKEN_FILE": ""}


def test_P07_a_job_whose_ci_and_broker_fail_once_runs(job: Job, pipelines: Pipelines) -> None:
    pipelines.failures = {"FetchSecrets": [AWAY]}
    with endpoint(status(503)) as (url, times):
        code, out, err = job.run("run", "--secret", DB, "--", "echo", "ran", env=from_github(url))
    assert (code, out, err, len(times)) == (0, b"ran\n", b"", 2)
    sent = [(headers["authorization"], request) for name, headers, request in pipelines.calls if name == "FetchSecrets"]
    assert {each for each, _ in sent} == {f"Bearer {TOKEN}"}  # one token for the one login, however often it is sent
    assert len({request.request_id for _, request in sent}) == 1
    assert all(request.request_id for _, request in sent)


def test_P07_a_ci_that_stays_away_is_exit_5_and_one_that_refuses_exit_4(job: Job, pipelines: Pipelines) -> None:
    for code, exit_code, reason in ((503, 5, b"IDENTITY_UNAVAILABLE"), (403, 4, b"IDENTITY_REFUSED")):
        with endpoint(every=status(code)) as (url, _):
            begun = time.monotonic()
            more = ("--timeout", "2")
            done = job.run("fetch", "--format", "json", *more, DB, env=from_github(url))
        assert (done[0], done[1], reason in done[2]) == (exit_code, b"", True), done
        assert time.monotonic() - begun < busy(15)
    assert pipelines.methods == []


def test_P08_the_repetition_of_a_login_carries_the_same_token_and_id(job: Job, pipelines: Pipelines) -> None:
    pipelines.failures = {"FetchSecrets": [AWAY, AWAY]}
    for _ in range(2):
        assert job.run("run", "--secret", DB, "--", "true")[0] == 0
    sent = [
        (headers["authorization"], one.request_id) for name, headers, one in pipelines.calls if name == "FetchSecrets"
    ]
    assert sent[0] == sent[1] == sent[2]
    assert sent[3][0] == sent[0][0] == f"Bearer {jwt()}"
    assert sent[3][1] not in {"", sent[0][1]}  # another run is another login


class Wire:
    """A relay before the stand-in. ``losing``: of its first connection, the answer to what is asked never comes."""

    def __init__(self, pipelines: Pipelines, port: int = 0, losing: str = "") -> None:
        self._pipelines, self._losing = pipelines, losing
        self._before = pipelines.methods.count("FetchSecrets")
        self._listener = socket.create_server(("127.0.0.1", port))
        self._ends: list[socket.socket] = []
        self.address = f"localhost:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._ends):
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # that is how it ends
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", int(self._pipelines.address.rpartition(":")[2])))
                losing = self._losing if not self._ends else ""
                self._ends.extend((client, server))
                for source, to, lost in ((client, server, ""), (server, client, losing)):
                    threading.Thread(target=self._hand_on, args=(source, to, lost), daemon=True).start()

    def _hand_on(self, source: socket.socket, to: socket.socket, losing: str) -> None:
        with contextlib.suppress(OSError):
            while some := source.recv(65536):
                lost = losing and self._pipelines.methods.count("FetchSecrets") > self._before
                if not lost:
                    to.sendall(some)
                elif losing == "cut":
                    break
            for each in (source, to):
                each.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("losing", ["cut", pytest.param("hang", marks=pytest.mark.soak)])
def test_P08_an_answer_that_is_lost_on_the_wire_is_asked_for_again(job: Job, pipelines: Pipelines, losing: str) -> None:
    with Wire(pipelines, losing=losing) as wire:
        env = {"BROKER_PIPELINES_ADDRESS": wire.address}
        code, out, err = job.run("run", "--timeout", "20", "--secret", DB, "--", "echo", "ran", env=env)
    assert (code, out, err) == (0, b"ran\n", b"")
    ids = [one.request_id for name, _, one in pipelines.calls if name == "FetchSecrets"]
    assert len(ids) == 2
    assert len(set(ids)) == 1


def test_P07_a_broker_that_comes_back_during_the_login_is_found(job: Job, pipelines: Pipelines) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with job.start(
        "run", "--secret", DB, "--", "echo", "ran", env={"BROKER_PIPELINES_ADDRESS": f"localhost:{port}"}
    ) as run:
        threading.Event().wait(2)  # it is away meanwhile
        with Wire(pipelines, port):
            out, err = run.communicate(timeout=200)
    assert (run.returncode, out, err) == (0, b"ran\n", b"")
