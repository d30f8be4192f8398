"""The Authenticator port on CI identity tokens (OpenID Connect Core 2): a job, once, for opening a session."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field

from broker.auth.oidc import compact
from broker.auth.oidc.compact import Token
from broker.auth.oidc.fetch import Fetcher
from broker.auth.oidc.key_sets import KeySets
from broker.auth.oidc.refusals import refused
from broker.auth.oidc.review import HostPort, TokenReview, TokenReviewConfig
from broker.auth.oidc.verifier import Verifier
from broker.core import ports
from broker.core.errors import Unauthenticated
from broker.core.identity import Credentials, Patience, Proof, Verified
from broker.core.model import Principal, TrustRule
from broker.core.reasons import Reason
from broker.core.trust import rules as trust

OPENING = "SessionService/FetchSecrets or SessionService/Login"
"""How the audit puts which methods an identity token is good for."""

SESSION_PREFIX = "brs_"


class OidcConfig(BaseModel):
    """``allowed_hosts``: "host:port" of issuers, or of their keys, that are at private addresses or other hosts.

    Nothing else at a private, link-local or loopback address is ever connected to, whatever a rule or an issuer names.
    ``token_review``: the clusters that are asked about each token of their own, beside the signature.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    allowed_hosts: frozenset[HostPort] = Field(default=frozenset(), max_length=64)
    token_review: tuple[TokenReviewConfig, ...] = Field(default=(), max_length=64)


class Oidc:
    """Pipelines by identity token: ``Principal(kind="pipeline", method="oidc")`` with the proof for a session.

    Starts without asking any issuer for anything: one that is away costs its own jobs their login, and nobody else.
    ``verifier``: who checks signatures, if not with the keys that each issuer publishes.
    """

    def __init__(
        self, config: OidcConfig, store: ports.Store, now: ports.Now, verifier: Verifier | None = None
    ) -> None:
        self._verifier = verifier or Verifier(KeySets(Fetcher(config.allowed_hosts)))
        self._reviews = {one.issuer: TokenReview(one) for one in config.token_review}
        self._store = store
        self._now = now

    def authenticate(self, credentials: Credentials) -> Principal | None:
        """None without an identity token; Unauthenticated ``TOKEN_…`` or ``TRUST_…``, Unavailable ``ISSUER_…``."""
        text = bearer(credentials)
        if text is None or text.startswith(SESSION_PREFIX):
            return None
        if not credentials.traits.opens_session:
            raise refused(Reason.TOKEN_NOT_HERE, "rpc", OPENING, credentials.rpc)
        return self._principal(text, credentials.metadata.get("broker-trust-rule", ""), credentials.patience)

    def inspect(self, rule: TrustRule, token: str) -> Verified:
        """The core's ``Verify``: what a token says, step by step, for one rule."""
        return self._verifier.inspect(rule, token, self._now())

    def _principal(self, text: str, named: str, patience: Patience | None) -> Principal:
        token = compact.parse(text)
        rules = self._rules(token.claims.get("iss"))
        verified, rule, proof = self._chosen(rules, token, named, patience)
        if rule.issuer in self._reviews:  # whatever the preset of the rule is
            self._reviews[rule.issuer].check(text, rule.audience, verified.subject, patience)
        # Without an id of its own, a token is named by what was signed: the signature itself can be written anew.
        credential = proof.token_id or hashlib.sha256(token.signing_input).hexdigest()
        return Principal(kind="pipeline", name=rule.pipeline, method="oidc", credential=credential, proof=proof)

    def _chosen(
        self, rules: list[TrustRule], token: Token, named: str, patience: Patience | None
    ) -> tuple[Verified, TrustRule, Proof]:
        # For all rules of the issuer, whichever is named: so nobody learns which names there are (AN-32).
        verified, sound, away = self._verifier.verify(rules, token, self._now(), patience)
        try:
            proof = trust.choose(sound, named, verified)
        except Unauthenticated:
            if not away:
                raise
            # None of those fits whose keys are here; the one that is meant may be among the others.
            verified, sound, _ = self._verifier.verify(away, token, self._now(), patience)
            proof = trust.choose(sound, named, verified)
        return verified, next(rule for rule in sound if rule.name == proof.rule), proof

    def _rules(self, issuer: object) -> list[TrustRule]:
        known = type(issuer) is str and len(issuer) <= trust.MAX_TEXT and trust.ISSUER.fullmatch(issuer)
        if not known:
            raise refused(Reason.TOKEN_ISSUER, "iss", "the issuer of a trust rule", issuer)
        where, found = {"issuer": str(issuer)}, list[TrustRule]()
        while True:  # once, but for rules of a broker that did not yet limit them: none is left out
            after = (found[-1].name,) if found else ()
            more = self._store.page(TrustRule, after=after, limit=trust.MAX_RULES, where=where, sound_only=True)
            found += more
            if len(more) < trust.MAX_RULES:
                return found


def bearer(credentials: Credentials) -> str | None:
    """The call's bearer token (RFC 6750 2.1), if it has an authorization; ``CREDENTIALS_UNKNOWN`` for any other."""
    value = credentials.metadata.get("authorization")
    if value is None:
        return None
    scheme, space, token = value.partition(" ")
    if scheme.lower() != "bearer" or not space or not token:
        raise refused(Reason.CREDENTIALS_UNKNOWN, "authorization", "Bearer", "another scheme")
    return token
