"""The long forms of what each token promises of its keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from broker.core.kinds import Purpose
from tests.contracts.hsm.keys import Target, Whole
from tests.contracts.hsm.test_contract import assert_ivs_differ, device
from tests.contracts.hsm.test_purposes import assert_nothing_done_elsewhere
from tests.live.hsm.test_shim_wrap import assert_exact_as_often, target
from tests.servers.shim import HsmElsewhere

__all__ = ["device", "target"]  # fixtures

pytestmark = pytest.mark.soak


def all_of(choices: Sequence[Any]) -> Sequence[Any]:
    return choices


@pytest.mark.parametrize("purpose", Purpose)
def test_HS_17_no_keyring_does_anything_with_any_key_of_another_purpose(device: Whole, purpose: Purpose) -> None:
    assert_nothing_done_elsewhere(device, purpose, all_of)


def test_HS_08_no_iv_of_thousands_comes_twice(device: Whole) -> None:
    assert_ivs_differ(device, 5000)


def test_fifty_of_fifty_rsa_keys_are_exact(exact_hsm: HsmElsewhere, target: Target) -> None:
    assert_exact_as_often(exact_hsm, target, 50)
