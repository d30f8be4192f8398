"""The listening side: two TLS ports on one grpc server, their limits, health, and a clean end.

Both ports are on one server, and yet a call's port cannot be mistaken: only the operators' port asks for a client
certificate, there without one (or with one that the operator CA did not sign) the handshake fails, and on the
pipelines' port none is ever asked for. So "has a verified certificate" and "came in by the operators' port" are the
same statement, made by the TLS layer, and nothing in headers or messages can forge it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import grpc
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from broker.core import ports
from broker.core.errors import Unavailable
from broker.core.gate.asking import Asking
from broker.core.gate.flood import Flood
from broker.core.gate.gate import Gate
from broker.core.gate.method import MAX_BYTES
from broker.core.reasons import Reason
from broker.rpc import addresses, descriptors, table
from broker.rpc.deadlines import Deadlines, Ticker
from broker.rpc.doors import Doors
from broker.rpc.gate import Door
from broker.rpc.health import Health
from broker.rpc.networks import network
from broker.rpc.shares import Shares
from broker.rpc.threads import Pool, pool
from broker.rpc.tls import TlsFiles

TALLY_SECONDS = 60.0
HEALTH_THREADS = 8
LISTENERS = 2
ROOM = 4
"""How many times as many connections as may stay grpc accepts: those that have just come, until they are looked at."""


MAX_PORT = 65535


def _address(text: str) -> str:
    if not _ADDRESS.fullmatch(text) or int(text.rpartition(":")[2]) > MAX_PORT:
        raise ValueError("an address is written host:port, an IPv6 one [address]:port; a port is at most 65535")
    return text


_ADDRESS = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}", re.ASCII)
Address = Annotated[str, AfterValidator(_address)]


class ServerLimits(BaseModel):
    """What a peer can ask for at most (times in seconds)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calls: PositiveInt = 256
    connections: PositiveInt = 1000  # of each listener, as the next three
    connections_per_network: PositiveInt = 400  # an IPv4 address or an IPv6 /64; a /24 or /48 may have twice as many
    strangers: PositiveInt = 400  # connections on which no known caller has made a call
    strangers_per_network: PositiveInt = 160
    streams_per_connection: int = Field(default=100, ge=1, le=100)
    metadata_bytes: int = Field(default=16 * 1024, ge=4096, le=16 * 1024)
    message_seconds: PositiveFloat = 5
    call_seconds: float = Field(default=30, gt=0, le=30)
    handshake_seconds: float = Field(default=10, gt=0, le=10)
    idle_seconds: float = Field(default=60, gt=0, le=60)
    age_seconds: float = Field(default=180, gt=0, le=180)
    refusals_per_second: PositiveFloat = 1
    refusals_at_once: PositiveInt = 20


class ServerConfig(BaseModel):
    """Where to listen and with what. ``key_file`` must be 0600. An address is "host:port"; port 0 takes a free one.

    ``threads`` are those of each worker, which makes up to twice as many connections to the database and three more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    operators_address: Address = "127.0.0.1:8443"
    pipelines_address: Address = "127.0.0.1:8444"
    certificate_file: Path
    key_file: Path
    operator_ca_file: Path
    threads: int = Field(default=16, ge=1, le=256)
    one_processor: bool = True  # each process keeps to one processor, and answers more calls for it
    workers: int = Field(default=1, ge=1, le=64)  # processes; more than one needs PostgreSQL
    limits: ServerLimits = ServerLimits()

    @model_validator(mode="after")
    def _two_listeners(self) -> ServerConfig:
        (host, _, port), (other, _, same) = (
            a.rpartition(":") for a in (self.operators_address, self.pipelines_address)
        )
        if int(port) == int(same) != 0 and (host == other or {host, other} & addresses.EVERYWHERE):
            raise ValueError(
                "operators_address and pipelines_address are the same; each listener has a port of its own"
            )
        return self

    @property
    def slots(self) -> int:
        """Half of the threads: what targets may hold at a time, and what one principal may have generated at a time."""
        return max(1, self.threads // 2)


class Server:
    """Answers once ``start`` is called. ``services``: for each service name, the object with its methods."""

    def __init__(
        self,
        config: ServerConfig,
        services: Mapping[str, object],
        authenticators: Sequence[ports.Authenticator],
        store: ports.Store,
        now: ports.Now,
        clock: Callable[[], float] = time.monotonic,
        *,
        asking: Asking,
    ) -> None:
        limits = config.limits
        self._clock, self._tallied = clock, clock()
        self._pool = Pool(config.threads, "rpc")
        self._health_pool = pool(HEALTH_THREADS, "rpc-health")
        self._generation_pool = pool(config.threads, "rpc-generation")
        self._deadlines = _deadlines(limits, clock, config.threads)
        self._health_deadlines = _deadlines(limits, clock, HEALTH_THREADS)
        self._taken = descriptors.connections(ROOM * limits.connections, LISTENERS)
        self._doors = Doors(shares(limits, self._taken), clock)
        self._health = Health(_names(), self._health_deadlines, self._doors.greeted)
        self._gate = Gate(authenticators, store, now, _flood(limits, clock), asking)
        self._door = Door(
            self._gate,
            table.methods(services),
            deadlines=self._deadlines,
            health_check=self._health.check,
            pool=self._health_pool,
            generation=self._generation_pool,
            aside=self._pool.aside,
            greeted=self._doors.greeted,
            known=self._doors.known,
            max_calls=limits.calls,
            max_metadata=limits.metadata_bytes,
        )
        self._ticker = Ticker(self._tick)
        arguments = options(limits, self._taken, shared=config.workers > 1)
        self._server = grpc.server(self._pool, handlers=[self._door], options=arguments)
        self.operators_port = self._listen(config, "operators", config.operators_address, config.operator_ca_file)
        self.pipelines_port = self._listen(config, "pipelines", config.pipelines_address, None)

    def start(self) -> None:
        """Begin to answer; health says NOT_SERVING until ``set_serving`` says otherwise."""
        self._server.start()
        self._ticker.start()
        self._doors.start()

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001 (it is the whole state)
        """What health says from now on; once draining it stays NOT_SERVING."""
        self._health.set_serving(serving)

    def idle(self, seconds: float) -> bool:
        """Wait until no call is in flight, at most so long; whether that came to be."""
        return self._door.idle(seconds)

    def drain(self, grace: float = 10.0) -> bool:
        """Take no new call, let those in flight end within ``grace`` seconds; False when some had to be cut off."""
        self._health.drain()
        until = self._clock() + grace
        stopped = self._server.stop(grace)
        finished = self.idle(grace)
        stopped.wait(max(0.0, until - self._clock()) + 1)
        self._ticker.stop()
        self._doors.stop()
        self._gate.tally()
        for threads in (self._pool, self._health_pool, self._generation_pool):
            threads.shutdown(wait=False, cancel_futures=True)
        return finished

    def _listen(self, config: ServerConfig, name: str, address: str, client_ca: Path | None) -> int:
        files = TlsFiles(config.certificate_file, config.key_file, client_ca, self._doors.arrived)
        credentials = files.credentials()
        try:
            port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise Unavailable(Reason.ADDRESS_IN_USE, addresses.refused(address), address=address) from error
        self._doors.watch(port, name, self._taken)
        return port

    def _tick(self) -> None:
        self._deadlines.sweep()
        self._health_deadlines.sweep()
        if self._clock() - self._tallied >= TALLY_SECONDS:
            self._tallied = self._clock()
            self._gate.tally()


def _names() -> Iterator[str]:
    return (each.full_name for each in table.declared().values())


def _flood(limits: ServerLimits, clock: Callable[[], float]) -> Flood:
    return Flood(limits.refusals_per_second, limits.refusals_at_once, clock, network)


def _deadlines(limits: ServerLimits, clock: Callable[[], float], threads: int) -> Deadlines:
    """Slow writers may hold half of the threads each, and three quarters of them together."""
    return Deadlines(
        limits.message_seconds,
        limits.call_seconds,
        clock,
        at_once=max(1, threads // 2),
        in_all=max(1, threads - max(1, threads // 4)),
    )


def shares(limits: ServerLimits, taken: int) -> Shares:
    """Of connections, as configured, or in proportion where the system gives fewer descriptors.

    ``taken``: see ``options``.
    """

    def part(wanted: int) -> int:
        return max(1, min(wanted, wanted * taken // (ROOM * limits.connections)))

    return Shares(
        connections=part(limits.connections),
        per_network=part(limits.connections_per_network),
        strangers=part(limits.strangers),
        strangers_per_network=part(limits.strangers_per_network),
        silent_seconds=limits.handshake_seconds + limits.message_seconds,
    )


def options(limits: ServerLimits, taken: int, *, shared: bool = False) -> list[tuple[str, int]]:
    """The channel arguments that hold a peer to ``limits`` before any Python runs; ``shared``: the port, by workers.

    ``taken``: the connections that grpc accepts on each listener (``ROOM``).
    """
    return [
        # With 1, every process of the same user can bind the same port and take its part of the connections (Linux lets
        # no other user's): for one process that would hide a mistake, workers are meant to.
        ("grpc.so_reuseport", int(shared)),
        # Up to twice the limit the gate refuses by name, in the audit too; above, the transport, before allocating.
        ("grpc.max_receive_message_length", 2 * MAX_BYTES),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.max_allowed_incoming_connections", taken),  # of each listener
        # No compressed message is ever expanded: identity is the only encoding (a bitset of one).
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # The limits above count once the peer has acknowledged them; one that does not is cut off.
        ("grpc.http2.settings_timeout", _ms(limits.handshake_seconds)),
        ("grpc.server_handshake_timeout_ms", _ms(limits.handshake_seconds)),
        ("grpc.max_connection_idle_ms", _ms(limits.idle_seconds)),
        ("grpc.max_connection_age_ms", _ms(limits.age_seconds)),
        ("grpc.max_connection_age_grace_ms", _ms(limits.call_seconds)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.enable_channelz", 0),
    ]


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
