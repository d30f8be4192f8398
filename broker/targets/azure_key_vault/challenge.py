"""What a vault asks for when it is shown no token: looked at before anything is done about it (BY-04)."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from broker.targets.azure_key_vault import refusals
from broker.targets.azure_key_vault.clouds import Place

_AUTHORITY = re.compile(r"https://([a-z0-9.-]{1,253})/([0-9a-f-]{36})/?", re.ASCII)
_NAMED = frozenset({"authorization", "authorization_uri", "resource", "scope"})


def check_challenge(header: str, place: Place) -> None:
    """Return if a token for ``place`` is what this challenge asks for; else ``TARGET_CHALLENGE_REFUSED``.

    The header is taken apart as Azure's client does it, so that both read the same.
    """
    scheme, _, parameters = header.strip().partition(" ")
    found: dict[str, str] = {}
    claims = False
    for item in parameters.split(","):
        claims = claims or "claims=" in item
        name, _, value = item.partition("=")
        name, value = name.strip(' "'), value.strip(' "')
        if name in found or (name in _NAMED and "=" in value):
            raise refusals.challenge(place, "in two ways at once")
        if name in _NAMED:
            found[name] = value
    if scheme.lower() != "bearer":
        raise refusals.challenge(place, "of a kind that is not known")
    _check_issuer(found, place)
    _check_resource(found, place, optional=claims)


def _check_issuer(found: dict[str, str], place: Place) -> None:
    given = [found[name] for name in ("authorization", "authorization_uri") if name in found]
    if not given:
        raise refusals.challenge(place, "without saying from whom")
    for one in given if place.logins else ():
        authority = _AUTHORITY.fullmatch(one)
        if authority is None or authority[1] not in place.logins:
            raise refusals.challenge(place, "from an authority that is not its cloud's")
        if place.tenant not in {"", authority[2]}:
            raise refusals.challenge(place, "of another tenant")


def _check_resource(found: dict[str, str], place: Place, *, optional: bool) -> None:
    if not {"resource", "scope"} & set(found) and not optional:
        raise refusals.challenge(place, "without saying for what")
    for name, right in (("resource", place.resource), ("scope", place.scope)):
        if name in found and found[name] != right and not _is_around(found[name], place):
            raise refusals.challenge(place, "for another service")


def _is_around(resource: str, place: Place) -> bool:
    """Of a private cloud: the domain that its vaults lie in, as Microsoft's resource is for theirs."""
    authority = urlsplit(resource).netloc
    return place.private is not None and bool(authority) and place.host.removesuffix(":443").endswith(f".{authority}")
