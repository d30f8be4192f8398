"""A second vendor's module: opencryptoki's soft token.

Its daemon must run as root and keeps everything in system folders, so the whole proof runs in namespaces of its own,
where those folders are empty and private; nothing of it outlives the test.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from broker.core.errors import BrokerError
from broker.core.kinds import EncryptionAlgorithm, KeyType, KeyUsage, OaepHash, Purpose
from broker.core.ports import KeyRef
from broker.hsm.config import HsmConfig
from broker.hsm.features import refuse_unfit
from broker.hsm.mechanisms import generator
from broker.hsm.tokens import initialise
from tests.contracts.hsm.keys import ALGORITHMS, Target, fresh, verify
from tests.fakes.refusals import refused
from tests.live.hsm.losses import log_out
from tests.servers.softhsm import KeysHsm

_MODULES = (
    "/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0",
    "/usr/lib/aarch64-linux-gnu/opencryptoki/libopencryptoki.so.0",
)
_UNSHARE = ("unshare", "--mount", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child")
_NAMESPACE = r"""
set -e
mount -t tmpfs none /run
mount -t tmpfs none /var/lib/opencryptoki
mkdir -p /run/lock/opencryptoki/swtok /var/lib/opencryptoki/swtok/TOK_OBJ
chgrp -R pkcs11 /run/lock/opencryptoki /var/lib/opencryptoki
chmod -R 770 /run/lock/opencryptoki /var/lib/opencryptoki
printf 'version opencryptoki-3.1\nslot 3\n{\nstdll = libpkcs11_sw.so\ntokname = swtok\n}\n' > "$1/conf"
mount --bind "$1/conf" /etc/opencryptoki/opencryptoki.conf
PATH=$PATH:/usr/sbin pkcsslotd
exec "$2" -c 'from tests.live.hsm.test_opencryptoki import prove; prove()' "$3" "$1"
"""
_SECURITY_OFFICER_PIN = "87654321"  # what a new token of opencryptoki has


def _missing(call: object, *arguments: object, reason: str = "HSM_MECHANISM_MISSING", **named: object) -> set[str]:
    """The mechanisms that the refusal names."""
    with pytest.raises(BrokerError) as refusal:
        call(*arguments, **named)  # type: ignore[operator]
    assert refusal.value.reason == reason
    return set(re.findall(r"CKM_\w+", refusal.value.message))


def _keep_apart(hsm: KeysHsm, signer: KeyRef, opener: KeyRef, cipher: KeyRef) -> None:
    """They are as they were made, and no other keyring, and no other row, reaches them."""
    exportable = {signer: True, opener: False, cipher: False}
    assert [hsm.differing(key, exportable=may) for key, may in exportable.items()] == [()] * 3
    for purpose in set(Purpose) - {Purpose.KEY}:
        foreign = hsm.keyring(purpose)
        refused(partial(foreign.sign, signer, ALGORITHMS[KeyType.RSA_2048][0], [b"m"]), reason="KEY_NOT_THIS")
        refused(
            partial(foreign.decrypt, opener, EncryptionAlgorithm.RSA_OAEP_SHA256, bytes(256), b""),
            reason="KEY_NOT_THIS",
        )
        for use in (foreign.public_key, foreign.seal, foreign.destroy):
            assert {refused(partial(use, key)).reason for key in (signer, opener, cipher)} == {"KEY_NOT_THIS"}
    refused(lambda: hsm.destroy(replace(signer, hsm_id=opener.hsm_id)), reason="KEY_NOT_THIS")


def prove() -> None:
    """What the soft token can, is served; what it cannot is refused for just that operation."""
    module, folder = Path(sys.argv[1]), Path(sys.argv[2])
    pin_file = folder / "pin"
    pin_file.touch(0o600)
    pin_file.write_text("12345678")
    initialise({"module": str(module), "label": "soft", "pin": "12345678", "so_pin": _SECURITY_OFFICER_PIN})
    config = HsmConfig(module=module, token_label="soft", pin_file=pin_file, reload_interval=0.0)
    hsm = KeysHsm(config)
    report = hsm.report()
    assert report.manufacturer == "IBM Corp."
    assert set(report.oaep_hashes) == set(OaepHash)

    signer = fresh(hsm, KeyType.RSA_2048, exportable=True)
    for algorithm in ALGORITHMS[KeyType.RSA_2048]:
        for signature, message in zip(hsm.sign(signer, algorithm, [b"a", b"b"]), (b"a", b"b"), strict=True):
            verify(signer.public_key or b"", algorithm, signature, message)
    opener = fresh(hsm, KeyType.RSA_2048, KeyUsage.ENCRYPT)
    public = load_der_public_key(opener.public_key or b"")
    assert isinstance(public, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    assert hsm.decrypt(opener, EncryptionAlgorithm.RSA_OAEP_SHA256, public.encrypt(b"m", oaep), b"") == b"m"
    refused(
        lambda: hsm.decrypt(opener, EncryptionAlgorithm.RSA_OAEP_SHA256, bytes(256), b""), reason="CIPHERTEXT_INVALID"
    )
    cipher = fresh(hsm, KeyType.AES_256)
    assert _missing(hsm.encrypt, cipher, EncryptionAlgorithm.AES_GCM, b"m", b"a") == {"CKM_AES_GCM"}

    _keep_apart(hsm, signer, opener, cipher)

    _refuse_the_rest(hsm, signer)

    log_out(hsm)
    assert hsm.sign(signer, ALGORITHMS[KeyType.RSA_2048][0], [b"after a lost login"])
    hsm.seal(signer)
    hsm.destroy(signer)
    refused(lambda: hsm.public_key(signer), reason="KEY_NOT_IN_HSM")
    hsm.close()
    _lose_the_daemon(config)
    sys.stdout.write("proven\n")


def _refuse_the_rest(hsm: KeysHsm, signer: KeyRef) -> None:
    """What the token cannot do is refused by the name of what is missing."""
    report = hsm.report()
    edges = [kind for kind in KeyType if kind.startswith("e")]
    assert not set(edges) & set(report.key_types)
    for kind in edges:
        assert _missing(fresh, hsm, kind) == {generator(kind)}
    wraps = {"CKM_AES_KEY_WRAP_KWP", "CKM_AES_KEY_WRAP_PAD"}
    assert _missing(hsm.wrap, signer, Target().kek, OaepHash.SHA1, exact=False) == wraps
    assert _missing(refuse_unfit, report, reason="HSM_UNFIT") == {"CKM_EC_KEY_PAIR_GEN", "CKM_AES_GCM"}
    available = {one.name for one in report.features if one.passed}
    assert available == {"new keys", *(f"rsa-{bits} {use}" for bits in (2048, 3072, 4096) for use in KeyUsage)}


def _lose_the_daemon(config: HsmConfig) -> None:
    """K10: it is named, and not a token that were not there."""
    os.kill(int(Path("/run/pkcsslotd.pid").read_text()), signal.SIGKILL)
    with pytest.raises(BrokerError) as refusal:
        KeysHsm(config)
    assert refusal.value.reason == "HSM_UNAVAILABLE"
    assert "daemon pkcsslotd is not reached at /run/pkcsslotd.socket" in refusal.value.message


def test_opencryptokis_soft_token_is_served(tmp_path: Path) -> None:
    module = next((place for place in _MODULES if Path(place).exists()), None)
    if (
        module is None
        or os.geteuid()
        or not shutil.which("pkcsslotd", path=f"{os.environ['PATH']}:/usr/sbin")
        or not shutil.which("unshare")
    ):
        pytest.skip("opencryptoki and its daemon are not installed, or this is not root")
    done = subprocess.run(
        [*_UNSHARE, "sh", "-c", _NAMESPACE, "sh", str(tmp_path), sys.executable, module],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if "unshare failed" in done.stderr or "permission denied" in done.stderr.lower():
        pytest.skip(f"this machine does not let root make namespaces: {done.stderr.strip()[-200:]}")
    assert done.stdout.endswith("proven\n"), done.stderr
