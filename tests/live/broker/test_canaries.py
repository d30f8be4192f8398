"""Fifty secrets on every way through the running broker, and none of them is anywhere but where it was sent.

P19, CL-03, CL-04: each RPC with each way of ending, at the chattiest level of everything that has one; what is looked
through afterwards is every file of the broker (database, write-ahead log, journal, log), every error to its last byte,
and all that the command line said.
"""

from __future__ import annotations

import base64
import random
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from tests.live.broker.live_story import story
from tests.live.broker.test_faults import no_room
from tests.live.broker.test_methods import asked, told
from tests.servers.issuer import Issuer, Signer, b64, issuing
from tests.servers.live import METHODS, ROOT, Client, Live, environment, free_address, vault_settings, within
from tests.servers.live_jobs import grant, rule_for
from tests.servers.openbao import OpenBao
from tests.servers.warm import run_command_line

SECRET_FIELDS = {"message", "plaintext", "aad", "fields", "prehash"}
LOUD = {
    "PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "default", "GRPC_VERBOSITY": "DEBUG",
    "BROKER_LOG_LEVEL": "debug", "LOG_LEVEL": "debug",
}  # fmt: skip
WAYS = (
    "POLICY_DENIED", "FIELD_UNKNOWN", "MESSAGE_INVALID", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "NAME_INVALID",
    "CREDENTIALS_MISSING", "CREDENTIALS_UNKNOWN", "SESSION_INVALID", "TOKEN_MALFORMED", "TOKEN_SIGNATURE", "TOKEN_TIME",
    "TOKEN_AUDIENCE", "TOKEN_REPLAYED", "TRUST_CLAIM_MISMATCH", "ROW_FORGED", "AUDIT_UNAVAILABLE",
    "HSM_UNAVAILABLE",
)  # fmt: skip


def forms(secret: str) -> Iterator[bytes]:
    """What it looks like by itself, in hex, and in base64 at any place in a text."""
    raw = secret.encode()
    yield raw
    yield raw.hex().encode()
    for shift in range(3):
        coded = base64.b64encode(b"x" * shift + raw)
        yield coded[4 if shift else 0 : -4].rstrip(b"=")


@dataclass
class Hunt:
    """The canaries, and everything that was said to a caller."""

    live: Live
    issuer: Issuer
    canaries: list[str] = field(default_factory=lambda: [f"Cnry{n:02d}x{secrets.token_hex(9)}" for n in range(50)])
    heard: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._next = cycle(self.canaries)

    def one(self) -> str:
        return next(self._next)

    def planted(self, fields: Any, name: str = "") -> Any:
        """The same request with a canary wherever a secret is."""
        if isinstance(fields, dict):
            return {key: self.planted(value, name if name == "fields" else key) for key, value in fields.items()}
        if isinstance(fields, list):
            return [self.planted(one, name) for one in fields]
        if isinstance(fields, bytes) and name in SECRET_FIELDS:
            return self.one().encode()
        return self.made_up() if name == "identity_token" else fields

    def made_up(self) -> str:
        """What looks like an identity token of the issuer, and is signed by nobody."""
        claims = f'{{"iss":"{self.issuer.url}","sub":"job","note":"{self.one()}"}}'
        return ".".join(map(b64, (b'{"alg":"ES256","kid":"none"}', claims.encode(), self.one().encode())))

    def ask(self, client: Client, rpc: str, request: bytes, token: str = "", timeout: float = 60) -> Any:
        """The answer, or None; what a refused caller was told, to the last byte, is kept."""
        method = METHODS[rpc]
        call = client.channel.unary_unary(
            f"/{method.containing_service.full_name}/{rpc}",
            request_serializer=bytes,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        scheme = "" if token.startswith("Basic ") else "Bearer "
        metadata = (("x-note", self.one()), *((("authorization", scheme + token),) if token else ()))
        try:
            return call(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            seen: Any = error
            self.heard.append(
                f"{error} {seen.details()} {[*seen.initial_metadata(), *(seen.trailing_metadata() or ())]}"
            )
            return None

    def job(self, **changes: Any) -> str:
        """A real identity token of a job, with a canary in a claim that no rule asks for."""
        return self.issuer.token(note=self.one(), **changes)


def wire(rpc: str, fields: dict[str, Any]) -> bytes:
    raw: bytes = GetMessageClass(METHODS[rpc].input_type)(**fields).SerializeToString()
    return raw


def blob(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


@pytest.fixture
def hunt(tmp_path: Path, openbao: OpenBao) -> Iterator[Hunt]:
    with issuing(tmp_path / "issuer") as issuer:
        live = Live(tmp_path / "broker")
        places = ("--operators-address", free_address(), "--pipelines-address", free_address())
        allowed = ("--allow-target", openbao.host, "--allow-issuer", issuer.host)
        bound = ("--bind-credential", f"{openbao.host}/vault-token=*")
        made = live.command("init", str(live.folder), *places, *allowed, *bound)
        assert made.returncode == 0, made.stderr
        try:
            text = live.config.read_text()
            live.config.write_text(text.replace("[targets]\n", "[targets]\nvault_transfer_files = true\n"))
            live.start(extra=LOUD)
            openbao.write_token(live.folder / "credentials")
            with live.client() as admin:
                grant(admin)
                admin.ask("CreateTarget", name="bao", vault=vault_settings(openbao))
                admin.ask("CreateTrustRule", rule=rule_for(issuer))
            yield Hunt(live, issuer)
        finally:
            live.close()


def test_P19_CL_03_CL_04_fifty_secrets_are_nowhere_but_where_they_were_sent(
    hunt: Hunt, openbao: OpenBao, tmp_path: Path
) -> None:
    live = hunt.live
    admin = live.client()
    nobody = live.operator(admin, "nobody", "nothing")
    operators_paths(hunt, admin, nobody, openbao)
    tokens = pipelines_paths(hunt, admin)
    spoken = command_line(hunt, tmp_path)
    without_a_journal(hunt, admin, openbao)
    without_a_token(hunt, admin)
    after_a_crash(hunt)
    assert live.terminate() == 0
    live.verify()
    assert len(hunt.heard) > 8 * len(METHODS)
    missed = [one for one in WAYS if not any(one in text for text in hunt.heard)]
    assert missed == [], "some way of ending was not taken"
    told_all = "\n".join([*hunt.heard, spoken]).encode()
    sought = [form for one in hunt.canaries for form in forms(one)]
    sought += [one.encode() for one in (*tokens, live.pin, openbao.broker_token)]
    assert [told_all[max(0, told_all.find(form) - 300) :][:400] for form in sought if form in told_all] == []
    assert live.holding(*sought) == []
    assert live.holding(b"team/app/db")  # what is looked for where it is, is found


def operators_paths(hunt: Hunt, admin: Client, nobody: Client, bao: OpenBao) -> None:
    """Each RPC of an operator allowed, and refused in nine ways."""
    anonymous = Client(hunt.live.pipelines, hunt.live.ca, None, None)
    policy = admin.ask("GetPolicy").policy
    for rpc, fields, answers in told(story(bao, policy.version)):
        fields = fields | ({"text": policy.text} if rpc == "SetPolicy" else {})  # noqa: PLW2901 (the jobs' grant stays)
        answers.append(hunt.ask(admin, rpc, wire(rpc, hunt.planted(fields))))
        assert answers[0] is not None, f"{rpc}: {hunt.heard[-1]}"
    for rpc, fields in asked(bao).items():
        good = wire(rpc, hunt.planted(fields))
        hunt.ask(nobody, rpc, good)
        hunt.ask(admin, rpc, good + b"\xfa\x3e" + blob(hunt.one()))  # a field that no request has
        hunt.ask(admin, rpc, good + b"\xff\xff" + hunt.one().encode())  # no message at all
        hunt.ask(admin, rpc, good + b"\xfa\x3e\xff\xff\x7f" + hunt.one().encode() * 3)  # cut off
        hunt.ask(admin, rpc, good, token=hunt.one())  # two identities
        hunt.ask(admin, rpc, b"\xfa\x3e\x80\x80\x80\x01" + hunt.one().encode() * 80_000)  # too large
        hunt.ask(admin, rpc, good if rpc not in {"SetPolicy", "RotateRootKey"} else b"", timeout=0.002)
        for request in misplaced(hunt, rpc, fields):
            hunt.ask(admin, rpc, request)
        hunt.ask(anonymous, rpc, good)
    anonymous.close()


def misplaced(hunt: Hunt, rpc: str, fields: dict[str, Any]) -> Iterator[bytes]:
    """A secret where a name belongs, in each place in turn; no name has capital letters."""
    for one in METHODS[rpc].input_type.fields:
        if one.type == one.TYPE_STRING and not one.message_type and one.name in {"name", "target", "key", "prefix"}:
            yield wire(rpc, fields | {one.name: hunt.one()})
        if one.name == "references":
            for text in (f"team/app/db#{hunt.one()}!", hunt.one(), f"team/{hunt.one()}/x", f"team/app@{hunt.one()}"):
                yield wire(rpc, {"references": [text]})


def pipelines_paths(hunt: Hunt, admin: Client) -> list[str]:
    """What a job can send: every RPC with every kind of bad token; the real session tokens, to be looked for too."""
    for name in ("team/app/db", "team/app/api"):
        put = {"name": name, "fields": {"password": hunt.one().encode(), "user": hunt.one().encode()}}
        assert hunt.ask(admin, "PutSecret", wire("PutSecret", put))
    job, other = Client(hunt.live.pipelines, hunt.live.ca, None, None), Signer("one")
    fetch = wire("FetchSecrets", {"references": ["team/app/db", "team/app/api#password"]})
    got = hunt.ask(job, "FetchSecrets", fetch, token=hunt.job())
    assert got is not None, hunt.heard[-1]
    assert [one.fields["password"].decode()[:4] for one in got.secrets] == ["Cnry", "Cnry"]
    session = got.session_token
    once = hunt.job()
    login = hunt.ask(job, "Login", b"", token=once)
    forged = other.token(hunt.issuer.claims(note=hunt.one()))
    bad = [
        once, hunt.one(), f"Basic {hunt.one()}", f"brs_{hunt.one()}",
        session[:-1] + ("B" if session[-1] == "A" else "A"),
        hunt.made_up(), forged,
        hunt.job(repository_id="99"), hunt.job(aud="other"), hunt.job(exp=1, iat=0), hunt.job(repository_id=None),
        f"{hunt.job()}.{hunt.one()}", hunt.job() + hunt.one(),
    ]  # fmt: skip
    for rpc in sorted(METHODS):
        hunt.ask(job, rpc, b"\xfa\x3e" + blob(hunt.one()), token=session)
        hunt.ask(job, rpc, fetch if rpc == "FetchSecrets" else b"", token=hunt.one())
    for token in bad:
        for rpc in ("Login", "FetchSecrets", "RenewSession", "EndSession"):
            assert hunt.ask(job, rpc, fetch if rpc == "FetchSecrets" else b"", token=token) is None
        hunt.ask(admin, "TestTrustRule", wire("TestTrustRule", {"name": "deploy", "identity_token": token}))
    for reference in (f"team/app/db#{hunt.one().lower()}", "team/other", f"team/app/db@{hunt.one()}"):
        hunt.ask(job, "FetchSecrets", wire("FetchSecrets", {"references": [reference]}), token=hunt.job())
    for rpc in ("RenewSession", "EndSession", "RenewSession"):
        hunt.ask(job, rpc, b"", token=session)
    job.close()
    return [session, login.session_token, forged.rpartition(".")[2]]


def command_line(hunt: Hunt, folder: Path) -> str:
    """All that the command line says while it puts, fetches, runs and fails; never asked to reveal anything.

    Three of its ways, others in each run, by an interpreter of their own, which the loudest settings are for.
    """
    profile, said = str(hunt.live.folder / "profile"), ""
    (folder / "ca.pem").write_bytes(hunt.live.ca)
    place = ["--address", hunt.live.pipelines, "--ca-file", str(folder / "ca.pem")]

    def token(text: str) -> list[str]:
        (folder / "token").write_text(text)
        (folder / "token").chmod(0o600)
        return ["--token-file", str(folder / "token")]

    alone = random.sample(range(9), 3)
    ways = count()

    def run(*words: str, stdin: str = "") -> None:
        nonlocal said
        if next(ways) in alone:
            done = subprocess.run(
                [sys.executable, "-m", "broker_cli", *words], input=stdin.encode(), capture_output=True, timeout=200,
                check=False, cwd=ROOT, env=environment() | LOUD,
            )  # fmt: skip
        else:
            done = run_command_line(words, environment=environment() | LOUD, folder=ROOT, given=stdin.encode())
        said += f"{words[:2]} {done.returncode} {done.stdout!r} {done.stderr!r}\n"

    ref = "DB=broker://team/app/db#password"
    run("secret", "put", "team/cli", "--field", "a=@-", "--profile", profile, stdin=hunt.one())
    run("secret", "put", "team/cli", "--json-file", "-", "--profile", profile, stdin=f'{{"a": "{hunt.one()}", }}')
    run("secret", "get", "team/app/db#password", "--out", str(folder / "kept"), "--profile", profile)
    run("secret", "get", f"team/app/db#{hunt.one()}!", "--profile", profile)
    run("trust", "test", "deploy", *token(hunt.job()), "--profile", profile)
    run("trust", "test", "deploy", *token(hunt.made_up()), "--profile", profile)
    run("run", *place, *token(hunt.job()), "--secret", ref, "--", "sh", "-c", 'echo "$DB"; echo "$DB" >&2')
    run("run", *place, *token(hunt.made_up()), "--secret", ref, "--", "true")
    run("fetch", *place, *token(hunt.job()), "--format", "file", "--out", str(folder / "out"), ref)
    assert (folder / "kept").read_text().startswith("Cnry")
    (folder / "kept").unlink()
    assert "***" in said, said
    return said


def without_a_journal(hunt: Hunt, admin: Client, bao: OpenBao) -> None:
    """Nothing can be written down, so nothing is given: every RPC, several at once."""
    requests = [(rpc, wire(rpc, hunt.planted(fields))) for rpc, fields in asked(bao).items()]
    cure = no_room(hunt.live)
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda one: hunt.ask(admin, *one), requests))
    finally:
        cure()
    assert answers == [None] * len(answers)
    within(10, admin.serving)


def without_a_token(hunt: Hunt, admin: Client) -> None:
    tokens = hunt.live.folder / "softhsm" / "tokens"
    hunt.ask(admin, "CreateKey", wire("CreateKey", {"name": "sealer", "type": 10, "usage": 2}))
    tokens.rename(tokens.with_name("away"))
    within(10, lambda: not admin.serving())
    for rpc, fields in (
        ("Encrypt", {"name": "sealer", "plaintext": b"", "aad": b""}),
        ("PutSecret", {"name": "team/app/db", "fields": {"password": b""}}),
        ("FetchSecrets", {"references": ["team/cli"]}),
    ):
        hunt.ask(admin, rpc, wire(rpc, hunt.planted(fields)))
    tokens.with_name("away").rename(tokens)
    within(15, admin.serving)


def after_a_crash(hunt: Hunt) -> None:
    """Killed with everything in its write-ahead log, and then a row of it damaged."""
    hunt.live.kill()
    with sqlite3.connect(hunt.live.folder / "broker.db") as database:
        database.execute("UPDATE secret_versions SET sealed = zeroblob(length(sealed)) WHERE secret = 'team/app/db'")
    database.close()
    hunt.live.start(extra=random.choice((LOUD, {})))  # noqa: S311 (no secret)
    admin = hunt.live.client()
    assert hunt.ask(admin, "FetchSecrets", wire("FetchSecrets", {"references": ["team/app/db"]})) is None
    assert "is not as the broker wrote it" in hunt.heard[-1], hunt.heard[-1]
