"""Several workers on the same two ports: fresh processes, started, watched, restarted and ended together.

A worker is never forked: grpc and PKCS#11 modules do not outlive a fork. Each has its own HSM login and audit chain and
shares nothing with the others but the database, the token and the folder of certificates.

The ports are shared by SO_REUSEPORT. Linux lets a socket join such a group only if it and every socket that is there
have the option set and belong to the same effective user; the supervisor is the first and holds the ports for as long
as it lives, so that no other user's process gets in, not even while no worker listens. Another process of the same user
could join, as it could also read the broker's key files; that a second broker does so by mistake is refused, because
the supervisor first makes sure that it is alone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import structlog

from broker.config import CALLS_END, Config
from broker.core.errors import BrokerError, Unavailable
from broker.core.reasons import Reason
from broker.rpc import addresses

READY = b"broker: ready"

REFUSED = 1
"""A worker's exit code when it will not do as it is configured; every other one may heal."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
LIVED = 60.0
"""Seconds after which a worker that dies is not counted as one that keeps dying."""

DEATHS = 20
"""Deaths in a row after which it is given up; one that only misses the database or the HSM is never given up."""

LOOK_UP = 1.0
"""Seconds of a wait: a signal that comes just before one does not end it."""

log = structlog.get_logger("broker")


def worker_config(config: Config, number: int, operators: str, pipelines: str) -> Config:
    """The configuration of one worker: an audit chain of its own, and the ports that the supervisor holds."""
    store = config.store.of_worker(number)
    addresses = {"operators_address": operators, "pipelines_address": pipelines}
    return config.model_copy(update={"store": store, "server": config.server.model_copy(update=addresses)})


def hold(address: str) -> tuple[socket.socket, str]:
    """Hold a port for workers: (the socket that holds it, the address, with its port where it said 0).

    Unavailable ``ADDRESS_IN_USE`` when anybody, another broker of the same user included, has it already.
    """
    host = address.rpartition(":")[0]
    try:
        family, kind, protocol, place = addresses.try_listening(address)
        holder = socket.socket(family, kind, protocol)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
        holder.bind(place)  # with SO_REUSEADDR, because connections of a broker before this one may still be closing
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # without it, nobody else's bind passes beside it
    except (OSError, ValueError) as error:
        raise Unavailable(Reason.ADDRESS_IN_USE, addresses.why_not(address, error), address=address) from error
    return holder, f"{host}:{place[1]}"


def end_with_supervisor(end: Callable[[], object]) -> None:
    """In a worker: call ``end`` when the supervisor is gone, however it went; then standard input ends."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(sys.stdin.fileno(), 1):
                pass
        end()

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker's place. ``again_at``: when to start it anew; None while it runs."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    ready: bool = False
    was_ready: bool = False
    started: float = 0.0
    deaths: int = 0
    again_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Event:
    worker: Worker
    process: subprocess.Popen[bytes]
    code: int | None  # None: it is ready


class Supervisor:
    """Runs ``count`` workers; ``command`` is the command line of the worker with a number.

    ``drain``: seconds that workers are given to end before they are killed.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], count: int, drain: float) -> None:
        self._command, self._drain = command, drain
        self._workers = [Worker(number=number) for number in range(1, count + 1)]
        self._events: SimpleQueue[_Event | None] = SimpleQueue()
        self._serving = False

    def stop(self) -> None:
        """End all; may be called by a signal handler."""
        self._events.put(None)

    def run(self, ready: Callable[[], object]) -> int:
        """Until ``stop``, or until it makes no sense to go on; ``ready`` is called once all serve. The exit code.

        The first worker is started alone: what it refuses is said once, and nothing else has to be ended.
        """
        try:
            self._start(self._workers[0])
            while (event := self._next()) is not None:
                if event.process is not event.worker.process:
                    continue  # the last word of a process that was replaced
                if event.code is None:
                    self._came(event.worker, ready)
                elif not self._ended(event.worker, event.code):
                    self._end_all()
                    return 1
        except BaseException:
            self._end_all()
            raise
        return 0 if self._end_all() else 1

    def _next(self) -> _Event | None:
        """What happens next; meanwhile those are started whose time has come."""
        while True:
            waiting = [worker.again_at for worker in self._workers if worker.again_at is not None]
            pause = min(LOOK_UP, max(0.0, min(waiting) - time.monotonic())) if waiting else LOOK_UP
            with suppress(Empty):
                return self._events.get(timeout=pause)
            for worker in self._workers:
                if worker.again_at is not None and worker.again_at <= time.monotonic():
                    self._start(worker)

    def _start(self, worker: Worker) -> None:
        worker.again_at, worker.ready, worker.started = None, False, time.monotonic()
        worker.process = subprocess.Popen(  # noqa: S603 - this very program
            list(self._command(worker.number)), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        threading.Thread(target=self._watch, args=(worker, worker.process), daemon=True).start()

    def _watch(self, worker: Worker, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is not None:
            with process.stdout:
                for line in process.stdout:
                    if line.strip() == READY:
                        self._events.put(_Event(worker, process, None))
        self._events.put(_Event(worker, process, process.wait()))

    def _came(self, worker: Worker, ready: Callable[[], object]) -> None:
        worker.ready = worker.was_ready = True
        for other in self._workers:
            if other.process is None and other.again_at is None:
                self._start(other)
        if not self._serving and all(other.ready for other in self._workers):
            self._serving = True
            ready()

    def _ended(self, worker: Worker, code: int) -> bool:
        """Whether to go on after a worker's end."""
        _close(worker)
        lived = time.monotonic() - worker.started
        worker.deaths = 1 if worker.ready and lived >= LIVED else worker.deaths + 1
        given_up = worker.deaths > DEATHS and code != os.EX_TEMPFAIL
        if code == REFUSED or not worker.was_ready or given_up:
            log.error("a worker cannot run, so all end", worker=worker.number, code=code, deaths=worker.deaths)
            return False
        pause = min(FIRST_PAUSE * 2.0 ** (worker.deaths - 1), LONGEST_PAUSE)
        worker.ready, worker.again_at = False, time.monotonic() + pause
        log.warning("a worker ended and is started again", worker=worker.number, code=code, in_seconds=pause)
        return True

    def _end_all(self) -> bool:
        """Drain all together; True when each that had served ended by itself and well."""
        until = time.monotonic() + self._drain
        running = [worker for worker in self._workers if worker.process is not None]
        for worker in running:
            _send(worker, signal.SIGTERM)
        ends = [_join(worker, until) for worker in running]
        return all(ends)


def supervise(config: Config, file: Path, ready: Callable[[str, str], object]) -> int:
    """Serve with ``config.server.workers`` workers until SIGTERM or SIGINT; ``ready`` is told the two addresses."""
    with ExitStack() as held:
        operators_holder, operators = hold(config.server.operators_address)
        held.enter_context(operators_holder)
        pipelines_holder, pipelines = hold(config.server.pipelines_address)
        held.enter_context(pipelines_holder)
        supervisor = Supervisor(
            lambda one: worker_command(file, one, operators, pipelines), config.server.workers, drain(config)
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: supervisor.stop())
        return supervisor.run(lambda: ready(operators, pipelines))


def drain(config: Config) -> float:
    """Seconds that a worker is given to end: for its calls, then for its background work and its last head."""
    return CALLS_END + config.store.waits.last_words


def worker_command(file: Path, number: int, operators: str, pipelines: str) -> list[str]:
    """How a worker is started."""
    serve = [sys.executable, "-P", "-m", "broker", "serve", "--config", str(file)]
    return [*serve, "--worker", str(number), "--operators-address", operators, "--pipelines-address", pipelines]


def exit_code(error: BrokerError) -> int:
    """What a worker that could not start ends with: another try may help, or none will."""
    return os.EX_TEMPFAIL if isinstance(error, Unavailable) else REFUSED


def _send(worker: Worker, number: signal.Signals) -> None:
    if worker.process is not None and worker.process.poll() is None:
        worker.process.send_signal(number)


def _join(worker: Worker, until: float) -> bool:
    process = worker.process
    if process is None:
        return True
    try:
        code = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        log.error("a worker did not end in time and was killed", worker=worker.number)  # noqa: TRY400
        process.kill()
        code = process.wait()
    ready = worker.ready
    _close(worker)
    return code == 0 or not ready


def _close(worker: Worker) -> None:
    process, worker.process = worker.process, None
    if process is not None and process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
