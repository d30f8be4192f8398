"""A stand-in for the broker behind the CLI's tests: the generated services over real mTLS, with answers in memory.

It keeps no rules of the broker's; it records what it was asked, so that the tests see what the CLI really sends.
"""

from __future__ import annotations

import io
import ipaddress
import ssl
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import broker_api.v1.audit_pb2 as audit
import broker_api.v1.hsm_pb2 as hsm
import broker_api.v1.imports_pb2 as imports
import broker_api.v1.keys_pb2 as keys
import broker_api.v1.operators_pb2 as operators
import broker_api.v1.policies_pb2 as policies
import grpc
import pytest
from broker_api.v1 import (
    approvals_pb2_grpc,
    audit_pb2_grpc,
    authorities_pb2_grpc,
    drift_pb2_grpc,
    hsm_pb2_grpc,
    imports_pb2_grpc,
    keys_pb2_grpc,
    operations_pb2_grpc,
    operators_pb2_grpc,
    policies_pb2_grpc,
    targets_pb2_grpc,
)
from broker_cli import wire
from broker_cli.main import run
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tests.live.cli.authority_answers import HANDOVER, authority_answers
from tests.live.cli.rotation_answers import WHEN, approval_answers, operation_answers, rotation_answers
from tests.live.cli.target_answers import target_answers

NOW = datetime.now(UTC)


@dataclass
class Authority:
    """A CA made for one test session."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.certificate = self._build(
            self.key.public_key(), self.name, NOW - timedelta(days=1), NOW + timedelta(days=9), ca=True
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, key: Any, name: str, *, start: float = -1, end: float = 12, sans: Any = ()) -> bytes:
        """A leaf certificate, PEM; ``start`` and ``end`` are hours from now."""
        life = NOW + timedelta(hours=start), NOW + timedelta(hours=end)
        return self._build(key, name, *life, ca=False, sans=sans).public_bytes(serialization.Encoding.PEM)

    def _build(
        self, key: Any, name: str, start: datetime, end: datetime, *, ca: bool, sans: Any = ()
    ) -> x509.Certificate:
        issuer, subject = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (self.name, name))
        builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), start, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def new_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key, pem


@dataclass
class StandIn:
    """What is kept in memory; ``failures`` are taken one by one by the calls of that method."""

    authority: Authority
    address: str = ""
    seen: list[tuple[str, Any]] = field(default_factory=list)
    failures: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    answers: dict[str, Callable[[Any], Any]] = field(default_factory=dict)

    def asked(self, method: str) -> Any:
        """The last request of a method."""
        return [request for name, request in self.seen if name == method][-1]

    def take(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.seen.append((method, request))
        if self.failures.get(method):
            code, reason, message, *more = self.failures[method].pop(0)
            fail(context, code, reason, message, **(more[0] if more else {}))


def fail(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, message: str, **more: str) -> NoReturn:
    """Refuse as the broker does: ErrorInfo with a reason, and the id of the call."""
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="broker", metadata={"call_id": "c-17", **more}))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")


def _key(request: Any) -> keys.Key:
    key = keys.Key(name=request.name, type=keys.KEY_TYPE_EC_P256, usage=keys.KEY_USAGE_SIGN, create_time=WHEN)
    key.state, key.primary_version, key.owner = keys.KEY_STATE_ENABLED, 1, "operator/alice"
    if isinstance(request, keys.CreateKeyRequest):
        key.exportable = request.exportable
        key.labels.update(request.labels)
    return key


def _import(request: Any) -> imports.Import:
    found = imports.Import(key=request.name, version=1, target=request.target, remote_name=request.name)
    found.state = imports.IMPORT_STATE_PROVEN
    found.prove_time.CopyFrom(WHEN)
    return found


def _operator(request: Any) -> operators.Operator:
    groups = getattr(request, "groups", ())
    return operators.Operator(
        name=request.name, groups=groups, state=operators.OPERATOR_STATE_ENABLED, create_time=WHEN
    )


def _certificate(stand_in: StandIn, request: Any) -> Any:
    csr = x509.load_pem_x509_csr(request.csr_pem.encode())
    pem = stand_in.authority.issue(csr.public_key(), "operator").decode()
    return operators.Certificate(pem=pem, ca_pem=stand_in.authority.pem.decode(), serial="0b", expire_time=WHEN)


HEAD = audit.AuditHead(
    chain="host-1",
    sequence=7,
    hash="ab" * 32,
    sign_time=WHEN,
    signature=b"\x30\x00",
    sign_time_text="2026-05-28T20:26:40.000000+00:00",
)
POLICY = policies.PolicyDocument(version=4, text="permit (principal, action, resource);\n", create_time=WHEN)
PEM = "-----BEGIN PUBLIC KEY-----\nAA==\n"
KEY_CHANGES = (
    "CreateKey", "GetKey", "RotateKey", "EnableKey", "DisableKey", "CancelKeyDestruction", "SealKey",
    "SettleKeyVersion", "SetKeySchedule", "PrepareKeyVersion", "ActivateKeyVersion", "RetireKeyVersion",
)  # fmt: skip
OPERATOR_CHANGES = ("SetOperatorGroups", "RevokeCertificates", "RemoveOperator")
Answer = Callable[[Any], Any]


def _key_answers() -> dict[str, Answer]:
    def page(request: Any) -> Any:
        here = int(request.page_token or 0)
        found = _key(keys.GetKeyRequest(name=f"key-{here}"))
        return keys.ListKeysResponse(keys=[found], next_page_token="" if here == 2 else str(here + 1))

    def changed(name: str) -> Answer:
        return lambda request: getattr(keys, f"{name}Response")(key=_key(request))

    es256, gcm = keys.SIGNATURE_ALGORITHM_ES256, keys.ENCRYPTION_ALGORITHM_AES_GCM
    version = keys.KeyVersion(version=1, state=keys.KEY_VERSION_STATE_ENABLED, create_time=WHEN)
    return {name: changed(name) for name in (*KEY_CHANGES, "ScheduleKeyDestruction")} | {
        "ListKeys": page,
        "ListKeyVersions": lambda _: keys.ListKeyVersionsResponse(versions=[version]),
        "GetPublicKey": lambda _: keys.GetPublicKeyResponse(version=1, pem=PEM, jwk='{"kty":"EC"}'),
        "Sign": lambda r: keys.SignResponse(
            signature=b"\x00sig:" + (r.input.message or r.input.digest), version=1, algorithm=es256
        ),
        "BatchSign": lambda r: keys.BatchSignResponse(
            signatures=[b"\x00sig:" + (one.message or one.digest) for one in r.inputs], version=2, algorithm=es256
        ),
        "Verify": lambda r: keys.VerifyResponse(valid=r.signature == b"good", version=1),
        "Encrypt": lambda r: keys.EncryptResponse(ciphertext=b"\x01" + r.plaintext[::-1], version=1, algorithm=gcm),
        "Decrypt": lambda r: keys.DecryptResponse(plaintext=r.ciphertext[:0:-1], version=1),
        "ImportKey": lambda r: imports.ImportKeyResponse(extra_versions=(), **{"import": _import(r)}),
        "ProveImport": lambda r: imports.ProveImportResponse(**{"import": _import(r)}),
        "ExportKey": lambda r: imports.ExportKeyResponse(
            transfer_file=b"" if r.validate_only else b"{}", blob_sha256="ab", **{"import": _import(r)}
        ),
        "ConfirmImport": lambda r: imports.ConfirmImportResponse(extra_versions=(), **{"import": _import(r)}),
        "ListImports": lambda r: imports.ListImportsResponse(imports=[_import(r)]),
    }


def _operator_answers(stand_in: StandIn) -> dict[str, Answer]:
    def certified(name: str) -> Answer:
        return lambda request: getattr(operators, f"{name}Response")(certificate=_certificate(stand_in, request))

    def changed(name: str) -> Answer:
        return lambda request: getattr(operators, f"{name}Response")(operator=_operator(request))

    me = operators.WhoAmIResponse(principal="operator/alice", groups=["admins"], method="mtls", credential="0a")
    return (
        {name: certified(name) for name in ("IssueCertificate", "RenewCertificate")}
        | {name: changed(name) for name in OPERATOR_CHANGES}
        | {
            "AddOperator": lambda r: operators.AddOperatorResponse(
                operator=_operator(r), certificate=_certificate(stand_in, r)
            ),
            "ListOperators": lambda _: operators.ListOperatorsResponse(operators=[operators.Operator(name="alice")]),
            "WhoAmI": lambda _: me,
        }
    )


def _other_answers() -> dict[str, Answer]:
    probe = hsm.Probe(name="wrap", passed=False, detail="pads first")
    token = hsm.GetHsmResponse(token_label="dev", answering=True, key_types=["ec-p256"], probes=[probe])
    return {
        "GetPolicy": lambda _: policies.GetPolicyResponse(policy=POLICY, schema="entity Key;\n"),
        "SetPolicy": lambda r: policies.SetPolicyResponse(policy=policies.PolicyDocument(version=5, text=r.text)),
        "ExplainPolicy": lambda r: policies.ExplainPolicyResponse(allowed=r.action == "GetKey", explanation="because"),
        "GetAuditState": lambda _: audit.GetAuditStateResponse(public_key_pem=PEM, heads=[HEAD], handovers=[HANDOVER]),
        "SignAuditHead": lambda _: audit.SignAuditHeadResponse(heads=[HEAD]),
        "ListAuditHeads": lambda _: audit.ListAuditHeadsResponse(heads=[HEAD]),
        "GetHsm": lambda _: token,
    }


def _answers(stand_in: StandIn) -> dict[str, Answer]:
    rotations = rotation_answers(_key) | operation_answers() | approval_answers() | authority_answers()
    return _key_answers() | rotations | target_answers() | _operator_answers(stand_in) | _other_answers()


def _servicer(service: type, stand_in: StandIn) -> Any:
    """A servicer whose every method records the request and gives the answer in memory."""

    def method(name: str) -> Callable[[Any, Any, grpc.ServicerContext], Any]:
        def answer(_: Any, request: Any, context: grpc.ServicerContext) -> Any:
            stand_in.take(name, request, context)
            return stand_in.answers[name](request)

        return answer

    names = [name for name in vars(service) if name[0].isupper()]
    return type(f"StandIn{service.__name__}", (service,), {name: method(name) for name in names})()


SERVICES = (
    (approvals_pb2_grpc.ApprovalServiceServicer, approvals_pb2_grpc.add_ApprovalServiceServicer_to_server),
    (audit_pb2_grpc.AuditServiceServicer, audit_pb2_grpc.add_AuditServiceServicer_to_server),
    (drift_pb2_grpc.DriftServiceServicer, drift_pb2_grpc.add_DriftServiceServicer_to_server),
    (authorities_pb2_grpc.AuthorityServiceServicer, authorities_pb2_grpc.add_AuthorityServiceServicer_to_server),
    (hsm_pb2_grpc.HsmServiceServicer, hsm_pb2_grpc.add_HsmServiceServicer_to_server),
    (imports_pb2_grpc.ImportServiceServicer, imports_pb2_grpc.add_ImportServiceServicer_to_server),
    (keys_pb2_grpc.KeyServiceServicer, keys_pb2_grpc.add_KeyServiceServicer_to_server),
    (operations_pb2_grpc.OperationServiceServicer, operations_pb2_grpc.add_OperationServiceServicer_to_server),
    (operators_pb2_grpc.OperatorServiceServicer, operators_pb2_grpc.add_OperatorServiceServicer_to_server),
    (policies_pb2_grpc.PolicyServiceServicer, policies_pb2_grpc.add_PolicyServiceServicer_to_server),
    (targets_pb2_grpc.TargetServiceServicer, targets_pb2_grpc.add_TargetServiceServicer_to_server),
)


def server_certificate(authority: Authority, *, name: str = "localhost", **life: float) -> tuple[bytes, bytes]:
    key, pem = new_key()
    sans: list[x509.GeneralName] = [x509.DNSName(name)]
    if name == "localhost":
        sans.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    return pem, authority.issue(key.public_key(), name, sans=sans, **life)


@dataclass
class Served:
    """A running stand-in."""

    server: grpc.Server
    port: int


def serve(stand_in: StandIn, pair: tuple[bytes, bytes], *, only_health: bool = False) -> Served:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    for service, add in () if only_health else SERVICES:
        add(_servicer(service, stand_in), server)
    healthy = health.HealthServicer()
    healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    credentials = grpc.ssl_server_credentials([pair], stand_in.authority.pem, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return Served(server, port)


def write_profile(folder: Path, authority: Authority, address: str, **life: float) -> Path:
    folder.mkdir(parents=True)
    key, pem = new_key()
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "cert.pem").write_bytes(authority.issue(key.public_key(), "operator", **life))
    (folder / "key.pem").touch(mode=0o600)
    (folder / "key.pem").write_bytes(pem)
    (folder / "profile.toml").write_text(
        f'address = "{address}"\nca = "ca.pem"\ncertificate = "cert.pem"\nkey = "key.pem"\n'
    )
    return folder


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    stand_in = StandIn(Authority("test CA"))
    served = serve(stand_in, server_certificate(stand_in.authority))
    stand_in.address = f"localhost:{served.port}"
    yield stand_in
    served.server.stop(None).wait()


@pytest.fixture
def stand_in(running: StandIn) -> StandIn:
    running.seen.clear()
    running.failures.clear()
    running.answers = _answers(running)
    return running


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()


Broker = Callable[..., Ended]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Broker:
    """Run `broker` without any profile."""
    for name in ("ADDRESS", "PROFILE", "CA_FILE", "CERT", "KEY", "FORMAT", "TIMEOUT"):
        monkeypatch.delenv(f"BROKER_{name}", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    # Patched: pauses between tries, which no command takes.
    monkeypatch.setattr(wire, "PAUSES", (0, 0, 0))

    def broker(*arguments: object, stdin: bytes = b"") -> Ended:
        # Patched: the command runs in this process, whose input is pytest's.
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run([str(one) for one in arguments])
        out, err = capsysbinary.readouterr()
        return Ended(code, out, err.decode())

    return broker


@pytest.fixture
def broker(tmp_path: Path, stand_in: StandIn, bare: Broker) -> Broker:
    """Run `broker` as an operator whose default profile leads to the stand-in."""
    write_profile(tmp_path / "config" / "broker" / "profiles" / "default", stand_in.authority, stand_in.address)
    return bare


def test_the_stand_in_answers_every_method_of_the_wire(stand_in: StandIn) -> None:
    methods = {name for service, _ in SERVICES for name in vars(service) if name[0].isupper()}
    assert methods == stand_in.answers.keys()


def test_the_stand_in_takes_nobody_without_a_certificate(stand_in: StandIn) -> None:
    pem = ssl.get_server_certificate(("127.0.0.1", int(stand_in.address.rpartition(":")[2])))
    assert pem.startswith("-----BEGIN CERTIFICATE")
    channel = grpc.secure_channel(stand_in.address, grpc.ssl_channel_credentials(stand_in.authority.pem))
    with channel, pytest.raises(grpc.RpcError) as refused:
        operators_pb2_grpc.OperatorServiceStub(channel).WhoAmI(operators.WhoAmIRequest(), timeout=200)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
