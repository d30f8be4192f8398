"""What an import leaves behind on the broker's side: no byte of the key, wrapped or not, beyond its hash."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from broker.core.keys.refs import ref
from broker.core.kinds import KeyType, OaepHash
from broker.core.model import WrappingKey
from tests.live.imports.bench import Bench, Mount
from tests.servers.openbao import OpenBao
from tests.servers.softhsm import KeysHsm


def material(hsm: KeysHsm, bench: Bench, name: str) -> bytes:
    """The key's bytes, by way of a key-exchange key whose private half the test holds."""
    private = rsa.generate_private_key(65537, 2048)
    spki = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    kek = WrappingKey(id="test", public_key=spki, thumbprint=hashlib.sha256(spki).hexdigest())
    found = bench.store.version(name, 0)
    assert found is not None
    blob = hsm.wrap(ref(*found), kek, OaepHash.SHA1, exact=False)
    sha1 = hashes.SHA1()  # noqa: S303  OAEP does not rest on collisions
    ephemeral = private.decrypt(blob[:256], padding.OAEP(padding.MGF1(sha1), sha1, None))
    return keywrap.aes_key_unwrap_with_padding(ephemeral, blob[256:])


@pytest.mark.parametrize("key_type", [KeyType.AES_256, KeyType.EC_P384])
def test_BY_11_no_file_of_the_broker_holds_the_key(
    key_type: KeyType, openbao: OpenBao, hsm: KeysHsm, tmp_path: Path
) -> None:
    bench = Bench(Mount(openbao, tmp_path, openbao.mount), hsm, tmp_path)
    bench.register()
    key = bench.key(key_type)
    secret = material(hsm, bench, key.name)
    bench.run(key)
    bench.close()
    tail = secret[-24:]  # of PKCS#8, the part that is the private scalar
    forms = {tail, tail.hex().encode(), base64.b64encode(secret)[:-4], base64.urlsafe_b64encode(secret)[:-4]}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(key.name.encode() in file.read_bytes() for file in files)  # the import did leave its traces
    assert [file for file in files if any(form in file.read_bytes() for form in forms)] == []
