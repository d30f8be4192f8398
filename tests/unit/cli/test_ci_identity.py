"""The identity tokens of the CIs: found without being told, from endpoints imitated on loopback."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from broker_cli.budget import Budget
from broker_cli.ci import identity, kubernetes, web
from broker_cli.refusal import Exit, Refusal

from tests.live.run.test_standin import jwt
from tests.servers.refusals import refused_by_the_cli

OURS = "broker.test"
TOKEN = jwt(OURS)


@dataclass
class Endpoint:
    """A CI's token endpoint. ``status``, ``headers`` and ``content`` are what it answers."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    seen: list[tuple[str, str, dict[str, list[str]], str, bytes]] = field(default_factory=list)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    one = Endpoint()

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            bearer = self.headers.get("Authorization", "")
            one.seen.append((self.command, parts.path, parse_qs(parts.query), bearer, body))
            self.send_response(one.status)
            for name, value in one.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(one.content)))
            self.end_headers()
            self.wfile.write(one.content)

        do_POST = do_GET  # noqa: N815  the name that the standard library looks for

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    one.url = f"http://127.0.0.1:{server.server_port}/token"
    yield one
    server.shutdown()
    thread.join()
    server.server_close()


def github(endpoint: Endpoint) -> dict[str, str]:
    return {
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_URL": endpoint.url + "?api-version=2.0",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "canary-bearer",
    }


def azure(endpoint: Endpoint) -> dict[str, str]:
    return {"TF_BUILD": "True", "SYSTEM_OIDCREQUESTURI": endpoint.url, "SYSTEM_ACCESSTOKEN": "canary-bearer"}


def denied(environ: dict[str, str], audience: str = OURS, file: str | None = None, seconds: float = 20) -> Refusal:
    return refused_by_the_cli(lambda: identity.token(environ, audience, file, Budget(seconds)))


def test_github(endpoint: Endpoint) -> None:
    endpoint.content = json.dumps({"count": 1, "value": TOKEN}).encode()
    assert identity.token(github(endpoint), "https://a b&c", None) == TOKEN
    query = {"api-version": ["2.0"], "audience": ["https://a b&c"]}
    assert endpoint.seen == [("GET", "/token", query, "Bearer canary-bearer", b"")]


def test_github_says_which_permission_is_missing() -> None:
    told = denied({"GITHUB_ACTIONS": "true"})
    assert "the job lacks `permissions: id-token: write`" in told.message.lower()
    assert (told.reason, told.code) == ("PERMISSION_MISSING", Exit.NOT_LOGGED_IN)


@pytest.mark.parametrize("name", ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"])
def test_github_with_one_of_its_variables(endpoint: Endpoint, name: str) -> None:
    told = denied(github(endpoint) | {name: ""})
    assert (told.reason, name in told.message) == ("IDENTITY_UNAVAILABLE", True)


def test_an_audience_is_needed_where_tokens_are_made_for_one(endpoint: Endpoint) -> None:
    assert denied(github(endpoint), "").reason == "AUDIENCE_MISSING"
    assert denied({"BUILDKITE": "true"}, "").reason == "AUDIENCE_MISSING"


def test_azure(endpoint: Endpoint) -> None:
    theirs = jwt("api://AzureADTokenExchange")
    endpoint.content = json.dumps({"oidcToken": theirs}).encode()
    assert identity.token(azure(endpoint), OURS, None) == theirs
    assert endpoint.seen == [("POST", "/token", {"api-version": ["7.1"]}, "Bearer canary-bearer", b"")]


def test_azure_says_what_is_not_mapped(endpoint: Endpoint) -> None:
    told = denied(azure(endpoint) | {"SYSTEM_ACCESSTOKEN": ""})
    assert (told.reason, "SYSTEM_ACCESSTOKEN is not mapped" in told.message) == ("PERMISSION_MISSING", True)
    assert denied(azure(endpoint) | {"SYSTEM_OIDCREQUESTURI": ""}).reason == "IDENTITY_UNAVAILABLE"


@pytest.mark.parametrize("name", ["BROKER_ID_TOKEN", "BROKER_TEST_ID_TOKEN"])
def test_gitlab(name: str) -> None:
    assert identity.token({"GITLAB_CI": "true", name: TOKEN}, OURS, None) == TOKEN


def test_gitlab_says_what_to_declare() -> None:
    told = denied({"GITLAB_CI": "true"})
    assert "`id_tokens: { BROKER_ID_TOKEN: { aud: broker.test } }`" in told.message


@pytest.mark.parametrize(
    "environ",
    [
        {"GITLAB_CI": "true", "BROKER_ID_TOKEN": jwt("other")},
        {"BITBUCKET_STEP_OIDC_TOKEN": jwt("other")},
        {"BROKER_ID_TOKEN": jwt(["other", OURS])},
    ],
)
def test_a_token_for_somebody_else_is_not_sent(environ: dict[str, str]) -> None:
    told = denied(environ)
    assert (told.reason, "other" in told.message, OURS in told.message) == ("IDENTITY_TOKEN_AUDIENCE", True, True)


def test_bitbucket() -> None:
    assert identity.token({"BITBUCKET_BUILD_NUMBER": "7", "BITBUCKET_STEP_OIDC_TOKEN": TOKEN}, OURS, None) == TOKEN
    assert "`oidc: true`" in denied({"BITBUCKET_BUILD_NUMBER": "7"}).message


def command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_circleci_takes_its_variable_or_asks_for_our_audience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"CIRCLECI": "true", "CIRCLE_OIDC_TOKEN_V2": jwt("org-1")}
    assert identity.token(environ, "org-1", None) == environ["CIRCLE_OIDC_TOKEN_V2"]
    assert identity.token(environ, "", None) == environ["CIRCLE_OIDC_TOKEN_V2"]
    command(tmp_path, "circleci", f'echo "$@" > {tmp_path}/asked; echo {TOKEN}', monkeypatch)
    assert identity.token(environ, OURS, None) == TOKEN
    assert (tmp_path / "asked").read_text() == 'run oidc get --claims {"aud": "broker.test"}\n'


def test_buildkite_asks_for_the_ids_that_cannot_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(tmp_path, "buildkite-agent", f'echo "$@" > {tmp_path}/asked; echo {TOKEN}', monkeypatch)
    assert identity.token({"BUILDKITE": "true"}, OURS, None) == TOKEN
    asked = "oidc request-token --audience broker.test --lifetime 300 --claim organization_id --claim pipeline_id\n"
    assert (tmp_path / "asked").read_text() == asked


@pytest.mark.parametrize("script", ["echo canary >&2; exit 3", "echo canary", "sleep 60"])
def test_a_program_that_fails_is_named_and_not_quoted(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path, "buildkite-agent", script, monkeypatch)
    told = denied({"BUILDKITE": "true"}, seconds=2)
    wrong = Exit.NOT_LOGGED_IN if script == "echo canary" else Exit.UNAVAILABLE
    assert (told.code, "canary" in told.message) == (wrong, False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert "buildkite-agent" in denied({"BUILDKITE": "true"}).message


def test_kubernetes_reads_the_projected_file_for_every_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched: it lies under /var/run, where only Kubernetes mounts something.
    monkeypatch.setattr(kubernetes, "PLACE", tmp_path / "token")
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert "projected serviceAccountToken" in denied(environ).message
    for number in range(2):
        (tmp_path / "token").write_text(jwt(OURS, jti=number) + "\n")
        assert identity.token(environ, OURS, None) == jwt(OURS, jti=number)
    assert identity.token(environ | {"GITLAB_CI": "true", "BROKER_ID_TOKEN": TOKEN}, OURS, None) == TOKEN


def test_a_named_file_goes_before_everything(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    for environ, file in [({"GITHUB_ACTIONS": "true"}, str(tmp_path / "token")),
                          ({"GITLAB_CI": "true", "BROKER_ID_TOKEN_FILE": str(tmp_path / "token")}, None)]:  # fmt: skip
        assert identity.token(environ, OURS, file) == TOKEN
    assert denied({}, file=str(tmp_path / "none")).reason == "FILE_UNREADABLE"


def test_nowhere() -> None:
    told = denied({})
    assert (told.reason, "GitLab CI" in told.message, "--token-file" in told.message) == (
        "IDENTITY_MISSING",
        True,
        True,
    )
    assert identity.token({"BROKER_ID_TOKEN": TOKEN}, OURS, None) == TOKEN


@pytest.mark.parametrize("text", ["", "canary", "a.b", "a.b.c.d", "a.b.c\r\nx: y", "a.b." + "c" * 20_000, "ä.b.c"])
def test_what_is_no_token_is_not_sent_and_not_quoted(text: str, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.content = json.dumps({"value": text}).encode()
    (tmp_path / "token").write_text(text)
    for told in (denied(github(endpoint)), denied({}, file=str(tmp_path / "token"))):
        assert (told.reason, "canary" in told.message, len(told.message) < 400) == (
            "IDENTITY_TOKEN_INVALID", False, True,
        )  # fmt: skip


SEEMING = {
    "": "it is empty",
    "Bearer a.b.c": "Bearer",
    '"a.b.c"': "in quotes",
    '{"value": "canary"}': "it is JSON",
    "$(idToken)": "name of a variable",
    "a.b.c\nd": "blanks",
    "canary": "it has 1 part(s)",
    "a.b.c.d.e": "an encrypted one",
    "a.b." + "c" * 20_000: "longer",
    "ä.b.c": "characters",
}


@pytest.mark.parametrize(("text", "sentence"), SEEMING.items())
def test_P28_what_is_no_token_is_told_for_what_it_seems_to_be(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(text)
    told = denied({}, file=str(tmp_path / "token"))
    assert (told.reason, sentence in told.message) == ("IDENTITY_TOKEN_INVALID", True), told.message
    assert not text or text not in told.message


@pytest.mark.parametrize("encoding", ["ascii", "utf-8-sig", "utf-16"])
def test_P25_a_token_file_as_a_shell_of_windows_writes_it(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(f"\r\n{TOKEN}\r\n".encode(encoding))
    assert identity.token({}, OURS, str(tmp_path / "token")) == TOKEN


HOSTILE: list[tuple[int, dict[str, str], bytes]] = [
    (401, {}, b"canary"),
    (203, {}, b"<html>canary"),
    (500, {}, b""),
    (200, {}, b"canary"),
    (200, {}, b"[]"),
    (200, {}, b"[" * 60_000),
    (200, {}, b'{"value": "' + b"a" * 70_000 + b'"}'),
    (302, {"Location": "http://127.0.0.1:1/elsewhere"}, b""),
    (307, {"Location": "/token2"}, b""),
]


@pytest.mark.parametrize(("status", "headers", "content"), HOSTILE)
@pytest.mark.parametrize("ci", [github, azure])
def test_a_hostile_endpoint_gets_one_request_and_no_quotation(
    status: int, headers: dict[str, str], content: bytes, ci: Any, endpoint: Endpoint
) -> None:
    endpoint.status, endpoint.headers, endpoint.content = status, headers, content
    may_pass = status == 500  # asked again as long as there is time
    told = denied(ci(endpoint), seconds=0.1 if may_pass else 60)
    reason = "IDENTITY_REFUSED" if status == 401 else "IDENTITY_UNAVAILABLE"
    assert (told.reason, "canary" in told.message) == (reason, False)
    assert len(endpoint.seen) == 1 or (may_pass and not endpoint.seen)  # as many as there was time for
    assert told.code is (Exit.UNAVAILABLE if status == 500 else Exit.NOT_LOGGED_IN)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/token", "http://10.0.0.1/t", "http://127.0.0.1.evil.test/t", "http://127.0.0.1@evil.test/t",
        "ftp://127.0.0.1/t", "file:///etc/passwd", "//x", "http://[::1", "",
    ],
)  # fmt: skip
def test_only_https_and_this_machine_are_asked(url: str) -> None:
    with pytest.raises(Refusal) as found:
        web.ask(url, "canary-bearer", "GitHub Actions", Budget(1))
    assert found.value.message == "No identity token came from GitHub Actions: its address is not https."


def test_an_endpoint_that_is_away_or_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(Refusal) as found:
            web.ask(url, "canary-bearer", "GitHub Actions", Budget(0.2))
        assert found.value.code is Exit.UNAVAILABLE
    with pytest.raises(Refusal) as found:
        web.ask(url, "canary\nbearer", "GitHub Actions", Budget(0.2))
    assert "canary" not in found.value.message


def test_CL_07_a_proxy_never_sees_the_loopback_request(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:canary@127.0.0.1:1")
    endpoint.content = json.dumps({"value": TOKEN}).encode()
    assert identity.token(github(endpoint), OURS, None) == TOKEN


def test_CL_07_a_proxy_with_a_password_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://user:canary@127.0.0.1:1")
    with pytest.raises(Refusal) as found:
        web.ask("https://token.test/x", "canary-bearer", "GitHub Actions", Budget(0.5))
    assert "canary" not in found.value.message
    assert found.value.code is Exit.UNAVAILABLE


TAKEN = [
    "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "SYSTEM_ACCESSTOKEN", "SYSTEM_OIDCREQUESTURI",
    "CI_JOB_JWT", "CI_JOB_JWT_V1", "CI_JOB_JWT_V2", "BROKER_ID_TOKEN", "BROKER_TEST_ID_TOKEN", "CIRCLE_OIDC_TOKEN",
    "CIRCLE_OIDC_TOKEN_V2", "BITBUCKET_STEP_OIDC_TOKEN", "BUILDKITE_AGENT_ACCESS_TOKEN", "BUILDKITE_AGENT_TOKEN",
    "BROKER_ID_TOKEN_FILE",
]  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_a_job_could_log_in_with_is_not_passed_on(name: str) -> None:
    plain = {"PATH": "/bin", "CI_JOB_TOKEN": "x", "OTHER_ID_TOKEN": "y", "GITHUB_TOKEN": "z"}
    assert identity.without(plain | {name: "canary"}, OURS) == plain | {"BROKER_IDENTITY_WITHHELD": "1"}
    assert identity.without(plain, OURS) == plain
    assert identity.withheld(OURS) == set(TAKEN)


@pytest.mark.parametrize("ci", [{"GITHUB_ACTIONS": "true"}, {"GITLAB_CI": "true"}, {"TF_BUILD": "True"}, {}])
def test_a_command_of_another_run_is_told_where_its_identity_is(ci: dict[str, str]) -> None:
    told = denied(ci | {"BROKER_IDENTITY_WITHHELD": "1"})
    assert (told.reason, told.code, "--keep-identity" in told.message) == ("IDENTITY_WITHHELD", 4, True)


def test_a_command_of_another_run_may_have_an_identity_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    environ = {"BROKER_IDENTITY_WITHHELD": "1"}
    assert identity.token(environ | {"GITLAB_CI": "true", "BROKER_ID_TOKEN": TOKEN}, OURS, None) == TOKEN
    assert identity.token(environ | {"GITHUB_ACTIONS": "true"}, OURS, str(tmp_path / "token")) == TOKEN
