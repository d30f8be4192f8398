"""What is known of each kind of issuer: which claims are identities, and how its pull requests show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.core.kinds import Preset

HOST = r"[a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?"
ADDRESS = rf"https://{HOST}(?::[1-9][0-9]{{0,4}})?"
ANY_ISSUER = rf"{ADDRESS}(?:/[A-Za-z0-9._~%-]+)*/?"
UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One kind of issuer. Claims are written as paths ("//" is a slash within a name).

    ``required``: groups of claims; of each group one must be bound to values, or the rule does not say whose job it
    is. ``shared``: issuers that serve several organisations, whose id must then be bound by one of ``organisation``.
    ``trigger``: claims one of which must be bound, because a pull request is told from other runs by them.
    ``started``: what these claims say of runs that only those start who may write there: any other value is somebody's
    whom nobody has asked, today's and those that the issuer has yet to invent.
    """

    issuer: re.Pattern[str]
    issuer_form: str  # what to write, for people
    required: tuple[tuple[str, ...], ...] = ()
    shared: re.Pattern[str] | None = None
    organisation: tuple[str, ...] = ()
    mutable: Mapping[str, str] = field(default_factory=dict)  # a name that can be taken over: the id to bind instead
    trigger: tuple[str, ...] = ()
    trigger_globs: bool = False  # True: the trigger is a ref or a branch, where a glob can be meant
    pull_requests: tuple[str, ...] = ()  # values (or the beginning of values, when it ends in "/") of pull requests
    started: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by claim; written as ``pull_requests``
    refs: tuple[str, ...] = ()  # claims besides the trigger with the ref that runs
    flags: Mapping[str, str] = field(default_factory=dict)  # a truth value, and the one that keeps somebody out
    doubtful: tuple[tuple[str, re.Pattern[str], str, str], ...] = ()  # claim, value, the best grade left, and why
    hardening: tuple[tuple[tuple[str, ...], str], ...] = ()  # claims one of which should be bound, and why
    audience: str = ""  # the only one that this issuer can give
    foreign_audience: re.Pattern[str] | None = None  # the issuer's own default, which everybody's tokens have
    token_id: bool | None = None  # whether its tokens carry a jti; None: some do
    presented_again: bool = False  # a job has one token in a file, which something renews from time to time
    lists: tuple[str, ...] = ()  # claims that are lists


def _exactly(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


PULL_REQUEST = re.compile(r"(?:^|[/:@])refs/(?:pull|pull-requests|merge-requests)/|:pull_request(?::|$)", re.ASCII)
"""In any claim (a ref, a subject, a workflow with its ref): the run of a pull request."""

OTHERS_AUDIENCE = _exactly(
    r"sts\.amazonaws\.com|api://AzureADTokenExchange|sigstore|pypi|testpypi|crates\.io|npm:.*"
    r"|(?:https:)?//iam\.googleapis\.com/.*"
)
"""Audiences of well-known services: a service that gets such a token could bring it here."""

UNPROTECTED = "anybody who may push a branch names it; bind ref_protected or environment_protected to true"
CIRCLECI = "oidc.circleci.com//"
OF_BRANCHES = ("refs/heads/", "refs/tags/")
PROTECTED = {"ref_protected": "true", "environment_protected": "true"}
DEFAULT_ACCOUNT = "every pod has that account unless it names one"
OUTSIDERS = "outsiders can start such runs"

PROFILES: Mapping[Preset, Profile] = {
    Preset.GENERIC: Profile(
        issuer=_exactly(ANY_ISSUER),
        issuer_form="https://HOST/PATH",
        lists=("groups_direct", "amr", f"{CIRCLECI}context-ids"),
        flags={**PROTECTED, f"{CIRCLECI}ssh-rerun": "false"},
        doubtful=(
            (
                "event_name",
                _exactly(r"(?:pull_request|merge_request|discussion|issue)\w*|fork|watch|workflow_run|check_\w+|gollum"),
                "D", OUTSIDERS,
            ),
            ("pipeline_source", _exactly(r"\w*(?:merge|pull)_request\w*|parent_pipeline"), "D", OUTSIDERS),
        ),
    ),
    Preset.GITHUB: Profile(
        issuer=_exactly(
            r"https://token\.actions\.githubusercontent\.com(?:/[A-Za-z0-9-]+)?"
            rf"|https://token\.actions\.[a-z0-9-]+\.ghe\.com|{ADDRESS}/_services/token"
        ),
        issuer_form="https://token.actions.githubusercontent.com",
        required=(("repository_id",),),
        shared=_exactly(r"https://token\.actions\.githubusercontent\.com"),
        organisation=("repository_owner_id", "enterprise_id"),
        mutable={
            "repository": "repository_id", "repository_owner": "repository_owner_id", "actor": "actor_id",
            "enterprise": "enterprise_id",
        },
        trigger=("event_name",),
        pull_requests=(
            "pull_request", "pull_request_target", "pull_request_review", "pull_request_review_comment",
            "issue_comment", "workflow_run",
        ),
        started={
            "event_name": ("push", "workflow_dispatch", "schedule", "release", "repository_dispatch"),
            "ref": OF_BRANCHES,
        },
        refs=("ref",),
        flags={"ref_protected": "true"},
        doubtful=tuple(
            (claim, _exactly(".+"), "D", "only pull requests have it") for claim in ("base_ref", "head_ref")
        ),
        hardening=((("environment", "ref"), "any branch can log in; bind environment or ref"),),
        foreign_audience=_exactly(r"https://github\.com/[^/]+/?"),
        token_id=True,
    ),
    Preset.GITLAB: Profile(
        issuer=_exactly(ANY_ISSUER),
        issuer_form="https://gitlab.com",
        required=(("project_id",),),
        shared=_exactly(r"https://gitlab\.com/?"),
        organisation=("namespace_id",),
        lists=("groups_direct", "user_identities"),
        mutable={"project_path": "project_id", "namespace_path": "namespace_id", "user_login": "user_id"},
        trigger=("pipeline_source",),
        pull_requests=("merge_request_event", "external_pull_request_event", "parent_pipeline"),
        started={"pipeline_source": ("push", "web", "webide", "schedule", "api"), "ref_path": OF_BRANCHES},
        refs=("ref_path",),
        flags=PROTECTED,
        hardening=(
            (("environment", "ref", "ref_path"), "any branch can log in; bind environment, ref or ref_path"),
            (("ref_protected", "environment_protected"), UNPROTECTED),
        ),
        token_id=True,
    ),
    Preset.AZURE_DEVOPS: Profile(
        issuer=_exactly(rf"https://vstoken\.dev\.azure\.com/{UUID}"),
        issuer_form="https://vstoken.dev.azure.com/ORGANISATION-GUID",
        required=(("org_id",), ("prj_id",), ("def_id",)),
        mutable={"rpo_uri": "rpo_id"},
        trigger=("rpo_ref",),
        trigger_globs=True,
        pull_requests=("refs/pull/",),
        started={"rpo_ref": OF_BRANCHES},
        audience="api://AzureADTokenExchange",
        token_id=True,
    ),
    Preset.BITBUCKET: Profile(
        issuer=_exactly(
            r"https://api\.bitbucket\.org/2\.0/workspaces/[A-Za-z0-9_-]+/pipelines-config/identity/oidc"
        ),
        issuer_form="https://api.bitbucket.org/2.0/workspaces/WORKSPACE/pipelines-config/identity/oidc",
        required=(("workspaceUuid",), ("repositoryUuid",)),
        trigger=("deploymentEnvironmentUuid", "branchName"),
        trigger_globs=True,
        hardening=(
            (("deploymentEnvironmentUuid",), "anybody who may push a branch names it; bind an environment's id"),
        ),
        foreign_audience=_exactly(r"ari:cloud:bitbucket::workspace/.*"),
    ),
    Preset.CIRCLECI: Profile(
        issuer=_exactly(rf"https://oidc\.circleci\.com(?:/org/{UUID})?"),
        issuer_form="https://oidc.circleci.com/org/ORGANISATION-ID",
        required=((f"{CIRCLECI}project-id",), (f"{CIRCLECI}vcs-origin",)),
        shared=_exactly(r"https://oidc\.circleci\.com"),
        organisation=(f"{CIRCLECI}org-id",),
        lists=(f"{CIRCLECI}context-ids",),
        trigger=(f"{CIRCLECI}vcs-ref",),
        trigger_globs=True,
        pull_requests=("refs/pull/",),
        started={f"{CIRCLECI}vcs-ref": OF_BRANCHES},
        flags={f"{CIRCLECI}ssh-rerun": "false"},
        hardening=(
            ((f"{CIRCLECI}org-id",), f"bind {CIRCLECI}org-id"),
            ((f"{CIRCLECI}ssh-rerun",), "a person may be inside a job rerun with SSH; bind ssh-rerun to false"),
        ),
        foreign_audience=_exactly(UUID),
        token_id=False,
    ),
    Preset.BUILDKITE: Profile(
        issuer=_exactly(r"https://agent\.buildkite\.com"),
        issuer_form="https://agent.buildkite.com",
        required=(("pipeline_id",),),
        shared=_exactly(r"https://agent\.buildkite\.com"),
        organisation=("organization_id",),
        mutable={"pipeline_slug": "pipeline_id", "organization_slug": "organization_id"},
        trigger=("build_branch",),
        trigger_globs=True,
        doubtful=(("build_branch", _exactly(r"[^/]*:.*"), "D", "a branch of a fork is written so"),),
    ),
    Preset.KUBERNETES: Profile(
        issuer=_exactly(ANY_ISSUER),
        issuer_form="https://kubernetes.default.svc.cluster.local",
        required=(("kubernetes.io/serviceaccount/uid",),),
        mutable={"kubernetes.io/serviceaccount/name": "kubernetes.io/serviceaccount/uid"},
        doubtful=(
            ("kubernetes.io/serviceaccount/name", _exactly("default"), "C", DEFAULT_ACCOUNT),
            ("sub", _exactly("system:serviceaccount:[^:]+:default"), "C", DEFAULT_ACCOUNT),
        ),
        hardening=((("kubernetes.io/namespace", "sub"), "bind kubernetes.io/namespace as well"),),
        presented_again=True,
        foreign_audience=_exactly(r"https://kubernetes\.default\.svc(?:\.cluster\.local)?/?"),
    ),
}  # fmt: skip
"""By preset; what is written here is documented by the issuers themselves."""


def issuer_of(issuer: str) -> Preset | None:
    """The preset that an issuer belongs to by its address; None for one that anybody may run."""
    for preset, profile in PROFILES.items():
        known = profile.shared if profile.issuer.pattern == ANY_ISSUER else profile.issuer
        if known and known.fullmatch(issuer):
            return preset
    return None
