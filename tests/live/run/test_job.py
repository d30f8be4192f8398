"""`broker run` as a job sees it: what the child gets, what is shown of it, and how everything ends."""

from __future__ import annotations

import fcntl
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from broker_cli import run_files, run_session
from broker_cli.refusal import Refusal
from broker_cli.run import USUAL_TTL
from broker_cli.run_files import check_memory

from tests.live.cli.test_standin import Authority
from tests.live.run.faults import assert_nothing_shown
from tests.live.run.test_standin import (
    DB,
    PASSWORD,
    VALUES,
    Job,
    Pipelines,
    headers_of,
    job,
    jwt,
    pipelines,
    pipelines_authority,
)

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

PYTHON = ["--", sys.executable, "-u", "-c"]
SAY = "import os,sys; sys.stdout.buffer.write(os.environb[b'DB'])"
READY = "import os,signal,sys,time\n"
UNTIL_TOLD = "print('ready'); sys.stdin.readline()"
BOTH = ["FetchSecrets", "EndSession"]


@pytest.fixture
def secrets_in_memory() -> Iterator[Callable[[], set[str]]]:
    """The folders of secrets that are there; meanwhile nobody else that uses this fixture makes any."""
    folder = os.open(run_files.MEMORY, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield lambda: {path.name for path in run_files.MEMORY.glob("broker-*")}
    finally:
        os.close(folder)


def test_a_job_is_one_call_and_an_end(job: Job, pipelines: Pipelines) -> None:
    script = f"import os; print(os.environb[b'DB'] == {PASSWORD!r})"
    assert job.run("run", "--secret", DB, "--trust-rule", "deploy", *PYTHON, script) == (0, b"True\n", b"")
    assert pipelines.methods == BOTH
    first = headers_of(pipelines, "FetchSecrets")
    assert (first["authorization"], first["broker-trust-rule"]) == (f"Bearer {jwt()}", "deploy")
    request = pipelines.calls[0][2]
    assert (list(request.references), request.ttl.seconds, request.partial) == (["team/db#password"], 60, False)
    assert headers_of(pipelines, "EndSession")["authorization"] == "Bearer brs_standin"


def test_an_env_file_has_references_and_plain_values(job: Job, pipelines: Pipelines) -> None:
    (job.folder / "env").write_text(
        "# what the app needs\nexport DB=broker://team/db#password  # the app's\nMODE='plain text'\n"
        'USER_="broker://team/db@1#user"\nAGAIN=broker://team/db#password\nOVER=file\n'
    )
    script = "import os; print([os.environb[n] for n in (b'DB', b'MODE', b'USER_', b'AGAIN', b'OVER')] == " + repr(
        [PASSWORD, b"plain text", b"app", PASSWORD, b"app"]
    )
    warning = b"broker: OVER, USER_: shorter than 4 bytes, so not masked in the output.\n"
    options = ["--env-file", str(job.folder / "env"), "--secret", "OVER=broker://team/db#user"]
    assert job.run("run", *options, *PYTHON, script + ")") == (0, b"True\n", warning)
    assert list(pipelines.calls[0][2].references) == ["team/db#password", "team/db@1#user", "team/db#user"]


def test_CL_10_both_outputs_are_masked_and_stay_apart(job: Job) -> None:
    script = SAY + "; sys.stderr.buffer.write(b'<' + os.environb[b'DB'] + b'>')"
    assert job.run("run", "--secret", DB, *PYTHON, script) == (0, b"***", b"<***>")


def test_CL_10_byte_by_byte_and_by_a_grandchild(job: Job) -> None:
    slow = "import os,sys\nfor one in os.environb[b'DB']: sys.stdout.buffer.write(bytes([one])); sys.stdout.flush()"
    assert job.run("run", "--secret", DB, *PYTHON, slow) == (0, b"***", b"")
    outer = f"import subprocess,sys; subprocess.run([sys.executable, '-c', {SAY!r}])"
    assert job.run("run", "--secret", DB, *PYTHON, outer) == (0, b"***", b"")
    assert job.run("run", "--secret", DB, "--", "sh", "-c", 'printf %s "$DB" | base64')[1] == b"***\n"


def test_output_comes_while_the_child_lives(job: Job) -> None:
    with job.start("run", "--secret", DB, *PYTHON, READY + UNTIL_TOLD, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"\n")


def test_input_and_megabytes_pass_through(job: Job) -> None:
    (job.folder / "in").write_bytes(os.urandom(1 << 20))
    with (job.folder / "in").open("rb") as source:
        code, out, err = job.run("run", "--secret", DB, "cat", stdin=source)
    assert (code, out == (job.folder / "in").read_bytes(), err) == (0, True, b"")


@pytest.mark.parametrize(("script", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("1/0", 1)])
def test_the_exit_code_is_the_childs(job: Job, pipelines: Pipelines, script: str, code: int) -> None:
    assert job.run("run", "--secret", DB, *PYTHON, READY + script)[0] == code
    assert pipelines.methods == BOTH


def test_P04_what_cannot_be_started_fetches_nothing(job: Job, pipelines: Pipelines) -> None:
    assert job.run("run", "--secret", DB, "--", "no-such-command")[0] == 127
    (job.folder / "script").write_text("echo")
    assert job.run("run", "--secret", DB, "--", str(job.folder / "script"))[0] == 126
    assert pipelines.methods == []
    (job.folder / "script").write_bytes(b"\x7fELF nonsense")
    (job.folder / "script").chmod(0o700)
    code, _, err = job.run("run", "--secret", DB, "--", str(job.folder / "script"))
    assert (code, b"COMMAND_NOT_STARTED" in err, pipelines.methods) == (126, True, BOTH)
    (job.folder / "script").write_bytes(b"#!/no/such/interpreter\n")
    code, _, err = job.run("run", "--secret", DB, "--", str(job.folder / "script"))
    assert (code, b"interpreter that it names is not here" in err) == (127, True)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_reaches_the_child_once(job: Job, pipelines: Pipelines, name: str) -> None:
    script = (
        f"signal.signal(signal.{name}, lambda n, f: (print('got', n), sys.exit(3)))\nprint('ready')\nsignal.pause()"
    )
    with job.start("run", "--secret", DB, *PYTHON, READY + script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.Signals[name])
        out, err = process.communicate(timeout=200)
    assert (process.returncode, out, err) == (3, b"got %d\n" % signal.Signals[name], b"")
    assert pipelines.methods == BOTH


def test_a_signal_to_the_whole_group_reaches_the_child_once(job: Job, pipelines: Pipelines) -> None:
    """Some CIs cancel so; a second signal makes many programs drop everything."""
    script = (
        "seen = []\nsignal.signal(signal.SIGTERM, lambda n, f: (seen.append(n), print('seen')))\n"
        "signal.signal(signal.SIGUSR1, lambda n, f: (print(len(seen)), sys.exit()))\nprint('ready')\n"
        "while True: signal.pause()"
    )
    with job.start_cold("run", "--secret", DB, *PYTHON, READY + script, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.killpg(process.pid, signal.SIGTERM)
        assert process.stdout.readline() == b"seen\n"
        process.send_signal(signal.SIGUSR1)
        assert process.communicate(timeout=200)[0] == b"1\n"
    assert pipelines.methods == BOTH


def test_a_child_that_a_signal_kills(job: Job, pipelines: Pipelines) -> None:
    with job.start("run", "--secret", DB, *PYTHON, READY + "print('ready'); signal.pause()") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(200) == -signal.SIGTERM
    assert pipelines.methods == BOTH


def test_a_signal_while_fetching_ends_in_order(job: Job, pipelines: Pipelines) -> None:
    never = threading.Event()
    pipelines.before = lambda _: never.wait(20)
    with job.start("run", "--secret", DB, "--", "echo", "ran") as process:
        pipelines.wait_for("FetchSecrets")
        process.terminate()
        out, err = process.communicate(timeout=200)
    never.set()
    assert (process.returncode, out, err) == (-signal.SIGTERM, b"", b"")


def test_CL_09_files_are_private_in_memory_and_gone(
    job: Job, pipelines: Pipelines, secrets_in_memory: Callable[[], set[str]]
) -> None:
    before = secrets_in_memory()
    script = (
        "import os,stat; p=os.environ['KEY']; s=os.stat(p); d=os.stat(os.path.dirname(p))\n"
        "print(oct(s.st_mode), oct(d.st_mode), os.path.dirname(os.path.dirname(p)))\n"
        f"print(open(p,'rb').read() == {VALUES['team/tls']['key']!r})\nprint(open(p).read())"
    )
    code, out, err = job.run("run", "--file", "KEY=broker://team/tls#key", *PYTHON, script)
    assert (code, err) == (0, b"")
    assert out == b"0o100600 0o40700 /dev/shm\nTrue\n***\n***\n***\n***\n\n"
    assert (secrets_in_memory(), pipelines.methods) == (before, BOTH)


def test_CL_09_a_wrapper_that_is_killed_leaves_no_file_and_no_child(
    job: Job, secrets_in_memory: Callable[[], set[str]]
) -> None:
    before = secrets_in_memory()
    script = READY + "print(os.getpid(), os.environ['KEY']); sys.stdin.readline()"
    key = ["--file", "KEY=broker://team/tls#key"]
    with job.start("run", *key, *PYTHON, script, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid, path = process.stdout.readline().decode().split()
        others = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert Path(path).exists()
        assert pid in others
        assert len(others) == 2  # the child and the keeper
        watched = [os.pidfd_open(int(one)) for one in others]
        process.kill()
        process.wait(200)
        for one in watched:
            assert select.select([one], [], [], 60)[0], "it lives on"
            os.close(one)
    assert (secrets_in_memory(), Path(path).parent.exists()) == (before, False)


def test_a_secret_is_never_put_on_a_disk() -> None:
    check_memory(["tmpfs /dev/shm tmpfs rw,nosuid 0 0"])
    for mounts in ([], ["/dev/sda1 /dev/shm ext4 rw 0 0"]):
        with pytest.raises(Refusal) as refused:
            check_memory(mounts)
        assert refused.value.reason == "NO_MEMORY_FILES"


def test_P_50_a_session_is_renewed_whatever_the_runners_clock_says(job: Job, pipelines: Pipelines) -> None:
    pipelines.life = 0.6
    with job.start("run", "--secret", DB, *PYTHON, READY + UNTIL_TOLD, stdin=subprocess.PIPE) as process:
        pipelines.wait_for("RenewSession", 3)
        out, err = process.communicate(b"\n", timeout=200)
    assert (process.returncode, out, err) == (0, b"ready\n", b"")
    assert pipelines.methods[-1] == "EndSession"
    assert pipelines.calls[1][2].ttl.seconds == 60


def test_a_broker_that_was_away_is_asked_again(job: Job, pipelines: Pipelines) -> None:
    pipelines.life = 6
    away = (grpc.StatusCode.UNAVAILABLE, "DRAINING", "The broker restarts.")
    pipelines.failures = {"RenewSession": [away, away], "EndSession": [away]}
    with job.start("run", "--secret", DB, *PYTHON, READY + UNTIL_TOLD, stdin=subprocess.PIPE) as process:
        pipelines.wait_for("RenewSession", 3)
        out, err = process.communicate(b"\n", timeout=200)
    assert (process.returncode, out, err) == (0, b"ready\n", b"")
    assert pipelines.methods.count("EndSession") == 2


def test_a_session_that_was_revoked_is_said_once_and_the_child_goes_on(job: Job, pipelines: Pipelines) -> None:
    pipelines.life = 0.4
    gone_ = (grpc.StatusCode.UNAUTHENTICATED, "SESSION_ENDED", "The session has ended.")
    pipelines.failures = {"RenewSession": [gone_], "EndSession": [gone_]}
    with job.start("run", "--secret", DB, *PYTHON, READY + UNTIL_TOLD, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        out, err = process.communicate(b"\n", timeout=200)
    assert line == b"broker: the session cannot be renewed: The session has ended. [SESSION_ENDED, call c-17]\n"
    assert (process.returncode, out, err) == (0, b"ready\n", b"")


def test_a_broker_that_goes_away_for_good(job: Job, pipelines: Pipelines) -> None:
    away = (grpc.StatusCode.UNAVAILABLE, "DRAINING", "The broker restarts.")
    pipelines.failures = {"EndSession": [away] * 9}
    code, out, err = job.run("run", "--secret", DB, "--", "echo", "done")
    assert (code, out) == (0, b"done\n")
    assert b"the session could not be ended and lapses at" in err


def test_the_last_moment_is_said(job: Job, pipelines: Pipelines) -> None:
    pipelines.life, pipelines.reaches = 0.5, 0.5
    with job.start("run", "--secret", DB, *PYTHON, READY + UNTIL_TOLD, stdin=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"the session ends for good at" in process.stderr.readline()
        process.communicate(b"\n", timeout=200)


def test_a_reader_that_goes_away_is_the_childs_closed_pipe(job: Job, pipelines: Pipelines) -> None:
    with job.start("run", "--secret", DB, "yes") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(200) == -signal.SIGPIPE
    assert pipelines.methods == BOTH


def test_a_short_value_is_named(job: Job) -> None:
    code, out, err = job.run("run", "--secret", "PIN=broker://team/pin#pin", "--", "sh", "-c", "echo $PIN")
    assert (code, out, b"PIN: shorter than 4 bytes" in err) == (0, b"123\n", True)


@pytest.mark.usefixtures("secrets_in_memory")
def test_a_value_with_a_zero_byte_ends_in_order(job: Job, pipelines: Pipelines) -> None:
    code, _, err = job.run("run", "--secret", "B=broker://team/blob#bytes", "--", "true")
    assert (code, b"VALUE_NOT_TEXT" in err, b"--file" in err, pipelines.methods) == (2, True, True, BOTH)
    script = f"import os; print(open(os.environ['B'],'rb').read() == {VALUES['team/blob']['bytes']!r})"
    assert job.run("run", "--file", "B=broker://team/blob#bytes", *PYTHON, script)[1] == b"True\n"


def test_a_refusal_of_the_broker_is_told(job: Job, pipelines: Pipelines) -> None:
    denied = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", "This is not allowed.")
    pipelines.failures = {"FetchSecrets": [denied]}
    code, out, err = job.run("run", "--secret", DB, "--", "echo", "ran")
    assert (code, out, err) == (3, b"", b"broker: This is not allowed. [PERMISSION_DENIED, call c-17]\n")


def test_each_try_to_log_in_reads_the_token_again(job: Job, pipelines: Pipelines) -> None:
    away = (grpc.StatusCode.UNAVAILABLE, "DRAINING", "The broker restarts.")
    pipelines.failures = {"FetchSecrets": [away]}
    fresh = jwt(jti="2")
    pipelines.before = lambda _: (job.folder / "token").write_text(fresh)
    assert job.run("run", "--secret", DB, "--", "true")[0] == 0
    sent = [headers["authorization"] for name, headers, _ in pipelines.calls if name == "FetchSecrets"]
    assert sent == [f"Bearer {jwt()}", f"Bearer {fresh}"]


def test_CL_12_another_server_is_not_talked_to(job: Job, pipelines: Pipelines) -> None:
    other = Authority("another CA").pem.decode()
    code, _, err = job.run("run", "--secret", DB, "--", "true", env={"BROKER_CA_PEM": other})
    assert (code, b"SERVER_NOT_TRUSTED" in err, pipelines.methods) == (5, True, [])
    code, _, err = job.run("run", "--secret", DB, "--", "true", env={"BROKER_CA_PEM": ""})
    assert (code, b"CA_MISSING" in err) == (2, True)


def test_CL_01_a_secret_on_the_command_line_is_refused_and_not_repeated(job: Job, pipelines: Pipelines) -> None:
    for option in ("DB=canary-1", "canary-1", "DB=broker://canary-1 x"):
        code, out, err = job.run("run", "--secret", option, "--", "true")
        assert (code, out, b"canary" in err) == (2, b"", False), err
    assert pipelines.methods == []


def test_CL_06_the_wrapper_is_not_dumpable_and_its_child_is_as_ever(job: Job) -> None:
    asks = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    assert job.run("run", "--secret", DB, *PYTHON, asks)[1] == b"1\n"
    enters = "from broker_cli.run_session import Job\nJob(way=None).__enter__()\n" + asks
    done = subprocess.run([sys.executable, "-c", enters], env=job.environment, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"0\n"


def test_the_renewal_does_not_wait_for_a_blocked_output(job: Job, pipelines: Pipelines) -> None:
    pipelines.life = 0.6
    with job.start("run", "--secret", DB, "yes") as process:
        pipelines.wait_for("RenewSession", 3)
        process.terminate()
        assert process.stdout is not None
        process.stdout.close()
        process.wait(200)
    assert pipelines.methods[-1] == "EndSession"


def test_usual_life_is_a_minute() -> None:
    """So long does anything outlive a runner that dies."""
    assert USUAL_TTL == 60
    assert run_session.LONGEST_PAUSE * 3 < USUAL_TTL / 2


def test_CL_03_no_fault_shows_a_value_and_each_ends_the_session(
    job: Job, pipelines: Pipelines, secrets_in_memory: Callable[[], set[str]]
) -> None:
    """Three faults at each place, other ones every time; `tests/soak` has all at each."""
    before = secrets_in_memory()
    assert_nothing_shown(job, pipelines, each=3, turn=random.randrange(9))  # noqa: S311 - where to begin
    assert secrets_in_memory() == before
