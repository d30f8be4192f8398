"""What may be registered as a Vault target, and which file may hold its token: decided before any connection."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.core.errors import InvalidRequest, WrongState
from broker.targets import Connector, Surroundings, connector, kinds
from broker.targets.token import read_token
from broker.targets.vault.policy import RIGHTS, lines, policy
from tests.fakes.refusals import refused
from tests.servers.openbao import self_signed

HOST = "vault.example:8200"


@pytest.fixture(scope="module")
def ca_pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    return self_signed(tmp_path_factory.mktemp("ca"))[0].read_text()


@pytest.fixture
def settings(ca_pem: str) -> dict[str, str]:
    return {"address": f"https://{HOST}", "mount": "transit", "ca_pem": ca_pem, "token_file": "vault-token"}


@pytest.fixture
def connect(tmp_path: Path) -> Connector:
    return connector(Surroundings(allowed_hosts=frozenset({HOST}), credentials=tmp_path))


def why_not(connect: Connector, settings: dict[str, str]) -> tuple[str, str]:
    error = refused(lambda: connect("vault-token", "vault", settings), InvalidRequest)
    return error.reason, error.message


def test_good_settings_build_a_target_and_open_no_connection(connect: Connector, settings: dict[str, str]) -> None:
    port = connect("vault-token", "vault", settings)
    assert connect("vault-token", "vault", dict(settings)) is port  # kept, with its connection
    assert connect("vault-token", "vault", {**settings, "namespace": "team/a"}) is not port
    assert connect("vault-token", "vault", {**settings, "mount": "a/b-c_d"}) is not port
    assert "PRIVATE" not in repr(port)
    assert settings["ca_pem"] not in repr(port)


@pytest.mark.parametrize("address", [
    "", "http://vault.example:8200", "https://vault.example:8200/v1", "https://vault.example:", "vault.example:8200", "https://vault.example:8200?x=1",
    "https://vault.example:8200#x", "https://user@vault.example:8200", "https://a:b@vault.example:8200",
    "https://vault.example:8200@evil.example:1", "https://evil.example\\@vault.example:8200",
    "https://vault.example:08200", "https://vault.example:0", "https://vault.example:65536",
    "https://[::1%eth0]:8200", "https://vault.example:8200 ",
    "https://vault.example:8200\n", "https://vault.example:8200\0", " https://vault.example:8200",
    "https://vault。example:8200", "https://ｖault.example:8200", "https:/vault.example:8200",
    "https://vault.example:820000", "unix:///run/x", "https://[::1:8200", "https://" + "a" * 300 + ":1",
])  # fmt: skip
def test_BY_03_an_address_that_is_anything_but_https_host_and_port_is_refused(
    connect: Connector, settings: dict[str, str], address: str
) -> None:
    code, message = why_not(connect, {**settings, "address": address})
    assert code == "TARGET_SETTINGS_INVALID"
    assert message.startswith("The target's settings will not do: address:")
    assert not address or address not in message


@pytest.mark.parametrize("address", [
    "https://evil.example:8200", "https://vault.example:8201", "https://vault.example.evil.example:8200",
    "https://evilvault.example:8200", "https://127.0.0.1:8200", "https://[::1]:8200", "https://169.254.169.254:443",
    "https://xn--vult-1na.example:8200", "https://vault.example.:8200", "https://0x7f000001:8200",
])  # fmt: skip
def test_BY_03_NT_17_only_hosts_of_the_brokers_own_configuration_are_connected_to(
    connect: Connector, settings: dict[str, str], address: str
) -> None:
    code, message = why_not(connect, {**settings, "address": address})
    assert code in {"TARGET_HOST_NOT_ALLOWED", "TARGET_SETTINGS_INVALID"}
    asked = address.removeprefix("https://")
    assert HOST not in message.replace(asked, "")  # what is allowed is not told to those who may register targets


@pytest.mark.parametrize(("field", "bad"), [
    ("mount", ""), ("mount", "../sys"), ("mount", "a//b"), ("mount", "//a"), ("mount", "a//"), ("mount", "/"),
    ("mount", "a/.b"), ("mount", "a%2e"),
    ("mount", "a?b"), ("mount", "a\nb"), ("mount", "x" * 129),
    ("namespace", "../a"), ("namespace", "a b"), ("namespace", "a\r\nX-Vault-Token: b"),
    ("token_file", ""), ("token_file", "../token"), ("token_file", "/etc/passwd"), ("token_file", ".hidden"),
    ("token_file", "a/b"), ("token_file", "a\0b"), ("token_file", "x" * 65),
    ("ca_pem", ""), ("ca_pem", "x"), ("ca_pem", "x" * 70_000),
    ("ca_pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ("token", "s.abcdef"),
])  # fmt: skip
def test_bad_settings_are_refused_with_the_field_and_without_the_value(
    connect: Connector, settings: dict[str, str], field: str, bad: str
) -> None:
    code, message = why_not(connect, {**settings, field: bad})
    assert code == "TARGET_SETTINGS_INVALID"
    assert f"{field}:" in message
    assert len(bad) < 2 or bad not in message


def test_a_private_key_among_the_certificates_is_refused_and_not_shown(
    connect: Connector, settings: dict[str, str], tmp_path: Path
) -> None:
    certificate, key = self_signed(tmp_path / "both")
    code, message = why_not(connect, {**settings, "ca_pem": key.read_text() + certificate.read_text()})
    assert code == "TARGET_SETTINGS_INVALID"
    assert "PRIVATE" not in message


def test_all_faults_are_told_at_once(connect: Connector, settings: dict[str, str]) -> None:
    _, message = why_not(connect, {"address": "x", "mount": "..", "ca_pem": settings["ca_pem"]})
    assert all(f"{field}:" in message for field in ("address", "mount", "token_file"))


def test_an_unknown_kind_is_refused(connect: Connector) -> None:
    with pytest.raises(InvalidRequest) as caught:
        connect("x", "floppy", {})
    assert caught.value.reason == "TARGET_KIND_UNKNOWN"
    assert "vault" in caught.value.message


def test_every_folder_is_a_kind_under_its_own_name() -> None:
    assert all(kind.name == name for name, kind in kinds().items())
    assert "vault" in kinds()


# ---- the token's file ----------------------------------------------------------------------------------------------


def put(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "vault-token"
    file.touch()
    file.chmod(mode)
    file.write_text(text)
    return file


def test_the_token_is_read_anew_each_time(tmp_path: Path) -> None:
    put(tmp_path, "s.first\n")
    assert read_token(tmp_path, "vault-token") == "s.first"
    put(tmp_path, "s.second")
    assert read_token(tmp_path, "vault-token") == "s.second"


def unusable(folder: Path, name: str = "vault-token") -> str:
    with pytest.raises(WrongState) as caught:
        read_token(folder, name)
    assert caught.value.reason == "TARGET_CREDENTIAL_UNUSABLE"
    assert "s.secret" not in caught.value.message
    return caught.value.message


def test_BY_03_a_link_out_of_the_credentials_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    target = put(tmp_path, "s.secret")
    (folder / "vault-token").symlink_to(target)
    assert "leads out of its folder" in unusable(folder)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    for mode in (0o640, 0o604, 0o666):
        put(tmp_path, "s.secret", mode)
        assert "chmod 600" in unusable(tmp_path)
    put(tmp_path, "s.secret", 0o400)
    assert read_token(tmp_path, "vault-token") == "s.secret"


def test_what_is_no_file_with_one_token_is_refused(tmp_path: Path) -> None:
    assert "cannot be opened" in unusable(tmp_path)
    for text in ("", "\n", "s.secret\ns.secret2", "s.secret x", "s.sécret", "x" * 20000):
        put(tmp_path, text)
        assert "one token" in unusable(tmp_path)
    (tmp_path / "folder").mkdir()
    assert "regular file" in unusable(tmp_path, "folder")
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "regular file" in unusable(tmp_path, "pipe")


# ---- the policy text -----------------------------------------------------------------------------------------------


def test_the_policy_asks_for_nothing_that_would_let_a_key_out() -> None:
    text = policy("transit")
    allowed = '"min_decryption_version" = [], "min_encryption_version" = []'
    config = f'path "transit/keys/+/config" {{ capabilities = ["update"] allowed_parameters = {{ {allowed} }} }}\n'
    assert text.count(config) == 1, "of a key's configuration only what puts former versions out of use"
    text = text.replace(config, "")
    for never in ("export", "backup", "rotate", "config", "trim", "sudo", "root", "*"):
        assert never not in text
    assert '"delete"' not in text.replace('soft-delete" { capabilities = ["delete"', "")


def test_each_refusal_can_name_the_line_that_is_missing() -> None:
    for path, rights in RIGHTS.items():
        told = lines("team/transit", path.replace("+", "name"))
        assert f'path "team/transit/{path}"' in told
        assert all(f'"{right}"' in told for right in rights)
