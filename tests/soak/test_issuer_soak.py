"""The long form of the flood of tokens that name keys an issuer does not have."""

from __future__ import annotations

import pytest

from tests.live.trust.test_oidc_issuer import issuer, unknown_keys
from tests.servers.issuer import Issuer

__all__ = ["issuer"]  # a fixture


@pytest.mark.soak
def test_AN_17_ten_thousand_unknown_keys_are_one_fetch(issuer: Issuer) -> None:
    unknown_keys(issuer, 10_000)
