"""How the broker starts, and how it refuses to: exit code 1, one sentence, no traceback, no secret."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute
from pkcs11.util.ec import encode_named_curve_parameters

from broker.__main__ import main
from broker.config import load
from broker.hsm.config import HsmConfig
from broker.hsm.tokens import create_softhsm_token
from tests.servers.live import Live, cli, environment, free_address
from tests.servers.postgres import Postgres
from tests.servers.softhsm import alone
from tests.servers.warm import run

EC_P256, SIGN = 4, 1
PR_GET_DUMPABLE = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A broker for keeps that is initialised and does not run."""
    broker = Live(tmp_path_factory.mktemp("made") / "broker")
    done = broker.command(
        "init", str(broker.folder), "--operators-address", free_address(), "--pipelines-address", free_address()
    )
    assert done.returncode == 0, done.stderr
    assert str(broker.config) in done.stdout
    assert broker.pin not in done.stdout + done.stderr
    return broker


@pytest.fixture
def copy(made: Live, tmp_path: Path) -> Live:
    """The same broker in a folder that this test may break."""
    broker = Live(tmp_path / "broker")
    shutil.copytree(made.folder, broker.folder)
    for file in broker.folder.rglob("*"):
        if file.suffix in {".toml", ".conf"}:
            file.write_text(file.read_text().replace(str(made.folder), str(broker.folder)))
    for address in (made.address, made.pipelines):  # what was free when it was made may not be any more
        fresh = free_address()
        for file in (broker.config, *broker.folder.glob("profile/*.toml")):
            file.write_text(file.read_text().replace(address, fresh))
    return broker


def change(broker: Live, old: str, new: str) -> None:
    text = broker.config.read_text()
    assert old in text
    broker.config.write_text(text.replace(old, new))


def line(broker: Live, name: str, value: str) -> None:
    """Give a setting of broker.toml another value (TOML)."""
    lines = broker.config.read_text().splitlines()
    assert any(one.startswith(f"{name} = ") for one in lines)
    broker.config.write_text("\n".join(f"{name} = {value}" if one.startswith(f"{name} = ") else one for one in lines))


def wrong_pin(broker: Live) -> None:
    (broker.folder / "hsm-pin").write_text("canary-wrong-pin")


def no_token(broker: Live) -> None:
    tokens = broker.folder / "softhsm" / "tokens"
    shutil.rmtree(tokens)
    tokens.mkdir(mode=0o700)


def other_token(broker: Live) -> None:
    """The token was made anew under the same label and PIN: the broker's own keys are not there."""
    shutil.rmtree(broker.folder / "softhsm")
    create_softhsm_token(broker.folder / "softhsm", "broker", broker.pin, "canary-so-pin")


def open_pin(broker: Live) -> None:
    (broker.folder / "hsm-pin").chmod(0o644)


def other_server_key(broker: Live) -> None:
    shutil.copy(broker.folder / "profile" / "key.pem", broker.folder / "certificates" / "server.key")


# What breaks it, the reason it is refused with where that is told apart, and the check that finds it ("": not asked).
FAULTS: dict[str, tuple[Callable[[Live], object], str, str]] = {
    "wrong PIN": (wrong_pin, "HSM_PIN_INCORRECT", "hsm"),
    "open PIN file": (open_pin, "", "private files"),
    "missing module": (lambda broker: line(broker, "module", '"/usr/lib/absent.so"'), "", ""),
    "not a module": (lambda broker: line(broker, "module", '"/etc/hostname"'), "", ""),
    "token not initialised": (no_token, "", "hsm"),
    "another token": (other_token, "", ""),
    "unknown setting": (lambda broker: change(broker, "[store]", "[store]\nverbose = true"), "CONFIG_INVALID", ""),
    "open journal": (lambda broker: (broker.folder / "journal").chmod(0o755), "FILE_NOT_PRIVATE", ""),
    "no database": (lambda broker: (broker.folder / "broker.db").unlink(), "STORE_MISSING", "store"),
    "certificate of another key": (other_server_key, "TLS_FILES_DIFFER", "certificates"),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_set_up_is_refused_at_start_and_found_by_check(fault: str, copy: Live) -> None:
    breaks, reason, finding = FAULTS[fault]
    pin = copy.pin
    breaks(copy)
    done = copy.command("serve", "--config", str(copy.config))
    assert done.returncode == 1, done
    assert_one_sentence(done, pin)
    assert f"({reason})" in done.stderr if reason else True
    if finding:
        assert_found(copy, finding, pin)


def assert_found(copy: Live, finding: str, pin: str) -> None:
    checked = copy.command("check", "--config", str(copy.config))
    assert checked.returncode == 10, checked
    assert [one for one in checked.stdout.splitlines() if one.startswith("FAIL") and finding in one], checked.stdout
    assert "Traceback" not in checked.stderr
    assert pin not in checked.stdout + checked.stderr


def assert_one_sentence(done: subprocess.CompletedProcess[str], *secrets: str) -> None:
    said = done.stderr.strip()
    assert said.count("\n") == 0, said
    assert said.startswith("broker: ")
    assert said.endswith(")")
    for banned in ("Traceback", "canary", *secrets):
        assert banned not in said + done.stdout


def test_a_healthy_broker_passes_check(made: Live) -> None:
    done = made.command("check", "--config", str(made.config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout


def test_a_healthy_broker_passes_doctor(live: Live) -> None:
    done = cli("doctor", profile=live.folder / "profile")
    assert done.returncode == 0, done.stdout + done.stderr
    assert live.pin not in done.stdout + done.stderr


def test_the_host_of_a_running_broker_passes_doctor(live: Live) -> None:
    done = cli("doctor", "--config", str(live.config), "--format", "json")
    found = {one["name"]: (one["status"], one["detail"]) for one in json.loads(done.stdout)}
    assert done.returncode == 0, found
    assert found["ports"] == ("ok", "the running broker listens on its ports")
    assert found["store"][0] == "ok"
    assert "server.operators_address" not in found


def hang_up(server: socket.socket) -> None:
    server.accept()[0].close()


def test_another_server_on_the_brokers_port_is_found(copy: Live) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        change(copy, load(copy.config).server.operators_address, taken)
        hanging_up = threading.Thread(target=hang_up, args=(other,))
        hanging_up.start()
        assert_found(copy, f"ports: The broker cannot listen on {taken}", copy.pin)
        hanging_up.join(60)


def test_init_of_what_is_there_says_that_it_changes_nothing(copy: Live) -> None:
    before = copy.config.read_text(encoding="utf-8")
    done = copy.command("init", str(copy.folder), "--allow-target", "vault.example:8200")
    assert (done.returncode, "is not changed" in done.stdout) == (0, True), done
    assert copy.config.read_text(encoding="utf-8") == before


def test_O_13_init_puts_no_ca_into_a_profile_that_somebody_else_has_planted(copy: Live) -> None:
    file = copy.folder / "certificates" / "server-ca.pem"
    shutil.rmtree(copy.folder / "profile")
    file.write_bytes(file.read_bytes() + (copy.folder / "certificates" / "operator-ca.pem").read_bytes())
    done = copy.command("init", str(copy.folder))
    assert (done.returncode, "(FILE_DAMAGED)" in done.stderr) == (1, True), done
    assert not (copy.folder / "profile").exists()


def test_a_token_of_ones_own_is_named_whole(tmp_path: Path, made: Live) -> None:
    done = made.command("init", str(tmp_path / "new"), "--module", "/usr/lib/x.so")
    assert (done.returncode, "(TOKEN_INCOMPLETE)" in done.stderr) == (1, True), done
    assert "--token-label, --pin-file must be given too" in done.stderr
    assert not (tmp_path / "new").exists()


def test_ST_08_a_second_broker_on_the_same_folder_is_refused(live: Live) -> None:
    for words in (("serve", "--config", str(live.config)), ("dev", "--folder", str(live.folder))):
        done = live.command(*words)
        assert done.returncode == 1
        assert_one_sentence(done, live.pin)
        assert "(STORE_IN_USE)" in done.stderr
    with live.client() as admin:
        assert admin.ask("WhoAmI").principal == "operator/admin"


LEAKING = ["SSLKEYLOGFILE", "GRPC_TRACE", "LD_PRELOAD"]


@pytest.mark.parametrize("name", LEAKING)
def test_SC_08_an_environment_that_would_leak_is_refused(name: str, made: Live, tmp_path: Path) -> None:
    assert_refused(made, name, tmp_path / "leak", cold=name == "LD_PRELOAD")


@pytest.mark.soak
@pytest.mark.parametrize("name", LEAKING)
def test_SC_08_an_environment_that_would_leak_is_refused_before_anything_is_loaded(
    name: str, made: Live, tmp_path: Path
) -> None:
    assert_refused(made, name, tmp_path / "leak", cold=True)


def assert_refused(made: Live, name: str, leak: Path, *, cold: bool) -> None:
    value = "/lib/x86_64-linux-gnu/libm.so.6" if name == "LD_PRELOAD" else str(leak)
    words = ("serve", "--config", str(made.config))
    if cold:  # the libraries find it when they are loaded
        done = subprocess.run(
            ["/usr/bin/env", f"{name}={value}", sys.executable, "-P", "-m", "broker", *words],
            capture_output=True, text=True, timeout=200, check=False, env=environment(),
        )  # fmt: skip
    else:
        done = run(words, environment=environment() | {name: value})
    assert done.returncode == 1
    assert_one_sentence(done, made.pin)
    assert "(ENVIRONMENT_REFUSED)" in done.stderr
    assert name in done.stderr
    assert not leak.exists()


def leave_remnant(config: HsmConfig) -> None:
    """A public half whose point was not written any more, as a kill leaves it in SoftHSM."""
    os.environ.update(config.environment)
    token = pkcs11.lib(str(config.module)).get_token(token_label=config.token_label)
    name = secrets.token_bytes(16)
    with token.open(rw=True, user_pin=config.pin_file.read_text().strip()) as session:
        session.create_object({
            Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY,
            Attribute.KEY_TYPE: pkcs11.KeyType.EC,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: False,
            Attribute.ID: name,
            Attribute.LABEL: "broker:key:half/1",
            Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1"),
            Attribute.EC_POINT: b"",
        })  # fmt: skip


def test_FT_01_a_half_written_key_does_not_keep_the_broker_down(copy: Live) -> None:
    alone(leave_remnant, load(copy.config).hsm)
    try:
        copy.start("serve", "--config", str(copy.config))
        with copy.client() as admin:
            assert admin.ask("GetHsm").answering
        assert copy.terminate() == 0
    finally:
        copy.close()


def test_SC_08_ST_07_other_variables_and_the_umask_change_nothing(copy: Live, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.conf"
    foreign.write_text("nonsense")
    variables = {
        "SOFTHSM2_CONF": str(foreign), "SSL_CERT_FILE": str(foreign),
        "PGHOST": "192.0.2.1", "PGSERVICEFILE": str(foreign), "VAULT_ADDR": "http://192.0.2.1",
        "VAULT_TOKEN": "canary-token", "VAULT_SKIP_VERIFY": "1", "https_proxy": "http://127.0.0.1:9",
        "GRPC_VERBOSITY": "DEBUG", "PKCS11SPY": "/usr/lib/absent.so", "TMPDIR": str(tmp_path),
    }  # fmt: skip
    shutil.rmtree(copy.folder)
    try:
        copy.start(umask=0o000, extra=variables)
        with copy.client() as admin:
            admin.ask("CreateKey", name="first", type=EC_P256, usage=SIGN)
            assert admin.ask("Sign", name="first", input={"message": b"m"}).signature
        for file in (copy.folder, *copy.folder.rglob("*")):
            mode = stat.S_IMODE(file.lstat().st_mode)
            assert mode & 0o077 == 0, f"{file} has mode {mode:04o}"
        assert copy.terminate() == 0
    finally:
        copy.close()
    assert copy.pin not in copy.said


def test_CL_06_no_core_is_written(live: Live) -> None:
    assert live.process is not None
    limits = Path(f"/proc/{live.process.pid}/limits").read_text()
    core = next(one for one in limits.splitlines() if one.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    assert resource.prlimit(live.process.pid, resource.RLIMIT_CORE) == (0, 0)


def test_CL_06_its_memory_cannot_be_read_by_other_processes_of_its_user() -> None:
    assert alone(dumpable_before_and_after) == (1, 0)


def dumpable_before_and_after() -> tuple[int, int]:
    """Whether this process may be read by others of its user, before it is the broker's program and then."""
    own = ctypes.CDLL(None)
    before = own.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    main(["check", "--config", "/absent"])
    return before, own.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)


def test_the_pin_is_in_no_argument_and_no_environment(live: Live) -> None:
    assert live.process is not None
    for name in ("cmdline", "environ"):
        assert live.pin.encode() not in Path(f"/proc/{live.process.pid}/{name}").read_bytes()


def test_the_whole_broker_on_postgresql(tmp_path: Path, postgres: Postgres) -> None:
    broker, database = Live(tmp_path / "broker"), postgres.create_database()
    places = ("--operators-address", free_address(), "--pipelines-address", free_address())
    try:
        done = broker.command("init", str(broker.folder), *places, "--database", postgres.url(database))
        assert done.returncode == 0, done.stderr
        broker.start()
        admin = broker.client()
        admin.ask("CreateKey", name="first", type=EC_P256, usage=SIGN)
        assert admin.ask("Sign", name="first", input={"message": b"m"}).version == 1
        admin.ask("RotateKey", name="first")
        assert admin.ask("Sign", name="first", input={"message": b"m"}).version == 2
        assert broker.terminate() == 0
        broker.start()
        assert [one.name for one in broker.client().everything("ListKeys", "keys")] == ["first"]
        assert broker.terminate() == 0
        assert broker.verify()
        assert not list(broker.folder.glob("*.db*"))
    finally:
        broker.close()
        postgres.drop_database(database)


def test_a_database_that_is_away_is_refused_at_start(copy: Live, tmp_path: Path) -> None:
    line(copy, "url", f'"postgresql://broker@/none?host={tmp_path}&port=5432"')
    done = copy.command("serve", "--config", str(copy.config))
    assert done.returncode == 1
    logged, sentence = done.stderr.splitlines()
    assert "There is no socket of PostgreSQL" in sentence
    assert sentence.endswith("(STORE_UNAVAILABLE)")
    assert ".s.PGSQL.5432" in json.loads(logged)["said"]  # the driver's own words are for the log alone


def test_a_broker_that_listens_everywhere_has_a_profile_that_can_be_used(tmp_path: Path) -> None:
    broker = Live(tmp_path / "broker")
    everywhere = [f"0.0.0.0:{free_address().rpartition(':')[2]}" for _ in range(2)]
    words = ("--operators-address", everywhere[0], "--pipelines-address", everywhere[1])
    try:
        done = broker.command("init", str(broker.folder), *words)
        assert done.returncode == 0, done.stderr
        broker.start()
        asked = cli("status", profile=broker.folder / "profile")
        assert asked.returncode == 0, asked.stdout + asked.stderr
        assert broker.terminate() == 0
    finally:
        broker.close()
