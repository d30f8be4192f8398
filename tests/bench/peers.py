"""The two servers that are compared, each as its users run it: TLS, durable storage, audit to a file."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from broker_api.v1 import keys_pb2, keys_pb2_grpc, targets_pb2, targets_pb2_grpc
from google.protobuf.message import Message

from tests.bench.load import Door, Request
from tests.servers.openbao import OpenBao

MESSAGE = b"thirty-two bytes to be signed..."
BATCH = 10
KEY = "bench"
DER_BYTES = 68  # an ECDSA P-256 signature is hardly ever shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A running server: where its door is, the calls to drive it with, and the process that serves."""

    name: str
    door: Door
    sign: Request
    batch: Request
    pid: int


@contextmanager
def openbao(folder: Path) -> Iterator[OpenBao]:
    """OpenBao with TLS, raft storage and a file audit device."""
    server = OpenBao(folder)
    with (folder / "server.hcl").open("a", encoding="utf-8") as config:
        config.write(f'audit "file" "to-file" {{\n  options = {{\n    file_path = "{folder}/audit.log"\n  }}\n}}\n')
    try:
        server.start()
        server.initialise()
        yield server
    finally:
        server.close()


def openbao_peer(server: OpenBao) -> Peer:
    """A P-256 key in transit and the two calls that sign with it."""
    mount = server.mount
    server.request("POST", f"{mount}/keys/{KEY}", {"type": "ecdsa-p256"})
    token = server.token_for(f'path "{mount}/sign/{KEY}" {{ capabilities = ["update"] }}\n', KEY)
    text = base64.b64encode(MESSAGE).decode()
    headers = {"x-vault-token": token, "content-type": "application/json"}
    return Peer(
        name="OpenBao",
        door=Door(port=server.port),
        sign=Request(
            path=f"/v1/{mount}/sign/{KEY}", headers=headers, body=json.dumps({"input": text}).encode(), answer_bytes=100
        ),
        batch=Request(
            path=f"/v1/{mount}/sign/{KEY}",
            headers=headers,
            body=json.dumps({"batch_input": [{"input": text}] * BATCH}).encode(),
            answer_bytes=100 * BATCH,
        ),
        pid=process_id(server.port),
    )


def process_id(port: int) -> int:
    """Who listens on a loopback port: the owner of the socket with that port and state LISTEN (0A)."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    (inode,) = {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(descriptor.readlink()) == f"socket:[{inode}]":
                return int(descriptor.parts[2])
        except OSError:
            continue  # ended or closed meanwhile
    raise LookupError(f"no process listens on {port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A running `broker dev`: both its addresses, its first operator's files, its folder of target tokens."""

    address: str
    pipelines: str  # where jobs call
    ca_file: Path
    identity: tuple[Path, Path]  # certificate, key
    credentials: Path
    pid: int

    def channel(self) -> grpc.Channel:
        """A client's connection with the first operator's certificate."""
        certificate, key = (file.read_bytes() for file in self.identity)
        return grpc.secure_channel(
            self.address, grpc.ssl_channel_credentials(self.ca_file.read_bytes(), key, certificate)
        )


@contextmanager
def broker_dev(
    folder: Path,
    allowed_target: str,
    allowed_issuer: str,
    *,
    database: str = "",
    workers: int = 1,
    change: Callable[[Path], None] | None = None,
) -> Iterator[Broker]:
    """The only place that knows how a broker is made and started, and what is in its folder.

    ``change`` may alter its configuration file before it is started.
    """
    program = str(Path(sys.executable).with_name("broker"))
    init = [program, "init", str(folder), "--allow-target", allowed_target, "--allow-issuer", allowed_issuer]
    init += ["--operators-address", "127.0.0.1:0", "--pipelines-address", "127.0.0.1:0"]
    init += ["--database", database] if database else []
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    config = folder / "broker.toml"
    config.write_text(config.read_text().replace("[server]\n", f"[server]\nworkers = {workers}\n"), encoding="utf-8")
    with config.open("a", encoding="utf-8") as file:  # one session fetches a hundred thousand times here
        file.write("\n[sessions]\nleases_per_pipeline = 100000\nleases_in_all = 10000000\n")
    if change:
        change(config)
    command = [program, "serve", "--config", str(config)]
    with folder.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        if not any(line.strip() == b"broker: ready" for line in process.stdout):
            raise RuntimeError(folder.with_suffix(".log").read_text(errors="replace")[-2000:])
        yield running_broker(folder, process.pid)
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(30)


def running_broker(folder: Path, pid: int) -> Broker:
    """What `broker dev` wrote for its first operator."""
    profile = folder / "profile"
    settings = tomllib.loads((profile / "profile.toml").read_text(encoding="utf-8"))
    return Broker(
        address=settings["address"],
        pipelines=tomllib.loads((folder / "broker.toml").read_text(encoding="utf-8"))["server"]["pipelines_address"],
        ca_file=profile / "ca.pem",
        identity=(profile / "cert.pem", profile / "key.pem"),
        credentials=folder / "credentials",
        pid=pid,
    )


def broker_peer(broker: Broker) -> Peer:
    """A P-256 key in the HSM and the two calls that sign with it, each tried once by a real client."""
    item = keys_pb2.SignInput(message=MESSAGE)
    single = keys_pb2.SignRequest(name=KEY, input=item)
    batch = keys_pb2.BatchSignRequest(name=KEY, inputs=[item] * BATCH)
    with broker.channel() as channel:
        keys = keys_pb2_grpc.KeyServiceStub(channel)
        keys.CreateKey(
            keys_pb2.CreateKeyRequest(
                name=KEY,
                type=keys_pb2.KEY_TYPE_EC_P256,
                usage=keys_pb2.KEY_USAGE_SIGN,
                request_id=str(uuid.uuid4()),
            )
        )
        keys.Sign(single)
        keys.BatchSign(batch)
    return Peer(
        name="broker",
        door=Door(port=int(broker.address.rpartition(":")[2]), identity=broker.identity),
        sign=grpc_request("Sign", single, DER_BYTES),
        batch=grpc_request("BatchSign", batch, DER_BYTES * BATCH),
        pid=broker.pid,
    )


def grpc_request(method: str, message: Message, answer_bytes: int) -> Request:
    """A unary call of KeyService."""
    return Request(
        path=f"/broker_api.v1.KeyService/{method}",
        headers={"content-type": "application/grpc", "te": "trailers"},
        body=grpc_message(message),
        answer_bytes=answer_bytes,
    )


def grpc_message(message: Message) -> bytes:
    """An uncompressed message behind its length (gRPC over HTTP/2)."""
    body = message.SerializeToString()
    return b"\0" + len(body).to_bytes(4, "big") + body


def register_target(broker: Broker, server: OpenBao, name: str, host: str = "") -> None:
    """Make OpenBao's transit engine a place the broker imports keys to; ``host``: what it is to be reached by."""
    server.write_token(broker.credentials, name, host=host or server.host)
    settings = targets_pb2.VaultSettings(
        address=f"https://{host or server.host}", mount=server.mount, ca_pem=server.ca_pem, token_file=name
    )
    with broker.channel() as channel:
        targets_pb2_grpc.TargetServiceStub(channel).CreateTarget(
            targets_pb2.CreateTargetRequest(name=name, vault=settings, request_id=str(uuid.uuid4()))
        )
