"""A Key Vault Premium or a Managed HSM in this process, as strict as their documentation."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from azure.keyvault.keys._shared import HttpChallengeCache
from cryptography.hazmat.primitives.asymmetric import rsa

from .attributes import Attributes
from .certificates import server_context
from .faults import Effect, Faults
from .listener import Answer, Listener, Request
from .material import another
from .refusals import Refused
from .rest import Rest
from .shelf import KeyVersion, Shelf

MOST_VERSIONS = 100  # of a key in a managed HSM
TENANT = "72f988bf-0000-4000-8000-2d7cd011db47"


class Seen(NamedTuple):
    """A request that came, and the status of its answer; 0 when it got none."""

    method: str
    path: str
    body: bytes
    query: dict[str, str]
    status: int


@dataclass
class Logins:
    """How requests introduced themselves: none at all (so they were challenged), the right token, a wrong one."""

    challenged: int = 0
    accepted: int = 0
    refused: int = 0


class FakeVault:
    """Real HTTPS on a free port of 127.0.0.1, from entering the context until leaving it.

    ``host``, ``url``, ``ca_file``, ``token`` (also in the 0600 file ``token_file``) say how to reach it. Tests look
    into ``requests``, ``login`` and ``versions``, disturb requests by ``faults``, take rights away by their short names
    ("get", "import", "sign" …) with ``denied``, and let the challenge lie with ``authority`` and ``resource``.
    ``known_as``: the port of what stands before it, by which its clients know it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kind: Literal["premium", "managed-hsm"] = "premium",
        now: Callable[[], float] = time.time,
        purge_protection: bool = False,
        port: int = 0,
        known_as: int = 0,
    ) -> None:
        self.kind = kind
        self.ca_file, self.token_file = folder / "ca.pem", folder / "token"
        self.token = secrets.token_urlsafe(32)
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token, encoding="ascii")
        self.requests: list[Seen] = []
        self.login = Logins()
        self.faults = Faults()
        self._listener = Listener(port, server_context(folder, self.ca_file), self._answer)
        self.port: int = self._listener.server_address[1]
        number = known_as or self.port
        self.host = f"127.0.0.1:{number}"
        self.url = f"https://{self.host}"
        self.authority = f"https://login.fake.invalid/{TENANT}"
        # Clients want the resource to be a domain that the host lies in, the port included.
        self.resource = f"https://0.0.1:{number}"
        self._now: Callable[[], int] = lambda: int(now())
        most = MOST_VERSIONS if kind == "managed-hsm" else None
        self.shelf = Shelf(self._now, most_versions=most, purgeable=not purge_protection)
        self._rest = Rest(self.url, self.shelf, self._now, managed_hsm=kind == "managed-hsm")
        self.denied = self._rest.denied
        self.told: Callable[[Request, Answer], Answer] = lambda _request, answer: answer
        """What becomes of an answer to a caller with the right token before it is sent."""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        # Azure's client keeps challenges for its whole process, and this port may have been another vault's before.
        HttpChallengeCache.remove_challenge_for_url(self.url)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        if self._listener.crashes and error is None:
            raise self._listener.crashes[0]

    def add_kek(
        self, name: str = "kek", *, bits: int = 2048, kty: str = "RSA-HSM", key_ops: Sequence[str] = ("import",)
    ) -> str:
        """Put a key exchange key in place, unchecked so that it can be a wrong one; gives its versioned id."""
        material = rsa.generate_private_key(65537, bits)
        attributes = Attributes(created=self._now(), updated=self._now())
        made = self.shelf.put(name, kty, material, list(key_ops), attributes, {})
        return f"{self.url}/keys/{made.name}/{made.version}"

    def stock(self, bits: int) -> None:
        """Make an RSA key now that it is going to be asked to make: a service has these in milliseconds."""
        self._rest.stock.append(rsa.generate_private_key(65537, bits))

    def swap_kek(self, name: str = "kek") -> None:
        """Another key pair under the same versioned id, as a lookalike would have it."""
        kek = self.shelf.get(name)
        kek.material = another(kek.material)

    def versions(self, name: str) -> list[KeyVersion]:
        """What it holds under that name, oldest first, private halves and all; [] when there is none."""
        return self.shelf.versions(name)

    def _answer(self, request: Request) -> Answer | Effect:
        answer = self._disturbed(request)
        status = answer.status if isinstance(answer, Answer) else 0
        with self._lock:
            self.requests.append(Seen(request.method, request.path, request.body, request.query, status))
        if isinstance(answer, Answer):
            return Answer(answer.status, answer.body, {**self._headers(request), **answer.headers})
        return answer

    def _disturbed(self, request: Request) -> Answer | Effect:
        if not self._authentic(request):
            return self._challenge(Refused(401, "Unauthorized", "AKV10000: Request is missing a Bearer or PoP token."))
        fault = self.faults.take(request.method, request.path)
        if isinstance(fault, Refused):
            return self._refusal(fault)
        if fault in {Effect.HANG, Effect.CUT}:
            return fault
        try:
            answer = self.told(request, self._rest.answer(request, other_key=fault is Effect.OTHER_KEY))
        except Refused as refused:
            answer = self._refusal(refused)
        return fault if fault is Effect.LOSE_ANSWER else answer

    def _authentic(self, request: Request) -> bool:
        given = request.headers.get("authorization")
        right = given is not None and hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode())
        with self._lock:
            if given is None:
                self.login.challenged += 1
            elif right:
                self.login.accepted += 1
            else:
                self.login.refused += 1
        return right

    def _refusal(self, refused: Refused) -> Answer:
        if refused.status == 401:
            return self._challenge(refused)
        return Answer(refused.status, refused.body(), refused.headers)

    def _challenge(self, refused: Refused) -> Answer:
        extra = refused.headers.get("x-fake-challenge", "")
        challenge = f'Bearer authorization="{self.authority}", resource="{self.resource}"{extra}'
        return Answer(401, refused.body(), {"WWW-Authenticate": challenge})

    def _headers(self, request: Request) -> dict[str, str]:
        own = {"x-ms-request-id": str(uuid.uuid4()), "x-ms-keyvault-region": "fake"}
        own["x-ms-keyvault-network-info"] = "conn_type=Ipv4;addr=127.0.0.1;act_addr_fam=InterNetwork;"
        if self.kind == "premium":
            own["x-ms-keyvault-service-version"] = "1.9.0.0"
        if "x-ms-client-request-id" in request.headers:
            own["x-ms-client-request-id"] = request.headers["x-ms-client-request-id"]
        return {
            **own,
            "Cache-Control": "no-cache",
            "Strict-Transport-Security": "max-age=31536000;includeSubDomains",
            "X-Content-Type-Options": "nosniff",
        }
