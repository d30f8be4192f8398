"""Every fault forced at every place of `broker run`, in one process of its own."""

from __future__ import annotations

import subprocess
import sys

from tests.live.run.test_standin import PASSWORD, Job, Pipelines, jwt

FAULTS = """
import importlib, sys
from broker_cli.main import run
places = [
    ('run_session', 'Job.renew'), ('run_references', 'only_field'), ('run_child', 'start'), ('run_child', 'Child.wait'),
    ('run_files', 'MemoryFiles.add'), ('run_files', 'Keeper.tell'), ('ci.identity', 'token'), ('run', 'check_values'),
]
faults = [
    OSError, ValueError, KeyError, RuntimeError, TypeError, RecursionError, MemoryError, UnicodeError, AssertionError,
]
each, turn = map(int, sys.argv[1:])
for at, (module, name) in enumerate(places):
    owner = importlib.import_module('broker_cli.' + module)
    *outer, name = name.split('.')
    for one in outer:
        owner = getattr(owner, one)
    kept = getattr(owner, name)
    for number in range(at * each, (at + 1) * each):
        fault = faults[(turn + number) % len(faults)]
        def fail(*given, **more):
            raise fault(f'canary {given} {more}')
        setattr(owner, name, fail)
        if name == 'only_field':
            importlib.import_module('broker_cli.run').only_field = fail
        run(['run', '--secret', 'DB=broker://team/db#password', '--file', 'KEY=broker://team/tls#key', '--', 'true'])
    setattr(owner, name, kept)
    if name == 'only_field':
        importlib.import_module('broker_cli.run').only_field = kept
"""


def assert_nothing_shown(job: Job, pipelines: Pipelines, each: int, turn: int) -> None:
    """By ``broker run`` when, at each of eight places, so many of the faults come, from this one on."""
    environment = job.environment | {"BROKER_DEBUG": "1", "GRPC_TRACE": "all"}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, str(each), str(turn)],
        env=environment, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert done.returncode == 0
    for hidden in (b"canary", PASSWORD, b"AAAAbbbb", b"brs_", jwt().encode(), b"Traceback"):
        assert hidden not in shown
    assert shown.count(b"unexpected fault") >= 7 * each
    assert pipelines.methods.count("EndSession") == pipelines.methods.count("FetchSecrets") >= 6 * each
