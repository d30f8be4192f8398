"""An issuer's key set: AN-05, AN-06, AN-19, NT-08."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker.auth.oidc import compact, keys
from broker.core.errors import Unauthenticated
from tests.fakes.cost import cost
from tests.servers.issuer import Signer, b64, number

SIGNERS = {name: Signer(name, name) for name in sorted(compact.ALGORITHMS)}
GOOD = SIGNERS["ES256"]
P = 2**255 - 19


def loaded(*entries: Any) -> dict[str, keys.Key]:
    return keys.load({"keys": list(entries)})[0]


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_each_algorithm_verifies_its_own_and_no_other(algorithm: str) -> None:
    signer = SIGNERS[algorithm]
    key = loaded(signer.jwk())[algorithm]
    assert key.verifies(compact.parse(signer.token({})))
    for other in SIGNERS.values():
        if other is not signer:
            assert not key.verifies(compact.parse(other.token({})))


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_no_changed_signature_verifies(algorithm: str) -> None:
    signer = SIGNERS[algorithm]
    key, token = loaded(signer.jwk())[algorithm], compact.parse(signer.token({}))
    changed = [bytes([token.signature[0] ^ 1]) + token.signature[1:], token.signature[:-1], token.signature + b"\0",
               b"\0" * len(token.signature), b"", b"\0" + token.signature, token.signature * 2]  # fmt: skip
    for signature in changed:
        made = compact.Token(
            algorithm=algorithm, kid="k", signing_input=token.signing_input, signature=signature, claims={}
        )
        assert not key.verifies(made)
    made = compact.Token(algorithm=algorithm, kid="k", signing_input=b"x", signature=token.signature, claims={})
    assert not key.verifies(made)


SYMMETRIC = [
    {"kty": "oct", "k": "c2VjcmV0", "kid": "x"},
    {"kty": "oct", "k": "", "kid": "x"},
    {"kty": "oct", "kid": "x", "alg": "HS256"},
    {"kty": "OCT", "k": "c2VjcmV0", "kid": "x"},
    {"kty": "", "kid": "x"},
    {"kid": "x"},
    {"kty": None, "kid": "x"},
    {"kty": ["EC"], "kid": "x"},
    {},
    [],
    None,
    "x",
    7,
]


@pytest.mark.parametrize("entry", SYMMETRIC, ids=repr)
def test_AN_05_what_is_no_public_key_is_left_out_and_counted(entry: Any) -> None:
    found, left_out = keys.load({"keys": [entry, GOOD.jwk()]})
    assert (list(found), left_out) == (["ES256"], 1)


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        ("ES256", {"alg": "ES384"}),
        ("ES256", {"alg": "RS256"}),
        ("ES256", {"alg": "HS256"}),
        ("ES256", {"alg": "none"}),
        ("ES256", {"alg": 7}),
        ("RS256", {"alg": "RSA-OAEP"}),
        ("RS256", {"use": "enc"}),
        ("RS256", {"use": ""}),
        ("ES256", {"key_ops": ["encrypt"]}),
        ("ES256", {"key_ops": ["sign"]}),
        ("ES256", {"key_ops": []}),
        ("ES256", {"key_ops": "verify"}),
        ("ES256", {"crv": "P-384"}),
        ("ES256", {"crv": "P-521"}),
        ("ES256", {"crv": "secp256k1"}),
        ("ES384", {"crv": "P-256"}),
        ("EdDSA", {"crv": "X25519"}),
        ("EdDSA", {"crv": "Ed448"}),
        ("ES256", {"kty": "RSA"}),
        ("RS256", {"kty": "EC"}),
        ("ES256", {"d": "AAAA"}),
        ("RS256", {"d": "AAAA"}),
        ("ES256", {"k": "AAAA"}),
    ],
)
def test_AN_06_a_key_whose_members_disagree_is_left_out(algorithm: str, changes: dict[str, Any]) -> None:
    assert loaded(SIGNERS[algorithm].jwk(**changes)) == {}


def test_AN_06_a_key_serves_the_algorithm_that_it_is_bound_to() -> None:
    signer = SIGNERS["RS256"]
    both, bound = loaded(signer.jwk(alg=None))["RS256"], loaded(signer.jwk())["RS256"]
    pss = compact.parse(Signer("RS256", "PS256", signer.key).token({}))
    assert both.verifies(pss)
    assert not bound.verifies(pss)


def test_AN_06_another_curve_than_the_header_says_does_not_verify() -> None:
    key = loaded(SIGNERS["ES384"].jwk())["ES384"]
    assert not key.verifies(compact.parse(SIGNERS["ES384"].token({}, alg="ES256")))


def _point(x: int, y: int, size: int = 32) -> dict[str, Any]:
    return {"kty": "EC", "crv": "P-256", "kid": "x", "x": number(x, size), "y": number(y, size)}


def _ed(y: int) -> dict[str, Any]:
    return {"kty": "OKP", "crv": "Ed25519", "kid": "x", "x": b64(y.to_bytes(32, "little"))}


NUMBERS = GOOD.key.public_key().public_numbers()
SMALL = sorted(keys.SMALL)
BROKEN: dict[str, dict[str, Any]] = {
    "off the curve": _point(NUMBERS.x, NUMBERS.y ^ 1),
    "the origin": _point(0, 0),
    "of another curve": _point(5, 7),
    "a coordinate over the field": _point(2**256 - 1, NUMBERS.y),
    "a short coordinate": {**GOOD.jwk(kid="x"), "x": b64(b"\1" * 31)},
    "a long coordinate": {**GOOD.jwk(kid="x"), "x": b64(b"\0" + NUMBERS.x.to_bytes(32, "big"))},
    "no y": GOOD.jwk(kid="x", y=None),
    "not base64": GOOD.jwk(kid="x", x="!!!!"),
    "not a text": GOOD.jwk(kid="x", x=7),
    "not ASCII": GOOD.jwk(kid="x", x="\u00e9" * 43),
    **{f"small order {y}"[:24]: _ed(y) for y in SMALL},
    **{f"small order, other sign {y}"[:36]: _ed(y | 1 << 255) for y in SMALL},
    "small order, spelt p + 1": _ed(P + 1),
    "small order, spelt p": _ed(P),
    "not reduced": _ed(P + 3),
    "31 bytes": {"kty": "OKP", "crv": "Ed25519", "kid": "x", "x": b64(b"\1" * 31)},
    "exponent 3": {"kty": "RSA", "kid": "x", "n": SIGNERS["RS256"].jwk()["n"], "e": number(3)},
    "exponent 1": {"kty": "RSA", "kid": "x", "n": SIGNERS["RS256"].jwk()["n"], "e": number(1)},
    "an even exponent": {"kty": "RSA", "kid": "x", "n": SIGNERS["RS256"].jwk()["n"], "e": number(65538)},
    "a huge exponent": {"kty": "RSA", "kid": "x", "n": SIGNERS["RS256"].jwk()["n"], "e": number(2**2000 + 1)},
    "modulus of 1024 bits": {"kty": "RSA", "kid": "x", "n": number(2**1023 + 1), "e": "AQAB"},
    "modulus of 16384 bits": {"kty": "RSA", "kid": "x", "n": number(2**16383 + 1), "e": "AQAB"},
    "an even modulus": {"kty": "RSA", "kid": "x", "n": number(2**2047), "e": "AQAB"},
    "no modulus": {"kty": "RSA", "kid": "x", "n": "", "e": "AQAB"},
    "a kid that is none": GOOD.jwk(kid=7),
    "no kid": GOOD.jwk(kid=None),
    "a long kid": GOOD.jwk(kid="k" * 257),
}


@pytest.mark.parametrize("entry", BROKEN.values(), ids=BROKEN.keys())
def test_AN_19_a_broken_key_is_left_out_and_the_others_serve(entry: dict[str, Any]) -> None:
    document = {"keys": [entry, GOOD.jwk(), entry]}
    found, left_out = keys.load(document)
    assert (list(found), left_out) == (["ES256"], 2)
    assert cost(lambda: keys.load(document)) < 0.5


def test_AN_19_a_kid_that_stands_for_two_keys_stands_for_none() -> None:
    one, two, three = Signer("same").jwk(), Signer("same").jwk(), Signer("same").jwk()
    assert loaded(one, two, GOOD.jwk()).keys() == {"ES256"}
    assert loaded(one, two, three) == {}
    assert loaded(one, two, one) == {}
    assert loaded(one, one).keys() == {"same"}
    assert loaded(one, SIGNERS["RS256"].jwk(kid="same")) == {}


def test_AN_19_a_broken_key_does_not_push_out_a_sound_one_of_its_name() -> None:
    broken = GOOD.jwk(crv="P-384")
    assert loaded(broken, GOOD.jwk()).keys() == loaded(GOOD.jwk(), broken).keys() == {"ES256"}


def test_AN_19_ten_thousand_keys_cost_no_more_than_a_hundred() -> None:
    entry = SIGNERS["RS256"].jwk()
    document = {"keys": [{**entry, "kid": str(n)} for n in range(10_000)]}
    found, left_out = keys.load(document)
    assert cost(lambda: keys.load(document)) < 5
    assert (len(found), left_out) == (keys.MAX_KEYS, 10_000 - keys.MAX_KEYS)


@pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {}}, {"keys": "x"}, {"Keys": []}])
def test_what_is_no_key_set_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no key set"):
        keys.load(document)


def test_NT_08_the_largest_key_that_is_taken_is_cheap() -> None:
    entry = {"kty": "RSA", "kid": "x", "n": number(rsa_8192()), "e": "AQAB"}
    key = loaded(entry)["x"]
    token = compact.Token(algorithm="RS256", kid="x", signing_input=b"x", signature=b"\1" * 1024, claims={})
    assert not key.verifies(token)
    assert cost(lambda: key.verifies(token)) < 0.5


def rsa_8192() -> int:
    """An odd number of 8192 bits; what it is a product of is nobody's business here."""
    return (1 << 8191) | 1


def test_every_key_type_is_one_of_three() -> None:
    kinds = {type(key.public) for signer in SIGNERS.values() for key in loaded(signer.jwk()).values()}
    assert all(not issubclass(kind, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) for kind in kinds)
    with pytest.raises(Unauthenticated):
        compact.parse(GOOD.token({}, alg="HS256"))
