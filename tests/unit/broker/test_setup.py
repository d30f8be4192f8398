"""What `init` makes, when a certificate is renewed, and which files a broker trusts at its start."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from broker import __main__ as main
from broker import belonging, checkup, options, own_keys, row_key, setup, wishes
from broker.config import Config, load
from broker.core.errors import BrokerError, InvalidRequest, WrongState
from broker.core.kinds import Purpose
from broker.core.operators.authority import Authority
from broker.rpc.tls import TlsFiles
from broker.store.sql import SqlStore
from tests.fakes.hsm import SoftwareHsm

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TOML = """
trust_domain = "broker.internal"
certificates = "{folder}"
{extra}
[hsm]
module = "{module}"
token_label = "t"
pin_file = "{folder}/pin"
[store]
url = "sqlite:///{folder}/broker.db"
journal = "{folder}/journal"
[server]
certificate_file = "{folder}/server.pem"
key_file = "{folder}/server.key"
operator_ca_file = "{folder}/operator-ca.pem"
[targets]
credentials = "{folder}"
"""


def configured(folder: Path, *, module: str = "/usr/lib/module.so", extra: str = "") -> Config:
    file = folder / "broker.toml"
    file.write_text(TOML.format(folder=folder, module=module, extra=extra))
    return load(file)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path)


@pytest.fixture
def hsm(config: Config) -> SoftwareHsm:
    """Holds the broker's own keys, whose files are in the folder."""
    hsm = SoftwareHsm()
    for purpose, hsm_id in own_keys.INTERNAL_KEYS.items():
        certificate = Authority.create(hsm.keyring(purpose), hsm_id, purpose, NOW)[1]
        own_keys.write_private(config.certificates / f"{purpose}.pem", certificate)
    return hsm


@pytest.mark.usefixtures("hsm")
def test_S_13_rows_of_an_earlier_release_are_believed_in_its_own_folder_alone(config: Config) -> None:
    SqlStore.migrate(config.store)
    empty = SqlStore.condition(config.store)
    with sqlite3.connect(config.store.parsed.database or "") as database:
        database.execute(
            "INSERT INTO policy_documents VALUES (1, 'permit (principal, action, resource);', '', 0, 0, NULL)"
        )
    filled = SqlStore.condition(config.store)
    for found in (empty, filled):
        belonging.refuse_unknown_rows(config, found)
    for file in config.certificates.glob("*.pem"):
        file.unlink()
    belonging.refuse_unknown_rows(config, empty)
    with pytest.raises(WrongState) as refused:
        belonging.refuse_unknown_rows(config, filled)
    assert refused.value.reason == "DATABASE_NOT_OURS"


def test_S_01_rows_are_vouched_for_as_they_are_under_a_new_key_alone(config: Config, hsm: SoftwareHsm) -> None:
    SqlStore.migrate(config.store)
    new = setup.new_row_key(config, hsm)
    assert new
    with pytest.raises(WrongState) as found:  # a broker does not start on a key that `init` is not done with
        row_key.row_key(config, hsm)
    assert found.value.reason == "NOT_INITIALISED"
    assert setup.new_row_key(config, hsm) == new  # another run that was cut short, or one at the same time
    key = row_key.row_key(config, hsm, new)
    for _ in range(2):
        setup.keep_row_key(config)
        assert setup.new_row_key(config, hsm) == ""
        assert row_key.row_key(config, hsm) == key


def test_the_broker_renews_its_own_certificate_in_time(config: Config, hsm: SoftwareHsm) -> None:
    assert setup.renew_server_certificate(config, hsm, NOW, ("broker.example",))
    assert not setup.renew_server_certificate(config, hsm, NOW + timedelta(days=59))
    assert setup.renew_server_certificate(config, hsm, NOW + timedelta(days=61))
    fresh = x509.load_pem_x509_certificate(config.server.certificate_file.read_bytes())
    names = fresh.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]


def test_a_process_that_does_not_lead_leaves_the_renewal_to_the_leader_as_long_as_it_can(
    config: Config, hsm: SoftwareHsm
) -> None:
    setup.renew_server_certificate(config, hsm, NOW, ("broker.example",))
    at_last = setup.RENEW_AT_LAST
    assert not setup.renew_server_certificate(config, hsm, NOW + timedelta(days=61), before=at_last)
    assert setup.renew_server_certificate(config, hsm, NOW + timedelta(days=71), before=at_last)


def test_processes_that_renew_together_leave_a_key_and_its_certificate(config: Config, hsm: SoftwareHsm) -> None:
    with ThreadPoolExecutor(8) as pool:
        renewed = list(
            pool.map(lambda _: setup.renew_server_certificate(config, hsm, NOW, ("broker.example",)), range(8))
        )
    assert renewed.count(True) == 1
    TlsFiles(config.server.certificate_file, config.server.key_file, None).credentials()


@pytest.mark.parametrize("content", [None, b"", bytes(31), bytes(33)])
def test_a_page_key_that_init_did_not_make_is_refused(config: Config, content: bytes | None) -> None:
    if content is not None:
        own_keys.write_private(config.certificates / "page.key", content)
    with pytest.raises(WrongState) as found:
        setup.page_key(config)
    assert found.value.reason == "NOT_INITIALISED"


def test_a_page_key_that_others_may_read_is_refused(config: Config) -> None:
    own_keys.write_private(config.certificates / "page.key", bytes(32))
    assert setup.page_key(config) == bytes(32)
    (config.certificates / "page.key").chmod(0o640)
    with pytest.raises(WrongState) as found:
        setup.page_key(config)
    assert found.value.reason == "KEY_FILE_EXPOSED"


def test_workers_on_sqlite_are_refused(tmp_path: Path) -> None:
    configured(tmp_path)
    file = tmp_path / "broker.toml"
    file.write_text(file.read_text().replace("[server]", "[server]\nworkers = 2"))
    with pytest.raises(InvalidRequest) as found:
        load(file)
    assert found.value.reason == "WORKERS_NEED_POSTGRESQL"
    assert "2 workers" in found.value.message


def test_a_certificate_that_another_ca_signed_is_left_to_its_issuer(config: Config, hsm: SoftwareHsm) -> None:
    other = SoftwareHsm()
    ref, pem = Authority.create(other, bytes(16), "Other", NOW)
    key, csr = setup.make_request()
    foreign, _ = Authority(other, ref, pem).server(csr, ["broker.example"], NOW, timedelta(days=7))
    config.server.certificate_file.write_bytes(foreign)
    own_keys.write_private(config.server.key_file, key)
    assert not setup.renew_server_certificate(config, hsm, NOW + timedelta(days=6))
    assert config.server.certificate_file.read_bytes() == foreign
    assert config.server.key_file.read_bytes() == key


def test_the_doctor_doubts_a_certificate_of_another_ca_and_does_not_promise_to_renew_it(config: Config) -> None:
    now = datetime.now(UTC)
    hsm, other = SoftwareHsm(), SoftwareHsm()
    for purpose, hsm_id in own_keys.INTERNAL_KEYS.items():
        pem = Authority.create(hsm.keyring(purpose), hsm_id, purpose, now)[1]
        own_keys.write_private(config.certificates / f"{purpose}.pem", pem)
    ref, pem = Authority.create(other, bytes(16), "Other", now)
    key, csr = setup.make_request()
    own_keys.write_private(config.server.key_file, key)

    def found(days: int) -> checkup.Finding:
        foreign, _ = Authority(other, ref, pem).server(csr, ["broker.example"], now, timedelta(days=days))
        config.server.certificate_file.write_bytes(foreign)
        every = checkup.findings_for(config.certificates / "broker.toml")
        return next(one for one in every if one.name == "certificates")

    assert (found(60).passed, found(60).doubtful) == (True, True)
    lapsing = found(7)
    assert not lapsing.passed
    assert "its issuer renews it" in lapsing.detail


@pytest.mark.parametrize("purpose", own_keys.INTERNAL_KEYS)
def test_a_file_that_does_not_belong_to_the_key_in_the_hsm_is_not_trusted(
    config: Config, hsm: SoftwareHsm, purpose: Purpose
) -> None:
    own_keys.check_internal_keys(config, hsm)
    planted = Authority.create(SoftwareHsm().keyring(purpose), own_keys.INTERNAL_KEYS[purpose], purpose, NOW)[1]
    own_keys.write_private(config.certificates / f"{purpose}.pem", planted)
    with pytest.raises(WrongState) as refused:
        own_keys.check_internal_keys(config, hsm)
    assert refused.value.reason == "HSM_NOT_OURS"


def test_AZ_01_the_first_operator_has_a_valid_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        setup.initialise(setup.Wishes(folder=tmp_path / "new", operator="../admin"), lambda: NOW)
    assert refused.value.reason == "NAME_INVALID"
    assert not (tmp_path / "new").exists()


def test_SC_04_a_module_that_is_not_named_by_its_whole_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"hsm\.module"):
        configured(tmp_path, module="module.so")


def test_delays_before_destruction_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="destruction_usual_hours"):
        configured(tmp_path, extra="[keys]\ndestruction_usual_hours = 2")


@pytest.mark.parametrize("host", ["https://vault:8200", "vault", "Vault:8200", "vault:0", "vault:8200/", "u@vault:1"])
def test_BY_03_a_target_that_could_never_match_is_refused(tmp_path: Path, host: str) -> None:
    text = TOML.format(folder=tmp_path, module="/m.so", extra="") + f'allowed_hosts = ["{host}"]\n'
    (tmp_path / "broker.toml").write_text(text)
    with pytest.raises(InvalidRequest, match="host:port"):
        load(tmp_path / "broker.toml")


@pytest.mark.parametrize("name", ["audit", "server-ca", "server"])
def test_a_damaged_file_is_refused_in_a_sentence(config: Config, hsm: SoftwareHsm, name: str) -> None:
    (config.certificates / f"{name}.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")

    def start() -> None:
        own_keys.check_internal_keys(config, hsm)
        setup.renew_server_certificate(config, hsm, NOW)

    with pytest.raises(WrongState) as refused:
        start()
    assert refused.value.reason == "FILE_DAMAGED"


def test_a_configuration_that_cannot_be_read_is_not_left_behind(tmp_path: Path) -> None:
    token = setup.Token(module="relative.so", label="t", pin_file=tmp_path / "pin")
    with pytest.raises(BrokerError):
        setup.initialise(setup.Wishes(folder=tmp_path, token=token), lambda: NOW)
    assert not (tmp_path / "broker.toml").exists()
    assert not list(tmp_path.glob("broker.toml*"))


@pytest.mark.parametrize("url", ["mysql://db/broker", "rubbish", "sqlite:///relative.db", "postgresql://u:secret@h/d"])
def test_a_database_of_another_kind_is_refused_before_anything_is_made(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        options.wishes(main.parser().parse_args(["init", "b", "--database", url]), tmp_path / "b", development=False)
    assert refused.value.reason == "DATABASE_INVALID"
    assert "secret" not in refused.value.message
    assert list(tmp_path.iterdir()) == []


def test_the_patience_that_init_is_told_is_written_and_later_told_where_it_differs(tmp_path: Path) -> None:
    def wished(*words: str) -> wishes.Wishes:
        asked = main.parser().parse_args(["init", "b", *words])
        return options.wishes(asked, tmp_path, development=False)

    token = setup.Token(module="/usr/lib/module.so", label="t", pin_file=tmp_path / "pin")
    text, config = wishes.planned(wished("--patience", "2.5"), token, tmp_path / "broker.toml")
    assert "patience_seconds = 2.5\n" in text
    assert config.store.patience_seconds == 2.5
    assert "patience_seconds" not in wishes.planned(wished(), token, tmp_path / "broker.toml")[0]
    assert list(wishes.ignored(wished("--patience", "9"), config)) == ["--patience 9 ([store] patience_seconds is 2.5)"]
    assert list(wishes.ignored(wished("--patience", "2.5"), config)) == list(wishes.ignored(wished(), config)) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_K01_a_free_port_is_found_for_every_kind_of_address(tmp_path: Path, host: str) -> None:
    wish = wishes.Wishes(folder=tmp_path, operators_address=f"{host}:0", pipelines_address="127.0.0.1:7444")
    token = wishes.Token(module="/m.so", label="t", pin_file=tmp_path / "pin")
    found, _, port = wishes.planned(wish, token, tmp_path / "broker.toml")[1].server.operators_address.rpartition(":")
    assert (found, int(port) > 0) == (host, True)


@pytest.mark.parametrize("patience", ["0", "0.1", "31", "nan", "long", "-1"])
def test_a_patience_out_of_bounds_is_wrong_usage(patience: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.parser().parse_args(["init", "b", f"--patience={patience}"])
    assert ended.value.code == 2
    assert "--patience" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("0.0.0.0:7443", "localhost:7443"),
        ("[::]:7443", "localhost:7443"),
        ("10.0.0.5:7443", "10.0.0.5:7443"),
        ("[::1]:7443", "[::1]:7443"),
    ],
)
def test_the_profile_calls_an_address_that_can_be_called(address: str, reached: str) -> None:
    assert wishes.reached(address) == reached


def test_the_first_certificate_is_for_the_addresses_too(config: Config) -> None:
    places = {"operators_address": "0.0.0.0:1", "pipelines_address": "[fd00::1]:2"}
    wide = config.model_copy(update={"server": config.server.model_copy(update=places)})
    assert wishes.server_names(wide, ("broker.example",)) == ("localhost", "127.0.0.1", "broker.example", "fd00::1")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_K18_a_configuration_that_windows_has_saved_is_read(tmp_path: Path, mark: str, end: str) -> None:
    wanted = configured(tmp_path)
    text = TOML.format(folder=tmp_path, module="/usr/lib/module.so", extra="")
    (tmp_path / "broker.toml").write_bytes((mark + text.replace("\n", end)).encode())
    assert load(tmp_path / "broker.toml") == wanted


def test_K18_a_configuration_in_utf_16_is_said_to_be_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text("trust_domain = 1", encoding="utf-16")
    with pytest.raises(InvalidRequest, match="is not text in UTF-8; save it as that"):
        load(tmp_path / "broker.toml")


def test_K13_a_folder_where_the_renewal_could_not_be_written_is_found_today(config: Config, hsm: SoftwareHsm) -> None:
    setup.renew_server_certificate(config, hsm, NOW, ("broker.example",))
    setup.check_renewable(config)
    assert not list(config.certificates.glob(".writable*"))
    elsewhere = {"key_file": config.certificates / "gone" / "server.key"}
    config = config.model_copy(update={"server": config.server.model_copy(update=elsewhere)})
    with pytest.raises(WrongState) as refused:
        setup.check_renewable(config)
    with pytest.raises(WrongState) as late:
        setup.renew_server_certificate(config, hsm, NOW + timedelta(days=80))
    assert refused.value.reason == "CERTIFICATE_NOT_RENEWABLE"
    assert late.value.reason == "CERTIFICATE_NOT_WRITTEN"
    assert "certificate_file and key_file under [server]" in refused.value.message


def test_K13_a_certificate_of_another_ca_needs_no_folder_to_write_in(config: Config, hsm: SoftwareHsm) -> None:
    setup.renew_server_certificate(config, hsm, NOW, ("broker.example",))
    (config.certificates / "server-ca.pem").write_bytes((config.certificates / "operator-ca.pem").read_bytes())
    config.certificates.chmod(0o500)
    try:
        setup.check_renewable(config)
    finally:
        config.certificates.chmod(0o700)


def test_K08_the_server_takes_a_certificate_that_clients_with_a_slow_clock_take(
    config: Config, hsm: SoftwareHsm
) -> None:
    later = NOW + timedelta(days=61)  # past the making of the CA, which no certificate is older than
    setup.renew_server_certificate(config, hsm, later, ("broker.example",))
    assert own_keys.certificate(config.server.certificate_file).not_valid_before_utc == later - timedelta(seconds=60)


def test_K08_a_certificate_that_was_made_while_the_clock_was_ahead_is_made_anew(
    config: Config, hsm: SoftwareHsm
) -> None:
    setup.renew_server_certificate(config, hsm, NOW + timedelta(days=365), ("broker.example",))
    assert setup.renew_server_certificate(config, hsm, NOW)
    assert own_keys.certificate(config.server.certificate_file).not_valid_before_utc <= NOW


@pytest.mark.usefixtures("hsm")
def test_K08_a_ca_that_is_not_valid_yet_is_refused_with_both_times(config: Config) -> None:
    setup.refuse_future_ca(config, NOW)
    with pytest.raises(WrongState, match=r"starts at 2029-12-31 .* says 2028-12-31 .* set the clock") as refused:
        setup.refuse_future_ca(config, NOW - timedelta(days=366))
    assert refused.value.reason == "CERTIFICATE_NOT_YET_VALID"
