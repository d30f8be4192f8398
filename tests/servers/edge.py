"""A real listening edge with certificates made on the spot; behind it stand-ins for the nouns and the store."""

from __future__ import annotations

import ipaddress
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from google.protobuf.message_factory import GetMessageClass

from broker.auth.mtls import Mtls, MtlsConfig
from broker.core.entries import AuditEntry
from broker.core.errors import Unavailable
from broker.core.kinds import OperatorState
from broker.core.model import Operator
from broker.core.ports import Authenticator
from broker.rpc import table
from broker.rpc.server import Server, ServerConfig, ServerLimits
from tests.fakes.calls import asking

START = datetime(2026, 1, 1, tzinfo=UTC)
CLIENT_AUTH = [ExtendedKeyUsageOID.CLIENT_AUTH]
ALICE = "spiffe://broker/operator/alice"


@dataclass(frozen=True)
class Issued:
    """A certificate and its key; ``pem`` is the certificate followed by those that signed it, if asked for."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> bytes:
        return b"".join(each.public_bytes(Encoding.PEM) for each in (self.certificate, *self.chain))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def issue(  # noqa: PLR0913 (a test says just what it wants of a certificate)
    common_name: str,
    issuer: Issued | None = None,
    *,
    alternatives: list[x509.GeneralName] | None = None,
    usages: list[x509.ObjectIdentifier] | None = None,
    ca: bool | None = None,
    path_length: int | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> Issued:
    """A certificate signed by ``issuer``, or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common_name))
        .issuer_name(issuer.certificate.subject if issuer else name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start or now - timedelta(hours=1))
        .not_valid_after(end or now + timedelta(days=30))
    )
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def authority(common_name: str = "operators") -> Issued:
    return issue(common_name, ca=True, path_length=0)


def operator_certificate(signer: Issued, uri: str = ALICE, /, **changes: Any) -> Issued:
    alternatives = changes.pop("alternatives", [x509.UniformResourceIdentifier(uri)])
    return issue("alice", signer, alternatives=alternatives, usages=changes.pop("usages", CLIENT_AUTH), **changes)


def server_certificate(ca: Issued) -> Issued:
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return issue("broker", ca, alternatives=list(alternatives), usages=[ExtendedKeyUsageOID.SERVER_AUTH])


def operator(called: str = "alice", **changes: Any) -> Operator:
    record = {"groups": ("admins",), "state": OperatorState.ENABLED, "not_before": START, "created_at": START}
    return Operator(name=called, **{**record, **changes})


class Journal:
    """The part of the Store port that the edge uses: operators are read, entries are recorded, both can be broken."""

    def __init__(self, *operators: Operator) -> None:
        self.operators = {each.name: each for each in operators}
        self.entries: list[AuditEntry] = []
        self.broken = False
        self._arrived = threading.Condition()

    def get(self, _kind: type[Any], *key: str | int) -> Operator | None:
        return self.operators.get(str(key[0]))

    def record(self, entry: AuditEntry) -> None:
        if self.broken:
            raise Unavailable("AUDIT_UNAVAILABLE", "The journal cannot be written.")
        with self._arrived:
            self.entries.append(entry)
            self._arrived.notify_all()

    def wait_for(self, seen: Callable[[list[AuditEntry]], bool], timeout: float = 60) -> bool:
        with self._arrived:
            return self._arrived.wait_for(lambda: seen(self.entries), timeout)


def plain_services(answers: Mapping[str, Callable[[Any, Any], Any]] | None = None) -> dict[str, object]:
    """Every declared service. A method answers an empty response unless ``answers`` ("KeyService/Sign") has one."""

    def answer(path: str, response: type[Any]) -> Callable[[object, Any, Any], Any]:
        chosen = (answers or {}).get(path)

        def decided(_self: object, call: Any, request: Any) -> Any:
            call.decision = "allow"  # as every noun has asked its guard before it answers
            return chosen(call, request) if chosen else response()

        return decided

    return {
        short: type(
            short,
            (),
            {
                table.function_of(each.name): answer(f"{short}/{each.name}", GetMessageClass(each.output_type))
                for each in service.methods
            },
        )()
        for short, service in table.declared().items()
    }


@dataclass
class Edge:
    """A running server and all that a caller needs."""

    server: Server
    journal: Journal
    folder: Path
    server_ca: Issued
    operator_ca: Issued
    alice: Issued
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    @contextmanager
    def channel(self, client: Issued | None = None, *, port: int | None = None) -> Iterator[Any]:
        """To the operators' port as ``client``, alice unless told otherwise, or to another port with no certificate."""
        mine = client or (self.alice if port is None else None)
        trust = self.server_ca.pem
        credentials = (
            grpc.ssl_channel_credentials(trust, mine.key_pem, mine.pem) if mine else grpc.ssl_channel_credentials(trust)
        )
        with grpc.secure_channel(f"localhost:{port or self.server.operators_port}", credentials) as channel:
            yield channel

    def tls(self, client: Issued | None = None) -> ssl.SSLContext:
        """For clients that write their own HTTP/2."""
        context = ssl.create_default_context(cadata=self.server_ca.pem.decode())
        context.set_alpn_protocols(["h2"])
        if client is not None:
            (self.folder / "client.pem").write_bytes(client.pem + client.key_pem)
            context.load_cert_chain(self.folder / "client.pem")
        return context


def configure(folder: Path, server: Issued, operator_ca: Issued, **changes: Any) -> ServerConfig:
    files = {"certificate_file": "server.pem", "key_file": "server.key", "operator_ca_file": "operators.pem"}
    contents = {"server.pem": server.pem, "server.key": server.key_pem, "operators.pem": operator_ca.pem}
    for filename, content in contents.items():
        (folder / filename).write_bytes(content)
        (folder / filename).chmod(0o600)
    paths = {each: folder / filename for each, filename in files.items()}
    ports = {"operators_address": "127.0.0.1:0", "pipelines_address": "127.0.0.1:0"}
    return ServerConfig(**{**paths, **ports, **changes})


@contextmanager
def running(
    folder: Path,
    services: dict[str, object] | None = None,
    journal: Journal | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    limits: ServerLimits | None = None,
    threads: int = 4,
    also: Sequence[Authenticator] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Edge]:
    """``also``: authenticators beside that of operators; ``clock``: of the server, in seconds that never go back."""
    server_ca, operator_ca = issue("servers", ca=True), authority()
    config = configure(
        folder, server_certificate(server_ca), operator_ca, limits=limits or ServerLimits(), threads=threads
    )
    store: Any = journal or Journal(operator())
    mtls = Mtls(MtlsConfig(operator_ca_file=config.operator_ca_file), store, now)
    server = Server(config, services or plain_services(), [mtls, *also], store, now, clock, asking=asking(store))
    server.start()
    server.set_serving(True)
    edge = Edge(server, store, folder, server_ca, operator_ca, operator_certificate(operator_ca), now)
    try:
        yield edge
    finally:
        server.drain(grace=1)
