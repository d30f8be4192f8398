"""TrustService: decode, one call, encode."""

# ruff: noqa: D102 (the contract of each RPC stands in its .proto file)

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from broker_api.v1 import trust_pb2 as wire
from google.protobuf.duration_pb2 import Duration

from broker.core.call import Call
from broker.core.kinds import MatcherKind
from broker.core.model import Matcher, TrustRule
from broker.core.trust.rules import TrustRules
from broker.rpc import codec
from broker.rpc.pages import PageTokens, page_size

MAX_TOKEN = 64 * codec.KIBIBYTE
USUAL_SESSION = timedelta(hours=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TrustMethods:
    """The RPCs of TrustService."""

    def __init__(self, rules: TrustRules, pages: PageTokens) -> None:
        self._rules = rules
        self._pages = pages

    def create_trust_rule(self, call: Call, request: wire.CreateTrustRuleRequest) -> wire.CreateTrustRuleResponse:
        return wire.CreateTrustRuleResponse(rule=_wire(self._rules.create(call, _rule(request))))

    def update_trust_rule(self, call: Call, request: wire.UpdateTrustRuleRequest) -> wire.UpdateTrustRuleResponse:
        return wire.UpdateTrustRuleResponse(rule=_wire(self._rules.update(call, _rule(request))))

    def get_trust_rule(self, call: Call, request: wire.GetTrustRuleRequest) -> wire.GetTrustRuleResponse:
        return wire.GetTrustRuleResponse(rule=_wire(self._rules.get(call, request.name)))

    def list_trust_rules(self, call: Call, request: wire.ListTrustRulesRequest) -> wire.ListTrustRulesResponse:
        after = self._pages.open(call, (), request.page_token)
        page = self._rules.page(call, after, page_size(request.page_size))
        return wire.ListTrustRulesResponse(
            rules=[_wire(rule) for rule in page.items], next_page_token=self._pages.token(call, (), page.next)
        )

    def delete_trust_rule(self, call: Call, request: wire.DeleteTrustRuleRequest) -> wire.DeleteTrustRuleResponse:
        self._rules.delete(call, request.name)
        return wire.DeleteTrustRuleResponse()

    def test_trust_rule(self, call: Call, request: wire.TestTrustRuleRequest) -> wire.TestTrustRuleResponse:
        codec.at_most(len(request.identity_token), MAX_TOKEN, "identity_token")
        found = self._rules.test(call, request.name, request.identity_token)
        return wire.TestTrustRuleResponse(
            matched=all(each.passed for each in found),
            findings=[
                wire.ClaimFinding(name=each.name, passed=each.passed, expected=each.expected, found=each.found)
                for each in found
            ],
        )


def _rule(request: wire.CreateTrustRuleRequest | wire.UpdateTrustRuleRequest) -> TrustRule:
    """What the caller decides of a rule; its grade and its time of creation are the broker's to say."""
    if not request.HasField("rule"):
        raise codec.missing("rule")
    rule = request.rule
    longest = codec.duration(rule, "max_session") or USUAL_SESSION
    return TrustRule(
        name=rule.name,
        preset=codec.PRESET.required(rule.preset, "rule.preset"),
        issuer=rule.issuer,
        audience=rule.audience,
        matchers=tuple(map(_matcher, rule.matchers)),
        pipeline=rule.pipeline,
        max_session_seconds=int(longest.total_seconds()),
        single_use=rule.single_use,
        ca_pem=rule.ca_pem,
        grade="",
        findings=(),
        created_at=EPOCH,
        revision=rule.revision,
    )


def _matcher(matcher: wire.Matcher) -> Matcher:
    if matcher.HasField("one_of"):
        return Matcher(claim=matcher.claim, kind=MatcherKind.ONE_OF, values=tuple(matcher.one_of.values))
    if matcher.HasField("glob"):
        return Matcher(claim=matcher.claim, kind=MatcherKind.GLOB, values=(matcher.glob,))
    if matcher.HasField("contains"):
        return Matcher(claim=matcher.claim, kind=MatcherKind.CONTAINS, values=(matcher.contains,))
    return Matcher(claim=matcher.claim, kind=MatcherKind.EXACT, values=(matcher.exact,))


def _wire(rule: TrustRule) -> wire.TrustRule:
    return wire.TrustRule(
        name=rule.name,
        preset=codec.PRESET.wire(rule.preset),
        issuer=rule.issuer,
        audience=rule.audience,
        matchers=map(_wire_matcher, rule.matchers),
        pipeline=rule.pipeline,
        max_session=Duration(seconds=rule.max_session_seconds),
        single_use=rule.single_use,
        ca_pem=rule.ca_pem,
        grade=rule.grade,
        findings=rule.findings,
        create_time=codec.timestamp(rule.created_at),
        revision=rule.revision,
    )


def _wire_matcher(matcher: Matcher) -> wire.Matcher:
    if matcher.kind is MatcherKind.ONE_OF:
        return wire.Matcher(claim=matcher.claim, one_of=wire.Choices(values=matcher.values))
    if matcher.kind is MatcherKind.GLOB:
        return wire.Matcher(claim=matcher.claim, glob=matcher.values[0])
    if matcher.kind is MatcherKind.CONTAINS:
        return wire.Matcher(claim=matcher.claim, contains=matcher.values[0])
    return wire.Matcher(claim=matcher.claim, exact=matcher.values[0])
