"""A stand-in of the broker's pipelines port behind the tests of `broker run` and `broker fetch`: SessionService over
real TLS, answers in memory. `broker` itself runs as a process, as it does in a job: as one that has loaded its modules
already, except where its start matters (``COMMAND``)."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import broker_api.v1.sessions_pb2 as sessions
import grpc
import pytest
from broker_api.v1 import sessions_pb2_grpc

from tests.live.cli.test_standin import Authority, fail, server_certificate
from tests.servers.warm import WarmCommandLine, run_command_line

COMMAND = [sys.executable, "-m", "broker_cli"]
CLOCK_AHEAD = timedelta(hours=5)
"""The broker's clock is not the runner's."""

VALUES = {
    "team/db": {"password": b"s3cr3t-pa/ss+w\xc3\xb6rd", "user": b"app"},
    "team/tls": {"key": b"-----BEGIN KEY-----\nAAAAbbbbCCCCdddd\nEEEEffff\n-----END KEY-----\n"},
    "team/pin": {"pin": b"123"},
    "team/ld": {"preload": b"evil.so"},
    "team/blob": {"bytes": b"\x00\xff\xfe\x01binary"},
}


def jwt(audience: str | list[str] = "broker.test", **claims: object) -> str:
    parts = [{"alg": "none"}, {"aud": audience, **claims}]
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=").decode() for one in parts), "c2ln"]
    )


@dataclass
class Pipelines:
    """What is kept in memory. ``failures`` are taken one by one by the calls of that method."""

    authority: Authority
    address: str = ""
    calls: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    failures: dict[str, list[tuple[grpc.StatusCode, str, str]]] = field(default_factory=dict)
    life: float = 60.0
    reaches: float = 3600.0
    """Seconds after which the session is over for good."""
    before: Callable[[str], object] = lambda _: None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, method: str, times: int = 1) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.methods.count(method) >= times, 60), (method, self.methods)

    @property
    def methods(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def FetchSecrets(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._take("FetchSecrets", request, context)
        answer = sessions.FetchSecretsResponse(session=self._session(), session_token="brs_standin")
        for text in request.references:
            path, _, name = text.partition("#")
            fields = VALUES[path.partition("@")[0]]
            given = {name: fields[name]} if name else fields
            answer.secrets.append(sessions.FetchedSecret(reference=text, version=1, fields=given))
        return answer

    def RenewSession(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._take("RenewSession", request, context)
        return sessions.RenewSessionResponse(session=self._session())

    def EndSession(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._take("EndSession", request, context)
        return sessions.EndSessionResponse()

    def _take(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        headers = {name: str(value) for name, value in context.invocation_metadata() or ()}
        with self.changed:
            self.calls.append((method, headers, request))
            self.changed.notify_all()
        self.before(method)
        if self.failures.get(method):
            fail(context, *self.failures[method].pop(0))
        if method != "FetchSecrets" and headers.get("authorization") != "Bearer brs_standin":
            fail(context, grpc.StatusCode.UNAUTHENTICATED, "SESSION_UNKNOWN", "There is no such session.")

    def _session(self) -> Any:
        now = datetime.now(UTC) + CLOCK_AHEAD
        session = sessions.Session(id="s-1", principal="pipeline/deploy", state=sessions.SESSION_STATE_ACTIVE)
        session.create_time.FromDatetime(now)
        session.expire_time.FromDatetime(now + timedelta(seconds=min(self.life, self.reaches)))
        session.last_time.FromDatetime(now + timedelta(seconds=self.reaches))
        return session


def serve_pipelines(pipelines: Pipelines) -> grpc.Server:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    served = type("StandInServicer", (sessions_pb2_grpc.SessionServiceServicer,), {
        name: staticmethod(getattr(pipelines, name))
        for name in ("FetchSecrets", "RenewSession", "EndSession")
    })  # fmt: skip
    sessions_pb2_grpc.add_SessionServiceServicer_to_server(served(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([server_certificate(pipelines.authority)]))
    pipelines.address = f"localhost:{port}"
    server.start()
    return server


@pytest.fixture(scope="module")
def pipelines_authority() -> Authority:
    return Authority("pipelines CA")


@pytest.fixture
def pipelines(pipelines_authority: Authority) -> Iterator[Pipelines]:
    one = Pipelines(pipelines_authority)
    server = serve_pipelines(one)
    yield one
    server.stop(None).wait()


@dataclass(frozen=True)
class Job:
    """A job's place: an identity token in a file, an environment that leads to the stand-in."""

    folder: Path
    environment: dict[str, str]

    def start(self, *arguments: str, **more: Any) -> WarmCommandLine:
        environment = self.environment | more.pop("env", {})
        ends = {"stdin": subprocess.DEVNULL} | more
        return WarmCommandLine(arguments, environment=environment, folder=ends.pop("cwd", None), **ends)

    def start_cold(self, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        """As a job starts it, with an interpreter of its own."""
        ends = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        return cast("subprocess.Popen[bytes]", subprocess.Popen([*COMMAND, *arguments], env=self.environment, **ends))

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, **more: Any
    ) -> tuple[int, bytes, bytes]:
        if not more:
            environment = self.environment | dict(env or {})
            done = run_command_line(arguments, environment=environment, folder=cwd)
            return done.returncode, done.stdout, done.stderr
        with self.start(*arguments, env=env or {}, cwd=cwd, **more) as process:
            out, err = process.communicate(timeout=200)
        assert process.returncode is not None
        return process.returncode, out, err


def job_environment(pipelines: Pipelines, **more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    path = os.pathsep.join(str(Path(one).resolve()) for one in ("cli", "protos"))
    place = {"BROKER_PIPELINES_ADDRESS": pipelines.address, "BROKER_CA_PEM": pipelines.authority.pem.decode()}
    return kept | {"PYTHONPATH": path, "TERM": "xterm", "LC_ALL": "C.UTF-8"} | place | more


@pytest.fixture
def job(pipelines: Pipelines, tmp_path: Path) -> Job:
    (tmp_path / "token").write_text(jwt())
    environment = job_environment(
        pipelines, BROKER_ID_TOKEN_FILE=str(tmp_path / "token"), BROKER_AUDIENCE="broker.test"
    )
    return Job(tmp_path, environment)


def headers_of(pipelines: Pipelines, method: str) -> Mapping[str, str]:
    return next(headers for name, headers, _ in pipelines.calls if name == method)


DB = "DB=broker://team/db#password"
PASSWORD = VALUES["team/db"]["password"]
