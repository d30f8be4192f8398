"""`python -m broker`: make a broker (`init`), run it (`serve`), try one out (`dev`), look at its set-up (`check`).

After a backup was restored: go on with it (`accept-restore`).
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NoReturn, TextIO, cast

import structlog

from broker import acceptance, app, checkup, options, profiles, setup, supervisor
from broker.config import DRAFT, Config, load
from broker.core.errors import BrokerError, InvalidRequest, WrongState
from broker.core.reasons import Reason
from broker.processor import keep_to_one

log = structlog.get_logger("broker")

REFUSED = (
    "SSLKEYLOGFILE",  # would write the keys of every TLS connection
    "GRPC_TRACE",  # would log what is in the messages
    "LD_PRELOAD",  # would put foreign code beside the PIN, as would the next three
    "LD_AUDIT",
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "GRPC_SSL_CIPHER_SUITES",  # would choose the suites of the listeners
)

M_ARENA_MAX = -8
PR_SET_DUMPABLE = 4  # prctl(2)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 refused or failed (one sentence on stderr), 2 wrong usage."""
    asked = parser().parse_args(arguments)
    os.umask(0o077)
    _keep_memory_private()
    _share_one_heap()
    _log_to_stderr()
    try:
        _check_environment()
        result: int = asked.run(asked)
    except BrokerError as error:
        print(f"broker: {error.message} ({error.reason})", file=sys.stderr)
        return 1
    except OSError as error:  # a file, a folder or an address that the system would not give
        where = f"{error.filename}: " if error.filename else ""
        print(f"broker: The system refused: {where}{error.strerror}. (SYSTEM_REFUSED)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("broker: interrupted", file=sys.stderr)
        return 130
    return result


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    words = argparse.ArgumentParser(prog="broker")
    commands = words.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="run the broker until SIGTERM",
        description="Run the broker in the foreground. SIGTERM or Ctrl-C ends it when the calls under way are done. "
        "The log goes to stderr, a line of JSON an event.",
    )
    _add_config(serve)
    for internal in ("--worker", "--operators-address", "--pipelines-address"):  # the supervisor tells its workers
        serve.add_argument(internal, default="", help=argparse.SUPPRESS)
    serve.set_defaults(run=_serve)
    _add_init(commands)
    dev = commands.add_parser(
        "dev",
        help="init and serve in one, in a temporary folder unless one is named",
        description="Start a broker for trying out: a SoftHSM token, SQLite, TLS and a first operator, in a temporary "
        "folder unless one is named. Ctrl-C ends it.",
    )
    dev.add_argument("--folder", type=Path, help="keep everything here; else it is all gone when the broker ends")
    options.add_wishes(dev)
    dev.set_defaults(run=_dev)
    check = commands.add_parser("check", help="look at a broker's set-up without starting it")
    _add_config(check)
    check.add_argument("--format", choices=["table", "json"], default="table")
    check.set_defaults(run=checkup.run)
    accept = commands.add_parser(
        "accept-restore",
        help="go on with a database that was restored from a backup",
        description="Go on with a database that is older than this host's audit journal. All sessions are ended. Run "
        "it on each host that a broker refuses to start on.",
    )
    _add_config(accept)
    accept.set_defaults(run=acceptance.run)
    return words


def _add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    init = commands.add_parser(
        "init",
        help="make a broker in a folder: token, CAs, first policy, first operator",
        description="Make a broker in a folder. Where there is one already (and it is stopped), only the first "
        "operator's profile is renewed; its other options are in broker.toml.",
    )
    init.add_argument("folder", type=Path, help="where the broker lives; it cannot be moved later")
    options.add_wishes(init)
    options.add_ground(init)
    init.set_defaults(run=_init)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the broker.toml that init made")


def _init(asked: argparse.Namespace) -> int:
    folder = _folder(asked.folder)
    file = folder / setup.FILE
    existed = file.exists()
    told: list[str] = []
    with _unfinished(folder):
        config = setup.initialise(options.wishes(asked, folder, development=False), app.now, told.append)
    if existed:
        print(f"broker: {file} was there already and is not changed; the profile of {asked.operator} is renewed")
    else:
        print(f"broker: initialised in {folder}")
    for sentence in told:
        _tell(sentence)
    print(f"broker: start it with: broker serve --config {file}")
    print(f"broker: use it with: export BROKER_PROFILE={_profile(folder, asked.operator, config)}")
    return 0


def _profile(folder: Path, operator: str, config: Config) -> Path:
    return profiles.folder_of(folder, operator, config.trust_domain)


def _folder(given: Path) -> Path:
    """The folder by its whole name; InvalidRequest ``FOLDER_INVALID`` if it has none, or one that no file can hold."""
    try:
        folder = given.absolute()
        str(folder).encode()
    except FileNotFoundError as error:
        raise InvalidRequest(
            Reason.FOLDER_INVALID, "The current folder is gone; give the whole path of one."
        ) from error
    except UnicodeEncodeError as error:
        raise InvalidRequest(Reason.FOLDER_INVALID, "The folder's name is not UTF-8; give one that is.") from error
    return folder


@contextmanager
def _unfinished(folder: Path) -> Iterator[None]:
    """Name what is left when a broker is made and something stops it."""
    try:
        yield
    except BaseException:
        if (folder / (setup.FILE + DRAFT)).exists():
            print(
                f"broker: {folder} is unfinished. Run the same command again to go on with it when what follows is "
                "mended.",
                file=sys.stderr,
            )
        raise


def _serve(asked: argparse.Namespace) -> int:
    config = load(asked.config)
    if asked.worker:
        return _work(config, int(asked.worker), *_addresses(asked))
    if config.server.workers == 1:
        return run(config)
    return supervisor.supervise(config, asked.config.absolute(), lambda *held: _say_ready(config, *held))


def _addresses(asked: argparse.Namespace) -> tuple[str, str]:
    return asked.operators_address, asked.pipelines_address


def _work(config: Config, number: int, operators: str, pipelines: str) -> int:
    """One worker of several."""
    try:
        return run(supervisor.worker_config(config, number, operators, pipelines), worker=number)
    except BrokerError as error:
        print(f"broker: {error.message} ({error.reason})", file=sys.stderr)
        return supervisor.exit_code(error)


def _dev(asked: argparse.Namespace) -> int:
    if asked.folder:
        return _develop(asked, asked.folder)
    with tempfile.TemporaryDirectory(prefix="broker-dev-") as folder:
        return _develop(asked, Path(folder))


def _develop(asked: argparse.Namespace, folder: Path) -> int:
    folder = _folder(folder)
    with _unfinished(folder):
        config = setup.initialise(options.wishes(asked, folder, development=True), app.now, _tell)
    return run(config, _profile(folder, asked.operator, config))


def _tell(sentence: str) -> None:
    print(f"broker: {sentence}")


def run(config: Config, profile: Path | None = None, worker: int = 0) -> int:
    """Answer until a signal or the loss of a thread ends it; the exit code."""
    # Its put may interrupt its own get, as a signal does; an Event's set would wait for the Event's wait, for ever.
    ends: SimpleQueue[int] = SimpleQueue()

    def thread_lost(what: threading.ExceptHookArgs) -> None:
        """None of the broker's threads ends by an error; were it grpc's, nobody would be answered any more."""
        log.error("a thread was lost, so the broker ends", error=what.exc_type.__name__)
        ends.put(1)

    threading.excepthook = thread_lost
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ends.put(0))
    if config.server.workers > 1:
        supervisor.end_with_supervisor(lambda: ends.put(0))
    if config.server.one_processor:
        keep_to_one(worker)
    broker = app.Broker(config)
    try:
        if not ends.empty():  # asked to end while it was being built
            return ends.get()
        broker.serve()
        _collect_less_often()
        _say_ready(config, config.server.operators_address, config.server.pipelines_address, profile)
        code = _first(ends)
        broker.drain()
    finally:
        broker.close()
    return code


def _first(ends: SimpleQueue[int]) -> int:
    """Wait for the end; it looks up every second, as a signal that comes just before a wait does not end that wait."""
    while True:
        with suppress(Empty):
            return ends.get(timeout=1.0)


def _share_one_heap() -> None:
    """One heap for all threads (mallopt(3)): they take turns anyway, and each heap keeps what it once used."""
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _collect_less_often() -> None:
    """What is there now stays, and a call leaves hardly any cycles: looking for them costs a tenth of its time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _say_ready(config: Config, operators: str, pipelines: str, profile: Path | None = None) -> None:
    print(f"broker: operators on {operators}, pipelines on {pipelines}")
    if config.development:
        profile = profile or config.certificates.parent / "profile"
        print(f"broker: for trying out, not for secrets that matter; use it with: export BROKER_PROFILE={profile}")
    print("broker: ready", flush=True)


def _keep_memory_private() -> None:
    """No core file, not even through a pipe of the system's, and no debugger of the same user: the PIN is in here."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _check_environment() -> None:
    for name in REFUSED:
        if os.environ.get(name):
            raise WrongState(
                Reason.ENVIRONMENT_REFUSED, f"The environment variable {name} is set and would leak secrets; unset it."
            )


class _Stderr:
    """Where the log goes. A line that cannot be written is dropped: a full log volume must not change any answer."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            os.write(2, text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Nothing is held back."""


def _log_to_stderr() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
    )


def end(code: int) -> NoReturn:
    """End now: Python would wait for every thread, and one may be in a call that somebody else's server holds up."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main())
