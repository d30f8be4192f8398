"""Calls to the broker: one mutually authenticated channel, a deadline a call, refusals in one sentence."""

from __future__ import annotations

import importlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Self

import click

from broker_cli.profiles import Identity, Place, load, locate
from broker_cli.refusal import UNREACHABLE, Exit, Refusal
from broker_cli.screen import chat

if TYPE_CHECKING:
    import grpc

PAUSES = (0.2, 0.5, 1.0)
"""Seconds before a safe call is sent again; a broker that restarts is back by then."""

MAX_WAIT = 180.0
"""Seconds that a command waits in all for a target that asks for patience."""

MAX_MESSAGE = 4 * 1024 * 1024
MAX_PAGES = 100_000
SERVICES = {
    "approvals": "ApprovalService",
    "audit": "AuditService",
    "authorities": "AuthorityService",
    "drift": "DriftService",
    "hsm": "HsmService",
    "imports": "ImportService",
    "keys": "KeyService",
    "secrets": "SecretService",
    "leases": "LeaseService",
    "operations": "OperationService",
    "operators": "OperatorService",
    "policies": "PolicyService",
    "sessions": "SessionService",
    "targets": "TargetService",
    "trust": "TrustService",
}
_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.enable_http_proxy", 0),  # a proxy variable of the shell must not see where an operator connects
    ("grpc.enable_retries", 0),  # repeated here, where it is known what may be
    # A try after a moment is a real one: not the failure of the one before it, kept.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # also how long a handshake may take
    ("grpc.dns_min_time_between_resolutions_ms", 500),
)


CONNECTION = {
    "profile": click.option("--profile", metavar="NAME|DIR", help="Profile to use (BROKER_PROFILE)."),
    "address": click.option("--address", metavar="HOST:PORT", help="Where the broker listens (BROKER_ADDRESS)."),
    "ca_file": click.option("--ca-file", metavar="FILE", help="CA of the broker's certificate (BROKER_CA_FILE)."),
    "cert": click.option("--cert", metavar="FILE", help="Operator certificate (BROKER_CERT)."),
    "key": click.option("--key", metavar="FILE", help="Private key of the certificate (BROKER_KEY)."),
}
_TIMEOUT = click.option(
    "--timeout", type=click.FloatRange(0.1, 600), default=30.0, show_default=True, metavar="SECONDS",
    envvar="BROKER_TIMEOUT", help="How long to wait for the answer.",
)  # fmt: skip


def connection(command: Callable[..., Any], names: Iterable[str] = CONNECTION) -> Callable[..., Any]:
    """Give a command options that say where the broker is and who calls, handed over as ``flags`` and ``timeout``."""
    names = tuple(names)

    def run(*args: Any, **options: Any) -> Any:
        flags = {name: options.pop(name) for name in names}
        return command(*args, flags=flags, **options)

    given = update_wrapper(run, command)
    for name in reversed(names):
        given = CONNECTION[name](given)
    return _TIMEOUT(given)


def remote(command: Callable[..., Any], names: Iterable[str] = CONNECTION) -> Callable[..., Any]:
    """As ``connection``, handed over as a ``Wire``; nothing connects before its first call."""

    def run(*args: Any, flags: dict[str, str | None], timeout: float, **options: Any) -> Any:
        with Wire(flags=flags, timeout=timeout) as wire:
            try:
                return command(*args, wire=wire, **options)
            except Refusal as refused:
                if refused.reason != UNREACHABLE:
                    raise
                from broker_cli.rejected import explained  # noqa: PLC0415  only when something failed

                raise explained(refused, wire.place) from None

    return connection(update_wrapper(run, command), names)


def remote_by_profile(command: Callable[..., Any]) -> Callable[..., Any]:
    """As ``remote``, for a command whose own --address and --ca-file mean something else."""
    return remote(command, ("profile",))


def patient(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command (which gets a ``Wire``) wait when a target asks for that, unless ``--no-wait`` is given."""

    def run(*args: Any, wire: Wire, no_wait: bool, **options: Any) -> Any:
        wire.patience = 0.0 if no_wait else MAX_WAIT
        return command(*args, wire=wire, **options)

    option = click.option("--no-wait", is_flag=True, help="Do not wait when the target asks for patience.")
    return option(update_wrapper(run, command))


def changing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that changes something ``--dry-run`` and ``--request-id``, handed over as one ``change``."""

    def run(*args: Any, dry_run: bool, request_id: str | None, **options: Any) -> Any:
        return command(*args, change=Change(request_id=request_id or str(uuid.uuid4()), dry_run=dry_run), **options)

    dry = click.option("--dry-run", is_flag=True, help="Let the broker check everything and change nothing.")
    again = click.option("--request-id", metavar="UUID", help="Repeat an earlier request: it is carried out once.")
    return dry(again(update_wrapper(run, command)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How a change is asked for."""

    request_id: str
    dry_run: bool

    @property
    def fields(self) -> dict[str, Any]:
        """The request fields that every mutation has."""
        return {"request_id": self.request_id, "validate_only": self.dry_run}


@dataclass(slots=True, kw_only=True)
class Wire:
    """The broker as this caller reaches it."""

    flags: dict[str, str | None]
    timeout: float
    patience: float = 0.0  # seconds to wait in all before the same request is sent again
    _place: Place | None = None
    _channel: grpc.Channel | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._channel is not None:
            self._channel.close()

    @property
    def place(self) -> Place:
        """Where the broker and our client certificate are."""
        if self._place is None:
            self._place = locate(self.flags)
        return self._place

    @property
    def channel(self) -> grpc.Channel:
        """The channel, made at its first use. The server's name is always checked; nothing can switch that off."""
        if self._channel is None:
            self._channel = _open(load(self.place))
        return self._channel

    def ask(self, noun: str, method: str, **fields: Any) -> Any:
        """Call ``method`` of the noun's service with these request fields, and return the response."""
        messages = importlib.import_module(f"broker_api.v1.{noun}_pb2")
        try:
            request = getattr(messages, f"{method}Request")(**fields)
        except ValueError:  # of protobuf: UnicodeEncodeError is one
            raise Refusal(
                "ARGUMENT_UNSENDABLE", "An argument is not UTF-8 text, or a number is far too large.", Exit.USAGE
            ) from None
        return self._send(noun, method, request, safe=_reads(noun, method) or bool(fields.get("request_id")))

    def pages(self, noun: str, method: str, items: str, **fields: Any) -> Iterator[Any]:
        """Every item of a list method, page by page."""
        token = ""
        for _ in range(MAX_PAGES):
            response = self.ask(noun, method, page_token=token, page_size=1000, **fields)
            yield from getattr(response, items)
            token = response.next_page_token
            if not token:
                return
        raise Refusal("LIST_ENDLESS", "The broker's list does not end; report this to its administrator.")

    def _send(self, noun: str, method: str, request: Any, *, safe: bool) -> Any:
        channel = self.channel
        stubs = importlib.import_module(f"broker_api.v1.{noun}_pb2_grpc")
        call = getattr(getattr(stubs, f"{SERVICES[noun]}Stub")(channel), method)
        until = time.monotonic() + self.patience
        while True:
            try:
                return repeat(lambda: call(request, timeout=self.timeout), self.place.address, safe=safe)
            except Refusal as refused:
                if not (safe and refused.retry_after) or time.monotonic() + refused.retry_after > until:
                    raise
                _wait(refused)


def span(field: str, seconds: int | None) -> dict[str, Any]:
    """A field of a request that is a duration; none when no time was given."""
    if seconds is None:
        return {}
    from google.protobuf.duration_pb2 import Duration  # noqa: PLC0415  slow to load

    return {field: Duration(seconds=seconds)}


def _reads(noun: str, method: str) -> bool:
    """Whether the method only tells what is, as its declaration says."""
    from broker_api.v1 import traits_pb2  # noqa: PLC0415  slow to load

    messages = importlib.import_module(f"broker_api.v1.{noun}_pb2")
    declared = messages.DESCRIPTOR.services_by_name[SERVICES[noun]].methods_by_name[method]
    return bool(declared.GetOptions().Extensions[traits_pb2.traits].effect == traits_pb2.EFFECT_READS)


def _wait(refused: Refusal) -> None:
    """As long as the broker says, and visibly; the same request goes out again afterwards, under the same id."""
    who = "The vault asks to wait" if refused.reason == "TARGET_THROTTLED" else f"{refused.message} Waiting"
    chat(f"{who} {refused.retry_after} s; it is asked again then (--no-wait ends here instead).")
    time.sleep(refused.retry_after)


def repeat(call: Callable[[], Any], address: str, *, safe: bool) -> Any:
    """Make a call; a safe one again, a few times, while the broker is away. Its failure is a ``Refusal``."""
    import grpc  # noqa: PLC0415  slow to load

    from broker_cli.faults import refusal, worth_repeating  # noqa: PLC0415

    for pause in (*PAUSES, None):
        try:
            return call()
        except grpc.RpcError as error:
            if pause is None or not safe or not worth_repeating(error):
                raise refusal(error, address) from None
        time.sleep(pause)
    raise AssertionError("unreachable")


def attempt(call: Callable[[], Any], address: str) -> Any:
    """Make a call that is the same however often it is sent. Its failure is a ``Refusal`` that says if it may pass."""
    import grpc  # noqa: PLC0415  slow to load

    from broker_cli.faults import passing, refusal  # noqa: PLC0415

    try:
        return call()
    except grpc.RpcError as error:
        refused = refusal(error, address)
        refused.passing = passing(error)
        raise refused from None


def _open(identity: Identity) -> grpc.Channel:
    check_certificate(identity.certificate)
    return connect(identity.address, identity.ca, identity.key, identity.certificate)


def connect(address: str, ca: bytes, key: bytes | None = None, certificate: bytes | None = None) -> grpc.Channel:
    """A channel to ``address``, whose certificate must be the CA's; with a client certificate or without one."""
    # Traces of gRPC write message bytes to stderr, and a cipher list could weaken the handshake (CL-04, CL-12).
    for name in ("GRPC_TRACE", "GRPC_SSL_CIPHER_SUITES"):
        os.environ.pop(name, None)
    os.environ["GRPC_VERBOSITY"] = "NONE"
    import grpc  # noqa: PLC0415  slow to load

    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.secure_channel(address, credentials, options=_OPTIONS)


def check_certificate(pem: bytes) -> None:
    """Refuse here, with the cure, a certificate that the broker would only drop the connection for."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from cryptography import x509  # noqa: PLC0415  slow to load

    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise Refusal(
            "CERTIFICATE_INVALID",
            "The operator certificate is not a certificate in PEM; put it back, or ask an administrator for a fresh "
            "profile (`broker operator issue NAME`).",
        ) from None
    now = datetime.now(UTC)
    if now >= certificate.not_valid_after_utc:
        raise Refusal(
            "CERTIFICATE_EXPIRED",
            f"Your certificate ran out at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; ask an administrator "
            "for a fresh one (`broker operator issue NAME`), and renew it earlier with `broker operator renew`. Has "
            "the last administrator's run out: stop the broker, and run `broker init FOLDER` for its folder.",
            Exit.NOT_LOGGED_IN,
        )
    if now < certificate.not_valid_before_utc:
        raise Refusal(
            "CERTIFICATE_NOT_YET_VALID",
            f"Your certificate starts at {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC, and by this clock "
            "that is still to come; set the clock of this machine right.",
            Exit.NOT_LOGGED_IN,
        )
