"""The examples of docs/ci, carried out: the CI's own variables and token endpoint are imitated on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.live.run.test_standin import (
    PASSWORD,
    VALUES,
    Job,
    Pipelines,
    headers_of,
    job_environment,
    jwt,
    pipelines,
    pipelines_authority,
)
from tests.unit.cli.test_ci_identity import Endpoint, azure, endpoint, github

__all__ = ["endpoint", "pipelines", "pipelines_authority"]  # fixtures

DOCS = Path(__file__).resolve().parents[3] / "docs/ci"
AUDIENCE = "https://broker.example"
DEPLOY = '#!/bin/sh\nprintf \'%s %s\' "$DB_PASSWORD" "$LOG_LEVEL"\nprintf %s "$DB_PASSWORD" | wc -c > length\n'


def blocks(name: str, kind: str) -> list[Any]:
    texts = re.findall(rf"^```{kind}\n(.*?)^```$", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)
    return [yaml.safe_load(text) if kind == "yaml" else text for text in texts]


def checkout(folder: Path, name: str, pipelines: Pipelines) -> None:
    """The repository of the example."""
    VALUES["team/app/db"] = {"password": PASSWORD}
    (folder / "ci").mkdir()
    (folder / "ci/secrets.env").write_text(blocks(name, "sh")[0])
    (folder / "ci/broker-ca.pem").write_bytes(pipelines.authority.pem)
    (folder / "deploy.sh").write_text(DEPLOY)
    (folder / "deploy.sh").chmod(0o700)


def carry_out(pipelines: Pipelines, folder: Path, line: str, environ: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """Run a line of the example; only the broker's address is another."""
    place = job_environment(pipelines)
    place.pop("BROKER_CA_PEM")
    assert environ["BROKER_PIPELINES_ADDRESS"] == "broker.example:7444"
    environment = {**place, **environ, "BROKER_PIPELINES_ADDRESS": pipelines.address}
    words = line.split()
    assert words[0] == "broker"
    return Job(folder, environment).run(*words[1:], cwd=folder)


def example(name: str) -> tuple[str, dict[str, str]]:
    """The line of a CI's example that runs `broker`, and what the example puts in the environment."""
    found = blocks(name, "yaml")[0]
    if name == "github-actions.md":
        assert found["permissions"] == {"id-token": "write"}
        return found["steps"][1]["run"], found["env"]
    if name == "gitlab-ci.md":
        assert found["deploy"]["id_tokens"] == {"BROKER_ID_TOKEN": {"aud": AUDIENCE}}
        return found["deploy"]["script"][0], found["deploy"]["variables"]
    step = found["steps"][0]
    assert step["env"].pop("SYSTEM_ACCESSTOKEN") == "$(System.AccessToken)"
    return step["script"], step["env"]


def gitlab(_: Endpoint) -> dict[str, str]:
    return {"GITLAB_CI": "true", "BROKER_ID_TOKEN": jwt(AUDIENCE)}


CIS: dict[str, tuple[Callable[[Endpoint], dict[str, str]], str, str]] = {
    "github-actions.md": (github, "value", AUDIENCE),
    "gitlab-ci.md": (gitlab, "", AUDIENCE),
    "azure-pipelines.md": (azure, "oidcToken", "api://AzureADTokenExchange"),
}


@pytest.mark.parametrize("name", CIS)
def test_an_example_does_what_it_says(name: str, pipelines: Pipelines, endpoint: Endpoint, tmp_path: Path) -> None:
    of_ci, member, audience = CIS[name]
    endpoint.content = json.dumps({member: jwt(audience)}).encode()
    checkout(tmp_path, name, pipelines)
    line, environ = example(name)
    assert carry_out(pipelines, tmp_path, line, environ | of_ci(endpoint)) == (0, b"*** info", b"")
    assert int((tmp_path / "length").read_text()) == len(PASSWORD)
    assert headers_of(pipelines, "FetchSecrets")["authorization"] == f"Bearer {jwt(audience)}"
    assert pipelines.methods == ["FetchSecrets", "EndSession"]
    assert [query.get("audience") for _, _, query, _, _ in endpoint.seen] == (
        [[AUDIENCE]] if name == "github-actions.md" else [None] if member else []
    )


@pytest.mark.parametrize(
    ("name", "absent", "cure"),
    [
        ("github-actions.md", "ACTIONS_ID_TOKEN_REQUEST_", b"`permissions: id-token: write`"),
        ("gitlab-ci.md", "BROKER_ID_TOKEN", b"`id_tokens: "),
        ("azure-pipelines.md", "SYSTEM_ACCESSTOKEN", b"$(System.AccessToken)"),
    ],
)
def test_a_missing_permission_is_named(
    name: str, absent: str, cure: bytes, pipelines: Pipelines, endpoint: Endpoint, tmp_path: Path
) -> None:
    checkout(tmp_path, name, pipelines)
    line, environ = example(name)
    of_ci = {key: value for key, value in CIS[name][0](endpoint).items() if not key.startswith(absent)}
    code, out, err = carry_out(pipelines, tmp_path, line, environ | of_ci)
    assert (code, out, cure in err, b"PERMISSION_MISSING" in err) == (4, b"", True, True)
    assert (pipelines.methods, endpoint.seen) == ([], [])


def test_the_fetch_of_the_github_example(pipelines: Pipelines, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.content = json.dumps({"value": jwt(AUDIENCE)}).encode()
    checkout(tmp_path, "github-actions.md", pipelines)
    _, environ = example("github-actions.md")
    (tmp_path / "env").touch()
    line = blocks("github-actions.md", "yaml")[1][0]["run"]
    environ = environ | github(endpoint) | {"GITHUB_ENV": str(tmp_path / "env")}
    code, out, err = carry_out(pipelines, tmp_path, line, environ)
    assert (code, err) == (0, b"")
    assert f"::add-mask::{PASSWORD.decode()}\n" in out.decode()
    assert re.fullmatch(rf"DB_PASSWORD<<(\w+)\n{re.escape(PASSWORD.decode())}\n\1\n", (tmp_path / "env").read_text())


@pytest.mark.parametrize("name", CIS)
def test_an_example_is_five_lines(name: str) -> None:
    text = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)[0]
    frame = {"steps:", "deploy:", "- uses: actions/checkout@v4", "script:"}
    assert len([line for line in text.splitlines() if line.strip() not in frame]) <= 5
