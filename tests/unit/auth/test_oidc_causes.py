"""A refusal of an identity token names its cause, and a remedy that works in that very situation (P28, P30)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.auth.test_oidc_verifier import CLAIMS, NOW, SIGNER, denied, oidc, shown, token


@pytest.mark.parametrize(
    "times",
    [
        {"iat": NOW - 0.75}, {"iat": NOW + 0.25, "nbf": NOW + 0.25, "exp": NOW + 299.999}, {"iat": float(NOW)},
        {"iat": 1.78e9}, {"exp": NOW - 29.5, "iat": NOW - 100.125},
    ],
)  # fmt: skip
def test_P28_a_time_is_a_number_of_seconds_that_need_not_be_whole(times: dict[str, Any]) -> None:
    found = oidc().authenticate(shown(token(**times)))
    assert found is not None
    assert found.proof is not None
    assert abs(found.proof.expires_at.timestamp() - times.get("exp", NOW + 300)) < 0.001


CAUSES: list[tuple[dict[str, Any], str, str]] = [
    ({"iat": str(NOW)}, "TOKEN_TIME", "iat is missing, or is no number"),
    ({"iat": True}, "TOKEN_TIME", "its issuer has to mend that"),
    ({"exp": None}, "TOKEN_TIME", "exp is missing"),
    ({"nbf": [1]}, "TOKEN_TIME", "nbf is missing, or is no number"),
    ({"exp": 10**30}, "TOKEN_TIME", "its issuer has to mend that"),
    ({"exp": NOW - 31}, "TOKEN_TIME", "is over; get a fresh one"),
    ({"iat": NOW + 31}, "TOKEN_TIME", "clocks of its issuer and the broker have to agree"),
    ({"nbf": NOW + 31}, "TOKEN_TIME", "clocks of its issuer and the broker have to agree"),
    ({"iat": NOW, "exp": NOW - 10}, "TOKEN_TIME", "ends before it begins"),
    ({"aud": "https://kubernetes.default.svc"}, "TOKEN_AUDIENCE", "request it for the broker's own"),
    ({"iss": "https://ci.example/"}, "TOKEN_ISSUER", "a slash at its end included"),
]


@pytest.mark.parametrize(("changes", "reason", "cause"), CAUSES, ids=str)
def test_P28_a_refusal_says_what_is_wrong_and_nothing_that_would_not_help(
    changes: dict[str, Any], reason: str, cause: str
) -> None:
    error = denied(token(**changes))
    assert (error.reason, cause in error.message) == (reason, True), error.message
    assert ("fresh" in error.message) == ("is over" in error.message)


def test_P30_a_token_that_lives_too_long_is_told_the_limit_and_where_it_is_set() -> None:
    error = denied(token(exp=NOW + 25 * 3600))
    assert error.reason == "TOKEN_TIME"
    assert error.facts["claim"] == "lifetime"
    assert error.facts["claim_found"] == str(25 * 3600)
    assert all(part in error.message for part in ("24 hours", "expirationSeconds", "a fresh one will too"))


def test_P30_each_form_that_is_no_token_is_told_what_it_is() -> None:
    good = token()
    header, claims, signature = good.split(".")
    forms = {
        f"{header}.{claims}.{signature}.{claims}.{header}": "encrypted",
        good[:-60].rpartition(".")[0]: "cut",
        f"{header}.{claims[:-7]}.{signature}": "cut or changed",
        f'"{good}"': "quotes",
        f"Bearer {good}": '"Bearer"',
        "gho_16C7e42F292c6912E7710c838347Ae178B4a": "access token",
        SIGNER.token(CLAIMS, kid=None): "kid",
        good + "." + "a" * 20_000: "longer than",
    }
    for text, cause in forms.items():
        error = denied(text)
        assert (error.reason, cause in error.message) == ("TOKEN_MALFORMED", True), (text[:20], error.message)
    error = denied(SIGNER.token(CLAIMS, alg="HS256"))
    assert (error.reason, "RS256, PS256, ES256" in error.message) == ("TOKEN_ALGORITHM", True)
