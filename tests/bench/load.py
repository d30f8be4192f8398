"""The load tool and the hop: h2load → nghttpx (which can present a client certificate) → a server over TLS."""

from __future__ import annotations

import re
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 8
STREAMS = 4
"""Calls in flight: connections times streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call as it goes over the wire. gRPC refuses with HTTP 200, so what a good answer weighs is known as well."""

    path: str
    headers: dict[str, str]
    body: bytes
    answer_bytes: int  # the least DATA bytes of a successful answer; a gRPC refusal has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A TLS server on loopback, and the certificate files to show to it (``identity``: certificate, key)."""

    port: int
    identity: tuple[Path, Path] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one run gave: calls a second, and in milliseconds the latencies and the server's CPU time for each call."""

    rate: float
    p50: float
    p99: float
    cpu: float = 0


class LoadError(Exception):
    """A run in which not every call succeeded says nothing about speed."""


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def hop(door: Door, folder: Path) -> Iterator[str]:
    """A running nghttpx before ``door``; yields its cleartext HTTP/2 address.

    It does not verify the server, which is this program's own child: nghttpx 1.52 cannot match an address against a
    certificate's address (it compares the length of the socket address), and Debian has no newer one.
    """
    folder.mkdir()
    port = free_port()
    command = ["nghttpx", "--conf=/dev/null", "--workers=1", "--single-process", "--log-level=WARN"]
    command += [f"--frontend=127.0.0.1,{port};no-tls", f"--backend=127.0.0.1,{door.port};;proto=h2;tls"]
    command += ["--insecure", "--accesslog-file=/dev/null", f"--errorlog-file={folder / 'nghttpx.log'}"]
    command += [f"--pid-file={folder / 'nghttpx.pid'}", "--tls-min-proto-version=TLSv1.3"]
    if door.identity:
        certificate, key = door.identity
        command += [f"--client-cert-file={certificate}", f"--client-private-key-file={key}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        await_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when ``process`` listens on the port."""
    end = time.monotonic() + 10
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise LoadError("nghttpx did not start; is its port taken?")


def drive(address: str, request: Request, calls: int) -> Figures:
    """Send ``calls`` requests, all of which must succeed."""
    with tempfile.TemporaryDirectory() as name:
        body, log = Path(name) / "body", Path(name) / "log"
        body.write_bytes(request.body)
        command = ["h2load", f"--requests={calls}", f"--clients={CONNECTIONS}", f"--max-concurrent-streams={STREAMS}"]
        command += [f"--log-file={log}"] + ([f"--data={body}"] if request.body else [])
        command += [f"--header={name}: {value}" for name, value in request.headers.items()]
        done = subprocess.run([*command, address + request.path], capture_output=True, text=True, check=False)
        if done.returncode:
            raise LoadError(done.stderr.strip() or done.stdout.strip())
        check(done.stdout, request, calls)
        return figures(log.read_text(encoding="ascii"))


def check(report: str, request: Request, calls: int) -> None:
    """Refuse a run with a call that failed, by HTTP status or (no DATA came back) by gRPC status."""
    succeeded = re.search(r"(\d+) succeeded, (\d+) failed", report)
    codes = re.search(r"status codes: (\d+) 2xx", report)
    answered = re.search(r"\((\d+)\) data", report)
    if not succeeded or not codes or not answered:
        raise LoadError(f"h2load's report cannot be read:\n{report}")
    if int(succeeded[1]) != calls or int(codes[1]) != calls or int(answered[1]) < calls * request.answer_bytes:
        raise LoadError(f"Not every call to {request.path} succeeded:\n{report}")


def figures(log: str) -> Figures:
    """Out of h2load's lines: start (µs since the epoch), status, duration (µs)."""
    rows = [(int(start), int(took)) for start, _, took in (line.split("\t")[:3] for line in log.splitlines())]
    first, last = min(start for start, _ in rows), max(start + took for start, took in rows)
    percentile = statistics.quantiles((took / 1000 for _, took in rows), n=100)
    return Figures(rate=len(rows) / ((last - first) / 1e6), p50=percentile[49], p99=percentile[98])


def median(runs: list[Figures]) -> Figures:
    """Each figure's median over the rounds."""
    return Figures(
        rate=statistics.median(run.rate for run in runs),
        p50=statistics.median(run.p50 for run in runs),
        p99=statistics.median(run.p99 for run in runs),
        cpu=statistics.median(run.cpu for run in runs),
    )
