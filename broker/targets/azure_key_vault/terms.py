"""The terms an operator wants a key to be held to, in the service's own words and limits."""

from __future__ import annotations

from typing import Any

from broker.core.errors import InvalidRequest
from broker.core.kinds import KeyType, KeyUsage
from broker.core.model import Terms
from broker.core.reasons import Reason
from broker.targets.azure_key_vault import refusals
from broker.targets.azure_key_vault.forms import operations, text
from broker.targets.azure_key_vault.site import Site

MAX_TAGS = 15
MAX_TAG = 256


class Keeping:
    """``ports.KeepsTerms``."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def check_terms(self, key_type: KeyType, usage: KeyUsage, terms: Terms) -> None:
        """Operations of the key's usage, tags and dates as the service keeps them."""
        _check(key_type, usage, terms)

    def apply(self, name: str, version: str, terms: Terms) -> None:
        """One update of this version's properties, looked at as it comes back."""
        if terms == Terms():
            return
        changes = _properties(terms)
        with self._site.connection.asking("update", name):
            found = self._site.connection.keys.update_key_properties(name, self._site.pinned(name, version), **changes)
            if not _are_kept(terms, found):
                raise refusals.malformed(self._site.place, "the terms that it was given")


def _check(key_type: KeyType, usage: KeyUsage, terms: Terms) -> None:
    """Return if the service can keep them; else InvalidRequest ``TERMS_UNSUPPORTED``."""
    known = operations(usage)
    if strange := set(terms.operations) - set(known):
        what = "signs" if usage is KeyUsage.SIGN else "encrypts"
        raise _unsupported(
            f"{len(strange)} of the operations asked for are none of an {key_type} key that {what}; those are "
            f"{' and '.join(known)}"
        )
    if len(set(terms.operations)) != len(terms.operations):
        raise _unsupported("an operation is named twice")
    if len(terms.tags) > MAX_TAGS or not all(_is_tag(name) and _is_tag(value) for name, value in terms.tags.items()):
        raise _unsupported(
            f"a vault keeps at most {MAX_TAGS} tags, each name and value 1 to {MAX_TAG} printable characters"
        )
    if terms.not_before and terms.expires_at and terms.not_before >= terms.expires_at:
        raise _unsupported("the key would expire before it is valid")


def _properties(terms: Terms) -> dict[str, Any]:
    """For the client's ``update_key_properties``; what is not asked for is left as it is. Dates in whole seconds."""
    return {
        "key_operations": list(terms.operations) or None,
        "tags": dict(terms.tags) or None,
        "enabled": terms.enabled,
        "not_before": terms.not_before,
        "expires_on": terms.expires_at,
    }


def _are_kept(terms: Terms, found: Any) -> bool:
    """Whether a key as the vault shows it is held to them."""
    shown = found.properties
    pairs = [
        (sorted(terms.operations), sorted(text(one) for one in found.key.key_ops or [])),
        (dict(terms.tags), shown.tags),
        (_seconds(terms.not_before), _seconds(shown.not_before)),
        (_seconds(terms.expires_at), _seconds(shown.expires_on)),
    ]
    return shown.enabled is terms.enabled and all(wanted == is_so for wanted, is_so in pairs if wanted)


def _seconds(moment: Any) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _is_tag(text: str) -> bool:
    return 0 < len(text) <= MAX_TAG and text.isprintable()


def _unsupported(why: str) -> InvalidRequest:
    return InvalidRequest(Reason.TERMS_UNSUPPORTED, f"The target cannot hold the key to these terms: {why}.")
