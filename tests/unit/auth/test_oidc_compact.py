"""The form of an identity token: AN-01, AN-02, AN-04, AN-07, AN-08, AN-10, AN-14, AN-20, P13."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from broker.auth.oidc import compact
from broker.core.errors import Unauthenticated
from tests.fakes.refusals import refused
from tests.servers.issuer import Signer, b64

RSA, EC = Signer("rsa", "RS256"), Signer("ec")
CLAIMS = {"iss": "https://ci.example", "sub": "job"}
GOOD = EC.token(CLAIMS)


def why_not(text: str) -> str:
    return refused(lambda: compact.parse(text), Unauthenticated).reason


def test_a_good_token_is_taken_apart_once() -> None:
    token = compact.parse(GOOD)
    assert (token.algorithm, token.kid, token.claims) == ("ES256", "ec", CLAIMS)
    assert GOOD not in repr(token)


def _nones() -> Iterator[Any]:
    for letters in itertools.product("nN", "oO", "nN", "eE"):
        yield "".join(letters)
    yield from (
        "",
        " none",
        "none ",
        "none\0",
        "n\u006fne\u200b",
        "null",
        None,
        0,
        False,
        True,
        [],
        ["ES256"],
        {},
        "ES256 ",
    )


@pytest.mark.parametrize("algorithm", list(_nones()), ids=repr)
@pytest.mark.parametrize("signature", ["", "AA", "whole"])
def test_AN_01_no_algorithm_is_none(algorithm: Any, signature: str) -> None:
    text = EC.compact({"alg": algorithm, "kid": "ec"}, CLAIMS)
    if signature != "whole":
        text = text.rpartition(".")[0] + "." + signature
    assert why_not(text) in {"TOKEN_ALGORITHM", "TOKEN_MALFORMED"}


def test_AN_01_an_algorithm_must_be_there() -> None:
    assert why_not(EC.compact({"kid": "ec"}, CLAIMS)) == "TOKEN_ALGORITHM"


OTHERS = (
    "HS256", "HS384", "HS512", "hs256", "ES512", "ES256K", "RS384", "RS1", "dir", "A256KW", "RSA-OAEP",
    "PBES2-HS256+A128KW", "es256", "Ed25519", "RS256 ",
)  # fmt: skip


@pytest.mark.parametrize("algorithm", OTHERS)
def test_AN_02_the_list_of_algorithms_is_closed(algorithm: str) -> None:
    assert why_not(EC.token(CLAIMS, alg=algorithm)) == "TOKEN_ALGORITHM"


def _keyed(secret: bytes, algorithm: str) -> str:
    signed = f"{b64(json.dumps({'alg': algorithm, 'kid': 'rsa'}).encode())}.{b64(json.dumps(CLAIMS).encode())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


FORMS = [
    (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    (Encoding.PEM, PublicFormat.PKCS1),
    (Encoding.OpenSSH, PublicFormat.OpenSSH),
    (Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    (Encoding.DER, PublicFormat.PKCS1),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_AN_02_a_public_key_is_no_secret(form: tuple[Encoding, PublicFormat], end: bytes) -> None:
    secret = RSA.key.public_key().public_bytes(*form).rstrip(b"\n") + end
    for algorithm in ("HS256", "hs256", "Hs256"):
        assert why_not(_keyed(secret, algorithm)) == "TOKEN_ALGORITHM"


def test_AN_04_the_text_of_a_key_set_is_no_secret() -> None:
    for text in (RSA.jwk(), {"keys": [RSA.jwk()]}, RSA.jwk()["n"]):
        assert why_not(_keyed(json.dumps(text).encode(), "HS256")) == "TOKEN_ALGORITHM"


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_AN_07_a_token_that_brings_a_key_is_refused(name: str) -> None:
    value = {"jwk": EC.jwk(), "x5c": ["MIIB"]}.get(name, "https://evil.example/keys")
    assert why_not(EC.token(CLAIMS, **{name: value})) == "TOKEN_MALFORMED"


@pytest.mark.parametrize("crit", [["b64"], ["exp"], [], "b64", {}, 0, [None]], ids=repr)
def test_AN_08_no_extension_is_understood(crit: Any) -> None:
    assert why_not(EC.token(CLAIMS, crit=crit, b64=False)) == "TOKEN_MALFORMED"
    assert why_not(EC.token(CLAIMS, crit=crit)) == "TOKEN_MALFORMED"


@pytest.mark.parametrize("header", [{"b64": False}, {"b64": True}, {"zip": "DEF"}, {"enc": "A256GCM"}], ids=repr)
def test_AN_10_nothing_changes_how_the_payload_is_read(header: dict[str, Any]) -> None:
    assert why_not(EC.token(CLAIMS, **header)) == "TOKEN_MALFORMED"


@pytest.mark.parametrize("parts", [0, 1, 2, 4, 5, 6, 5000])
def test_AN_10_a_token_has_three_parts(parts: int) -> None:
    assert why_not(".".join(["e30"] * parts)) == "TOKEN_MALFORMED"
    whole = GOOD.split(".")
    assert why_not(".".join((whole * 2)[:parts])) == "TOKEN_MALFORMED" if parts <= 6 else True


def test_AN_10_an_encrypted_or_nested_token_is_refused() -> None:
    header = b64(json.dumps({"alg": "RSA-OAEP", "enc": "A256GCM", "cty": "JWT"}).encode())
    assert why_not(f"{header}.AAAA.AAAA.{b64(GOOD.encode())}.AAAA") == "TOKEN_MALFORMED"
    assert why_not(EC.compact({"alg": "ES256", "kid": "ec", "cty": "JWT"}, GOOD.encode())) == "TOKEN_MALFORMED"


@pytest.mark.parametrize("claims", [
    b'{"iss":"a","iss":"b"}', b'{"a":{"b":1,"b":2}}', b'{"a":[{"b":1,"b":1}]}', b'{"is\\u0073":"a","iss":"b"}',
    b'{"exp":NaN}', b'{"exp":Infinity}', b'{"exp":-Infinity}', b'{"exp":1e400}', b'{"exp":-1e999}',
    b"[]", b'""', b"1", b"null", b"", b" ", b"{", b"{}x", b"{'a':1}", b'{"a":1,}', b'{"a":01}', b"\xef\xbb\xbf{}",
    b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\\ud800"}', b'{"\\udfff":1}', b'{"a":"\n"}', b'{"a":"\\x41"}',
    '{"a":1}'.encode("utf-16"), b'{"a":' + b"9" * 5000 + b"}", b'{"a":' * 4000, b"[" * 11_000,
])  # fmt: skip
def test_AN_14_json_is_read_in_one_way_only(claims: bytes) -> None:
    assert why_not(EC.compact({"alg": "ES256", "kid": "ec"}, claims)) == "TOKEN_MALFORMED"
    header = claims if len(claims) < 1000 else b'{"alg":"ES256","alg":"none"}'
    assert why_not(EC.compact(header, CLAIMS)) == "TOKEN_MALFORMED"


@pytest.mark.parametrize("header", [
    b'{"alg":"ES256","kid":"ec","alg":"none"}', b'{"alg":"none","alg":"ES256","kid":"ec"}',
    b'{"kid":"a","alg":"ES256","kid":"ec"}', b'{"alg":"ES256","\\u0061lg":"ES256","kid":"ec"}',
])  # fmt: skip
def test_a_member_given_twice_is_refused(header: bytes) -> None:
    assert why_not(EC.compact(header, CLAIMS)) == "TOKEN_MALFORMED"


@pytest.mark.parametrize("kid", [None, "", 1, [], {}, ["ec"], True, "a" * 257, "\u00e9" * 129, "k" * 12_000])
def test_AN_20_a_kid_is_a_short_text(kid: Any) -> None:
    header = {"alg": "ES256", "kid": kid} if kid is not None else {"alg": "ES256"}
    assert why_not(EC.compact(header, {})) == "TOKEN_MALFORMED"


@pytest.mark.parametrize("kid", ["../../etc/passwd", "' OR 1=1 --", "a\0b", "\n", "\u202e", "%2e%2e/", "a" * 256])
def test_AN_20_a_kid_is_opaque(kid: str) -> None:
    assert compact.parse(EC.token(CLAIMS, kid=kid)).kid == kid


def test_AN_20_a_kid_of_64_kibibytes_is_not_even_decoded() -> None:
    assert why_not(EC.token(CLAIMS, kid="k" * 65536)) == "TOKEN_MALFORMED"


def test_the_length_is_looked_at_first() -> None:
    assert why_not("." * 100_000) == "TOKEN_MALFORMED"
    padded = {**CLAIMS, "pad": "x" * 12_000}
    assert len(EC.token(padded)) <= compact.MAX_TOKEN
    assert compact.parse(EC.token(padded)).claims == padded
    assert why_not(EC.token({**CLAIMS, "pad": "x" * 12_500})) == "TOKEN_MALFORMED"


def _respelt() -> Iterator[str]:
    header, claims, signature = GOOD.split(".")
    yield from (f"{header}=.{claims}.{signature}", f"{header}.{claims}.{signature}=", f" {GOOD}", f"{GOOD}\n")
    yield from (f"{header}.{claims}.{signature}AAA\n",)
    yield f"{header}.{claims}\n.{signature}"
    yield f"{header}.{claims}.{signature[:10]}+{signature[11:]}"
    yield f"{header}.{claims}.{signature[:10]}/{signature[11:]}"
    yield f"{header}.{claims}.{signature[:10]}\u212a{signature[11:]}"


@pytest.mark.parametrize("text", list(_respelt()), ids=range(9))
def test_bytes_have_one_spelling(text: str) -> None:
    assert why_not(text) == "TOKEN_MALFORMED"


def test_bits_that_are_over_must_be_zero() -> None:
    head, _, signature = GOOD.rpartition(".")
    assert len(signature) == 86  # 64 bytes: the last character carries four bits that mean nothing
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    place = alphabet.index(signature[-1])
    same = [alphabet[place ^ bits] for bits in range(1, 16)]
    assert all(base64.urlsafe_b64decode(signature[:-1] + one + "==") == compact.parse(GOOD).signature for one in same)
    assert {why_not(f"{head}.{signature[:-1]}{one}") for one in same} == {"TOKEN_MALFORMED"}


@pytest.mark.parametrize("typ", [None, "JWT", "jwt", "at+jwt", "application/jwt", 7])
def test_the_type_says_nothing(typ: Any) -> None:
    assert compact.parse(EC.token(CLAIMS, typ=typ)).claims == CLAIMS


@given(st.text(max_size=300) | st.binary(max_size=200).map(b64))
def test_P13_no_text_breaks_the_reader(text: str) -> None:
    assert why_not(text) == "TOKEN_MALFORMED"


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
                    | st.integers(-(2**70), 2**70), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8))  # fmt: skip
def test_P13_any_header_and_any_claims_end_in_a_token_or_a_refusal(value: Any) -> None:
    for text in (EC.compact(value, CLAIMS), EC.compact({"alg": "ES256", "kid": value}, CLAIMS), EC.token(value)):
        with suppress(Unauthenticated):
            assert compact.parse(text).algorithm == "ES256"


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_P13_one_changed_character_is_another_token(place: int, other: str) -> None:
    text = GOOD[:place] + other + GOOD[place + 1 :]
    try:
        token = compact.parse(text)
    except Unauthenticated:
        return
    whole = compact.parse(GOOD)
    assert text == GOOD or (token.signing_input, token.signature) != (whole.signing_input, whole.signature)


def test_claims_are_nested_only_so_deep() -> None:
    def nested(depth: int) -> Any:
        return 1 if depth == 0 else {"a": [nested(depth - 2)]}

    assert compact.parse(EC.token(nested(16))).claims == nested(16)
    assert why_not(EC.token(nested(18))) == "TOKEN_MALFORMED"
