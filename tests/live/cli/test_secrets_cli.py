"""``broker secret`` over the wire: what it sends, what it prints, and that no value is ever an argument."""

from __future__ import annotations

import base64
import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from broker_api.v1 import secrets_pb2 as wire
from broker_api.v1 import secrets_pb2_grpc, sessions_pb2, sessions_pb2_grpc
from broker_cli import secrets as commands

from tests.live.cli import test_standin
from tests.live.cli.rotation_answers import WHEN
from tests.live.cli.test_standin import Authority, Broker, StandIn, bare, broker, serve, server_certificate

__all__ = ["bare", "broker"]  # fixtures

SERVICES = (
    *test_standin.SERVICES,
    (secrets_pb2_grpc.SecretServiceServicer, secrets_pb2_grpc.add_SecretServiceServicer_to_server),
    (sessions_pb2_grpc.SessionServiceServicer, sessions_pb2_grpc.add_SessionServiceServicer_to_server),
)
CANARY = "canary-hunter2"


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    stand_in = StandIn(Authority("test CA"))
    with pytest.MonkeyPatch.context() as patch:
        # Patched for this module alone: the stand-in of the others serves no secrets.
        patch.setattr(test_standin, "SERVICES", SERVICES)
        served = serve(stand_in, server_certificate(stand_in.authority))
    stand_in.address = f"localhost:{served.port}"
    yield stand_in
    served.server.stop(None).wait()


@pytest.fixture
def stand_in(running: StandIn) -> StandIn:
    running.seen.clear()
    running.failures.clear()
    found = wire.Secret(
        name="team/db", labels={"team": "a"}, latest_version=3, create_time=WHEN, last_reader="pipeline/x"
    )
    version = wire.SecretVersion(
        version=3, state=wire.SECRET_VERSION_STATE_ENABLED, fields=["user"], author="operator/a"
    )
    fetched = sessions_pb2.FetchedSecret(version=3, fields={"user": b"app", "password": CANARY.encode()})
    running.answers = {
        "PutSecret": lambda _: wire.PutSecretResponse(secret=found),
        "SetSecretMaxAge": lambda _: wire.SetSecretMaxAgeResponse(secret=found),
        "PatchSecret": lambda _: wire.PatchSecretResponse(secret=found),
        "GetSecret": lambda _: wire.GetSecretResponse(secret=found),
        "ListSecrets": lambda _: wire.ListSecretsResponse(secrets=[found]),
        "ListSecretVersions": lambda _: wire.ListSecretVersionsResponse(versions=[version]),
        "DeleteSecretVersions": lambda _: wire.DeleteSecretVersionsResponse(secret=found),
        "UndeleteSecretVersions": lambda _: wire.UndeleteSecretVersionsResponse(secret=found),
        "DestroySecretVersions": lambda _: wire.DestroySecretVersionsResponse(secret=found),
        "RotateRootKey": lambda _: wire.RotateRootKeyResponse(version=2),
        "SettleRootKey": lambda request: wire.SettleRootKeyResponse(version=request.version),
        "GetRootKey": lambda _: wire.GetRootKeyResponse(version=2, waiting=7, create_time=WHEN),
        "FetchSecrets": lambda _: sessions_pb2.FetchSecretsResponse(secrets=[fetched]),
    }
    return running


def one_field(stand_in: StandIn, value: bytes) -> None:
    found = sessions_pb2.FetchedSecret(version=3, fields={"password": value})
    stand_in.answers["FetchSecrets"] = lambda _: sessions_pb2.FetchSecretsResponse(secrets=[found])


ALL = [
    ("GetSecret", "secret show team/db"),
    ("ListSecrets", "secret list team --contains db"),
    ("ListSecretVersions", "secret versions team/db"),
    ("DeleteSecretVersions", "secret delete team/db --version 1 --version 2"),
    ("UndeleteSecretVersions", "secret undelete team/db --version 1"),
    ("DestroySecretVersions", "secret destroy team/db --version 1 --yes"),
    ("RotateRootKey", "secret rotate-root --yes"),
    ("SettleRootKey", "secret settle-root 1 keep"),
    ("SettleRootKey", "secret settle-root 1 discard --yes"),
    ("GetRootKey", "secret root"),
    ("SetSecretMaxAge", "secret age team/db --most 90d"),
    ("SetSecretMaxAge", "secret age team/db --off"),
]


@pytest.mark.sampled(1, each="line")
@pytest.mark.parametrize(("method", "line"), ALL, ids=[line for _, line in ALL])
@pytest.mark.parametrize("format_", [None, "json", "yaml", "env"])
def test_every_command_asks_and_prints(
    broker: Broker, stand_in: StandIn, method: str, line: str, format_: str | None
) -> None:
    """In one form of output each run, another for each command; in every one in ``make soak``."""
    ended = broker(*line.split(), *(["--format", format_] if format_ else []))
    assert (ended.code, [name for name, _ in stand_in.seen]) == (0, [method]), ended.err
    assert ended.out.strip()
    if format_ == "json":
        json.loads(ended.out)


def test_every_command_is_tried_here() -> None:
    tried = {line.split()[1] for _, line in ALL} | {"put", "patch", "get"}
    assert tried == set(commands.secret.commands)


@pytest.mark.parametrize(("method", "line"), [one for one in ALL if one[0][:3] in {"Del", "Und", "Des", "Rot", "Set"}])
def test_every_change_can_be_tried_out(broker: Broker, stand_in: StandIn, method: str, line: str) -> None:
    line = line.replace(" --yes", "")
    ended = broker(*line.split(), "--dry-run", "--request-id", "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d")
    assert ended.code == 0, ended.err
    assert stand_in.asked(method).validate_only
    assert stand_in.asked(method).request_id == "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


@pytest.mark.parametrize("line", ["secret destroy team/db --version 1", "secret rotate-root"])
def test_what_cannot_be_undone_asks_first(broker: Broker, stand_in: StandIn, line: str) -> None:
    ended = broker(*line.split(), stdin=b"")
    assert (ended.code, stand_in.seen) == (2, [])
    assert "add --yes" in ended.err


def test_put_takes_values_from_files_and_standard_input(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "user").write_bytes(b"app\n\0\xff")
    ended = broker(
        "secret", "put", "team/db", "--field", f"user=@{tmp_path}/user", "--field", "password=@-", "--label", "team=a",
        "--expected-version", "0", "--expires", "2027-01-31T12:00:00Z", stdin=CANARY.encode(),
    )  # fmt: skip
    assert ended.code == 0, ended.err
    asked = stand_in.asked("PutSecret")
    assert dict(asked.fields) == {"user": b"app\n\0\xff", "password": CANARY.encode()}
    assert (asked.name, dict(asked.labels), asked.HasField("expected_version")) == ("team/db", {"team": "a"}, True)
    assert asked.expire_time.ToJsonString() == "2027-01-31T12:00:00Z"
    assert CANARY not in ended.out + ended.err


def test_put_takes_one_field_from_a_pipe_or_all_from_json(broker: Broker, stand_in: StandIn) -> None:
    assert broker("secret", "put", "a", stdin=b"one").code == 0
    assert dict(stand_in.asked("PutSecret").fields) == {"value": b"one"}
    assert not stand_in.asked("PutSecret").HasField("expected_version")
    assert broker("secret", "put", "a", "--json-file", "-", stdin='{"a": "é", "b": ""}'.encode()).code == 0
    assert dict(stand_in.asked("PutSecret").fields) == {"a": "é".encode(), "b": b""}


def test_CL_01_a_value_in_an_argument_is_refused_unsent_and_unquoted(broker: Broker, stand_in: StandIn) -> None:
    for line in (["--field", f"password={CANARY}"], ["--field", "ok=@-", "--field", f"password={CANARY}"]):
        ended = broker("secret", "put", "team/db", *line)
        assert (ended.code, stand_in.seen) == (2, [])
        assert "VALUE_IN_ARGUMENT" in ended.err
        assert CANARY not in ended.out + ended.err


def test_no_option_or_argument_takes_a_value() -> None:
    """An author who adds one has to say here that it holds no secret."""
    taken = {
        (name, parameter.name)
        for name, command in commands.secret.commands.items()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.is_flag
    }
    connection = {"profile", "address", "ca_file", "cert", "key", "timeout", "format_", "request_id"}
    assert {option for _, option in taken} - connection == {
        "given", "json_file", "removed", "expected_version", "labels", "expires", "target", "contains", "versions",
        "most",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "stdin"),
    [
        ("--json-file -", b"[]"),
        ("--json-file -", b'{"a": 1}'),
        ("--json-file -", b'{"a": "canary-hunter2", "a": "2"}'),
        ("--json-file -", b'{"a": "canary-hunter2"'),
        ("--json-file -", b'{"a": "\\ud800"}'),
        ("--json-file -", b"[" * 100_000),
        ("--json-file -", b"\xff"),
        ("--json-file - --field a=@-", b"{}"),
        ("--field a=@- --field a=@-", b"canary-hunter2"),
        ("--field a=@- --field b=@-", b"canary-hunter2"),
        ("--field a=@-", b""),
        ("", b""),
        ("--field a", b""),
        ("--expires tomorrow", b""),
        ("--expected-version -1", b""),
        ("--label x", b""),
    ],
)
def test_bad_input_to_put_is_refused_unsent_and_unquoted(
    broker: Broker, stand_in: StandIn, line: str, stdin: bytes
) -> None:
    ended = broker("secret", "put", "team/db", *line.split(), stdin=stdin)
    assert (ended.code, stand_in.seen) == (2, []), ended.err
    assert CANARY not in ended.out + ended.err
    assert "Traceback" not in ended.err


def test_P51_a_pipe_that_brings_nothing_writes_no_version(broker: Broker, stand_in: StandIn) -> None:
    for verb in ("put", "patch"):
        ended = broker("secret", verb, "team/db", "--field", "password=@-", stdin=b"")
        assert (ended.code, stand_in.seen) == (2, [])
        assert "--field password=@/dev/null. [VALUE_EMPTY]" in ended.err
    assert broker("secret", "patch", "team/db", "--field", "password=@/dev/null").code == 0
    assert dict(stand_in.asked("PatchSecret").fields) == {"password": b""}


@pytest.mark.parametrize(("value", "told"), [(b"one\n", True), (b"one", False), (b"-----BEGIN\nx\n", False)])
def test_P51_the_line_break_of_echo_is_told(broker: Broker, stand_in: StandIn, value: bytes, told: bool) -> None:  # noqa: FBT001
    ended = broker("secret", "put", "team/db", stdin=value)
    assert dict(stand_in.asked("PutSecret").fields) == {"value": value}
    assert ("value ends with a line break" in ended.err) is told


def test_a_value_that_is_too_long_is_not_sent(broker: Broker, stand_in: StandIn) -> None:
    ended = broker("secret", "put", "team/db", stdin=b"x" * 65537)
    assert (ended.code, stand_in.seen) == (2, [])


def test_get_writes_one_field_as_it_is_into_a_pipe(broker: Broker, stand_in: StandIn) -> None:
    one_field(stand_in, b"\0\xff no newline")
    ended = broker("secret", "get", "team/db#password")
    assert (ended.code, ended.raw) == (0, b"\0\xff no newline")
    assert list(stand_in.asked("FetchSecrets").references) == ["team/db#password"]


def test_get_writes_several_fields_as_asked(broker: Broker, stand_in: StandIn) -> None:
    found = sessions_pb2.FetchedSecret(version=1, fields={"a": b"text", "b": b"\xff\0"})
    stand_in.answers["FetchSecrets"] = lambda _: sessions_pb2.FetchSecretsResponse(secrets=[found])
    ended = broker("secret", "get", "team/db", "--format", "json")
    assert json.loads(ended.out) == {"a": "text", "b.base64": base64.b64encode(b"\xff\0").decode()}
    assert broker("secret", "get", "team/db").out.splitlines()[1].split() == ["a", "text"]


def test_get_writes_a_private_file_and_never_over_another(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    one_field(stand_in, b"\0v")
    target = tmp_path / "password"
    assert broker("secret", "get", "team/db#password", "--out", target).raw == b""
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"\0v", 0o600)
    stand_in.seen.clear()
    assert broker("secret", "get", "team/db#password", "--out", target).code == 7
    assert not stand_in.seen


def test_several_fields_do_not_go_into_one_file(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    del stand_in
    ended = broker("secret", "get", "team/db", "--out", tmp_path / "x")
    assert (ended.code, (tmp_path / "x").exists()) == (2, False)


@pytest.mark.parametrize("line", ["team/db", "team/db#password", "team/db --format json", "team/db --format env"])
def test_CL_02_nothing_is_shown_on_a_terminal_unless_asked(
    broker: Broker, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    # Patched: on a real terminal pytest could not read what is shown.
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    ended = broker("secret", "get", *line.split())
    assert (ended.code, stand_in.seen) == (2, [])  # not even fetched
    assert CANARY not in ended.out + ended.err
    ended = broker("secret", "get", *line.split(), "--reveal")
    assert ended.code == 0
    assert CANARY in ended.out


def test_P51_patch_sends_only_what_changes(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    (tmp_path / "new").write_text(CANARY)
    words = ["secret", "patch", "team/db", "--field", f"password=@{tmp_path}/new", "--remove", "old", "--remove", "b"]
    ended = broker(*words, "--expected-version", "3")
    assert (ended.code, CANARY in ended.out + ended.err) == (0, False)
    asked = stand_in.asked("PatchSecret")
    assert (dict(asked.fields), list(asked.remove), asked.expected_version) == (
        {"password": CANARY.encode()}, ["old", "b"], 3,
    )  # fmt: skip
    assert broker("secret", "patch", "team/db", "--remove", "old", "--dry-run").code == 0
    asked = stand_in.asked("PatchSecret")
    assert (dict(asked.fields), asked.validate_only, asked.HasField("expected_version")) == ({}, True, False)
    stand_in.seen.clear()
    assert broker("secret", "patch", "team/db").code == 2
    assert broker("secret", "patch", "team/db", "--field", f"password={CANARY}").code == 2
    assert stand_in.seen == []


def test_P51_put_tells_what_it_drops(broker: Broker, stand_in: StandIn) -> None:
    made = wire.PutSecretResponse(dropped=["host", "user"], dropped_expire_time=WHEN)
    made.secret.latest_version = 4
    stand_in.answers["PutSecret"] = lambda _: made
    ended = broker("secret", "put", "team/db", stdin=b"x")
    assert ended.code == 0
    assert "dropped: host, user. Version 3 had them, and version 4 has not" in ended.err
    assert "dropped: the time of expiry, " in ended.err
    assert "dropped" not in ended.out


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"a": b"x\0y", "b": b""}, "VALUE_NOT_TEXT"), ({"a.b": b"1", "a_b": b"2"}, "NAME_TWICE")],
)
def test_P01_what_shell_variables_cannot_hold_is_refused(
    broker: Broker, stand_in: StandIn, fields: dict[str, bytes], reason: str
) -> None:
    found = sessions_pb2.FetchedSecret(version=3, fields=fields)
    stand_in.answers["FetchSecrets"] = lambda _: sessions_pb2.FetchSecretsResponse(secrets=[found])
    ended = broker("secret", "get", "team/db", "--format", "env")
    assert (ended.code, ended.out, reason in ended.err) == (1, "", True)
