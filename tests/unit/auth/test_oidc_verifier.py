"""What a token's claims must be, for everybody: AN-11 to AN-14; and the authenticators: AN-31, AN-33."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from broker.auth.oidc import Oidc, OidcConfig, compact, keys
from broker.auth.oidc.verifier import Verifier
from broker.auth.session import SessionTokens
from broker.core.errors import BrokerError, Unauthenticated, Unavailable
from broker.core.identity import Credentials, Patience
from broker.core.model import Principal, TrustRule
from tests.fakes.calls import Clock, call, operator, traits_of
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.servers.issuer import Signer
from tests.servers.rules import exact, rule

NOW = 1_780_000_000
WHEN = datetime.fromtimestamp(NOW, UTC)
SIGNER = Signer("one")
CLAIMS: dict[str, Any] = {
    "iss": "https://ci.example", "sub": "job", "aud": "broker", "iat": NOW, "exp": NOW + 300, "jti": "t1",
    "project_id": "42",
}  # fmt: skip


class Published:
    """Key sets as they are published, by issuer and CA; "away" for an issuer that does not answer."""

    def __init__(self) -> None:
        self.sets: dict[tuple[str, str], Any] = {("https://ci.example", ""): [SIGNER]}
        self.asked: list[tuple[str, str, str]] = []

    def key(
        self, issuer: str, ca_pem: str, kid: str, patience: Patience | None = None, *, not_this: keys.Key | None = None
    ) -> keys.Key | None:
        assert patience is None
        assert not_this is None or not_this.public
        self.asked.append((issuer, ca_pem, kid))
        signers = self.sets[issuer, ca_pem]
        if signers == "away":
            raise Unavailable("ISSUER_UNAVAILABLE", "It is away.")
        return keys.load({"keys": [signer.jwk() for signer in signers]})[0].get(kid)


def oidc(*rules: TrustRule, published: Published | None = None, now: datetime = WHEN) -> Oidc:
    store = MemoryStore()
    with store.write(call("-", operator(), Clock()).outcome()) as write:
        for one in rules or (rule(),):
            write.add(one)
    return Oidc(OidcConfig(), store, lambda: now, Verifier(published or Published()))  # type: ignore[arg-type]


def shown(token: str, named: str = "", rpc: str = "SessionService/Login") -> Credentials:
    metadata = {"authorization": f"Bearer {token}", **({"broker-trust-rule": named} if named else {})}
    return Credentials(
        certificate=None,
        chain_verified=False,
        metadata=metadata,
        peer="ipv4:127.0.0.1:1",
        rpc=rpc,
        traits=traits_of(rpc),
    )


def token(**changes: Any) -> str:
    return SIGNER.token({name: value for name, value in {**CLAIMS, **changes}.items() if value is not None})


def denied(text: str, *rules: TrustRule, named: str = "", **options: Any) -> BrokerError:
    error = refused(lambda: oidc(*rules, **options).authenticate(shown(text, named)), Unauthenticated)
    assert not error.metadata
    return error


def test_a_good_token_is_a_pipeline() -> None:
    found = oidc().authenticate(shown(token()))
    assert found is not None
    assert found.proof is not None
    assert (str(found), found.method, found.credential, found.groups) == ("pipeline/deploy", "oidc", "t1", ())
    assert (found.proof.rule, found.proof.issuer, found.proof.subject) == ("deploy", "https://ci.example", "job")
    assert (found.proof.token_id, found.proof.expires_at.timestamp()) == ("t1", NOW + 300)


def test_without_an_id_a_token_is_named_by_what_was_signed() -> None:
    text = token(jti=None)
    found = oidc(rule(single_use=False)).authenticate(shown(text))
    assert found is not None
    assert found.proof is not None
    assert found.proof.token_id == ""
    assert found.credential == hashlib.sha256(text.rpartition(".")[0].encode()).hexdigest()


ISSUERS = [
    None, ["https://ci.example"], {"iss": "https://ci.example"}, "", 7, True, "https://ci.example/", "https://CI.example",
    "https://ci.exampl\u0435", "https://ci.example ", "https://ci.exampl", "https://ci.example.evil.example",
    "http://ci.example", "https://ci.example:443", "https://ci.example\0", "https://x@ci.example", "ci.example",
    "file:///etc/passwd", "https://ci.example#", "https://ci.example/" + "a" * 600,
]  # fmt: skip


@pytest.mark.parametrize("issuer", ISSUERS, ids=lambda value: ascii(value)[:32])
def test_AN_11_the_issuer_is_one_text_byte_by_byte(issuer: Any) -> None:
    published = Published()
    assert denied(token(iss=issuer), published=published).reason == "TOKEN_ISSUER"
    assert published.asked == []  # NT-17: nothing is asked on the word of a token


AUDIENCES = [
    None, "", [], ["broker", "other"], ["other", "broker"], ["broker", "broker"], [["broker"]], {"aud": "broker"},
    "brok", "broker2", "Broker", "broker ", " broker", "*", 7, True, [None], ["broker", None], "api://AzureADTokenExchange",
    "https://github.com/org", "broke\u0433",
]  # fmt: skip


@pytest.mark.parametrize("audience", AUDIENCES, ids=ascii)
def test_AN_12_the_audience_is_ours_and_nothing_beside_it(audience: Any) -> None:
    error = denied(token(aud=audience))
    assert (error.reason, error.facts["claim"], error.facts["claim_expected"]) == ("TOKEN_AUDIENCE", "aud", "broker")


def test_AN_12_a_list_of_just_ours_is_ours() -> None:
    assert oidc().authenticate(shown(token(aud=["broker"]))) is not None


def test_AN_12_every_rule_has_an_audience_of_its_own() -> None:
    rules = rule("one", audience="one"), rule("two", audience="two", pipeline="other")
    found = oidc(*rules).authenticate(shown(token(aud="two")))
    assert str(found) == "pipeline/other"
    error = denied(token(aud="two"), *rules, named="one")
    assert (error.reason, error.facts["claim"]) == ("TRUST_CLAIM_MISMATCH", "aud")
    assert denied(token(aud="three"), *rules).reason == "TOKEN_AUDIENCE"


def test_AN_13_one_name_in_two_key_sets_is_two_keys() -> None:
    published, other = Published(), Signer("one")
    published.sets["https://other.example", ""] = [other]
    rules = rule("one"), rule("two", issuer="https://other.example", pipeline="other")
    theirs = other.token({**CLAIMS, "iss": "https://other.example"})
    assert str(oidc(*rules, published=published).authenticate(shown(theirs))) == "pipeline/other"
    forged = other.token(CLAIMS)
    assert denied(forged, *rules, published=published).reason == "TOKEN_SIGNATURE"
    assert denied(theirs, *rules, published=published, named="one").reason == "TRUST_CLAIM_MISMATCH"


WRONG_TIMES: list[dict[str, Any]] = [
    {"exp": None}, {"exp": str(NOW + 300)}, {"exp": NOW - 30.5}, {"exp": -1}, {"exp": 1e308}, {"exp": True},
    {"exp": [NOW + 300]}, {"exp": 10**30}, {"exp": 2**33}, {"exp": 0}, {"exp": NOW - 30}, {"exp": NOW - 3600},
    {"exp": NOW + 86401}, {"iat": NOW + 31}, {"iat": None}, {"iat": str(NOW)}, {"iat": NOW + 30.25}, {"iat": True},
    {"iat": -1}, {"iat": NOW + 400}, {"iat": NOW - 86200}, {"nbf": NOW + 31}, {"nbf": str(NOW)}, {"nbf": NOW + 30.5},
    {"nbf": -1}, {"nbf": -0.5}, {"nbf": True}, {"nbf": {}}, {"nbf": 10**30}, {"iat": NOW - 50, "exp": NOW - 50},
    {"iat": NOW, "exp": NOW - 10},
]  # fmt: skip


@pytest.mark.parametrize("times", WRONG_TIMES, ids=str)
def test_AN_14_times_are_numbers_and_now_is_within(times: dict[str, Any]) -> None:
    error = denied(token(**times))
    assert error.reason == "TOKEN_TIME"
    assert error.facts["claim"] in {*times, "lifetime"}


@pytest.mark.parametrize(
    "times",
    [
        {"exp": NOW - 29}, {"iat": NOW + 30}, {"nbf": NOW + 30}, {"nbf": None}, {"nbf": NOW}, {"exp": NOW + 86400},
        {"iat": NOW - 86100},
    ],
)  # fmt: skip
def test_AN_14_clocks_may_differ_by_half_a_minute(times: dict[str, Any]) -> None:
    changes = {"iat": NOW - 60, **times} if "exp" in times and times["exp"] < NOW else times
    assert oidc().authenticate(shown(token(**changes))) is not None


@pytest.mark.parametrize(
    "subject", [None, "", 7, ["job"], "a" * 1025, "a\0b", "a\nb", "\x1b[1m", "\u202ejob"], ids=ascii
)
def test_a_subject_is_a_plain_text(subject: Any) -> None:
    assert denied(token(sub=subject)).reason == "TOKEN_CLAIMS"


@pytest.mark.parametrize("jti", ["", 7, ["a"], "a" * 257, "a\0b", "a\nb", {}], ids=ascii)
def test_an_id_is_a_plain_text(jti: Any) -> None:
    assert denied(token(jti=jti)).reason == "TOKEN_CLAIMS"


def test_a_forged_token_is_refused_before_its_claims_are_looked_at() -> None:
    error = denied(Signer("one").token({**CLAIMS, "exp": 1, "aud": "other"}))
    assert error.reason == "TOKEN_SIGNATURE"
    assert denied(SIGNER.token(CLAIMS, kid="two")).reason == "TOKEN_KEY_UNKNOWN"


def test_AN_06_the_key_says_which_algorithm() -> None:
    other = Signer("one", "RS256")
    error = denied(other.token(CLAIMS))
    assert (error.reason, error.facts["claim"], error.facts["claim_expected"]) == (
        "TOKEN_SIGNATURE",
        "header alg",
        "ES256",
    )


def test_what_one_rule_trusts_opens_no_other() -> None:
    published, evil = Published(), Signer("one")
    published.sets["https://ci.example", "CA"] = [evil]
    rules = rule("deploy"), rule("other", ca_pem="CA", pipeline="other")
    assert str(oidc(*rules, published=published).authenticate(shown(token()))) == "pipeline/deploy"
    assert str(oidc(*rules, published=published).authenticate(shown(evil.token(CLAIMS)))) == "pipeline/other"
    assert denied(evil.token(CLAIMS), *rules, published=published, named="deploy").reason == "TRUST_CLAIM_MISMATCH"
    assert denied(Signer("one").token(CLAIMS), *rules, published=published).reason == "TOKEN_SIGNATURE"


def test_an_issuer_that_one_rule_cannot_reach_closes_no_other_rule() -> None:
    published = Published()
    published.sets["https://ci.example", "CA"] = "away"
    rules = rule("deploy"), rule("other", ca_pem="CA", pipeline="other")
    assert str(oidc(*rules, published=published).authenticate(shown(token()))) == "pipeline/deploy"
    with pytest.raises(Unavailable):
        oidc(rules[1], published=published).authenticate(shown(token()))


def test_a_named_rule_is_the_one_that_counts() -> None:
    rules = rule("one"), rule("two", pipeline="other")
    assert denied(token(), *rules).reason == "TRUST_AMBIGUOUS"
    assert str(oidc(*rules).authenticate(shown(token(), "two"))) == "pipeline/other"
    for named in ("three", "One", "one ", "../one", "'"):
        assert denied(token(), *rules, named=named).reason == "TRUST_CLAIM_MISMATCH"


@pytest.mark.parametrize(
    "rpc", ["SessionService/EndSession", "KeyService/Sign", "SecretService/GetSecret", "_OTHER", ""]
)
def test_an_identity_token_opens_a_session_and_does_nothing_else(rpc: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        oidc().authenticate(shown(token(), rpc=rpc))
    assert refused.value.reason == "TOKEN_NOT_HERE"
    assert oidc().authenticate(shown(token(), rpc="SessionService/FetchSecrets")) is not None


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic YTpi", "Token x", "x", "Bearer\tx", "\u212bearer x"])
def test_AN_31_any_other_authorization_is_refused(value: str) -> None:
    credentials = Credentials(
        certificate=None,
        chain_verified=False,
        metadata={"authorization": value},
        peer="",
        rpc="SessionService/Login",
        traits=traits_of("SessionService/Login"),
    )
    with pytest.raises(Unauthenticated) as refused:
        oidc().authenticate(credentials)
    assert refused.value.reason == "CREDENTIALS_UNKNOWN"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
def test_the_scheme_has_no_case(scheme: str) -> None:
    plain = shown(token())
    credentials = Credentials(
        certificate=None,
        chain_verified=False,
        peer="",
        rpc=plain.rpc,
        traits=plain.traits,
        metadata={"authorization": f"{scheme} {token()}"},
    )
    assert oidc().authenticate(credentials) is not None


def test_nothing_to_see_is_nobody() -> None:
    nothing = Credentials(
        certificate=b"x",
        chain_verified=True,
        metadata={},
        peer="",
        rpc="SessionService/Login",
        traits=traits_of("SessionService/Login"),
    )
    assert oidc().authenticate(nothing) is None
    assert oidc().authenticate(shown("brs_abc")) is None


def test_AN_33_the_reason_is_the_same_however_a_fault_is_spelt() -> None:
    spellings = {
        denied(token(iss=one)).message for one in ("https://CI.example", "https://ci.example/", " x", "\u0130")
    }
    assert len(spellings) == 1


def test_a_wrong_claim_tells_the_caller_a_code_and_the_audit_both_values() -> None:
    error = denied(token(project_id="canary-found"), rule(matchers=(exact("project_id", "canary-expected"),)))
    assert error.reason == "TRUST_CLAIM_MISMATCH"
    assert (error.facts["claim_expected"], error.facts["claim_found"]) == ("canary-expected", "canary-found")
    assert "canary" not in error.message
    assert "project_id" not in error.message


def test_no_refusal_holds_the_token() -> None:
    for text in (token(aud="x"), token(exp=1), token(iss="https://x.example"), Signer("one").token(CLAIMS)):
        error = denied(text)
        assert text.rpartition(".")[2] not in f"{error} {error.facts} {error.metadata}"


def test_the_explanation_goes_on_after_a_wrong_time_or_audience() -> None:
    verified = oidc().inspect(rule(), token(exp=NOW - 100, aud="other"))
    failed = {finding.name: (finding.expected, finding.found) for finding in verified.findings if not finding.passed}
    assert failed["aud"] == ("broker", "other")
    assert failed["exp"][1] == str(NOW - 100)
    assert {finding.name for finding in verified.findings if finding.passed} >= {
        "iss",
        "signature",
        "iat",
        "nbf",
        "sub",
    }


@pytest.mark.parametrize("text", ["x", Signer("one").token(CLAIMS), token(iss="https://other.example")])
def test_nothing_is_explained_of_a_token_that_nobody_signed(text: str) -> None:
    with pytest.raises(Unauthenticated):
        oidc().inspect(rule(), text)


HOSTS = ["x", "https://x:1", "X:1", "*:443", "x:0", ":443", "x:443/", "a b:1"]


@pytest.mark.parametrize("value", [*({"allowed_hosts": [host]} for host in HOSTS), {"other": 1}])
def test_a_configuration_that_is_none_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"allowed_hosts|other"):
        OidcConfig(**value)


# Sessions

SESSION = Principal(kind="pipeline", name="deploy", method="session", credential="s1")


class Held:
    """The sessions, as far as an authenticator asks them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []

    def authenticate(self, text: str, *, ended: bool = False) -> Principal:
        self.seen.append((text, ended))
        return SESSION


def test_a_session_token_is_its_session() -> None:
    held = Held()
    tokens = SessionTokens(held)  # type: ignore[arg-type]
    assert tokens.authenticate(shown("brs_abc", rpc="KeyService/Sign")) is SESSION
    assert tokens.authenticate(shown("brs_abc", rpc="SessionService/EndSession")) is SESSION
    for other in (shown(token()), shown("BRS_abc"), shown("xbrs_abc")):
        assert tokens.authenticate(other) is None
    nothing = Credentials(certificate=None, chain_verified=False, metadata={"authorization": "Basic brs_x"}, peer="")
    assert tokens.authenticate(nothing) is None
    assert held.seen == [("brs_abc", False), ("brs_abc", True)]


def test_the_one_parse_is_the_one_that_is_believed() -> None:
    parsed = compact.parse(token())
    verified, *_ = Verifier(Published()).verify([rule()], parsed, WHEN)  # type: ignore[arg-type]
    assert verified.claims is parsed.claims
