"""`init`: nothing lasting before all that was wished has been tried, and a second run does as told or says what not."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from broker import __main__ as main
from broker import app, checkup, options, setup
from broker.config import load
from broker.core.errors import BrokerError
from broker.hsm.tokens import create_softhsm_token, find_softhsm
from tests.servers.live import Live, environment, free_address
from tests.servers.patience import PATIENT
from tests.servers.postgres import Postgres
from tests.servers.softhsm import alone
from tests.servers.warm import begin, run

PIN = "canary-pin"
CLONE_NEWNS = 0x20000


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a token, and files beside it that are wrong in one way each."""
    folder = tmp_path_factory.mktemp("token")
    create_softhsm_token(folder, "right", PIN, "canary-so-pin")
    for name, text, mode in (("pin", PIN, 0o600), ("open", PIN, 0o644), ("wrong", "another-pin", 0o600)):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
        (folder / name).chmod(mode)
    return folder


def init(folder: Path, *words: str, token: Path | None = None, **wrong: str) -> subprocess.CompletedProcess[str]:
    """Run `init` to its end, on a free port each unless ports are given; ``wrong``: what is not as it should be."""
    given = {"--operators-address": "127.0.0.1:0", "--pipelines-address": "127.0.0.1:0"}
    extra = {}
    if token:
        given |= {"--module": str(find_softhsm()), "--token-label": "right", "--pin-file": str(token / "pin")}
        extra = {"SOFTHSM2_CONF": str(token / "softhsm2.conf")}
    given |= {f"--{name.replace('_', '-')}": value for name, value in wrong.items()}
    options = [word for pair in given.items() for word in pair if pair[0] not in words]
    return run(("init", *PATIENT, str(folder), *options, *words), environment=environment() | extra)


def copy_of(token: Path, tmp_path: Path) -> Path:
    """The token for one test alone."""
    mine = tmp_path / "token"
    shutil.copytree(token, mine)
    conf = mine / "softhsm2.conf"
    conf.write_text(conf.read_text().replace(str(token), str(mine)))
    return mine


def sampled(all_: Iterable[str], often: set[str]) -> list[Any]:
    """All of them in the long run, and these in any: each starts processes."""
    return [name if name in often else pytest.param(name, marks=pytest.mark.soak) for name in all_]


WRONG_TOKEN: dict[str, tuple[dict[str, str], str]] = {
    "module": ({"module": "/usr/lib/absent.so"}, "HSM_"),
    "no module": ({"module": "/etc/hostname"}, "HSM_"),
    "PIN file of mode 0644": ({"pin_file": "TOKEN/open"}, "HSM_PIN_FILE"),
    "wrong PIN": ({"pin_file": "TOKEN/wrong"}, "HSM_PIN_INCORRECT"),
}
WRONG: dict[str, tuple[dict[str, str], str]] = {
    "host": ({"host": "Not_A_Host"}, "SERVER_NAME_INVALID"),
    "port": ({"operators_address": "127.0.0.1:70000"}, "CONFIG_INVALID"),
    "one port": ({"operators_address": "0.0.0.0:7", "pipelines_address": "127.0.0.1:7"}, "CONFIG_INVALID"),
    "target": ({"allow_target": "https://vault:8200"}, "CONFIG_INVALID"),
    "operator": ({"operator": "../admin"}, "NAME_INVALID"),
    "database": ({"database": "postgresql://b@127.0.0.1:1/b"}, "STORE_UNAVAILABLE"),
    "password file": (
        {"database": "postgresql://b@127.0.0.1:1/b", "password_file": "TOKEN/open"},
        "FILE_NOT_PRIVATE",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_K01_a_wrong_wish_leaves_nothing_behind(token: Path, tmp_path: Path, what: str) -> None:
    typed, reason = WRONG[what]
    given = {"--operators-address": "127.0.0.1:0"} | {f"--{name.replace('_', '-')}": v for name, v in typed.items()}
    words = [word.replace("TOKEN", str(token)) for pair in given.items() for word in pair]
    asked = main.parser().parse_args(["init", str(tmp_path / "b"), *words])
    with pytest.raises(BrokerError) as refused:
        setup.initialise(options.wishes(asked, tmp_path / "b", development=False), app.now)
    assert refused.value.reason == reason
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", sampled(WRONG_TOKEN, {"PIN file of mode 0644"}))
def test_K01_a_wrong_token_leaves_nothing_behind(token: Path, tmp_path: Path, what: str) -> None:
    options, reason = WRONG_TOKEN[what]
    options = {name: value.replace("TOKEN", str(token)) for name, value in options.items()}
    done = init(tmp_path / "b", token=token, **options)
    assert done.returncode == 1
    assert reason in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
    assert PIN not in done.stderr


def test_K01_a_second_run_after_a_typing_error_is_as_the_first(token: Path, tmp_path: Path) -> None:
    mine = copy_of(token, tmp_path)
    assert init(tmp_path / "b", token=mine, token_label="rihgt").returncode == 1
    done = init(tmp_path / "b", "--allow-target", "vault:8200", token=mine)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "b" / "broker.toml").hsm.token_label == "right"
    assert load(tmp_path / "b" / "broker.toml").targets.allowed_hosts == {"vault:8200"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Live:
    broker = Live(tmp_path_factory.mktemp("made") / "broker")
    assert init(broker.folder).returncode == 0
    return broker


def names(broker: Live) -> set[str]:
    certificate = x509.load_pem_x509_certificate((broker.folder / "certificates" / "server.pem").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(one.value) for one in found}


def test_K01_a_second_run_does_what_it_is_told_or_says_what_it_ignores(made: Live) -> None:
    config = made.config.read_bytes()
    done = init(
        made.folder, "--host", "broker.example", "--allow-target", "vault:8200", "--allow-issuer", "10.0.0.1:443",
        "--bind-credential", "vault:8200/x=prod", operators_address="127.0.0.1:4711",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "broker.example" in names(made)
    assert {"localhost", "127.0.0.1"} <= names(made)
    ignored = [line for line in done.stdout.splitlines() if "ignored: " in line]
    for option in ("--allow-target vault:8200", "--allow-issuer 10.0.0.1:443", "--bind-credential vault:8200/x"):
        assert any(option in line for line in ignored)
    assert any("--operators-address 127.0.0.1:4711 (it says " in line for line in ignored)
    assert "--host" not in "".join(ignored)
    assert made.config.read_bytes() == config
    assert not (made.folder / "credentials" / "vault:8200").exists()
    quiet = init(made.folder)
    assert "ignored" not in quiet.stdout
    assert "INIT_DIFFERS" in init(made.folder, "--database", "sqlite:////srv/other.db").stderr


def test_K01_no_profile_is_overwritten_but_the_operators_own(made: Live, tmp_path: Path) -> None:
    profile = made.folder / "profile"
    settings = (profile / "profile.toml").read_text().replace("127.0.0.1", "broker.example")
    (profile / "profile.toml").write_text(settings)
    key = (profile / "key.pem").read_bytes()
    done = init(made.folder, "--operator", "bob")
    assert done.returncode == 0, done.stderr
    assert str(made.folder / "profile-bob") in done.stdout
    assert (profile / "key.pem").read_bytes() == key
    done = init(made.folder)
    assert (profile / "key.pem").read_bytes() != key
    assert (profile / "profile.toml").read_text() == settings
    assert "profile.toml is kept; it calls broker.example" in done.stdout
    foreign = tmp_path / "b"
    foreign.mkdir()
    (foreign / "profile").mkdir()
    foreign.chmod(0o755)
    with pytest.raises(BrokerError, match="close it with chmod 700"):  # before anything is made in it
        setup.initialise(setup.Wishes(folder=foreign, operators_address="127.0.0.1:0"), app.now)
    foreign.chmod(0o700)
    (foreign / "profile" / "important").write_text("mine")
    done = init(foreign)
    assert done.returncode == 0, done.stderr
    assert str(foreign / "profile-admin") in done.stdout
    assert [one.name for one in (foreign / "profile").iterdir()] == ["important"]


def test_K01_a_folder_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "within" / "it"):
        assert f"{tmp_path}/file is a file; name a folder" in init(wrong).stderr
    done = run(("init", os.fsdecode(os.fsencode(tmp_path) + b"/\xff")), environment=environment())
    assert "is not UTF-8" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def _left(folder: Path, stopped: Callable[[Path], bool], number: signal.Signals) -> bool:
    """Start `init`, and end it as soon as ``stopped`` says so; False when it was done before."""
    addresses = ("--operators-address", "127.0.0.1:0", "--pipelines-address", "127.0.0.1:0")
    words = ("init", str(folder), "--allow-target", "first:8200", *addresses)
    said = folder.with_name("said")
    process = begin(words, warm=True, said=said, environment=environment(), umask=0o077)
    pause = threading.Event()
    while process.poll() is None and not stopped(folder):
        pause.wait(0.002)
    process.send_signal(number)
    process.wait(200)
    assert process.stdout is not None
    process.stdout.close()
    if number == signal.SIGINT and process.returncode == 130 and (folder / "broker.toml.draft").exists():
        assert "is unfinished. Run the same command again" in said.read_text()
    return process.returncode != 0


PLACES: dict[str, Callable[[Path], bool]] = {
    "folder": lambda folder: folder.exists(),
    "draft": lambda folder: (folder / "broker.toml.draft").exists(),
    "token begun": lambda folder: (folder / "softhsm" / "tokens.new").exists(),
    "token made": lambda folder: any((folder / "softhsm" / "tokens").glob("*/*.object")),
    "database": lambda folder: (folder / "broker.db").exists(),
    "row key": lambda folder: any((folder / "certificates").glob("rows.key*")),
    "first CA": lambda folder: any((folder / "certificates").glob("*-ca.pem")),
    "certificate": lambda folder: (folder / "certificates" / "server.pem").exists(),
    "profile": lambda folder: (folder / "profile" / "cert.pem").exists(),
}


@pytest.mark.parametrize("place", sampled(PLACES, {"first CA"}))
def test_K01_an_init_that_was_ended_at_any_place_is_gone_on_with(tmp_path: Path, place: str) -> None:
    number = signal.SIGINT if len(place) % 2 else signal.SIGKILL
    broker = Live(tmp_path / "broker")
    if not _left(broker.folder, PLACES[place], number):
        pytest.skip("it was done before it could be ended")
    if (broker.folder / "broker.toml.draft").exists():
        unready = broker.command("serve", "--config", str(broker.config))
        assert "did not come to its end: run it again" in unready.stderr
    done = init(broker.folder, "--allow-target", "second:8200", "--host", "second.example")
    assert done.returncode == 0, done.stderr
    assert load(broker.config).targets.allowed_hosts == {"second:8200"}
    assert not list(broker.folder.glob("*.draft"))
    assert "second.example" in names(broker)
    assert check(broker) == {}


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)


def test_K01_a_database_of_another_program_or_broker_is_left_alone(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    url = postgres.url(database)
    with postgres.connect(database) as connection:
        connection.execute(b"CREATE TABLE orders (id int)")
    done = init(tmp_path / "a", "--database", url)
    assert "DATABASE_FOREIGN" in done.stderr
    with postgres.connect(database) as connection:
        connection.execute(b"DROP TABLE orders")
    assert init(tmp_path / "a", "--database", url).returncode == 0
    done = init(tmp_path / "b", "--database", url)
    assert "it is another's, so name an empty one. (ROW_KEY_MISSING)" in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def check(broker: Live) -> dict[str, str]:
    """The findings of `check` that failed."""
    done = broker.command("check", "--config", str(broker.config))
    lines = [line.removeprefix("FAIL  ") for line in done.stdout.splitlines() if line.startswith("FAIL")]
    return {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}


def change(broker: Live, old: str, new: str) -> None:
    text = broker.config.read_text()
    assert old in text
    broker.config.write_text(text.replace(old, new))


@pytest.mark.parametrize("tried", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_K01_what_does_not_belong_together_is_found_and_not_served(
    postgres: Postgres, database: str, tmp_path: Path, tried: int
) -> None:
    """Two brokers, and the one in turn with the other's database, token or certificates, or another trust domain.

    Two of these, others in each run; all in the soak.
    """
    one, other = Live(tmp_path / "one"), Live(tmp_path / "other")
    second = postgres.create_database()
    try:
        assert init(one.folder, "--database", postgres.url(database)).returncode == 0
        assert init(other.folder, "--database", postgres.url(second)).returncode == 0
        sound = one.config.read_text()
        exchanges = {
            (f"/{database}?", f"/{second}?"): ("store", "the database is another broker's"),
            (f"{one.folder}/certificates", f"{other.folder}/certificates"): ("hsm", "another key than"),
            (f"{one.folder}/softhsm", f"{other.folder}/softhsm"): ("hsm", ""),
            ('"broker.internal"', '"other.internal"'): ("store", "trust_domain is not what it was"),
        }
        for (mine, others), (finding, said) in random.sample(list(exchanges.items()), tried):
            change(one, mine, others)
            assert said in check(one)[finding], mine
            if finding == "store":
                assert said in one.command("serve", "--config", str(one.config)).stderr, mine
            one.config.write_text(sound)
    finally:
        postgres.drop_database(second)


def test_K01_two_copies_of_a_token_on_one_database_are_found_once_they_differ(
    postgres: Postgres, database: str, tmp_path: Path
) -> None:
    """A SoftHSM token was copied to a second host: what the first makes from then on, the second does not have."""
    first = Live(tmp_path / "first")
    assert init(first.folder, "--database", postgres.url(database)).returncode == 0
    second = Live(tmp_path / "second")
    shutil.copytree(first.folder, second.folder)
    for file in (second.config, second.folder / "softhsm" / "softhsm2.conf"):
        file.write_text(file.read_text().replace(str(first.folder), str(second.folder)))
    change(second, f'"{first.address}"', f'"{free_address()}"')
    change(second, f'"{first.pipelines}"', f'"{free_address()}"')
    change(second, "[store]", '[store]\nreplica = "second"')
    assert check(second) == {}
    try:
        first.start()
        with first.client() as admin:
            admin.ask("CreateKey", name="late", type="KEY_TYPE_EC_P256", usage="KEY_USAGE_SIGN")
    finally:
        first.close()
    assert "1 of 2 keys of the database are not in this token, first key/late/1" in check(second)["store"]
    assert check(first) == {}


def _born_ahead(folder: Path) -> None:
    wishes = setup.Wishes(folder=folder, operators_address="127.0.0.1:0", pipelines_address="127.0.0.1:0")
    setup.initialise(wishes, lambda: app.now() + timedelta(days=365))


def test_K08_a_broker_that_was_made_a_year_ahead_is_found_and_not_served(tmp_path: Path) -> None:
    broker = Live(tmp_path / "broker")
    alone(_born_ahead, broker.folder)
    assert "starts at" in check(broker)["certificates"]
    served = broker.command("serve", "--config", str(broker.config))
    assert served.returncode == 1
    assert "(CERTIFICATE_NOT_YET_VALID)" in served.stderr


def test_K08_the_servers_and_the_first_operators_certificates_are_backdated(made: Live) -> None:
    for file in ("certificates/server.pem", "profile/cert.pem"):
        start = x509.load_pem_x509_certificate((made.folder / file).read_bytes()).not_valid_before_utc
        written = datetime.fromtimestamp((made.folder / file).stat().st_mtime, UTC)
        assert written - start >= timedelta(seconds=59)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_K13_certificates_on_a_read_only_mount_are_found_today(made: Live) -> None:
    [failed] = alone(_found_when_mounted_read_only, made.config, made.folder / "certificates")
    assert failed.startswith("certificates: Nothing can be written in")
    assert "Read-only file system" in failed


def _found_when_mounted_read_only(config: Path, folder: Path) -> list[str]:
    """What `check` finds wrong; the mounts are this process's own."""
    assert ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0  # ``os`` has it from Python 3.12 on
    for words in (
        ["--make-rprivate", "/"],
        ["--bind", str(folder), str(folder)],
        ["-o", "remount,bind,ro", str(folder)],
    ):
        subprocess.run(["mount", *words], check=True, timeout=60)
    return [f"{one.name}: {one.detail}" for one in checkup.findings_for(config) if not one.passed]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_K09_a_user_without_a_home_or_an_entry_does_everything_by_flags(tmp_path: Path) -> None:
    """As a container's random user id; it may read all files, so that it gets to this Python wherever that is."""
    user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    bare = {name: value for name, value in environment().items() if name != "HOME"}
    home = tmp_path / "b"
    home.mkdir(mode=0o700)
    os.chown(home, 54321, 54321)

    def asked(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*user, sys.executable, "-P", "-m", "broker_cli", *words],
            capture_output=True, text=True, timeout=200, check=False, env=bare, cwd="/",
        )  # fmt: skip

    done = asked("init", str(home), "--operators-address", "127.0.0.1:0", "--pipelines-address", "127.0.0.1:0")
    assert done.returncode == 0, done.stderr
    profile = {"--ca-file": "ca.pem", "--cert": "cert.pem", "--key": "key.pem"}
    flags = [word for flag, name in profile.items() for word in (flag, str(home / "profile" / name))]
    away = asked("status", "--address", "127.0.0.1:1", *flags)
    assert "[BROKER_UNREACHABLE]" in away.stderr
    for words in (["status"], ["operator", "list"]):
        bare_words = asked(*words)
        assert bare_words.returncode == 4
        assert "This user has no home folder" in bare_words.stderr
