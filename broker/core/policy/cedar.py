"""The Cedar policy: its schema, its first text, and a checked document that answers questions.

What this adds to the engine: limits that keep the engine from overflowing its stack (it parses recursively, and an
overflow ends the process), a name for every policy, the line of every fault, and no answer other than deny when
anything about a question does not fit.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import cedarpy

from broker.core.approvable import APPROVABLE, MOST
from broker.core.errors import InvalidRequest
from broker.core.names import NAME
from broker.core.reasons import Reason

MAX_TEXT_BYTES = 64 * 1024
MAX_POLICIES = 1000
MAX_OPERATORS = 100
"""Operators and opening brackets in one policy: no expression can nest deeper. The engine overflows beyond 500."""

_FAULTS_SHOWN = 5
_TOKEN = re.compile(r'(?P<comment>//[^\n\r]*)|"(?:\\.|[^"\\])*"|&&|\|\||::|[=!<>]=|\w+|\S')
_FLAT = frozenset({",", ";", ":", "::", ")", "]", "}", "@", '"'})
_FAILED = re.compile(r"while evaluating policy `(policy\d+)`")
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

SCHEMA = resources.files("broker.core").joinpath("policy.cedarschema").read_text("utf-8")
"""The schema that every policy is validated against, as Cedar text."""

FIRST_POLICY = resources.files("broker.core").joinpath("policy.cedar").read_text("utf-8")
"""The policy text that a new broker begins with."""

_SCHEMA = cedarpy.Schema.from_str(SCHEMA)

_ACTION = re.compile(
    r'^action "(\w+)" appliesTo \{\s*principal: \[([\w, ]+)\],\s*resource: \[([\w, ]+)\]', re.MULTILINE
)
_APPLIES = {
    name: (frozenset(principals.split(", ")), frozenset(resources.split(", ")))
    for name, principals, resources in _ACTION.findall(str(_SCHEMA))
}

ACTIONS = frozenset(_APPLIES)
"""The names of the schema's actions."""


class Entity(NamedTuple):
    """A principal or resource as Cedar sees it; hashable, so that equal questions are recognised."""

    kind: str
    id: str
    attributes: tuple[tuple[str, str | bool], ...] = ()
    groups: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    folders: tuple[str, ...] = ()


class Question(NamedTuple):
    """May ``principal`` do ``action`` to ``resource``? ``context`` holds strings and sets of strings."""

    principal: Entity
    action: str
    resource: Entity
    context: tuple[tuple[str, tuple[str, ...] | str], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """``policies``: the @ids that decided. ``error``: why it could not be decided properly; then it is a denial.

    ``approvals``: the most that the @approvals of the policies that permit it ask for.
    """

    allowed: bool
    policies: tuple[str, ...] = ()
    error: str = ""
    approvals: int = 0


class Policy:
    """A policy text that passed every check; InvalidRequest ``POLICY_INVALID`` (with lines) for one that does not."""

    def __init__(self, text: str) -> None:
        sources = _split(text)
        self._policies = _parse(text, sources)
        parsed = _parsed(self._policies)
        self._names = _names(parsed, sources)
        self._approvals = _approvals(parsed, sources)
        self.asks = _asks(parsed, self._approvals)
        _validate(text, sources)
        words = {policy.id: _words(source) for policy, source in zip(parsed, sources, strict=True)}
        self.permits, self.forbids = (
            frozenset(words[one.id] for one in parsed if one.effect == effect) for effect in ("permit", "forbid")
        )
        self.asking = frozenset(words[one] for one in self._approvals)

    def decide(self, question: Question) -> Decision:
        """Deny unless a policy permits, none forbids, and every policy that was looked at could be evaluated.

        What is not for such a caller at all (a pipeline that would sign) is denied: nothing is wrong with the policy.
        """
        if question.action in ACTIONS and not is_for(question.principal.kind, question.action):
            return Decision(allowed=False)
        result = cedarpy.is_authorized(_request(question), self._policies, _entities(question), _SCHEMA)
        errors = result.diagnostics.errors
        if errors:
            # The engine skips a policy that fails, which would drop a forbid (AZ-09).
            return Decision(allowed=False, policies=self._named(_FAILED.findall(" ".join(errors))), error=errors[0])
        reasons = result.diagnostics.reasons
        asked = max((self._approvals.get(one, 0) for one in reasons), default=0) if result.allowed else 0
        return Decision(allowed=result.allowed, policies=self._named(reasons), approvals=asked)

    def _named(self, ids: list[str]) -> tuple[str, ...]:
        return tuple(sorted({self._names[name] for name in ids}))


def is_for(principal: str, action: str, resource: str = "") -> bool:
    """Whether the schema knows of such a caller for an action, and of such a resource if one is named."""
    callers, resources = _APPLIES.get(action, (frozenset(), frozenset()))
    return principal in callers and (not resource or resource in resources)


def widens(old: Policy, new: Policy) -> bool:
    """Whether ``new`` may permit what ``old`` does not, or with fewer approvals.

    It does not if it only leaves out permits and adds forbids. But a permit with @approvals that is left out no longer
    asks for them where another one permits the same.
    """
    fewer = new.permits <= old.permits and new.forbids >= old.forbids
    return not (fewer and old.asking <= new.permits)


class _Token(NamedTuple):
    text: str
    line: int
    start: int


class _Source(NamedTuple):
    """One policy's text, and the line it begins on."""

    text: str
    line: int


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def _request(question: Question) -> dict[str, object]:
    """Only structured ids reach the engine: no name is ever read as Cedar text (AZ-11, AZ-12)."""
    return {
        "principal": _uid(question.principal.kind, question.principal.id),
        "action": _uid("Action", question.action),
        "resource": _uid(question.resource.kind, question.resource.id),
        "context": dict(question.context),
    }


def _entities(question: Question) -> str:
    # A caller who acts on himself is one entity, and it is the authenticated one.
    resource, principal = question.resource, question.principal
    same = (resource.kind, resource.id) == (principal.kind, principal.id)
    return json.dumps([_entity(entity) for entity in ((principal,) if same else (principal, resource))])


def _entity(entity: Entity) -> dict[str, object]:
    return {
        "uid": _uid(entity.kind, entity.id),
        "attrs": dict(entity.attributes),
        "parents": [
            *(_uid("Group", group) for group in entity.groups),
            *(_uid("Folder", folder) for folder in entity.folders),
        ],
        "tags": dict(entity.tags),
    }


def _split(text: str) -> list[_Source]:
    """Cut the text into policies, and refuse what the engine must not be given."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
        raise _invalid([f"it is longer than {MAX_TEXT_BYTES // 1024} KiB"])
    sources: list[_Source] = []
    policy: list[_Token] = []
    for token in _tokens(text):
        policy.append(token)
        if token.text == ";":
            sources.append(_source(text, policy))
            policy = []
    if policy:  # without its semicolon: the parser will say so
        sources.append(_source(text, policy))
    if len(sources) > MAX_POLICIES:
        raise _invalid([f"it has more than {MAX_POLICIES} policies"])
    return sources


def _source(text: str, tokens: list[_Token]) -> _Source:
    first, last = tokens[0], tokens[-1]
    if sum(_nests(token.text) for token in tokens) > MAX_OPERATORS:
        raise _invalid(
            [f"line {first.line}: a policy has more than {MAX_OPERATORS} operators and opening brackets; split it"]
        )
    return _Source(text[first.start : last.start + len(last.text)], first.line)


def _nests(word: str) -> bool:
    """Whether the token can make the expression one level deeper."""
    return word == "if" or not (word in _FLAT or word[0] in '"_' or word[0].isalnum())


def _tokens(text: str) -> Iterator[_Token]:
    """All tokens but comments. Characters that look like others, or like nothing, are refused (AZ-01)."""
    line, seen = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", seen, match.start())
        seen = match.start()
        if any(unicodedata.category(letter) in _INVISIBLE for letter in match.group() if letter not in "\t\n\r"):
            raise _invalid([f"line {line}: an invisible character"])
        if match["comment"] is not None:
            continue
        if not match.group().isascii():
            raise _invalid([f"line {line}: a character outside ASCII; only comments may hold one"])
        yield _Token(match.group(), line, match.start())


def _parse(text: str, sources: list[_Source]) -> cedarpy.PolicySet:
    try:
        policies = cedarpy.PolicySet.from_str(text, release_gil=True)
    except ValueError as error:
        raise _invalid(list(_parse_faults(sources)) or [str(error)]) from error
    if policies.templates():
        raise _invalid(["it holds a template (?principal or ?resource); write out whom and what it is about"])
    if len(policies) != len(sources):
        raise _invalid(["its policies could not be told apart"])
    return policies


def _parse_faults(sources: list[_Source]) -> Iterator[str]:
    """The engine does not say where a text is wrong, so each policy is tried alone."""
    for source in sources:
        try:
            cedarpy.PolicySet.from_str(source.text)
        except ValueError as error:
            yield f"line {source.line}: {error}"


def _parsed(policies: cedarpy.PolicySet) -> list[Any]:
    """The policies in the order of the text; the engine numbers them so."""
    try:
        parsed = policies.to_pst().static_policies
    except ValueError as error:
        raise _invalid([str(error)]) from error
    return [parsed[f"policy{place}"] for place in range(len(parsed))]


def _approvals(parsed: list[Any], sources: list[_Source]) -> dict[str, int]:
    """What @approvals("N") of a permit asks for, by the id the engine gave it. It must be able to take effect."""
    found, faults = {}, []
    for policy, source in zip(parsed, sources, strict=True):
        asked = policy.annotations.get("approvals")
        if asked is None:
            continue
        if fault := _approvals_fault(policy, str(asked)):
            faults.append(f"line {source.line}: {fault}")
        else:
            found[policy.id] = int(asked)
    if faults:
        raise _invalid(faults)
    return found


def _approvals_fault(policy: Any, asked: str) -> str:
    if policy.effect != "permit":
        return "@approvals stands on a permit; what is forbidden cannot be approved"
    if asked not in map(str, range(1, MOST + 1)):
        return f'@approvals is written with a number from 1 to {MOST}, as in @approvals("1")'
    unfit = sorted(set(_named_actions(policy)) - APPROVABLE.keys())
    return f"{unfit[0]} cannot wait for approvals; leave it to a policy without @approvals" if unfit else ""


def _named_actions(policy: Any) -> list[str]:
    """The actions that a policy names; none: it is about all of them."""
    if hasattr(policy.action, "entity"):
        return [policy.action.entity.id]
    return [one.id for one in getattr(policy.action, "entities", ())]


def _asks(parsed: list[Any], found: Mapping[str, int]) -> dict[str, int]:
    """The most that annotations ask for, by action."""
    asks: dict[str, int] = {}
    for policy in parsed:
        for action in (_named_actions(policy) or APPROVABLE) if policy.id in found else ():
            asks[action] = max(asks.get(action, 0), found[policy.id])
    return asks


def _words(source: _Source) -> tuple[str, ...]:
    """A policy without its layout and comments, to compare it with another."""
    return tuple(token.text for token in _tokens(source.text))


def _names(parsed: list[Any], sources: list[_Source]) -> dict[str, str]:
    """The @id of each policy by the id the engine gave it; each must have one of its own."""
    names = {policy.id: policy.annotations.get("id", "") for policy in parsed}
    faults, seen = [], set()
    for name, source in zip(names.values(), sources, strict=True):
        if len(name) > 63 or not NAME.fullmatch(name):
            faults.append(f'line {source.line}: the policy needs a name, @id("…"), of lower-case letters and hyphens')
        elif name in seen:
            faults.append(f'line {source.line}: another policy is already named "{name}"')
        seen.add(name)
    if faults:
        raise _invalid(faults)
    return names


def _validate(text: str, sources: list[_Source]) -> None:
    result = cedarpy.validate_policies(text, _SCHEMA, release_gil=True)
    if not result.validation_passed:
        raise _invalid([_located(error, sources) for error in result.errors])


def _located(error: cedarpy.ValidationError, sources: list[_Source]) -> str:
    position = error.policy_id.removeprefix("policy")
    sentence = error.error.removeprefix(f"for policy `{error.policy_id}`, ")
    return f"line {sources[int(position)].line}: {sentence}" if position.isdecimal() else sentence


def _invalid(faults: list[str]) -> InvalidRequest:
    shown = "; ".join(fault[:200] for fault in faults[:_FAULTS_SHOWN])
    more = len(faults) - _FAULTS_SHOWN
    return InvalidRequest(
        Reason.POLICY_INVALID, f"The policy was not taken: {shown}{f'; {more} more' if more > 0 else ''}."
    )
