"""A token that cannot do everything starts and offers what it can; a refusal names the mechanism that is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash
from broker.hsm.config import HsmConfig
from broker.hsm.features import refuse_unfit
from tests.contracts.hsm.keys import ALGORITHMS, Target, fresh
from tests.fakes.refusals import told_by
from tests.servers.shim import Shim, make_shim_token
from tests.servers.softhsm import KeysHsm, alone, make_token

Told = dict[str, str]


def _lacking(hsm: KeysHsm) -> Told:
    return {one.name: one.detail for one in hsm.report().features if not one.passed}


def _used(config: HsmConfig) -> tuple[Told, Told]:
    """What the token is said to lack, and what becomes of each use."""
    hsm = KeysHsm(config)
    uses: dict[str, Callable[[], object]] = {
        "broker": lambda: refuse_unfit(hsm.report()),
        "ec-p256": lambda: _signed(hsm, KeyType.EC_P256),
        "ed25519": lambda: _signed(hsm, KeyType.ED25519),
        "rsa-2048": lambda: _signed(hsm, KeyType.RSA_2048),
        "aes-256": lambda: hsm.encrypt(fresh(hsm, KeyType.AES_256), EncryptionAlgorithm.AES_GCM, b"m", b""),
        "wrap": lambda: hsm.wrap(
            fresh(hsm, KeyType.AES_128, exportable=True), Target().kek, OaepHash.SHA1, exact=False
        ),
        "oaep": lambda: hsm.decrypt(
            fresh(hsm, KeyType.RSA_2048, KeyUsage.ENCRYPT), EncryptionAlgorithm.RSA_OAEP_SHA1, bytes(256), b""
        ),
    }
    lacking, told = _lacking(hsm), {name: told_by(use) for name, use in uses.items()}
    hsm.close()
    return lacking, told


def _signed(hsm: KeysHsm, kind: KeyType) -> object:
    return hsm.sign(fresh(hsm, kind), ALGORITHMS[kind][0], [b"m"])


def _without(folder: Path, *mechanisms: str) -> tuple[Told, Told]:
    """SoftHSM that its own configuration forbids these mechanisms."""
    config = make_token(folder)
    conf = Path(config.environment["SOFTHSM2_CONF"])
    listed = ",".join(("CKM_DES_ECB", *mechanisms))  # SoftHSM 2.6.1 passes over the first one
    text = conf.read_text().replace("slots.mechanisms = ALL", f"slots.mechanisms = -{listed}")
    conf.write_text(text)
    return _used(config)


@pytest.mark.parametrize(
    ("mechanisms", "refused", "features"),
    [
        (("CKM_AES_GCM",), {"broker", "aes-256"}, {"secrets and database", "aes-128 encrypt", "aes-256 encrypt"}),
        (
            ("CKM_ECDSA",),
            {"broker", "ec-p256"},
            {"audit key and certificates", *(f"{kind} sign" for kind in KeyType if kind.startswith("ec-"))},
        ),
        (("CKM_AES_KEY_WRAP", "CKM_AES_KEY_WRAP_PAD"), {"wrap"}, {"import with OAEP-sha1"}),
        (
            ("CKM_RSA_PKCS_OAEP",),
            {"wrap", "oaep"},
            {"import with OAEP-sha1", *(f"rsa-{bits} encrypt" for bits in (2048, 3072, 4096))},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_token_without_a_mechanism_offers_what_it_can(
    tmp_path: Path, mechanisms: tuple[str, ...], refused: set[str], features: set[str]
) -> None:
    lacking, told = alone(_without, tmp_path / "token", *mechanisms)
    always = {f"import with OAEP-{one}" for one in ("sha256", "sha384", "sha512")}  # SoftHSM's own
    assert lacking.keys() == features | always
    assert all(mechanisms[-1] in lacking[name] for name in features)
    oaep = told.pop("oaep")
    assert oaep.startswith("HSM_MECHANISM_MISSING: " if "oaep" in refused else "CIPHERTEXT_INVALID: ")
    assert {name for name, sentence in told.items() if sentence != "ok"} == refused - {"oaep"}
    for name in refused - {"oaep"}:
        reason = "HSM_UNFIT" if name == "broker" else "HSM_MECHANISM_MISSING"
        assert told[name].startswith(f"{reason}: ")
        assert mechanisms[-1] in told[name]


def _cannot_make(folder: Path, mechanisms: tuple[int, ...]) -> tuple[Told, Told]:
    config = make_shim_token(folder)
    Shim(folder).obey(*(f"{call} return 0x70 mechanism={number:#x}" for number in mechanisms for call in _MAKERS))
    return _used(config)


_MAKERS = ("C_GenerateKey", "C_GenerateKeyPair")
_EC, _EDWARDS, _AES = 0x1040, 0x1055, 0x1080


@pytest.mark.parametrize(
    ("numbers", "refused"),
    [
        ((_EC, _EDWARDS), {"broker": "CKM_EC_KEY_PAIR_GEN", "ec-p256": "CKM_EC_KEY_PAIR_GEN",
                           "ed25519": "CKM_EC_EDWARDS_KEY_PAIR_GEN"}),
        ((_AES,), {"broker": "CKM_AES_KEY_GEN", "aes-256": "CKM_AES_KEY_GEN", "wrap": "CKM_AES_KEY_GEN"}),
    ],
    ids=["without EC", "without AES"],
)  # fmt: skip
def test_a_token_that_cannot_make_a_kind_of_key_starts_without_it(
    tmp_path: Path, numbers: tuple[int, ...], refused: dict[str, str]
) -> None:
    lacking, told = alone(_cannot_make, tmp_path / "token", numbers)
    assert told.pop("oaep").startswith("CIPHERTEXT_INVALID: ")
    assert {name for name, sentence in told.items() if sentence != "ok"} == set(refused)
    for name, mechanism in refused.items():
        assert f"{mechanism} for " in told[name]
        assert "CKR_MECHANISM_INVALID" in told[name]
    assert any(mechanism in detail for detail in lacking.values() for mechanism in refused.values())


# ---- K10: a token that nothing can be written to ------------------------------------------------------------------

_READ_ONLY = """
mount --bind "$1/token/tokens" "$1/token/tokens" && mount -o remount,bind,ro "$1/token/tokens" || exit 77
exec "$2" -c 'import sys
from tests.live.hsm.test_features import tell_read_only
tell_read_only(sys.argv[1])' "$1"
"""


def tell_read_only(folder: str) -> None:
    token = Path(folder) / "token"
    config = HsmConfig(
        module=Path((token / "module").read_text()),
        token_label="broker-tests",
        pin_file=token / "pin",
        environment={"SOFTHSM2_CONF": str(token / "softhsm2.conf")},
    )
    hsm = KeysHsm(config)
    told = [_lacking(hsm)["new keys"], told_by(lambda: refuse_unfit(hsm.report()))]
    told += [told_by(lambda: fresh(hsm, KeyType.EC_P256)) for _ in range(2)]
    hsm.close()
    (Path(folder) / "told").write_text("\n".join(told))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_K10_a_read_only_token_folder_is_the_cause_that_is_told(tmp_path: Path) -> None:
    config = make_token(tmp_path / "token")
    (tmp_path / "token" / "module").write_text(str(config.module))
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", str(tmp_path), sys.executable],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"this machine does not let root mount: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    cause = f"SoftHSM's token folder {tmp_path}/token/tokens is on a read-only file system"
    closed, unfit, first, second = (tmp_path / "told").read_text().splitlines()
    assert closed == f"None can be made: {cause}."
    assert unfit.startswith("HSM_UNFIT: ")
    assert cause in unfit
    for told in (first, second):
        assert told.startswith("HSM_UNAVAILABLE: ")
        assert cause in told.partition("the next attempt")[0]
        assert "CKR_GENERAL_ERROR" in told.partition(cause)[0]
