"""What may be made to wait for approvals, and in what words a person is asked for one.

Only what changes something can wait: a use of a key is over before anybody has looked. What nobody would be left for to
approve is not here either: approving itself, the caller's own certificate, and the calls of a job. Nor is what only
looks, and writes down what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

APPROVABLE: Mapping[str, str] = MappingProxyType({
    "CreateKey": "make a new key in the HSM",
    "RotateKey": "make a new version of a key, bring it to every target where the key is, and put it in force",
    "PrepareKeyVersion": "make a new version of a key that is not in force yet",
    "ActivateKeyVersion": "put a version of a key in force",
    "RetireKeyVersion": "have a version of a key sign and encrypt no more",
    "CompromiseKeyVersion": "stop all use of a version of a key, here and at the targets",
    "SetKeySchedule": "say when a key is rotated by itself, or that it is not",
    "EnableKey": "enable a key",
    "DisableKey": "disable a key: what uses it stops",
    "ScheduleKeyDestruction": "destroy a key for good, after a waiting period",
    "CancelKeyDestruction": "call off the destruction of a key",
    "SealKey": "seal a key: it can never be brought to a target again",
    "SettleKeyVersion": "keep or discard a version of a key that is held since a restore",
    "RetryOperation": "have an operation tried again at once",
    "AbortOperation": "give an operation up, and have undone what was done of it",
    "CreateTarget": "register a target: keys can be brought there from then on",
    "RepinTarget": "pin another wrapping key of a target: keys are wrapped for it from then on",
    "DeleteTarget": "forget a target",
    "ImportKey": "bring a key to a target",
    "ExportKey": "wrap a key for a target into a file that people carry",
    "ConfirmImport": "record that a key was carried to a target, and prove it",
    "AddOperator": "add an operator, with a certificate for the key in the request",
    "SetOperatorGroups": "give an operator these groups and no others",
    "IssueCertificate": "issue a certificate in an operator's name, for the key in the request",
    "RevokeCertificates": "refuse every certificate that an operator has",
    "RemoveOperator": "remove an operator for good",
    "RotateAuthority": "make the next version of a key of the broker's own, and put it in force",
    "RetireAuthority": "refuse what the former version of a key of the broker's own has signed",
    "SetPolicy": "put another policy in force for everybody",
    "PutSecret": "write a new version of a secret (its values are not shown)",
    "PatchSecret": "write a new version of a secret with some fields changed (the values are not shown)",
    "SetSecretMaxAge": "say after how long a secret is to be renewed",
    "DeleteSecretVersions": "delete versions of a secret, so that they can be undeleted",
    "UndeleteSecretVersions": "undelete versions of a secret",
    "DestroySecretVersions": "destroy versions of a secret for good",
    "RotateRootKey": "make a new root key, and wrap all secrets anew",
    "SettleRootKey": "keep or discard a root key that is held since a restore",
    "RevokeSessions": "end sessions of pipelines, and all that they hold",
    "RevokeLeases": "end leases of pipelines",
    "CreateTrustRule": "let the jobs that this rule fits log in",
    "UpdateTrustRule": "change which jobs a trust rule lets log in",
    "DeleteTrustRule": "forget a trust rule: its jobs cannot log in any more",
})  # fmt: skip
"""The actions, each with what it will do, as it is read after "asks to"."""

WIDENING_POLICY = "widening-policy"
WEAK_TRUST_RULE = "weak-trust-rule"

CASES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    WIDENING_POLICY: ("SetPolicy",),
    WEAK_TRUST_RULE: ("CreateTrustRule", "UpdateTrustRule"),
})  # fmt: skip
"""What some requests of these actions are: a policy that permits, or may permit, more; a rule graded below A."""

PRODUCTION: Mapping[str, int] = MappingProxyType({
    "CreateTarget": 1,
    "RepinTarget": 1,
    "ExportKey": 1,
    "ScheduleKeyDestruction": 1,
    "DestroySecretVersions": 1,
    "SettleKeyVersion": 1,
    "SettleRootKey": 1,
    WIDENING_POLICY: 1,
    "AddOperator": 1,
    "SetOperatorGroups": 1,
    "IssueCertificate": 1,
    WEAK_TRUST_RULE: 1,
})  # fmt: skip
"""The preset of that name. Who could make an operator, or a certificate in another one's name, could approve alone."""

MOST = 5
"""Approvals that can be asked for."""
