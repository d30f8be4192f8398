"""Every command of `broker` over the wire, and what it sends, prints and ends with."""

from __future__ import annotations

import base64
import json
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
import yaml
from broker_api.v1 import keys_pb2
from broker_cli import words
from broker_cli.audit import read_heads
from broker_cli.main import COMMANDS, cli

from tests.live.cli.test_standin import Broker, StandIn, bare, broker, running, stand_in

__all__ = ["bare", "broker", "running", "stand_in"]  # fixtures

ALL = [
    ("CreateKey", "key create pay --type ec-p256 --usage sign --exportable --label team=billing"),
    ("GetKey", "key show pay"),
    ("ListKeys", "key list"),
    ("ListKeys", "key list --overdue --held --label team=pay --state enabled --owner operator/alice --target prod"),
    ("ListKeys", "key list --compromised"),
    ("SetKeySchedule", "key schedule pay --every 90d --blackout 22:00-06:00"),
    ("SetKeySchedule", "key schedule pay --off"),
    ("GetKey", "key schedule pay"),
    ("ListKeyVersions", "key versions pay"),
    ("GetPublicKey", "key public pay"),
    ("Sign", "key sign pay"),
    ("Encrypt", "key encrypt pay"),
    ("Decrypt", "key decrypt pay"),
    ("RotateKey", "key rotate pay --here-only"),
    ("PrepareKeyVersion", "key prepare pay"),
    ("ActivateKeyVersion", "key activate pay --version 2"),
    ("RetireKeyVersion", "key retire pay --version 1"),
    ("CompromiseKeyVersion", "key compromise pay --reason leaked --no-wait --no-replacement --yes"),
    ("ListKeyMoves", "key history pay"),
    ("ListAuthorities", "authority list"),
    ("ListAuthorities", "authority trust"),
    ("RotateAuthority", "authority rotate server-ca --yes --no-wait"),
    ("RetireAuthority", "authority retire operator-ca --yes"),
    ("EnableKey", "key enable pay"),
    ("DisableKey", "key disable pay"),
    ("ScheduleKeyDestruction", "key destroy pay --in-days 3 --yes"),
    ("CancelKeyDestruction", "key cancel-destroy pay"),
    ("SealKey", "key seal pay --yes"),
    ("SealKey", "key seal pay --once-at bao --once-at prod --yes"),
    ("SealKey", "key seal pay --by-hand-only"),
    ("SettleKeyVersion", "key settle pay keep --version 2"),
    ("SettleKeyVersion", "key settle pay discard --version 2 --yes"),
    ("ImportKey", "key import pay --target prod"),
    ("ProveImport", "key prove pay --target prod"),
    ("ConfirmImport", "key confirm pay --target prod"),
    ("ListImports", "key where pay"),
    ("CheckDrift", "drift --target prod"),
    ("ListDrift", "drift --last"),
    ("GetTarget", "target show prod"),
    ("ListTargets", "target list"),
    ("RepinTarget", "target repin prod --thumbprint abcd"),
    ("DeleteTarget", "target remove prod --yes"),
    ("ListOperations", "operation list key/pay --live"),
    ("GetOperation", "operation show key/pay/3/1"),
    ("RetryOperation", "operation retry key/pay/3/1"),
    ("AbortOperation", "operation abort key/pay/3/1 --yes"),
    ("ListApprovals", "approval list --waiting"),
    ("GetApproval", "approval show 0123456789ab"),
    ("Approve", "approval approve 0123456789ab --reason CHG-1 --yes"),
    ("Reject", "approval reject 0123456789ab"),
    ("ListOperators", "operator list"),
    ("SetOperatorGroups", "operator groups bob --group admins"),
    ("RevokeCertificates", "operator revoke bob --yes"),
    ("RemoveOperator", "operator remove bob --yes"),
    ("RenewCertificate", "operator renew"),
    ("WhoAmI", "operator whoami"),
    ("GetPolicy", "policy show"),
    ("ExplainPolicy", "policy explain alice GetKey key/pay"),
    ("GetAuditState", "audit key"),
    ("GetAuditState", "audit handovers"),
    ("ListAuditHeads", "audit heads"),
    ("SignAuditHead", "audit sign-head"),
    ("GetHsm", "hsm"),
    ("WhoAmI", "status"),
]
CHANGES = [(method, line) for method, line in ALL if method in {
    "CreateKey", "RotateKey", "SetKeySchedule", "EnableKey", "DisableKey", "ScheduleKeyDestruction",
    "CancelKeyDestruction", "SealKey", "SettleKeyVersion", "ImportKey", "ConfirmImport", "RepinTarget", "DeleteTarget",
    "SetOperatorGroups", "RevokeCertificates", "RemoveOperator", "Approve", "Reject", "RotateAuthority",
    "RetireAuthority",
}]  # fmt: skip


@pytest.mark.sampled(1, each="line")
@pytest.mark.parametrize(("method", "line"), ALL, ids=[line for _, line in ALL])
@pytest.mark.parametrize("format_", [None, "json", "yaml", "env"])
def test_every_command_asks_and_prints(
    broker: Broker, stand_in: StandIn, method: str, line: str, format_: str | None
) -> None:
    """In one form of output each run, another for each command; in every one in ``make soak``."""
    ended = broker(*line.split(), *(["--format", format_] if format_ and method != "DeleteTarget" else []))
    assert (ended.code, stand_in.seen[-1][0]) == (0, method), ended.err
    if method in {"DeleteTarget", "Sign", "Encrypt", "Decrypt"} and format_ is None:
        return
    if format_ == "json" and method != "DeleteTarget":
        json.loads(ended.out)
    elif format_ == "yaml":
        yaml.safe_load(ended.out)
    elif format_ == "env" and method != "DeleteTarget":
        subprocess.run(["bash", "-euc", ended.out], check=True, timeout=200)


@pytest.mark.parametrize(("method", "line"), CHANGES, ids=[line for _, line in CHANGES])
def test_every_change_can_be_tried_and_has_an_id_of_its_own(
    broker: Broker, stand_in: StandIn, method: str, line: str
) -> None:
    assert broker(*line.split()).code == 0
    first = stand_in.asked(method)
    tried = broker(*line.split(), "--dry-run")
    second = stand_in.asked(method)
    assert (first.validate_only, second.validate_only) == (False, True)
    assert first.request_id != second.request_id
    assert "nothing was changed" in tried.err
    again = "6f1c1b1e-8f65-4c6e-9a52-0d5c0f2e7a11"
    broker(*line.split(), "--request-id", again)
    assert stand_in.asked(method).request_id == again


@pytest.mark.parametrize("line", [line for _, line in CHANGES if line.endswith("--yes")])
def test_what_cannot_be_undone_is_not_done_without_a_yes(broker: Broker, stand_in: StandIn, line: str) -> None:
    ended = broker(*line.split()[:-1], stdin=b"pay\n")
    assert (ended.code, stand_in.seen) == (2, [])
    assert "--yes" in ended.err


def test_a_created_key_is_what_was_asked_for(broker: Broker, stand_in: StandIn) -> None:
    ended = broker(*ALL[0][1].split(), "--format", "json")
    request = stand_in.asked("CreateKey")
    assert (request.type, request.usage, request.exportable, dict(request.labels)) == (4, 1, True, {"team": "billing"})
    shown = json.loads(ended.out)
    assert (shown["name"], shown["type"], shown["state"]) == ("pay", "ec-p256", "enabled")
    assert shown["create_time"] == "2026-05-28T20:26:40Z"
    assert shown["destroy_time"] is None


def test_lists_are_read_to_their_last_page(broker: Broker) -> None:
    assert [key["name"] for key in json.loads(broker("key", "list", "--format", "json").out)] == [
        "key-0",
        "key-1",
        "key-2",
    ]


@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize(
    "nasty",
    [
        "a'b\x1b$(touch never)\n\\",
        "it's\n`touch never`",
        "\n",
        "a\n\n",
        "\\0101\t\\c%s%b",
        "\u202e-\u200bé\x7f0",
        "$x",
        "",
    ],
)
def test_P01_shell_variables_survive_quotes(
    broker: Broker, stand_in: StandIn, tmp_path: Path, nasty: str, shell: str
) -> None:
    before = stand_in.answers["WhoAmI"]
    stand_in.answers["WhoAmI"] = lambda request: type(before(request))(principal=nasty)
    ended = broker("operator", "whoami", "--format", "env")
    assert all(one.isprintable() or one == "\n" for one in ended.out)
    script = 'eval "$1"; printf %s "$CALLER_PRINCIPAL"'
    shown = subprocess.run([shell, "-euc", script, shell, ended.out], capture_output=True, check=True, timeout=200,
                           cwd=tmp_path)  # fmt: skip
    assert (shown.stdout, shown.stderr, list(tmp_path.glob("never"))) == (nasty.encode(), b"", [])


def test_CL_13_escapes_in_names_reach_no_terminal(broker: Broker, stand_in: StandIn) -> None:
    nasty = "evil\x1b]0;pwned\x07\u202e\u200b\x9b"
    before = stand_in.answers["GetKey"]

    def answer(request: Any) -> Any:
        found = before(request)
        found.key.owner = nasty
        found.key.labels[nasty] = nasty
        return found

    stand_in.answers["GetKey"] = answer
    stand_in.failures["RotateKey"] = [(grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND", f"no {nasty}")]
    for format_ in ("table", "json", "yaml", "env"):
        text = broker("key", "show", "pay", "--format", format_).out
        assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u200b"} & set(text), format_
    assert "\\x1b" in (refused := broker("key", "rotate", "pay")).err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(refused.err)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.PERMISSION_DENIED, 3),
        (grpc.StatusCode.UNAUTHENTICATED, 4),
        (grpc.StatusCode.UNAVAILABLE, 5),
        (grpc.StatusCode.NOT_FOUND, 6),
        (grpc.StatusCode.ALREADY_EXISTS, 7),
        (grpc.StatusCode.FAILED_PRECONDITION, 7),
    ],
)
def test_a_refusal_is_the_brokers_sentence_and_an_exit_code(
    broker: Broker, stand_in: StandIn, code: grpc.StatusCode, exit_code: int
) -> None:
    stand_in.failures["Sign"] = [(code, "SOME_REASON", "This cannot be done now; do that.")]
    ended = broker("key", "sign", "pay", stdin=b"x")
    assert (ended.code, ended.raw) == (exit_code, b"")
    assert ended.err == "broker: This cannot be done now; do that. [SOME_REASON, call c-17]\n"


def test_a_safe_call_is_repeated_under_the_same_id(broker: Broker, stand_in: StandIn) -> None:
    away = (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "The database is away.")
    stand_in.failures["RotateKey"] = [away, away]
    assert broker("key", "rotate", "pay", "--here-only").code == 0
    assert len({request.request_id for name, request in stand_in.seen if name == "RotateKey"}) == 1
    assert len(stand_in.seen) == 3
    stand_in.failures["Sign"] = [away]  # a use of the key may have happened: it is the caller's to repeat
    assert broker("key", "sign", "pay", stdin=b"x").code == 5
    assert [name for name, _ in stand_in.seen].count("Sign") == 1


def test_messages_go_in_and_out_as_bytes(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    assert broker("key", "sign", "pay", stdin=b"\xff\n").raw == b"\x00sig:\xff\n"
    assert stand_in.asked("Sign").input.WhichOneof("data") == "message"
    assert broker("key", "sign", "pay", "--digest", stdin=b"d" * 32).raw == b"\x00sig:" + b"d" * 32
    assert stand_in.asked("Sign").input.WhichOneof("data") == "digest"
    told = json.loads(broker("key", "sign", "pay", "--format", "json", stdin=b"m").out)
    assert base64.b64decode(told["signature"]) == b"\x00sig:m"
    assert told["algorithm"] == "ES256"
    (tmp_path / "plain").write_bytes(b"abc")
    assert broker("key", "encrypt", "pay", "--in", tmp_path / "plain", "--out", tmp_path / "sealed").code == 0
    assert broker("key", "decrypt", "pay", "--in", tmp_path / "sealed").raw == b"abc"


def test_an_invalid_signature_is_a_failure(broker: Broker, tmp_path: Path) -> None:
    signature = tmp_path / "sig"
    signature.write_bytes(b"good")
    assert broker("key", "verify", "pay", "--signature", signature, stdin=b"m").code == 0
    signature.write_bytes(b"bad")
    assert broker("key", "verify", "pay", "--signature", signature, stdin=b"m").code == 1


def test_a_message_over_the_limit_never_leaves(broker: Broker, stand_in: StandIn) -> None:
    ended = broker("key", "sign", "pay", stdin=b"x" * (64 * 1024 + 1))
    assert (ended.code, stand_in.seen) == (2, [])
    assert "openssl dgst" in ended.err


def test_CL_02_an_output_is_new_private_and_no_link(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "plain"
    assert broker("key", "decrypt", "pay", "--out", out, stdin=b"\x01cba").code == 0
    assert (out.read_bytes(), stat.S_IMODE(out.stat().st_mode)) == (b"abc", 0o600)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    stand_in.seen.clear()
    for taken in (out, link):
        assert broker("key", "decrypt", "pay", "--out", taken, stdin=b"\x01zzz").code == 7
    assert (out.read_bytes(), (tmp_path / "elsewhere").exists(), stand_in.seen) == (b"abc", False, [])


def test_policy_set_shows_what_changes_and_asks(broker: Broker, stand_in: StandIn, tmp_path: Path) -> None:
    new = tmp_path / "new.cedar"
    new.write_text("forbid (principal, action, resource);\n")
    refused = broker("policy", "set", new)
    assert refused.code == 2
    assert "-permit" in refused.err
    assert "+forbid" in refused.err
    assert [name for name, _ in stand_in.seen] == ["GetPolicy", "SetPolicy"]
    assert stand_in.asked("SetPolicy").validate_only  # a person is asked only about a policy that will be taken
    assert broker("policy", "set", new, "--yes").code == 0
    assert not stand_in.asked("SetPolicy").validate_only
    assert stand_in.asked("SetPolicy").expected_version == 4
    assert broker("policy", "check", new).code == 0
    assert stand_in.asked("SetPolicy").validate_only
    assert broker("policy", "show").out == "permit (principal, action, resource);\n"


def test_policy_explain_says_no_with_its_exit_code(broker: Broker, stand_in: StandIn) -> None:
    assert broker("policy", "explain", "bob", "Sign", "operator/eve").code == 3
    assert stand_in.asked("ExplainPolicy").operator_resource == "eve"
    assert broker("policy", "explain", "bob", "GetPolicy").code == 3
    assert stand_in.asked("ExplainPolicy").broker
    assert broker("policy", "explain", "bob", "Sign", "thing/eve").code == 2


def test_target_add_sends_the_ca_and_only_the_name_of_the_token(
    broker: Broker, stand_in: StandIn, tmp_path: Path
) -> None:
    pem = stand_in.authority.pem
    (tmp_path / "ca.pem").write_bytes(b"subject=/CN=x\r\n" + pem.replace(b"\n", b"\r\n"))
    line = ["target", "add", "vault", "prod", "--address", "https://v:8200", "--ca-file", tmp_path / "ca.pem"]
    assert broker(*line, "--token-file", "prod.token").code == 0
    sent = stand_in.asked("CreateTarget").vault
    assert (sent.address, sent.mount, sent.token_file) == ("https://v:8200", "transit", "prod.token")
    assert sent.ca_pem.replace("\r\n", "\n") == pem.decode()  # the broker takes either
    assert broker(*line, "--token-file", "/etc/shadow").code == 2
    assert broker("target", "check", "prod").code == 10


def test_an_import_that_is_not_proven_is_a_failure(broker: Broker, stand_in: StandIn) -> None:
    before = stand_in.answers["ImportKey"]

    def answer(request: Any) -> Any:
        done = before(request)
        getattr(done, "import").state, getattr(done, "import").failure = 3, "TARGET_DENIED"
        return done

    stand_in.answers["ImportKey"] = answer
    ended = broker("key", "import", "pay", "--target", "prod")
    assert (ended.code, "TARGET_DENIED" in ended.err) == (1, True)


def test_exported_heads_are_what_the_verifier_takes(broker: Broker) -> None:
    for more in ([], ["--newest"]):
        kept = read_heads(broker("audit", "heads", "--format", "json", *more).raw)
        assert [(head.chain, head.sequence, head.signature) for head in kept] == [("host-1", 7, b"\x30\x00")]


def test_no_command_takes_a_secret_as_an_argument() -> None:
    """CL-01: no option's name promises one, and the ones that name a file say so."""

    def walk(command: click.Command) -> list[click.Parameter]:
        nested = [walk(one) for one in command.commands.values()] if isinstance(command, click.Group) else []
        return [*command.params, *(one for some in nested for one in some)]

    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        for option in walk(command):
            if any(
                word in (option.name or "") for word in ("token", "pin", "password", "plaintext", "message", "secret")
            ):
                # "secrets" are references, as run and fetch take them
                assert option.name in {"token_file", "setting_token_file", "secrets"}


def test_the_words_of_the_command_line_are_those_of_the_wire() -> None:

    for prefix, known, enum in (
        ("KEY_TYPE", words.KEY_TYPES, keys_pb2.KeyType),
        ("KEY_USAGE", words.KEY_USAGES, keys_pb2.KeyUsage),
        ("KEY_STATE", words.KEY_STATES, keys_pb2.KeyState),
        ("SIGNATURE_ALGORITHM", words.SIGNATURE_ALGORITHMS, keys_pb2.SignatureAlgorithm),
        ("SIGNATURE_ENCODING", words.SIGNATURE_ENCODINGS, keys_pb2.SignatureEncoding),
        ("ENCRYPTION_ALGORITHM", words.ENCRYPTION_ALGORITHMS, keys_pb2.EncryptionAlgorithm),
    ):
        assert {words.wire_name(prefix, word) for word in [*known, None]} == set(enum.keys())
        assert [words.word(enum.DESCRIPTOR, number) for number in sorted(enum.values())] == ["", *known]
        assert words.word(enum.DESCRIPTOR, 99) == "unknown-99"


def test_env_output_is_shell(broker: Broker) -> None:
    lines = broker("key", "show", "pay", "--format", "env").out.splitlines()
    assert "KEY_NAME=pay" in lines
    assert all(line.startswith("KEY_") and len(shlex.split(line)) == 1 for line in lines)
