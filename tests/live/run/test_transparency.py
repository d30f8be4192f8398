"""`broker run` is transparent: each probe is run bare and behind it, and what is observed must be the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

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

__all__ = ["job", "pipelines", "pipelines_authority"]  # fixtures

BARE = ["env", f"DB={os.fsdecode(PASSWORD)}"]
WRAPPED = [*COMMAND, "run", "--keep-identity", "--secret", DB, "--"]

# What a process can see of itself.
SIGHT = """
import json, os, resource, sys
told, outer = {}, os.environ.pop("OUTER")
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for name in ("SigBlk", "CapEff", "NoNewPrivs", "Seccomp", "Cpus_allowed_list"):
    told[name] = status[name].strip()
told["ignored"] = int(status["SigIgn"], 16) & ~(1 << 12 | 1 << 24)  # Python ignores these itself
told["group"], told["session"] = os.getpgrp() == int(outer), os.getsid(0) == int(outer)
limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
told["limits"] = [(name, resource.getrlimit(getattr(resource, name))) for name in limits]
told["umask"], told["nice"], told["argv"] = os.umask(0), os.nice(0), open("/proc/self/cmdline").read()
told["files"] = sorted(os.listdir("/proc/self/fd"), key=int)[:-1]
told["stdin"] = os.path.realpath("/proc/self/fd/0")
names = set(os.environ) - {"_", "DB"}
told["environment"], told["value"] = [(name, os.environ[name]) for name in sorted(names)], len(os.environ["DB"])
print(json.dumps(told, indent=1))
"""


@dataclass(frozen=True)
class Seen:
    code: int
    out: bytes
    err: bytes
    files: dict[str, bytes]


def look(job: Job, script: str, prefix: list[str]) -> Seen:
    """Run a bash script in an empty folder; ``"$@"`` in it is the prefix of the command that it is about."""
    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        (Path(folder) / "sight.py").write_text(SIGHT)
        done = subprocess.run(
            ["bash", "-c", "export OUTER=$$\n" + script, "bash", *prefix],
            cwd=folder, env=job.environment, capture_output=True, stdin=subprocess.DEVNULL, start_new_session=True,
            timeout=200, check=False,
        )  # fmt: skip
        left = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}

    def plain(text: bytes) -> bytes:
        """Without the value, the folder's name and the process's number."""
        text = text.replace(PASSWORD, b"***").replace(folder.encode(), b"HERE")
        return re.sub(rb"(: line \d+: +)\d+", rb"\1N", text)

    return Seen(done.returncode, plain(done.stdout), plain(done.stderr), {n: plain(left[n]) for n in left})


SIGHT_RUN = f"{sys.executable} -I -S sight.py"
PAIRS = "bash -c 'for i in 0 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done'"
UNTIL = "for i in $(seq 6000); do [ -e {} ] && break; sleep 0.02; done"
PROBES = {
    "P04_what_a_process_sees_of_itself": f'"$@" {SIGHT_RUN}',
    "P04_what_it_sees_where_it_is_unusual": (
        'umask 027; ulimit -c 0 -n 512 -s 4096; trap "" HUP USR1 INT; exec 5<sight.py 9>&1;'
        f'nice -n 3 "$@" {SIGHT_RUN} x ""'
    ),
    "P04_its_words": '"$@" bash -c \'echo "$0" $#; trap; ulimit -a\' zero one "" three',
    "P04_files_of_the_shell": '"$@" cat <(echo one) <(echo two)',
    "P04_a_file_of_the_shell_for_output": ('exec 7> >(cat > out7); "$@" bash -c "echo seven >&7"; exec 7>&-; wait $!'),
    "P04_a_descriptor_that_is_closed_early": (
        "mkfifo f; (cat f > got; touch ended) & "
        f"\"$@\" bash -c 'exec 8>&-; {UNTIL.format('ended')}; exit 3' 8>f; echo $?"
    ),
    "P04_an_input_that_is_closed_early": (
        '(yes 2>&- ; echo $? > yes) | "$@" bash -c \'exec <&-; '
        + UNTIL.format("yes")
        + "; exit 3'; echo ${PIPESTATUS[1]}"
    ),
    "P04_a_lock": 'exec 9>lock; flock 9; "$@" bash -c "flock -n 9 && echo mine"; ',
    "P04_a_jobserver": (
        'printf "all: a b\\na b: ; @[ -n \\"\\$\\$(ls -l /proc/self/fd | grep -c pipe)\\" ] && echo x\\n'
        'top: ; +@\\$(P) \\$(MAKE) --no-print-directory all\\n" > Makefile; make P="$*" -j2 top'
    ),
    "P04_a_service_with_sockets": (
        "exec 3<sight.py; exec env LISTEN_PID=$$ LISTEN_FDS=1 \"$@\" bash -c '[ $LISTEN_PID = $$ ] && head -c 20 <&3'"
    ),
    "P04_closed_input": '"$@" bash -c "readlink /proc/self/fd/0; read x; echo \\$?" <&-',
    "P04_closed_output": '"$@" bash -c "echo x; echo \\$? >&2" >&-',
    "P04_closed_errors": '"$@" bash -c "echo x >&2; echo \\$?" 2>&-',
    "P04_everything_closed": '"$@" bash -c "echo a > a; cat < a > b" <&- >&- 2>&-',
    "P04_the_end_of_input": 'echo in | "$@" bash -c "read a; read b; echo \\$a \\$?"',
    "P04_a_reader_that_goes_away": '"$@" yes | head -1; echo "${PIPESTATUS[@]}"',
    "P04_and_is_missed_by_who_says_nothing": 'touch log; "$@" tail -f log | true; echo "${PIPESTATUS[@]}"',
    "P04_nobody_reads": '"$@" bash -c "readlink /proc/self/fd/1 /proc/self/fd/2 > links; echo" > /dev/null 2>&1',
    "P04_codes": 'for c in 0 42 255; do "$@" sh -c "exit $c"; echo $?; done',
    "P04_what_a_signal_ended": (
        "\"$@\" sh -c 'kill $$'; echo $?; \"$@\" sh -c 'kill -9 $$'; echo $?; ulimit -c 0; \"$@\" sh -c 'kill -11 $$'"
    ),
    "P04_a_script_that_is_interrupted": "for i in 1 2; do \"$@\" sh -c 'echo at $0; kill -INT $$' $i; done; echo after",
    "P04_nohup": 'nohup "$@" sh -c "kill -HUP \\$\\$; echo alive"',
    "P04_a_folder_that_is_gone": 'mkdir gone; cd gone; rmdir ../gone; "$@" sh -c "echo here; ls -la"',
    "P04_a_script_without_its_interpreter": 'printf "echo \\$0 \\$*\\n" > plain; chmod +x plain; "$@" ./plain one two',
    "P04_an_empty_environment": (
        'exec env -i PATH="$PATH" BROKER_CA_PEM="$BROKER_CA_PEM" BROKER_PIPELINES_ADDRESS=$BROKER_PIPELINES_ADDRESS '
        'BROKER_ID_TOKEN_FILE=$BROKER_ID_TOKEN_FILE BROKER_AUDIENCE=$BROKER_AUDIENCE PYTHONPATH=$PYTHONPATH "$@" env'
    ),
    "P04_much_output": '"$@" head -c 30000000 /dev/zero | sha256sum',
    "P04_who_makes_it_non_blocking": (
        f'"$@" {sys.executable} -c \'import os; os.set_blocking(1, False); print(1)\' | cat; "$@" seq 20000 | '
        f"{sys.executable} -c 'import os, sys, time; os.set_blocking(1, False); print(len(sys.stdin.read()))'"
    ),
    "P06_one_file": f'"$@" {PAIRS} > both 2>&1',
    "P06_one_pipe": f'"$@" {PAIRS} 2>&1 | cat > both',
    "P06_one_file_twice": f'"$@" {PAIRS} >> both 2>> both',
    "P06_two_files": f'"$@" {PAIRS} > one 2> two',
    "P48_a_child_in_the_background": (
        f"\"$@\" bash -c '({UNTIL.format('over')}; echo late; echo later >&2) & echo first; exit 7'; "
        "echo code $?; touch over"
    ),
    "P48_and_its_file": (
        f"\"$@\" bash -c '({UNTIL.format('over')}; echo $DB; touch late) & echo first' > log; cat log; touch over; "
        + UNTIL.format("late")
        + "; until [ $(wc -l < log) = 2 ]; do sleep 0.02; done"
    ),
    "P48_and_many": "\"$@\" bash -c 'for i in $(seq 20); do seq 1000 & done' | wc -l",
}
SELDOM = {
    "P04_its_words", "P04_a_file_of_the_shell_for_output", "P04_a_lock", "P04_closed_input", "P04_closed_output",
    "P04_closed_errors", "P04_the_end_of_input", "P04_nobody_reads", "P04_codes", "P04_much_output",
    "P04_a_script_without_its_interpreter", "P04_who_makes_it_non_blocking", "P06_one_pipe", "P06_two_files",
    "P48_a_child_in_the_background", "P48_and_many",
}  # fmt: skip
"""Neighbours of others, run only with the long forms of the proofs."""


@pytest.mark.sampled(4, each="row")
@pytest.mark.parametrize(("row", "name"), [(name[:3], name) for name in PROBES if name not in SELDOM])
def test_P04_P06_P48_as_without_it(job: Job, row: str, name: str) -> None:
    assert name.startswith(row)
    assert look(job, PROBES[name], WRAPPED) == look(job, PROBES[name], BARE)


@pytest.mark.parametrize("how", ["> /dev/full", "2> /dev/full", "> /dev/full 2>&1"])
def test_P04_output_that_cannot_be_written_is_no_success(job: Job, pipelines: Pipelines, how: str) -> None:
    """The command itself cannot learn it: what it wrote has left it."""
    script = f'"$@" sh -c "echo out; echo err >&2" {how}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *COMMAND, "run", "--secret", DB, "--"],
        env=job.environment, capture_output=True, check=False,
    )  # fmt: skip
    # With one place for both, the second line may find that nobody reads it any more: then it has learnt it after all.
    assert done.returncode in ({1, 128 + signal.SIGPIPE} if how.endswith("2>&1") else {1})
    assert "2>" in how or b"output of the command was lost: No space left on device. [OUTPUT_FAILED]" in done.stderr
    assert pipelines.methods == ["FetchSecrets", "EndSession"]
