"""What is asked of a token is a closed list, and no key can be turned into another."""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path

import pytest
from pkcs11 import Attribute

import broker.hsm
from broker.core.kinds import KeyType, KeyUsage
from broker.hsm.objects import Recipe

ALLOWED = {
    "AES_GCM", "AES_KEY_WRAP_PAD", "AES_KEY_WRAP_KWP", "AES_KEY_GEN", "ECDSA", "EDDSA", "EC_KEY_PAIR_GEN",
    "EC_EDWARDS_KEY_PAIR_GEN", "RSA_PKCS", "RSA_PKCS_PSS", "RSA_PKCS_OAEP", "RSA_PKCS_KEY_PAIR_GEN",
    "SHA_1", "SHA256", "SHA384", "SHA512",
}  # fmt: skip
"""What does the work; the self-test also names others, to see that they fail.

RSA_PKCS signs a DigestInfo; it never wraps or decrypts. SHA_1 is OAEP's hash, which does not rest on collisions.
"""


def test_HS_06_no_other_mechanism_is_named_anywhere() -> None:
    named = {
        node.attr
        for file in Path(broker.hsm.__path__[0]).glob("*.py")
        if file.name != "selftest.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Mechanism"
    }
    assert named
    assert named - ALLOWED == set()


@pytest.mark.parametrize(("key_type", "usage", "exportable"), list(product(KeyType, KeyUsage, (False, True))))
def test_HS_19_no_key_can_derive_another(key_type: KeyType, usage: KeyUsage, exportable: bool) -> None:  # noqa: FBT001
    recipe = Recipe(key_type, usage, exportable)
    assert recipe.secret()[Attribute.DERIVE] is False
    assert recipe.public()[Attribute.DERIVE] is False
