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
    hardening: tuple[tuple[tuple[str, ...], str], ...] = ()  # claims one of which should be bound, and why
    audience: str = ""  # the only one that this issuer can give
    foreign_audience: re.Pattern[str] | None = None  # the issuer's own default, which everybody's tokens have
    token_id: bool | None = None  # whether its tokens carry a jti; None: some do


def _exactly(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.ASCII)


UNPROTECTED = "whoever may push a branch names it; bind ref_protected or environment_protected to true"
CIRCLECI = "oidc.circleci.com//"

PROFILES: Mapping[Preset, Profile] = {
    Preset.GENERIC: Profile(issuer=_exactly(ANY_ISSUER), issuer_form="https://HOST/PATH"),
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
        mutable={"project_path": "project_id", "namespace_path": "namespace_id", "user_login": "user_id"},
        trigger=("pipeline_source",),
        pull_requests=("merge_request_event", "external_pull_request_event"),
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
        hardening=((("deploymentEnvironmentUuid",), "whoever pushes a branch names it; bind an environment's id"),),
        foreign_audience=_exactly(r"ari:cloud:bitbucket::workspace/.*"),
    ),
    Preset.CIRCLECI: Profile(
        issuer=_exactly(rf"https://oidc\.circleci\.com(?:/org/{UUID})?"),
        issuer_form="https://oidc.circleci.com/org/ORGANISATION-ID",
        required=((f"{CIRCLECI}project-id",), (f"{CIRCLECI}vcs-origin",)),
        shared=_exactly(r"https://oidc\.circleci\.com"),
        organisation=(f"{CIRCLECI}org-id",),
        trigger=(f"{CIRCLECI}vcs-ref",),
        trigger_globs=True,
        pull_requests=("refs/pull/",),
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
    ),
    Preset.KUBERNETES: Profile(
        issuer=_exactly(ANY_ISSUER),
        issuer_form="https://kubernetes.default.svc.cluster.local",
        required=(("kubernetes.io/serviceaccount/uid",),),
        mutable={"kubernetes.io/serviceaccount/name": "kubernetes.io/serviceaccount/uid"},
        hardening=((("kubernetes.io/namespace", "sub"), "bind kubernetes.io/namespace as well"),),
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
