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


@pytest.mark.parametrize("name", OBEYED)
def test_a_name_that_programs_obey_is_known_in_every_spelling(name: str) -> None:
    assert all(map(is_reserved, (name, name.upper(), name.lower())))


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_is_free(name: str) -> None:
    assert not is_reserved(name)


UNDERSCORED = [name.lower().partition("_") for name in OBEYED if "_" in name.strip("_") and name[0] != "_"]


@pytest.mark.parametrize(("path", "field"), [(path, field) for path, _, field in UNDERSCORED])
@pytest.mark.parametrize("form", ["broker://team/{path}", "{NAME}=broker://team/x", "broker://team/{path}#{field}"])
def test_SC_08_it_is_made_up_from_no_path_and_field(path: str, field: str, form: str) -> None:
    asked = [named(form.format(path=path, field=field, NAME=path.upper()))]
    with pytest.raises(Refusal) as refused:
        collected(asked, {asked[0][1]: {field: b"canary"}})
    made_up = f"{path}_{field}".upper()
    assert (refused.value.reason, refused.value.code) == ("NAME_RESERVED", Exit.USAGE)
    assert f"{made_up}=broker://" in refused.value.message  # the way out
    assert "canary" not in refused.value.message


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
