"""Static secrets through the whole broker: the command line, mTLS, SoftHSM, SQLite, the audit."""

from __future__ import annotations

import json
import os
import pty
import secrets
import select
import subprocess
import sys
from pathlib import Path

from tests.servers.live import ROOT, Live, environment
from tests.servers.warm import run_command_line

POLICY = "secret-operators"


def broker(live: Live, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    line = (*words, "--profile", str(live.folder / "profile"))
    return run_command_line(line, environment=environment(), folder=ROOT, given=stdin)


def done(live: Live, *words: str, stdin: bytes = b"") -> bytes:
    ended = broker(live, *words, stdin=stdin)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_secret_from_the_first_put_to_its_destruction(live: Live) -> None:
    canary = secrets.token_hex(16).encode()
    before = len(live.records())
    done(live, "secret", "put", "kv/app/db", "--field", "password=@-", "--label", "team=a", stdin=canary)
    assert done(live, "secret", "get", "kv/app/db#password") == canary
    shown = json.loads(done(live, "secret", "show", "kv/app/db", "--format", "json"))
    assert (shown["latest_version"], shown["labels"]) == (1, {"team": "a"})
    assert [one["name"] for one in json.loads(done(live, "secret", "list", "kv/app", "--format", "json"))] == [
        "kv/app/db"
    ]
    again = broker(live, "secret", "put", "kv/app/db", "--expected-version", "0", stdin=b"x")
    assert again.returncode != 0
    assert b"VERSION_MISMATCH" in again.stderr
    done(live, "secret", "delete", "kv/app/db", "--version", "1")
    assert b"SECRET_DELETED" in broker(live, "secret", "get", "kv/app/db").stderr
    done(live, "secret", "undelete", "kv/app/db", "--version", "1")
    assert done(live, "secret", "get", "kv/app/db@1#password") == canary
    done(live, "secret", "destroy", "kv/app/db", "--version", "1", "--yes")
    assert b"SECRET_DESTROYED" in broker(live, "secret", "get", "kv/app/db").stderr
    assert live.holding(canary) == []
    methods = [record["rpc"] for record in live.since(before) if record.get("resource") == "secret/kv/app/db"]
    assert methods.count("SecretService/PutSecret") == 2
    assert methods.count("SessionService/FetchSecrets") >= 4


def test_P51_a_secret_is_patched_by_one_who_may_not_read_it(live: Live) -> None:
    canaries = [secrets.token_hex(16).encode() for _ in range(2)]
    whole = json.dumps({"user": "app", "password": canaries[0].decode()}).encode()
    done(live, "secret", "put", "kv/patched", "--json-file", "-", stdin=whole)
    with live.client() as admin, live.operator(admin, "kv-writer", "only-patchsecret") as writer:
        assert writer.refusal("FetchSecrets", references=["kv/patched"]).reason == "POLICY_DENIED"
        made = writer.ask("PatchSecret", name="kv/patched", fields={"password": canaries[1]})
        assert made.secret.latest_version == 2
        assert not [canary for canary in canaries if canary in made.SerializeToString()]
    assert json.loads(done(live, "secret", "get", "kv/patched", "--format", "json")) == {
        "user": "app",
        "password": canaries[1].decode(),
    }
    put = broker(live, "secret", "put", "kv/patched", "--field", "password=@-", stdin=canaries[1])
    assert b"dropped: user. Version 2 had it, and version 3 has not" in put.stderr
    done(live, "secret", "patch", "kv/patched", "--json-file", "-", stdin=b'{"user": "again"}')
    done(live, "secret", "patch", "kv/patched", "--remove", "password")
    assert done(live, "secret", "get", "kv/patched@5") == b"again"
    assert live.holding(*canaries) == []


def test_the_root_key_is_rotated_while_secrets_stay_readable(live_own: Live) -> None:
    live = live_own
    done(live, "secret", "put", "kv/one", stdin=b"one")
    assert json.loads(done(live, "secret", "root", "--format", "json"))["version"] == 1
    done(live, "secret", "rotate-root", "--yes")
    assert done(live, "secret", "get", "kv/one#value") == b"one"
    assert json.loads(done(live, "secret", "root", "--format", "json"))["version"] == 2
    live.kill()
    live.start()
    assert done(live, "secret", "get", "kv/one#value") == b"one"


def test_a_value_is_asked_for_without_an_echo(live: Live) -> None:
    canary = secrets.token_hex(8)
    words = [sys.executable, "-m", "broker_cli", "secret", "put", "kv/typed", "--field", "pin"]
    profile = ["--profile", str(live.folder / "profile")]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [*words, *profile], environment())  # noqa: S606
    seen = answered(terminal, [f"{canary}\n", f"{canary}\n"])
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, seen
    assert canary not in seen
    assert done(live, "secret", "get", "kv/typed#pin") == canary.encode()


def answered(terminal: int, answers: list[str]) -> str:
    """What the terminal showed, with an answer to each question that ends in a colon."""
    seen = ""
    while select.select([terminal], [], [], 60)[0]:
        try:
            new = os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        seen += new
        if answers and seen.rstrip(" ").endswith(":"):
            os.write(terminal, answers.pop(0).encode())
    return seen


def test_a_profile_of_somebody_else_sees_nothing(live: Live, tmp_path: Path) -> None:
    del tmp_path
    done(live, "secret", "put", "kv/hidden", stdin=b"x")
    with live.client() as admin, live.operator(admin, "kv-nobody") as nobody:
        for rpc, fields in (
            ("GetSecret", {"name": "kv/hidden"}),
            ("GetSecret", {"name": "kv/absent"}),
            ("ListSecrets", {}),
            ("FetchSecrets", {"references": ["kv/hidden"]}),
            ("FetchSecrets", {"references": ["kv/absent"]}),
            ("RotateRootKey", {}),
            ("GetRootKey", {}),
            ("PutSecret", {"name": "kv/hidden", "fields": {"a": b"1"}}),
            ("PatchSecret", {"name": "kv/hidden", "fields": {"a": b"1"}}),
            ("PatchSecret", {"name": "kv/absent", "remove": ["a"]}),
            ("DestroySecretVersions", {"name": "kv/hidden", "versions": [1]}),
        ):
            refusal = nobody.refusal(rpc, **fields)
            assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "POLICY_DENIED"), rpc


def test_AZ_04_a_page_token_is_for_its_caller_and_its_query_alone(live: Live) -> None:
    for number in range(3):
        done(live, "secret", "put", f"kv/paged/n{number}", stdin=b"x")
    with live.client() as admin, live.operator(admin, "kv-lister", "only-listsecrets") as lister:
        page = admin.ask("ListSecrets", prefix="kv/paged", page_size=1)
        assert [one.name for one in page.secrets] == ["kv/paged/n0"]
        token = page.next_page_token
        assert (
            admin.ask("ListSecrets", prefix="kv/paged", page_size=1, page_token=token).secrets[0].name == "kv/paged/n1"
        )
        refusals = [
            lister.refusal("ListSecrets", prefix="kv/paged", page_token=token),
            admin.refusal("ListSecrets", prefix="kv", page_token=token),
            admin.refusal("ListSecrets", prefix="kv/paged", contains="n", page_token=token),
            admin.refusal("ListSecretVersions", name="kv/paged/n0", page_token=token),
            admin.refusal("ListSecrets", prefix="kv/paged", page_token=token[:-2] + "AA"),
        ]
        assert {refusal.reason for refusal in refusals} == {"PAGE_TOKEN_INVALID"}
        for size in (-1, 1001, 2**31 - 1):
            assert admin.refusal("ListSecrets", page_size=size).reason == "PAGE_SIZE_INVALID"
        assert not lister.ask("ListSecrets").secrets  # it may list, and may get none of them
