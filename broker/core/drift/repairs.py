"""What mends each finding, in one line that can be followed as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from broker.core.findings import Finding
from broker.core.kinds import Drift


def repair(place: str, finding: Finding, primary: int) -> str:
    """``place``: where it was found. ``primary``: the key's version in force; 0 of what is no key's."""
    return _REPAIRS[finding.drift](place, finding, primary)


def _copy(place: str, one: Finding) -> str:
    return f"{one.key} --version {one.version} --target {place} --remote-name {one.remote_name}"


def _there(place: str, one: Finding) -> str:
    return f"version {one.remote_version} of {one.remote_name} at {place}"


def _deleted(place: str, one: Finding, primary: int) -> str:
    if one.version == primary:
        return f"broker key import {_copy(place, one)}   (recover it there first, if it can come back)"
    return f"broker key prove {_copy(place, one)}   (records that it is missing, or gone)"


def _disabled(place: str, one: Finding, _: int) -> str:
    return f"enable {_there(place, one)}, then: broker key prove {_copy(place, one)}"


def _replaced(place: str, one: Finding, _: int) -> str:
    return (
        f"use it for nothing, and find out who put it there; broker key prove {_copy(place, one)} records it, and "
        f"broker key import {one.key} --target {place} --remote-name ANOTHER brings the key back"
    )


def _exportable(_: str, one: Finding, __: int) -> str:
    return f"the material may have left: broker key compromise {one.key} --version {one.version} --reason TEXT"


def _enabled(place: str, one: Finding, _: int) -> str:
    return f"disable {_there(place, one)}; it is to be used by nobody"


def _returned(place: str, one: Finding, _: int) -> str:
    return f"broker key prove {_copy(place, one)}   (takes it back), or disable {_there(place, one)}"


def _extra(place: str, one: Finding, _: int) -> str:
    return f"ask who made {_there(place, one)}, and disable it there if it is nobody's"


def _kek(place: str, _: Finding, __: int) -> str:
    return f"broker target check {place}, ask its owner, then: broker target repin {place} --thumbprint SHA256"


def _missing(_: str, one: Finding, __: int) -> str:
    return f"bring the token back from its backup; if it is lost: broker key rotate {one.key}"


def _differs(_: str, one: Finding, __: int) -> str:
    return (
        f"find out who can write to the token; if it may have left: broker key compromise {one.key} --version "
        f"{one.version} --reason TEXT"
    )


_REPAIRS: Mapping[Drift, Callable[[str, Finding, int], str]] = MappingProxyType({
    Drift.DELETED: _deleted,
    Drift.DISABLED: _disabled,
    Drift.REPLACED: _replaced,
    Drift.EXPORTABLE: _exportable,
    Drift.ENABLED: _enabled,
    Drift.RETURNED: _returned,
    Drift.EXTRA_VERSION: _extra,
    Drift.KEK_CHANGED: _kek,
    Drift.KEY_MISSING: _missing,
    Drift.KEY_DIFFERS: _differs,
})  # fmt: skip
