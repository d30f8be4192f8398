"""A strict local OpenID Connect issuer over TLS: what it signs is well formed, what it serves is what a test says."""

from __future__ import annotations

import base64
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.servers.edge import issue

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/.well-known/jwks"


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int, size: int | None = None) -> str:
    return b64(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


@dataclass
class Signer:
    """One private key and the JWK of its public half."""

    kid: str
    algorithm: str = "ES256"
    key: Any = None

    def __post_init__(self) -> None:
        if self.key is None:
            self.key = _KEYS[self.algorithm]()

    def jwk(self, **changes: Any) -> dict[str, Any]:
        public = self.key.public_key()
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            parts = {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
        elif isinstance(public, ec.EllipticCurvePublicKey):
            point, size = public.public_numbers(), public.key_size // 8
            parts = {"kty": "EC", "crv": f"P-{public.key_size}", "x": number(point.x, size), "y": number(point.y, size)}
        else:
            parts = {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}
        whole = {**parts, "kid": self.kid, "use": "sig", "alg": self.algorithm, **changes}
        return {name: value for name, value in whole.items() if value is not None}

    def signature(self, signed: bytes) -> bytes:
        if self.algorithm == "RS256":
            return bytes(self.key.sign(signed, padding.PKCS1v15(), hashes.SHA256()))
        if self.algorithm == "PS256":
            return bytes(self.key.sign(signed, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()))
        if self.algorithm == "EdDSA":
            return bytes(self.key.sign(signed))
        chosen, size = (hashes.SHA384(), 48) if self.algorithm == "ES384" else (hashes.SHA256(), 32)
        r, s = decode_dss_signature(self.key.sign(signed, ec.ECDSA(chosen)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    def compact(self, header: Any, claims: Any) -> str:
        """A token of these very parts; bytes are taken as the JSON text itself."""
        parts = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in (header, claims)]
        signed = ".".join(map(b64, parts))
        return f"{signed}.{b64(self.signature(signed.encode()))}"

    def token(self, claims: Any, **header: Any) -> str:
        whole = {"typ": "JWT", "alg": self.algorithm, "kid": self.kid, **header}
        return self.compact({name: value for name, value in whole.items() if value is not None}, claims)


def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


_KEYS: dict[str, Callable[[], Any]] = {
    "RS256": _rsa,
    "PS256": _rsa,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@dataclass
class Issuer:
    """``answers`` replaces what a path serves: (status, headers, body), or a function that writes by itself."""

    address: str
    ca_pem: str
    port: int
    signers: list[Signer] = field(default_factory=lambda: [Signer("one")])
    path: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return self.address + self.path

    @property
    def host(self) -> str:
        return self.address.removeprefix("https://")

    @property
    def fetches(self) -> int:
        """How often the keys, or what leads to them, were asked for."""
        return sum(path.endswith(DISCOVERY) for path in self.asked)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a good token says; None takes a claim away."""
        now = int(time.time())
        whole = {
            "iss": self.url, "sub": "job", "aud": "broker", "iat": now, "nbf": now, "exp": now + 300,
            "jti": str(uuid4()), "repository_id": "42", **changes,
        }  # fmt: skip
        return {name: value for name, value in whole.items() if value is not None}

    def token(self, **changes: Any) -> str:
        return self.signers[0].token(self.claims(**changes))

    def body(self, path: str) -> Any:
        served: dict[str, Any] = {
            f"{self.path}{DISCOVERY}": {"issuer": self.url, "jwks_uri": f"{self.url}{KEYS}"},
            f"{self.path}{KEYS}": {"keys": [signer.jwk() for signer in self.signers]},
        }
        return served.get(path)


def _answering(issuer: Issuer) -> type[BaseHTTPRequestHandler]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            answer = issuer.answers.get(self.path)
            if callable(answer):
                answer(self)
                return
            status, headers, body = answer or (200, {}, issuer.body(self.path))
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status if body is not None else 404)
            for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def do_POST(self) -> None:
            issuer.asked.append(self.path)
            answer = issuer.answers.get(self.path)
            if callable(answer):
                answer(self)
                return
            self.send_error(405)

        def log_message(self, *_: Any) -> None:
            """Tests have no use for a log."""

    return Answer


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    context: ssl.SSLContext

    def get_request(self) -> Any:
        plain, peer = self.socket.accept()
        plain.settimeout(20)
        return self.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), peer

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up early is what some tests are about."""


@contextmanager
def issuing(folder: Path, *names: str) -> Iterator[Issuer]:
    """A running issuer on a free loopback port, whose certificate is for 127.0.0.1 and for ``names``."""
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    alternatives: list[x509.GeneralName] = [here, *map(x509.DNSName, names)]
    ca = issue(f"issuers {uuid4()}", ca=True)
    server = issue("issuer", ca, alternatives=alternatives, usages=[ExtendedKeyUsageOID.SERVER_AUTH])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "issuer.pem").write_bytes(server.pem + server.key_pem)
    listener = _Listener(("127.0.0.1", 0), BaseHTTPRequestHandler)
    listener.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listener.context.load_cert_chain(folder / "issuer.pem")
    issuer = Issuer(f"https://127.0.0.1:{listener.server_port}", ca.pem.decode(), listener.server_port)
    listener.RequestHandlerClass = _answering(issuer)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        issuer.release.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
