"""Where the broker is and who we are: precedence, privacy, trust, and one sentence for each way of failing."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_cli import profiles
from broker_cli.refusal import Refusal

from tests.live.cli.test_standin import (
    Authority,
    Broker,
    StandIn,
    bare,
    broker,
    running,
    serve,
    server_certificate,
    stand_in,
    write_profile,
)

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures


@contextmanager
def plaintext_server() -> Iterator[str]:
    """Something that answers every connection in the clear."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            while True:
                try:
                    accepted, _ = listening.accept()
                except OSError:
                    return
                with accepted:
                    accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_flag_goes_before_the_environment_before_the_profile(tmp_path: Path) -> None:
    folder = write_profile(tmp_path / "p", Authority("CA"), "profile:1")
    environ = {"BROKER_ADDRESS": "environment:2", "BROKER_PROFILE": str(folder)}
    assert profiles.locate({"address": "flag:3"}, environ).address == "flag:3"
    assert profiles.locate({}, environ).address == "environment:2"
    del environ["BROKER_ADDRESS"]
    place = profiles.locate({"cert": "/flag.pem"}, environ)
    assert (place.address, place.certificate, place.key) == ("profile:1", Path("/flag.pem"), folder / "key.pem")


def test_a_named_profile_is_below_the_config_folder(tmp_path: Path) -> None:
    folder = tmp_path / "broker" / "profiles" / "prod"
    write_profile(folder, Authority("CA"), "prod:1")
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert profiles.locate({"profile": "prod"}, environ).folder == folder
    assert profiles.profile_folder("prod", {"HOME": "/srv/x"}) == Path("/srv/x/.config/broker/profiles/prod")
    for bad in ("..", "a\x00b", "A", "-x"):
        with pytest.raises(Refusal, match="name is not valid"):
            profiles.profile_folder(bad, environ)


def test_no_profile_is_not_logged_in(bare: Broker) -> None:
    ended = bare("key", "list")
    assert (ended.code, ended.raw) == (4, b"")
    assert "PROFILE_MISSING" in ended.err


def test_a_folder_here_that_is_named_like_a_profile_is_pointed_at(
    bare: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(tmp_path / "alice", Authority("CA"), "prod:1")
    monkeypatch.chdir(tmp_path)
    ended = bare("key", "list", "--profile", "alice")
    assert (ended.code, '"./alice"' in ended.err) == (4, True), ended.err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("address = 1", "no text"),
        ("adress = 'x'", "unknown setting"),
        ("= broken", "not TOML"),
        ("\xff", "no text|TOML"),
    ],
)
def test_a_profile_is_refused_whole(bare: Broker, tmp_path: Path, text: str, why: str) -> None:
    del why
    (tmp_path / "profile.toml").write_bytes(text.encode("latin-1"))
    ended = bare("key", "list", "--profile", tmp_path)
    assert (ended.code, "PROFILE_INVALID" in ended.err) == (1, True)


def test_a_key_that_others_can_read_is_refused(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "broker" / "profiles" / "default"
    (folder / "key.pem").chmod(0o640)
    for line in (["key", "list"], ["operator", "renew"]):
        ended = broker(*line)
        assert (ended.code, "FILE_MODE_LOOSE" in ended.err, stand_in.seen) == (1, True, [])
    (folder / "key.pem").unlink()
    os.mkfifo(folder / "key.pem", 0o600)
    (folder / "key.pem").unlink()
    (folder / "key.pem").mkdir(0o700)
    assert broker("key", "list").code == 1


def test_the_server_must_be_from_the_ca_and_have_the_name(bare: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    port = stand_in.address.rpartition(":")[2]
    other = write_profile(tmp_path / "other", Authority("other CA"), stand_in.address)
    renamed = serve(stand_in, server_certificate(stand_in.authority, name="elsewhere"))
    wrong_name = write_profile(tmp_path / "name", stand_in.authority, f"localhost:{renamed.port}")
    try:
        for folder in (other, wrong_name):
            ended = bare("key", "list", "--profile", folder)
            assert (ended.code, "SERVER_NOT_TRUSTED" in ended.err) == (5, True), ended.err
        assert bare("key", "list", "--profile", wrong_name, "--address", f"127.0.0.1:{port}").code == 0
    finally:
        renamed.server.stop(None).wait()


def test_CL_12_no_variable_switches_the_server_check_off(
    bare: Broker, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_profile(tmp_path / "p", Authority("other CA"), stand_in.address)
    for name in ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE"):
        (tmp_path / "true-ca.pem").write_bytes(stand_in.authority.pem)
        monkeypatch.setenv(name, str(tmp_path / "true-ca.pem"))
    monkeypatch.setenv("GRPC_SSL_CIPHER_SUITES", "NULL")
    monkeypatch.setenv("BROKER_INSECURE", "1")
    assert bare("key", "list", "--profile", folder).code == 5


def test_a_certificate_out_of_its_time_is_told_before_any_call(bare: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    old = write_profile(tmp_path / "old", stand_in.authority, stand_in.address, start=-9, end=-1)
    early = write_profile(tmp_path / "early", stand_in.authority, stand_in.address, start=1)
    ended = bare("key", "list", "--profile", old)
    assert (ended.code, "CERTIFICATE_EXPIRED" in ended.err, "operator issue" in ended.err) == (4, True, True)
    ended = bare("key", "list", "--profile", early)
    assert (ended.code, "CERTIFICATE_NOT_YET_VALID" in ended.err) == (4, True)
    assert stand_in.seen == []


def test_nobody_there_is_unavailable(bare: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    folder = write_profile(tmp_path / "p", stand_in.authority, f"127.0.0.1:{free}")
    ended = bare("key", "list", "--profile", folder)
    assert (ended.code, "BROKER_UNREACHABLE" in ended.err) == (5, True)


def test_a_certificate_that_the_server_refuses_is_named_and_the_broker_is_not_called_away(
    bare: Broker, stand_in: StandIn, tmp_path: Path
) -> None:
    folder = write_profile(tmp_path / "p", Authority("a retired CA"), stand_in.address)
    trusted = write_profile(tmp_path / "other", stand_in.authority, stand_in.address)
    (folder / "ca.pem").write_bytes((trusted / "ca.pem").read_bytes())
    for command in (("key", "list"), ("status",)):
        ended = bare(*command, "--profile", folder)
        assert (ended.code, "[CERTIFICATE_REFUSED]" in ended.err) == (4, True), ended.err
        assert f"{folder}/cert.pem (serial " in ended.err
        assert "broker operator issue" in ended.err
    assert stand_in.seen == []


def test_a_plaintext_port_is_unavailable(bare: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    with plaintext_server() as address:
        folder = write_profile(tmp_path / "p", stand_in.authority, address)
        ended = bare("key", "list", "--profile", folder)
        assert ended.code == 5, ended.err
        told = bare("doctor", "--profile", folder, "--format", "json").out
        assert "plaintext port" in told


def test_an_answer_that_does_not_come_ends_at_the_deadline(broker: Broker, stand_in: StandIn) -> None:
    never = threading.Event()
    stand_in.answers["WhoAmI"] = lambda _: never.wait(5)
    ended = broker("operator", "whoami", "--timeout", "0.3")
    never.set()
    assert (ended.code, "DEADLINE_EXCEEDED" in ended.err) == (5, True)


@pytest.mark.parametrize(
    "address", ["http://localhost:1", "localhost", "https://localhost", "a b:1", "x:99999999", ":1", "h:1/path"]
)
def test_an_address_is_host_and_port(broker: Broker, address: str) -> None:
    ended = broker("key", "list", "--address", address)
    assert (ended.code, "ADDRESS_INVALID" in ended.err) == (2, True)
