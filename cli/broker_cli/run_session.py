"""The session of one job: opened with the CI's identity while fetching, renewed, ended. Its token is in memory only."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from broker_cli import ca, process
from broker_cli.budget import Budget
from broker_cli.ci import identity
from broker_cli.profiles import address
from broker_cli.refusal import Exit, Refusal
from broker_cli.screen import chat

if TYPE_CHECKING:
    import grpc

END_TIMEOUT = 5.0
RENEW_TIMEOUT = 10.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
"""Seconds between tries to renew while the broker is away: the first, doubled each time up to the longest."""

_NEVER = datetime.min.replace(tzinfo=UTC)
_ADDRESS_FROM = "--address or BROKER_PIPELINES_ADDRESS, the port being the one for pipelines"
_OPTIONS = (
    click.option("--address", metavar="HOST:PORT", help="The broker's pipelines port (BROKER_PIPELINES_ADDRESS)."),
    click.option("--ca-file", metavar="FILE", help="CA of its certificate (BROKER_CA_FILE; inline: BROKER_CA_PEM)."),
    click.option("--audience", metavar="TEXT", help="What identity tokens are made for (BROKER_AUDIENCE)."),
    click.option("--token-file", metavar="FILE", help="Take the identity token from here (BROKER_ID_TOKEN_FILE)."),
    click.option("--trust-rule", metavar="NAME", help="The trust rule that is meant (BROKER_TRUST_RULE)."),
)
_TIMEOUT = click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=30.0, show_default=True, metavar="SECONDS",
    envvar="BROKER_TIMEOUT", help="How long login and fetch may take in all, tries included.",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a job reaches the broker, and as whom; flags before environment."""

    address: str
    ca: bytes
    audience: str
    token_file: str | None
    trust_rule: str
    timeout: float


def reaching(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a job's way to the broker, handed over as ``way``."""

    def run(*args: Any, timeout: float, **options: Any) -> Any:
        flags = {name: options.pop(name) for name in ("address", "ca_file", "audience", "token_file", "trust_rule")}
        return command(*args, way=lambda: found_way(flags, timeout, os.environ), **options)

    given = _TIMEOUT(update_wrapper(run, command))
    for option in reversed(_OPTIONS):
        given = option(given)
    return given


def found_way(flags: Mapping[str, str | None], timeout: float, environ: Mapping[str, str]) -> Way:
    """Read where the broker is and what its CA is; there is no way without a CA of its own."""
    return Way(
        address=address(flags["address"] or environ.get("BROKER_PIPELINES_ADDRESS", ""), _ADDRESS_FROM),
        ca=_ca(flags["ca_file"] or environ.get("BROKER_CA_FILE"), environ.get("BROKER_CA_PEM")),
        audience=flags["audience"] or environ.get("BROKER_AUDIENCE", ""),
        token_file=flags["token_file"],
        trust_rule=flags["trust_rule"] or environ.get("BROKER_TRUST_RULE", ""),
        timeout=timeout,
    )


def _ca(file: str | None, inline: str | None) -> bytes:
    if not file and not inline:
        raise Refusal(
            "CA_MISSING",
            "Say which CA the broker's certificate is from: --ca-file, BROKER_CA_FILE, or its PEM in BROKER_CA_PEM.",
            Exit.USAGE,
        )
    return ca.read(Path(file)) if file else ca.inline(inline or "")


@dataclass(slots=True, kw_only=True)
class Job:
    """A session and what hangs on it. Use it as a context: whatever happens inside, the session is ended."""

    way: Way
    keep: bool = False
    id: str = ""
    ends: datetime = _NEVER
    last: datetime = _NEVER
    repeated: bool = False  # the login was sent again, and may have been an earlier try's: how old it is, is not known
    _ahead: float = 0.0  # the broker's clock less our monotonic one; this machine's date may be wrong
    _ttl: int = 0
    _token: str = field(default="", repr=False)
    _channel: grpc.Channel | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        process.hide_memory()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._token and not self.keep:
                self._end()
        finally:
            self._token = ""
            if self._channel is not None:
                self._channel.close()

    def fetch(self, references: list[str], ttl: int) -> dict[str, dict[str, bytes]]:
        """Log in and fetch in one call: the fields of each reference, within the way's time in all.

        However often it has to be sent, it is one login (by its id and its identity token), and so one session.
        """
        from broker_cli.wire import attempt, connect  # noqa: PLC0415

        within = Budget(self.way.timeout)
        token = self._identity(within)  # before anything slow is loaded
        import broker_api.v1.sessions_pb2 as wire  # noqa: PLC0415

        self._ttl = ttl
        request = wire.FetchSecretsRequest(references=references, request_id=str(uuid.uuid4()))
        request.ttl.seconds = ttl
        asked = 0.0

        def once(seconds: float) -> Any:
            nonlocal asked, token
            if self._channel is not None:  # a further try
                self._channel.close()
                self.repeated = True
                if identity.at_hand(os.environ, self.way.token_file):
                    token = self._identity(within)  # its writer may have renewed it
            # A connection of its own for each try: the one before may hang.
            self._channel, asked = connect(self.way.address, self.way.ca), time.monotonic()
            metadata = self._bearer(token)
            return attempt(
                lambda: self._call("FetchSecrets")(request, timeout=seconds, metadata=metadata), self.way.address
            )

        answer = within.insist(once)
        self._token = answer.session_token
        self._ahead = answer.session.create_time.ToMicroseconds() / 1e6 - asked
        self._take(answer.session)
        if not self._token or [one.reference for one in answer.secrets] != references:
            raise Refusal("ANSWER_INVALID", "The broker's answer is not what was asked for; report this.")
        return {one.reference: dict(one.fields) for one in answer.secrets}

    def _identity(self, within: Budget) -> str:
        return identity.token(os.environ, self.way.audience, self.way.token_file, within)

    def renew(self) -> None:
        """Move the session's end. Raises ``grpc.RpcError``."""
        import broker_api.v1.sessions_pb2 as wire  # noqa: PLC0415

        request = wire.RenewSessionRequest()
        request.ttl.seconds = self._ttl
        timeout, asked = min(RENEW_TIMEOUT, max(0.1, self.left)), time.monotonic()
        self._take(self._call("RenewSession")(request, timeout=timeout, metadata=self._bearer(self._token)).session)
        if self.repeated and self.ends < self.last:  # so its end is that long after the broker's now
            self._ahead = self.ends.timestamp() - self._ttl - asked
        self.repeated = False

    @property
    def left(self) -> float:
        """Seconds that the session still lives, by the broker's clock."""
        return max(0.0, self.ends.timestamp() - self._ahead - time.monotonic())

    def _end(self) -> None:
        import broker_api.v1.sessions_pb2 as wire  # noqa: PLC0415

        from broker_cli.wire import repeat  # noqa: PLC0415

        def once() -> Any:
            return self._call("EndSession")(
                wire.EndSessionRequest(), timeout=END_TIMEOUT, metadata=self._bearer(self._token)
            )

        try:
            repeat(once, self.way.address, safe=True)
        except Refusal as refused:
            if refused.code is not Exit.NOT_LOGGED_IN:  # that would be: it has ended already
                chat(f"broker: the session could not be ended and lapses at {self.ends:%H:%M:%S} UTC: {refused}")

    def _take(self, session: Any) -> None:
        self.id = session.id
        self.ends, self.last = (moment.ToDatetime(tzinfo=UTC) for moment in (session.expire_time, session.last_time))

    def _call(self, method: str) -> Any:
        from broker_api.v1.sessions_pb2_grpc import SessionServiceStub  # noqa: PLC0415

        assert self._channel is not None  # noqa: S101  fetch opens it
        return getattr(SessionServiceStub(self._channel), method)

    def _bearer(self, token: str) -> list[tuple[str, str]]:
        named = [("broker-trust-rule", self.way.trust_rule)] if self.way.trust_rule else []
        return [("authorization", f"Bearer {token}"), *named]


class Renewal(threading.Thread):
    """Renews a session at half of its life until it is stopped, cannot be renewed any more, or has lapsed.

    A thread of its own: a child whose output nobody reads must not cost the session.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(name="renewal", daemon=True)
        self._job = job
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Renew no more."""
        self._stopped.set()

    def run(self) -> None:
        """Renew until there is no more to do; whatever keeps it from that is said once."""
        pause = 0.0 if self._job.repeated else self._job.left / 2
        failed = FIRST_PAUSE
        while not self._stopped.wait(pause):
            refused = self._renew()
            if refused is None:
                if self._job.ends >= self._job.last:
                    return chat_unless(
                        self._stopped, f"broker: the session ends for good at {self._job.last:%H:%M:%S} UTC."
                    )
                pause, failed = self._job.left / 2, FIRST_PAUSE
            elif refused.code is Exit.UNAVAILABLE and self._job.left > 0:
                pause, failed = min(failed, self._job.left), min(failed * 2, LONGEST_PAUSE)
            else:
                return chat_unless(self._stopped, f"broker: the session cannot be renewed: {refused.format_message()}")
        return None

    def _renew(self) -> Refusal | None:
        import grpc  # noqa: PLC0415

        from broker_cli.faults import refusal  # noqa: PLC0415

        try:
            self._job.renew()
        except grpc.RpcError as error:
            return refusal(error, self._job.way.address)
        except ValueError:  # grpc's word for a channel that was closed under us, because the job is over
            if not self._stopped.is_set():
                raise
        return None


def chat_unless(stopped: threading.Event, text: str) -> None:
    """Say it, unless nobody waits for it any more."""
    if not stopped.is_set():
        chat(text)


def durations(least: int, usual: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option ``--ttl``, in seconds."""
    return click.option(
        "--ttl", type=click.IntRange(least, 86_400), default=usual, show_default=True, metavar="SECONDS",
        help="How long the session lives unless renewed.",
    )  # fmt: skip
