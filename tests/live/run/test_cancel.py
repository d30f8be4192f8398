"""Cancelling `broker run`: whichever process is signalled, and how, nothing lives longer than it would without it, and
each gets what it would have got. The runner is the test; the bare command beside the wrapped one says what is right."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from broker_cli.process import descendants

from tests.live.run.test_standin import COMMAND, DB, Job, job, pipelines, pipelines_authority

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

BARE = ["env", "DB=x"]
WRAPPED = [*COMMAND, "run", "--secret", DB, "--"]
EITHER = pytest.mark.parametrize("prefix", [BARE, WRAPPED], ids=["bare", "wrapped"])

# It tells its own signals and, by itself, ends at the second QUIT that it has got.
COUNTS = """
import os, signal, sys
seen = []
def note(number, _):
    seen.append(number)
    os.write(1, b"got %d\\n" % number)
for number in (1, 2, 3, 10, 12, 14, 15, 18, 28, 34, 40):
    signal.signal(number, note)
os.write(1, b"ready\\n")
while seen.count(3) < 2:
    signal.pause()
"""
COUNTING = [sys.executable, "-c", COUNTS]
NESTED = ["sh", "-c", "sh -c 'echo ready; sleep 997; true'; echo after"]


@dataclass
class Running:
    """A command in front of the test as a runner has it: a session and process group of its own."""

    process: subprocess.Popen[bytes]

    def line(self) -> bytes:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0], "it says nothing"
        return self.process.stdout.readline()

    def everybody(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, bytes]:
        out, _ = self.process.communicate(timeout=200)
        return self.process.returncode, out


@contextmanager
def running(job: Job, prefix: list[str], command: list[str], **more: Any) -> Iterator[Running]:
    with subprocess.Popen(
        [*prefix, *command], env=job.environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0,
        **(more or {"start_new_session": True}),
    ) as process:  # fmt: skip
        one = Running(process)
        try:
            assert one.line() == b"ready\n"
            yield one
        finally:
            for pid in one.everybody():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    return state(pid) not in {b"Z", b"X", b""}


def state(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    return b""


def all_end(pids: list[int]) -> bool:
    until = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(map(alive, pids))


def number_of(one: Running, sign: bytes) -> int:
    """The process whose command line has ``sign`` in it, as soon as there is one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for pid in one.everybody():
            with suppress(OSError):  # it has ended meanwhile
                if sign in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") and pid != one.process.pid:
                    return pid
    raise AssertionError(sign)


def asleep(one: Running, sign: bytes) -> list[int]:
    """Everybody, as soon as the process of ``sign`` is there and all wait: dash between its fork and its wait loses a
    signal, wrapped or not."""
    number_of(one, sign)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        everybody = one.everybody()
        if {state(pid) for pid in everybody} == {b"S"}:
            return everybody
    raise AssertionError(sign)


@EITHER
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_P04_what_a_group_is_sent_ends_all_of_it(job: Job, prefix: list[str], number: int) -> None:
    with running(job, prefix, NESTED) as one:
        everybody = asleep(one, b"sleep 997 ")
        one.group(number)
        assert one.end() == (-number, b"")
        assert all_end(everybody)


@EITHER
def test_P04_each_gets_what_is_sent_to_its_group_once(job: Job, prefix: list[str]) -> None:
    with running(job, prefix, COUNTING) as one:
        told = []
        for number in (15, 10, 1, 18, 28, 34, 40, 15, 2, 3, 3):
            one.group(number)
            told.append(one.line())
        assert one.end() == (0, b"")
    assert told == [b"got %d\n" % number for number in (15, 10, 1, 18, 28, 34, 40, 15, 2, 3, 3)]


@EITHER
def test_P04_and_what_is_sent_to_it_alone(job: Job, prefix: list[str]) -> None:
    with running(job, prefix, COUNTING) as one:
        told = []
        for number in (15, 12, 14, 18, 28, 34, 3, 3):
            one.process.send_signal(number)
            told.append(one.line())
        assert one.end() == (0, b"")
    assert told == [b"got %d\n" % number for number in (15, 12, 14, 18, 28, 34, 3, 3)]


@EITHER
def test_P04_and_what_every_process_is_sent_one_by_one(job: Job, prefix: list[str]) -> None:
    """As a service manager, or a runner that goes through the table of processes, does."""
    with running(job, prefix, COUNTING) as one:
        told = []
        for number in (15, 3, 3):
            for pid in one.everybody():
                os.kill(pid, number)
            told.append(one.line())
        assert one.end() == (0, b"")
    assert told == [b"got 15\n", b"got 3\n", b"got 3\n"]


@EITHER
def test_P04_a_child_of_the_command_lives_as_long_as_without(job: Job, prefix: list[str]) -> None:
    with running(job, prefix, NESTED) as one:
        sleeper = number_of(one, b"sleep 997 ")
        one.process.terminate()
        assert one.process.wait(200) == -signal.SIGTERM
        assert alive(sleeper)
        os.kill(sleeper, signal.SIGTERM)


def test_P04_a_command_that_ignores_the_end_is_killed_with_the_wrapper(job: Job) -> None:
    stubborn = ["sh", "-c", "sh -c 'sleep 997; true' & trap '' TERM; echo ready; wait"]
    with running(job, WRAPPED, stubborn) as one:
        everybody = one.everybody()
        one.process.kill()
        assert one.process.wait(200) == -signal.SIGKILL
        assert all_end(everybody)


def test_P04_a_command_whose_wrapper_dies_as_it_begins_is_ended_too(job: Job) -> None:
    """However early: it does not begin before there is somebody to end it."""
    for _ in range(4):
        with running(job, WRAPPED, ["sh", "-c", "kill -9 $PPID; echo ready; echo $$; exec sleep 997"]) as one:
            command = int(one.line() or 0)
            assert one.end() == (-signal.SIGKILL, b"")
            assert command == 0 or all_end([command])


def test_P04_output_that_nobody_masks_any_more_is_not_shown(job: Job) -> None:
    with running(job, WRAPPED, ["sh", "-c", "echo ready; while sleep 0.05; do echo $DB; done"]) as one:
        keeper = number_of(one, b"run_keeper")  # the keeper comes before its child, the witness
        os.kill(keeper, signal.SIGKILL)
        code, out = one.end()
    assert code in {-signal.SIGTERM, -signal.SIGPIPE}
    assert set(out.split()) <= {b"***"}


@EITHER
@pytest.mark.parametrize("alone", [False, True])
def test_P04_what_is_stopped_goes_on_where_it_was(job: Job, prefix: list[str], *, alone: bool) -> None:
    """In a group beside ours, as a shell has its jobs."""
    os.mkfifo(job.folder / "go")
    script = f"echo ready; read x < {job.folder}/go; echo on"  # it has no children of its own to be taken for it
    with running(job, prefix, ["sh", "-c", script], process_group=0) as one:
        command = one.process.pid if prefix == BARE else number_of(one, b"sh -c echo ready")
        send = one.process.send_signal if alone else one.group
        send(signal.SIGTSTP)
        assert stops([command, one.process.pid])
        send(signal.SIGCONT)
        (job.folder / "go").write_text("on\n")
        assert one.end() == (0, b"on\n")


def stops(pids: list[int]) -> bool:
    until = time.monotonic() + 60
    while any(state(pid) != b"T" for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    return all(state(pid) == b"T" for pid in pids)
