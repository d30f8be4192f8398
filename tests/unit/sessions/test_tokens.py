"""Session tokens and ids: their form, their checksum, their randomness."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from broker.core.sessions import tokens


def test_a_token_has_its_form_and_its_checksum() -> None:
    name = tokens.new_id()
    token = tokens.new_token(name)
    assert re.fullmatch(r"brs_[0-9A-Za-z]{71}", token)
    assert tokens.session_of(token) == name
    for place in range(len(token)):
        for other in "aZ_":
            changed = token[:place] + other + token[place + 1 :]
            assert tokens.session_of(changed) == (name if changed == token else "")


def test_TL_14_ids_are_random_and_of_128_bits() -> None:
    ids = {tokens.new_id() for _ in range(2000)}
    assert len(ids) == 2000
    assert {len(each) for each in ids} == {22}
    assert sorted(ids) != list(ids)


@given(st.text(max_size=90))
def test_what_is_no_token_is_none(text: str) -> None:
    assert tokens.session_of(text) == ""
