"""Trust rules for tests: one that is as short as can be, and for each preset a good one with the claims of its tokens.

The claims have the shapes that the issuers document; ids and names are made up.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from broker.core.kinds import MatcherKind, Preset
from broker.core.model import Matcher, TrustRule

CIRCLE = "oidc.circleci.com//"
ORG = "3f0a1c52-9d0e-4b1a-8a57-0b1f8e0c4d21"
PROJECT = "7c1e9a34-5d2b-4f6c-9e8a-1a2b3c4d5e6f"


def exact(claim: str, value: str) -> Matcher:
    return Matcher(claim=claim, kind=MatcherKind.EXACT, values=(value,))


def one_of(claim: str, *values: str) -> Matcher:
    return Matcher(claim=claim, kind=MatcherKind.ONE_OF, values=values)


def glob(claim: str, pattern: str) -> Matcher:
    return Matcher(claim=claim, kind=MatcherKind.GLOB, values=(pattern,))


def contains(claim: str, value: str) -> Matcher:
    return Matcher(claim=claim, kind=MatcherKind.CONTAINS, values=(value,))


def rule(name: str = "deploy", **changes: Any) -> TrustRule:
    parts: dict[str, Any] = {
        "name": name, "preset": Preset.GENERIC, "issuer": "https://ci.example", "audience": "broker",
        "matchers": (exact("project_id", "42"),), "pipeline": "deploy", "max_session_seconds": 3600,
        "single_use": True, "ca_pem": "", "grade": "", "findings": (), "created_at": datetime(2026, 5, 4, tzinfo=UTC),
    }  # fmt: skip
    return TrustRule(**{**parts, **changes})


def _example(preset: Preset, issuer: str, claims: dict[str, Any], *matchers: Matcher, **changes: Any) -> Any:
    return rule("deploy", preset=preset, issuer=issuer, matchers=matchers, **changes), claims


EXAMPLES: dict[Preset, tuple[TrustRule, dict[str, Any]]] = {
    Preset.GITHUB: _example(
        Preset.GITHUB,
        "https://token.actions.githubusercontent.com",
        {
            "sub": "repo:octo-org/octo-repo:environment:prod", "environment": "prod", "ref": "refs/heads/main",
            "ref_type": "branch", "ref_protected": "true", "sha": "example-sha", "repository": "octo-org/octo-repo",
            "repository_id": "74", "repository_owner": "octo-org", "repository_owner_id": "65", "actor": "octocat",
            "actor_id": "12", "repository_visibility": "private", "run_id": "1", "run_number": "10", "run_attempt": "2",
            "runner_environment": "github-hosted", "head_ref": "", "base_ref": "", "event_name": "push",
            "workflow": "deploy", "workflow_ref": "octo-org/octo-repo/.github/workflows/d.yml@refs/heads/main",
            "job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
        },
        exact("repository_id", "74"), exact("repository_owner_id", "65"), exact("environment", "prod"),
        one_of("event_name", "push", "workflow_dispatch"),
    ),
    Preset.GITLAB: _example(
        Preset.GITLAB,
        "https://gitlab.com",
        {
            "sub": "project_path:my-group/my-project:ref_type:branch:ref:main", "namespace_id": "72",
            "namespace_path": "my-group", "project_id": "20", "project_path": "my-group/my-project", "user_id": "1",
            "user_login": "sample-user", "user_email": "u@example.com", "pipeline_id": "574", "pipeline_source": "push",
            "job_id": "302", "ref": "main", "ref_type": "branch", "ref_path": "refs/heads/main",
            "ref_protected": "true", "groups_direct": ["mygroup/mysubgroup"],
            "environment": "production", "environment_protected": "true",
            "runner_id": 1, "runner_environment": "self-hosted", "sha": "714a629c", "project_visibility": "public",
            "ci_config_ref_uri": "gitlab.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main",
        },
        exact("project_id", "20"), exact("namespace_id", "72"), exact("ref_protected", "true"), exact("ref", "main"),
        one_of("pipeline_source", "push", "web", "schedule"),
    ),
    Preset.AZURE_DEVOPS: _example(
        Preset.AZURE_DEVOPS,
        f"https://vstoken.dev.azure.com/{ORG}",
        {
            "sub": "p://org/project/pipeline", "org_id": ORG, "prj_id": PROJECT, "def_id": "17", "rpo_id": PROJECT,
            "rpo_uri": "https://dev.azure.com/org/project/_git/app", "rpo_ver": "714a629c",
            "rpo_ref": "refs/heads/main", "run_id": "90",
        },
        exact("org_id", ORG), exact("prj_id", PROJECT), exact("def_id", "17"), exact("rpo_ref", "refs/heads/main"),
        audience="api://AzureADTokenExchange",
    ),
    Preset.BITBUCKET: _example(
        Preset.BITBUCKET,
        "https://api.bitbucket.org/2.0/workspaces/team/pipelines-config/identity/oidc",
        {
            "sub": f"{{{PROJECT}}}:{{{ORG}}}", "stepUuid": f"{{{ORG}}}", "repositoryUuid": f"{{{PROJECT}}}",
            "pipelineUuid": f"{{{ORG}}}", "workspaceUuid": f"{{{ORG}}}", "deploymentEnvironmentUuid": f"{{{PROJECT}}}",
            "branchName": "main",
        },
        exact("workspaceUuid", f"{{{ORG}}}"), exact("repositoryUuid", f"{{{PROJECT}}}"),
        exact("deploymentEnvironmentUuid", f"{{{PROJECT}}}"), single_use=False,
    ),
    Preset.CIRCLECI: _example(
        Preset.CIRCLECI,
        f"https://oidc.circleci.com/org/{ORG}",
        {
            "sub": f"org/{ORG}/project/{PROJECT}/user/1", "oidc.circleci.com/org-id": ORG,
            "oidc.circleci.com/project-id": PROJECT, "oidc.circleci.com/context-ids": ["a"],
            "oidc.circleci.com/vcs-origin": "github.com/org/app", "oidc.circleci.com/vcs-ref": "refs/heads/main",
            "oidc.circleci.com/ssh-rerun": False, "oidc.circleci.com/job-id": ORG,
        },
        exact(f"{CIRCLE}org-id", ORG), exact(f"{CIRCLE}project-id", PROJECT), exact(f"{CIRCLE}ssh-rerun", "false"),
        exact(f"{CIRCLE}vcs-origin", "github.com/org/app"), exact(f"{CIRCLE}vcs-ref", "refs/heads/main"),
        single_use=False,
    ),
    Preset.BUILDKITE: _example(
        Preset.BUILDKITE,
        "https://agent.buildkite.com",
        {
            "sub": "organization:acme:pipeline:app:ref:refs/heads/main:commit:9f318206:step:build",
            "organization_slug": "acme", "organization_id": ORG, "pipeline_slug": "app", "pipeline_id": PROJECT,
            "build_number": 1, "build_branch": "main", "build_commit": "9f318206", "step_key": "build",
            "job_id": ORG, "agent_id": PROJECT,
        },
        exact("organization_id", ORG), exact("pipeline_id", PROJECT), exact("build_branch", "main"), single_use=False,
    ),
    Preset.KUBERNETES: _example(
        Preset.KUBERNETES,
        "https://kubernetes.default.svc.cluster.local",
        {
            "sub": "system:serviceaccount:ci:deployer",
            "kubernetes.io": {
                "namespace": "ci", "node": {"name": "n1", "uid": ORG}, "pod": {"name": "job-1", "uid": ORG},
                "serviceaccount": {"name": "deployer", "uid": PROJECT}, "warnafter": 1_900_000_000,
            },
        },
        exact("kubernetes.io/serviceaccount/uid", PROJECT), exact("kubernetes.io/namespace", "ci"),
    ),
    Preset.GENERIC: _example(
        Preset.GENERIC, "https://ci.example", {"sub": "job", "project_id": "42"}, exact("project_id", "42"),
    ),
}  # fmt: skip
"""A good rule, and the claims of a token that it is for (without those that every token has)."""
