"""A secret that is taken whole makes up no name that programs obey."""

from __future__ import annotations

import pytest
from broker_cli.fetch import collected, named
from broker_cli.refusal import Exit, Refusal
from broker_cli.reserved import is_reserved

OBEYED = [
    "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "GIT_SSH_COMMAND", "GIT_CONFIG_COUNT",
    "GIT_ASKPASS", "NODE_OPTIONS", "NODE_PATH", "BASH_ENV", "ENV", "PYTHONPATH", "PYTHONSTARTUP", "PYTHON_GIL",
    "PERL5OPT", "RUBYOPT", "PATH", "IFS", "SHELLOPTS", "PROMPT_COMMAND", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS",
    "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "no_proxy", "FTP_PROXY", "GITHUB_ENV", "GITHUB_PATH", "RUNNER_TEMP",
    "ACTIONS_ID_TOKEN_REQUEST_URL", "CI_JOB_TOKEN", "SYSTEM_ACCESSTOKEN", "CIRCLE_OIDC_TOKEN", "BUILDKITE_AGENT_TOKEN",
    "BITBUCKET_STEP_OIDC_TOKEN", "BROKER_CA_FILE", "BROKER_PIPELINES_ADDRESS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "OPENSSL_CONF", "PIP_INDEX_URL", "NPM_CONFIG_REGISTRY", "SSH_ASKPASS", "SUDO_ASKPASS", "DOTNET_STARTUP_HOOKS",
    "MAVEN_OPTS", "GLIBC_TUNABLES", "GCONV_PATH", "RUSTC_WRAPPER", "DOCKER_HOST", "SSH_AUTH_SOCK",
    "NODE_EXTRA_CA_CERTS",
]  # fmt: skip
PLAIN = [
    "DB_PASSWORD", "NPM_TOKEN", "DOCKER_PASSWORD", "AWS_SECRET_ACCESS_KEY", "NODE_AUTH_TOKEN", "SSH_PRIVATE_KEY",
    "TLS_KEY", "MAVEN_PASSWORD", "DIGIT_TOKEN", "BUILD_LD", "LESSON_KEY",
]  # fmt: skip


def test_a_name_that_programs_obey_is_known_in_every_spelling() -> None:
    spelt = [spelling for name in OBEYED for spelling in (name, name.upper(), name.lower())]
    assert [name for name in spelt if not is_reserved(name)] == []


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_is_free(name: str) -> None:
    assert not is_reserved(name)


UNDERSCORED = [name.lower().partition("_") for name in OBEYED if "_" in name.strip("_") and name[0] != "_"]


@pytest.mark.parametrize("form", ["broker://team/{path}", "{NAME}=broker://team/x", "broker://team/{path}#{field}"])
def test_SC_08_it_is_made_up_from_no_path_and_field(form: str) -> None:
    for path, _, field in UNDERSCORED:
        assert_not_made_up(path, field, form)


def assert_not_made_up(path: str, field: str, form: str) -> None:
    asked, made_up = [named(form.format(path=path, field=field, NAME=path.upper()))], f"{path}_{field}".upper()
    found = not_collected(asked, {asked[0][1]: {field: b"canary"}})
    assert found, made_up
    assert (found.reason, found.code) == ("NAME_RESERVED", Exit.USAGE), made_up
    assert f"{made_up}=broker://" in found.message  # the way out
    assert "canary" not in found.message


def not_collected(asked: list[tuple[str, str]], fetched: dict[str, dict[str, bytes]]) -> Refusal | None:
    try:
        collected(asked, fetched)
    except Refusal as found:
        return found
    return None


def test_one_such_field_among_others_refuses_them_all() -> None:
    asked = [named("broker://team/ld")]
    with pytest.raises(Refusal):
        collected(asked, {"team/ld": {"ok": b"1", "preload": b"2"}})


def test_a_caller_that_names_it_means_it() -> None:
    asked = [named("LD_PRELOAD=broker://team/ld#preload"), named("PATH=broker://team/x#y")]
    fetched = {"team/ld#preload": {"preload": b"/lib/a.so"}, "team/x#y": {"y": b"/bin"}}
    assert collected(asked, fetched) == {"LD_PRELOAD": b"/lib/a.so", "PATH": b"/bin"}


def test_the_free_ones_are_called_as_before() -> None:
    asked = [named(one) for one in ("broker://team/db", "ALL=broker://team/pin", "broker://team/npm#token")]
    fields = [{"password": b"1", "user.name": b"2"}, {"pin": b"3"}, {"token": b"4"}]
    fetched = dict(zip((text for _, text in asked), fields, strict=True))
    assert list(collected(asked, fetched)) == ["DB_PASSWORD", "DB_USER_NAME", "ALL_PIN", "NPM_TOKEN"]
