"""The supervisor over stand-in workers: small programs that say that they are ready, die, refuse, or will not end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker import supervisor
from broker.core.errors import Unavailable, WrongState
from broker.supervisor import Supervisor, exit_code, hold

HELLO = """
import os, pathlib, signal, sys, time
folder, number = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(folder / number, "a") as starts: starts.write(f"{os.getpid()}\\n")
starts = len((folder / number).read_text().split())
def ready():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("something else"); print("broker: ready", flush=True)
"""
SERVE = "ready()\nsys.stdin.read()\n"


class Workers:
    """A running supervisor; ``after`` is what a worker does once it has said hello."""

    def __init__(self, folder: Path, after: str, count: int = 2, drain: float = 20) -> None:
        self.folder = folder
        self.ready = threading.Event()
        self.codes: list[int] = []
        script = HELLO + textwrap.dedent(after)
        self.supervisor = Supervisor(lambda one: [sys.executable, "-Ic", script, str(folder), str(one)], count, drain)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.codes.append(self.supervisor.run(self.ready.set))

    def starts(self, number: int) -> list[int]:
        """The process ids of a worker, in order."""
        file = self.folder / str(number)
        return [int(one) for one in file.read_text().split()] if file.exists() else []

    def end(self) -> int:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.codes[0]

    def stop(self) -> int:
        self.supervisor.stop()
        return self.end()


@contextmanager
def running(folder: Path, after: str, count: int = 2, drain: float = 20) -> Iterator[Workers]:
    workers = Workers(folder, after, count, drain)
    try:
        yield workers
    finally:
        workers.supervisor.stop()
        workers.end()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, as the next: pauses of up to 5 s, which nobody configures.
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    # As above.
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.02)


def within(wanted: Callable[[], bool]) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + 60
    while not wanted():
        assert time.monotonic() < deadline, "not so after 60 s"
        pause.wait(0.01)


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def test_it_is_ready_once_all_are_and_all_end_together(tmp_path: Path) -> None:
    with running(tmp_path, SERVE, 3) as workers:
        assert workers.ready.wait(60)
        processes = [workers.starts(number) for number in (1, 2, 3)]
        assert all(len(each) == 1 for each in processes)
        assert workers.stop() == 0
    assert all(gone(process) for each in processes for process in each)


def test_a_first_worker_that_refuses_ends_it_before_another_starts(tmp_path: Path) -> None:
    with running(tmp_path, "sys.exit(1)") as workers:
        assert workers.end() == 1
    assert (len(workers.starts(1)), workers.starts(2), workers.ready.is_set()) == (1, [], False)


@pytest.mark.parametrize("death", ["sys.exit(75)", "os.kill(os.getpid(), 9)"])
def test_what_cannot_even_start_is_not_tried_again(tmp_path: Path, death: str) -> None:
    with running(tmp_path, f"if number == '2': {death}\n{SERVE}") as workers:
        assert workers.end() == 1
    assert len(workers.starts(2)) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_FT_22_a_worker_that_dies_is_started_again_and_the_others_stay(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, SERVE) as workers:
        assert workers.ready.wait(60)
        (first,), (second,) = workers.starts(1), workers.starts(2)
        os.kill(second, number)
        within(lambda: len(workers.starts(2)) == 2)
        assert workers.starts(1) == [first]
        assert workers.stop() == 0


def test_a_worker_that_finds_no_database_is_tried_for_ever(tmp_path: Path) -> None:
    after = f"if starts > 1 and starts < {supervisor.DEATHS + 5}: sys.exit({os.EX_TEMPFAIL})\n{SERVE}"
    with running(tmp_path, after) as workers:
        assert workers.ready.wait(60)
        os.kill(workers.starts(1)[0], signal.SIGKILL)
        within(lambda: len(workers.starts(1)) == supervisor.DEATHS + 5)
        assert workers.stop() == 0


def test_a_worker_that_keeps_dying_ends_it(tmp_path: Path) -> None:
    with running(tmp_path, "if starts > 1: os.kill(os.getpid(), 11)\n" + SERVE) as workers:
        assert workers.ready.wait(60)
        os.kill(workers.starts(2)[0], signal.SIGKILL)
        assert workers.end() == 1
    assert len(workers.starts(2)) == supervisor.DEATHS + 1
    assert gone(workers.starts(1)[0])


def test_a_worker_that_refuses_its_configuration_later_ends_it(tmp_path: Path) -> None:
    with running(tmp_path, "if starts > 1: sys.exit(1)\n" + SERVE) as workers:
        assert workers.ready.wait(60)
        os.kill(workers.starts(2)[0], signal.SIGKILL)
        assert workers.end() == 1


def test_a_worker_that_will_not_end_is_killed_and_told_of(tmp_path: Path) -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('broker: ready', flush=True); time.sleep(60)"
    after = f"if number == '2': {stubborn}\n{SERVE}"
    with running(tmp_path, after, drain=0.5) as workers:
        assert workers.ready.wait(60)
        assert workers.stop() == 1
    assert gone(workers.starts(2)[0])


def test_workers_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys
from broker.supervisor import Supervisor
worker = {HELLO + SERVE!r}
supervisor = Supervisor(lambda one: [sys.executable, "-Ic", worker, sys.argv[1], str(one)], 2, 20)
supervisor.run(lambda: print("up", flush=True))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
    for number in (1, 2):
        (worker,) = (int(one) for one in (tmp_path / str(number)).read_text().split())
        within(lambda worker=worker: gone(worker))  # type: ignore[misc]


def test_only_what_may_heal_is_tried_again() -> None:
    assert exit_code(Unavailable("STORE_UNAVAILABLE", "Away.")) == os.EX_TEMPFAIL
    assert exit_code(WrongState("NOT_INITIALISED", "Run init.")) == supervisor.REFUSED


# ---- the ports -------------------------------------------------------------------------------------------------------


def bound(address: str) -> socket.socket:
    """As a worker binds: with SO_REUSEPORT."""
    host, _, port = address.rpartition(":")
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind((host, int(port)))
    return found


def test_port_0_becomes_one_port_for_all() -> None:
    holder, address = hold("127.0.0.1:0")
    with holder, bound(address) as first, bound(address) as second:
        first.listen()
        second.listen()
        assert address == f"127.0.0.1:{holder.getsockname()[1]}"
        with socket.create_connection(holder.getsockname()):
            pass  # one that only holds the port takes no connection


def test_ST_08_a_second_supervisor_is_refused() -> None:
    holder, address = hold("127.0.0.1:0")
    with holder:
        with pytest.raises(Unavailable) as found:
            hold(address)
        assert found.value.reason == "ADDRESS_IN_USE"
        with bound(address) as worker:
            worker.listen()
            with pytest.raises(Unavailable):
                hold(address)


def test_closing_connections_of_the_broker_before_do_not_keep_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as former:  # it sets SO_REUSEADDR, as grpc does
        with socket.create_connection(former.getsockname()) as client:
            former.accept()[0].close()
            assert client.recv(1) == b""
        address = f"127.0.0.1:{former.getsockname()[1]}"
    holder, _ = hold(address)
    holder.close()


def test_a_port_that_somebody_listens_on_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(Unavailable):
        hold(f"127.0.0.1:{other.getsockname()[1]}")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", "no.such.host.invalid:1", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(Unavailable) as found:
        hold(address)
    assert found.value.reason == "ADDRESS_IN_USE"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ST_08_another_users_process_cannot_join() -> None:
    join = (
        "import socket,sys; s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "try: s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen(); print('joined')\n"
        "except OSError as error: print(error.errno)\n"
    )
    holder, address = hold("127.0.0.1:0")
    with holder:
        words = ["/usr/bin/python3", "-Ic", join, address.rpartition(":")[2]]
        mine = subprocess.run(words, capture_output=True, check=True, cwd="/")
        theirs = subprocess.run(words, capture_output=True, check=True, cwd="/", user=65534, group=65534)
    assert (mine.stdout, theirs.stdout) == (b"joined\n", b"98\n")
