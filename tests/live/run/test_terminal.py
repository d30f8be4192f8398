"""`broker run` on a terminal: the child has one too, full-screen programs work, and what they show is masked."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.live.run.test_standin import (
    COMMAND,
    DB,
    PASSWORD,
    Job,
    Pipelines,
    job,
    pipelines,
    pipelines_authority,
)
from tests.servers.warm import WarmCommandLine

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

BOTH = ["FetchSecrets", "EndSession"]
PYTHON = ["--", sys.executable, "-u", "-c"]
# What a login does: it makes the terminal its own.
SHELL = "import fcntl,os,sys,termios\nfcntl.ioctl(2, termios.TIOCSCTTY, 0)\nos.execv(sys.argv[1], sys.argv[1:])"


@dataclass
class Screen:
    """A terminal with `broker run` on it."""

    terminal: int
    process: subprocess.Popen[bytes] | WarmCommandLine
    shown: bytes = field(default=b"")

    def until(self, text: bytes) -> bytes:
        """Wait for a text on the screen; everything up to and with it is taken off."""
        while text not in self.shown:
            assert self._more(), (text, self.shown)
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def rest(self) -> tuple[int, bytes]:
        while self._more():
            pass
        return self.process.wait(200), self.shown

    def type(self, text: bytes) -> None:
        os.write(self.terminal, text)

    def size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self.terminal)

    def _more(self) -> bool:
        assert select.select([self.terminal], [], [], 60)[0], self.shown
        try:
            read = os.read(self.terminal, 65536)
        except OSError:  # Linux says EIO when the other side is closed
            return False
        self.shown += read
        return bool(read)


@contextmanager
def on_screen(job: Job, *arguments: str, **redirected: Any) -> Iterator[Screen]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs} | redirected
    with WarmCommandLine(arguments, environment=job.environment, login=True, **ends) as process:
        os.close(theirs)
        try:
            yield Screen(ours, process)
        except BaseException:
            process.kill()
            raise
        finally:
            os.close(ours)


def test_the_child_has_a_terminal_of_the_same_size(job: Job, pipelines: Pipelines) -> None:
    script = (
        "import os; print([os.isatty(n) for n in (0,1,2)], os.get_terminal_size(), os.ttyname(0), open('/dev/tty'))"
    )
    with on_screen(job, "run", "--secret", DB, *PYTHON, script) as screen:
        code, shown = screen.rest()
    assert (code, pipelines.methods) == (0, BOTH)
    assert shown.startswith(b"[True, True, True] os.terminal_size(columns=80, lines=24) /dev/pts/")
    assert shown.endswith(b"\r\n")
    assert b"\r\r" not in shown


def test_CL_10_a_secret_on_the_screen_is_masked_and_colours_stay(job: Job) -> None:
    script = (
        "import os,sys\nw=lambda b: os.write(1, b)\nw(b'\\x1b[1;31mred\\x1b[0m ' + os.environb[b'DB'] + b' end\\n')\n"
        "os.write(2, os.environb[b'DB'])"
    )
    with on_screen(job, "run", "--secret", DB, *PYTHON, script) as screen:
        assert screen.rest() == (0, b"\x1b[1;31mred\x1b[0m *** end\r\n***")


def test_the_size_follows_and_keys_arrive_one_by_one(job: Job) -> None:
    script = (
        "import os,signal,sys,tty\ntty.setcbreak(0)\n"
        "signal.signal(signal.SIGWINCH, lambda *_: print('size', *os.get_terminal_size()))\nprint('ready')\n"
        "while (key := os.read(0, 1)) != b'q': print('key', key)"
    )
    with on_screen(job, "run", "--secret", DB, *PYTHON, script) as screen:
        screen.until(b"ready\r\n")
        screen.type(b"x")
        screen.until(b"key b'x'\r\n")
        screen.size(40, 132)
        screen.until(b"size 132 40\r\n")
        screen.type(b"q")
        assert screen.rest()[0] == 0


def test_the_terminal_is_raw_while_the_child_has_its_own(job: Job) -> None:
    with on_screen(job, "run", "--secret", DB, *PYTHON, "print('ready'); input()") as screen:
        screen.until(b"ready\r\n")
        assert not screen.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        screen.type(b"\r")
        assert screen.rest()[0] == 0


def test_modes_come_back_in_every_exit_path(job: Job, pipelines: Pipelines) -> None:
    """The terminal outlives the command, as under a shell."""
    outer = (
        "import subprocess,sys,termios,signal\nbefore = termios.tcgetattr(0)\n"
        "code = subprocess.run(sys.argv[1:]).returncode\nprint('code', code, termios.tcgetattr(0) == before)"
    )
    child = "import os,signal,tty; tty.setraw(0); print('ready', flush=True); "
    for script, told in [
        (child + "raise SystemExit(4)", b"code 4 True"),
        (child + "os.kill(os.getpid(), 9)", b"code -9 True"),
        (child + "os.kill(os.getppid(), 15); signal.pause()", b"code -15 True"),
    ]:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", outer, *COMMAND, "run", "--secret", DB, *PYTHON, script]
        with subprocess.Popen(
            [sys.executable, "-c", SHELL, *command],
            env=job.environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        ) as process:  # fmt: skip
            os.close(theirs)
            shown = Screen(ours, process).until(told)
        os.close(ours)
        assert b"ready" in shown
    assert pipelines.methods == BOTH * 3


@pytest.mark.parametrize("redirected", [False, True])
def test_control_c_reaches_the_child_once(job: Job, pipelines: Pipelines, *, redirected: bool) -> None:
    script = (
        "import os,signal,sys\nsay = lambda *words: print(*words, file=sys.stderr)\nseen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: (seen.append(1), say('seen', len(seen))))\nsay('ready')\n"
        "sys.stdin.readline(); say('all', len(seen))"
    )
    ends = {"stdout": subprocess.DEVNULL} if redirected else {}
    with on_screen(job, "run", "--secret", DB, *PYTHON, script, **ends) as screen:
        screen.until(b"ready\r\n")
        screen.type(b"\x03")
        screen.until(b"seen 1\r\n")
        screen.type(b"\r")
        screen.until(b"all 1\r\n")
        assert screen.rest()[0] == 0
    assert pipelines.methods == BOTH


def test_less_works_and_shows_no_secret(job: Job, pipelines: Pipelines) -> None:
    """A real full-screen program: it switches the screen, waits for keys, searches and ends."""
    (job.folder / "long").write_bytes(b"".join(b"line %d\n" % number for number in range(200)) + PASSWORD + b" last\n")
    with on_screen(job, "run", "--secret", DB, "--", "less", str(job.folder / "long")) as screen:
        first = screen.until(b"line 22")
        assert b"\x1b[?1049h" in first
        screen.type(b"G")
        end = screen.until(b" last")
        assert b"*** last" in end
        assert PASSWORD not in first + end
        screen.type(b"q")
        code, after = screen.rest()
    assert (code, b"\x1b[?1049l" in after, pipelines.methods) == (0, True, BOTH)


def test_curses_works_and_shows_no_secret(job: Job) -> None:
    script = (
        "import curses,os\n"
        "def draw(s):\n"
        "    curses.start_color(); curses.init_pair(1, curses.COLOR_RED, curses.COLOR_BLACK)\n"
        "    s.addstr(3, 5, os.environ['DB'], curses.color_pair(1)); s.addstr(5, 5, 'press'); s.refresh()\n"
        "    while s.getkey() != 'e': pass\n"
        "curses.wrapper(draw); print('left')"
    )
    with on_screen(job, "run", "--secret", DB, *PYTHON, script) as screen:
        drawn = screen.until(b"press")
        screen.type(b"xe")
        code, after = screen.rest()
    assert (code, b"***" in drawn, PASSWORD in drawn + after) == (0, True, False)
    assert b"\x1b[31m" in drawn
    assert b"left" in after


def test_a_prompt_is_shown_before_it_is_answered(job: Job) -> None:
    """Even one that ends like a secret begins."""
    script = "import os; name = input('who? s'); print('hello', name)"
    with on_screen(job, "run", "--secret", DB, *PYTHON, script) as screen:
        screen.until(b"who? s")
        screen.type(b"me\r")
        screen.until(b"hello me\r\n")
        assert screen.rest()[0] == 0


def test_output_to_a_file_leaves_the_keyboard_alone(job: Job) -> None:
    """In `broker run … | less` the keys are for less; the errors still have a terminal."""
    script = (
        "import os,sys; print([os.isatty(n) for n in (0,1,2)]); print('err', os.ttyname(0), file=sys.stderr); input()"
    )
    command = ["run", "--secret", DB, *PYTHON, script]
    with (job.folder / "out").open("wb") as out, on_screen(job, *command, stdout=out) as screen:
        screen.until(b"err /dev/pts/")
        assert screen.modes()[3] & termios.ICANON
        screen.type(b"\r")
        assert screen.rest()[0] == 0
    assert (job.folder / "out").read_bytes() == b"[True, False, True]\n"


def test_input_from_a_file_while_the_output_is_a_terminal(job: Job) -> None:
    (job.folder / "in").write_text("from a file\n")
    with (job.folder / "in").open("rb") as source, on_screen(job, "run", "--secret", DB, "cat", stdin=source) as screen:
        assert screen.rest() == (0, b"from a file\r\n")


def test_a_terminal_that_closes_ends_the_job_in_order(job: Job, pipelines: Pipelines) -> None:
    script = "import sys; print('ready'); sys.stdin.readline(); sys.stdin.readline()"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SHELL, *COMMAND, "run", "--secret", DB, *PYTHON, script],
        env=job.environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        Screen(ours, process).until(b"ready")
        os.close(ours)
        assert process.wait(200) == -signal.SIGHUP
    assert pipelines.methods == BOTH
