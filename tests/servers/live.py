"""The whole broker as a process of its own, on a real SoftHSM token, reached through the wire only.

``live`` is one broker for the whole run: read it, add to it under names of your own, never stop or break it;
``live_own`` is a broker that one test may kill, freeze and break (about two seconds to make).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from broker import setup
from broker.rpc import table
from tests.servers.openbao import OpenBao
from tests.servers.patience import PATIENT, busy
from tests.servers.places import free_port
from tests.servers.refusals import Refused, on_the_wire
from tests.servers.warm import Process, as_text, begin, run, run_command_line

ROOT = Path(__file__).parents[2]
METHODS: dict[str, MethodDescriptor] = {
    method.name: method for service in table.declared().values() for method in service.methods
}
"""Every RPC of the wire by its name, from the descriptors."""

BACK_SECONDS = 2.0  # after a kill
START_SECONDS = 400.0
BEHIND_THE_DOOR = {"background", "schedule"}
"""How the audit says that a call was made for somebody who had asked before."""
"""Only so that a start that hangs ends before the test does; how fast a start must be is asserted where it matters."""
OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 20_000),  # also how long a handshake may take
    ("grpc.max_reconnect_backoff_ms", 200),
)

FOR_PIPELINES = frozenset({"Login", "RenewSession", "EndSession"})
"""What no operator can be permitted."""

POLICY = (
    '@id("admins") permit (principal in Group::"admins", action, resource);\n'
    + "".join(
        f'@id("only-{name.lower()}") permit (principal in Group::"only-{name.lower()}", '
        f'action == Action::"{name}", resource);\n'
        for name in METHODS
        if name not in FOR_PIPELINES
    )
    + '@id("watched") @approvals("1") permit (principal in Group::"watched", action, resource);\n'
)
"""Nothing for anybody but admins, for each RPC a group that may do just that, and one that needs approvals for all."""


class Client:
    """One operator's connection. ``ask`` takes the RPC's name and its request's fields."""

    def __init__(self, address: str, ca: bytes, key: bytes | None, certificate: bytes | None) -> None:
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        self.channel = grpc.secure_channel(address, credentials, options=OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()

    def send(self, rpc: str, request: bytes, timeout: float = 60) -> Any:
        """The answer to a request that is bytes already; ``Refused``."""
        method = METHODS[rpc]
        path = f"/{method.containing_service.full_name}/{rpc}"
        call = self.channel.unary_unary(
            path, request_serializer=bytes, response_deserializer=GetMessageClass(method.output_type).FromString
        )
        try:
            return call(request, timeout=timeout)
        except grpc.RpcError as error:
            raise on_the_wire(error) from None

    def ask(self, rpc: str, **fields: Any) -> Any:
        """The answer; ``Refused``."""
        request = GetMessageClass(METHODS[rpc].input_type)(**fields)
        return self.send(rpc, request.SerializeToString())

    def refusal(self, rpc: str, **fields: Any) -> Refused:
        """The refusal that the call must end in."""
        try:
            answer = self.ask(rpc, **fields)
        except Refused as error:
            return error
        raise AssertionError(f"{rpc} was answered: {answer}")

    def everything(self, rpc: str, items: str) -> list[Any]:
        """All items of a list method."""
        found: list[Any] = []
        token = ""
        while True:
            answer = self.ask(rpc, page_size=1000, page_token=token)
            found += getattr(answer, items)
            token = answer.next_page_token
            if not token:
                return found

    def serving(self) -> bool:
        """What the health service says; False when it is not reached."""
        check = self.channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=bytes,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest().SerializeToString(), timeout=20)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Live:
    """A broker's folder and, while it runs, its process; not ``warm``: where its start is what is to be shown."""

    def __init__(self, folder: Path, *options: str, warm: bool = True) -> None:
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        self.options = options
        self.warm = warm
        self.dead = free_address()  # allowed as a target, and nobody listens there
        self.process: Process | None = None
        self._first = 0.0
        self._clients: list[Client] = []
        self._read: dict[Path, int] = {}
        self._records: list[dict[str, Any]] = []

    # ---- the process ---------------------------------------------------------------------------------------------

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """``python -m broker`` to its end; what it makes is patient unless the words say otherwise."""
        patient = (words[0], *PATIENT, *words[1:]) if words[0] == "init" else words
        return run(patient, environment=environment())

    def start(self, *words: str, umask: int = 0o077, extra: dict[str, str] | None = None) -> float:
        """Start, by default as ``dev`` or, when it was made before, as ``serve``; the seconds until it was ready."""
        if not words:
            made = (self.folder / "broker.toml").exists()
            words = ("serve", "--config", str(self.config)) if made else ("dev", "--folder", str(self.folder))
            words = words if made else (*words, *PATIENT, *self.options, "--allow-target", self.dead, *self._bound())
        begun = time.monotonic()
        warm = self.warm and not extra  # libraries look into the environment when they are loaded
        self.process = begin(words, warm=warm, said=self.log, environment=environment() | (extra or {}), umask=umask)
        give_up = threading.Timer(START_SECONDS, self.process.kill)
        give_up.start()
        try:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if line.strip() == b"broker: ready":
                    self._first = self._first or time.monotonic() - begun
                    return time.monotonic() - begun
        finally:
            give_up.cancel()
        raise AssertionError("the broker did not start:\n" + self.log.read_text()[-2000:])

    @property
    def back_seconds(self) -> float:
        """How long it may take to come back after a kill; longer where the very first start took long too."""
        return max(busy(BACK_SECONDS), 4 * self._first)

    def _bound(self) -> Iterator[str]:
        """The options that let every target use these token files, as far as they are there, at every allowed host."""
        allowed = [place for flag, place in pairwise(self.options) if flag == "--allow-target"]
        for host in (*allowed, self.dead):
            for file in ("vault-token", "wrong-token", "absent"):
                yield from ("--bind-credential", f"{host}/{file}=*")

    def end(self, number: signal.Signals, seconds: float = 60) -> int:
        """Send a signal and wait for the end; the exit code."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler: where each of its threads is
            process.wait(200)
            raise AssertionError(f"{number.name} did not end it in {seconds} s:\n{self.said[-8000:]}") from None
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    def kill(self) -> None:
        """As the power going out, but for the disk's cache."""
        self.end(signal.SIGKILL)

    def terminate(self) -> int:
        return self.end(signal.SIGTERM)

    def allow_transfer_files(self, extra: dict[str, str] | None = None) -> None:
        """Start again under a configuration that allows files for Vault and OpenBao."""
        self.terminate()
        text = self.config.read_text()
        self.config.write_text(text.replace("[targets]\n", "[targets]\nvault_transfer_files = true\n"))
        self.start(extra=extra)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self.process is not None:
            self.kill()

    # ---- calling it ----------------------------------------------------------------------------------------------

    @property
    def config(self) -> Path:
        return self.folder / "broker.toml"

    @property
    def address(self) -> str:
        """The operators' listener."""
        return self._setting("operators_address")

    @property
    def pipelines(self) -> str:
        """The pipelines' listener."""
        return self._setting("pipelines_address")

    @property
    def ca(self) -> bytes:
        return (self.folder / "profile" / "ca.pem").read_bytes()

    def client(self) -> Client:
        """A connection of its own as the first operator; closed with the broker."""
        profile = self.folder / "profile"
        return self._opened(profile.joinpath("key.pem").read_bytes(), profile.joinpath("cert.pem").read_bytes())

    def operator(self, admin: Client, name: str, *groups: str) -> Client:
        """Register an operator and connect as them."""
        key, csr = setup.make_request()
        added = admin.ask("AddOperator", name=name, groups=groups, csr_pem=csr.decode())
        return self._opened(key, added.certificate.pem.encode())

    def _opened(self, key: bytes, certificate: bytes) -> Client:
        client = Client(self.address, self.ca, key, certificate)
        self._clients.append(client)
        return client

    def _setting(self, name: str) -> str:
        line = next(line for line in self.config.read_text().splitlines() if line.startswith(f"{name} = "))
        return str(json.loads(line.partition(" = ")[2]))

    # ---- what it wrote -------------------------------------------------------------------------------------------

    @property
    def pin(self) -> str:
        return (self.folder / "hsm-pin").read_text().strip()

    @property
    def said(self) -> str:
        """Everything on stderr so far."""
        return self.log.read_text(errors="replace")

    def records(self) -> list[dict[str, Any]]:
        """Every line of every journal so far, as it was written."""
        for file in sorted((self.folder / "journal").glob("*.jsonl")):
            with file.open("rb") as journal:
                journal.seek(self._read.get(file, 0))
                whole, newline, _ = journal.read().rpartition(b"\n")
            if newline:
                self._read[file] = self._read.get(file, 0) + len(whole) + 1
                self._records += [json.loads(line) for line in whole.split(b"\n")]
        return self._records

    def since(self, count: int) -> list[dict[str, Any]]:
        """The outcomes of callers' calls after the first ``count`` records."""
        new = [one for one in self.records()[count:] if one.get("phase") == "outcome"]
        return [one for one in new if not one["rpc"].startswith("-") and one["authn"] not in BEHIND_THE_DOOR]

    def torn(self) -> list[str]:
        """Options of ``verify`` for the chains in which a kill has left half a line: those are explained."""
        files = sorted((self.folder / "journal").glob("*.jsonl"))
        torn = {file.name.partition(".")[0] for file in files if file.read_bytes()[-1:] not in {b"", b"\n"}}
        return [word for chain in sorted(torn) for word in ("--known-torn", chain)]

    def verify(self, *options: str) -> str:
        """`broker audit verify` offline, with the public key that ``init`` wrote; what it printed."""
        done = cli(
            "audit", "verify", str(self.folder / "journal"),
            "--public-key", str(self.folder / "certificates" / "audit.pem"), *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def holding(self, *canaries: bytes) -> list[Path]:
        """Files of the broker, its log included, that hold one of these; its PIN and token files are not looked at."""
        own = {self.folder / "hsm-pin", *(self.folder / "credentials").rglob("*")}
        files = [file for file in self.folder.rglob("*") if file.is_file() and file not in own]
        return [file for file in (*files, self.log) if any(one in file.read_bytes() for one in canaries)]


def environment() -> dict[str, str]:
    """The little that a started process is given."""
    path = os.pathsep.join(str(ROOT / part) for part in (".", "cli", "protos"))
    python = {"PYTHONPATH": path, "PYTHONWARNINGS": "error", "PYTHONFAULTHANDLER": "1"}
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | python


def cli(*words: str, profile: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The operator's command line, to its end."""
    extra = {"BROKER_PROFILE": str(profile)} if profile else {}
    return as_text(run_command_line(words, environment=environment() | extra))


def within(seconds: float, wanted: Callable[[], bool]) -> float:
    """Ask until it is so; how long that took. Fails when it takes longer than on a busy computer."""
    begun, pause = time.monotonic(), threading.Event()
    while not wanted():
        assert time.monotonic() - begun < busy(seconds), f"not so after {busy(seconds):g} s"
        pause.wait(0.05)
    return time.monotonic() - begun


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


def vault_settings(bao: OpenBao, **other: str) -> dict[str, str]:
    """The settings of a target at this server."""
    given = {"address": bao.address, "mount": bao.mount, "ca_pem": bao.ca_pem, "token_file": "vault-token"}
    return given | other


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory, openbao: OpenBao) -> Iterator[Live]:
    """One broker for the whole run, under ``POLICY``; the target ``bao`` is registered."""
    broker = Live(tmp_path_factory.mktemp("live") / "broker", "--allow-target", openbao.host)
    try:
        broker.start()
        broker.allow_transfer_files()
        openbao.write_token(broker.folder / "credentials")
        openbao.write_token(broker.folder / "credentials", host=broker.dead)
        with broker.client() as admin:
            admin.ask("SetPolicy", text=POLICY, expected_version=1)
            admin.ask("CreateTarget", name="bao", vault=vault_settings(openbao))
        yield broker
    finally:
        broker.close()


@pytest.fixture
def live_own(tmp_path: Path, openbao: OpenBao) -> Iterator[Live]:
    """A broker of the test's own; the target ``bao`` is registered."""
    with live_in(tmp_path, openbao) as broker:
        yield broker


@contextmanager
def live_in(folder: Path, openbao: OpenBao) -> Iterator[Live]:
    """A broker that runs there for a while; the target ``bao`` is registered."""
    broker = Live(folder / "broker", "--allow-target", openbao.host)
    try:
        broker.start()
        openbao.write_token(broker.folder / "credentials")
        with broker.client() as admin:
            admin.ask("CreateTarget", name="bao", vault=vault_settings(openbao))
        yield broker
    finally:
        broker.close()
