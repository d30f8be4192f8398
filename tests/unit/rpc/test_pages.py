"""Page sizes and tokens (AZ-04)."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.call import Call
from broker.core.errors import InvalidRequest
from broker.core.model import Principal
from broker.rpc.pages import PageTokens, page_size
from tests.fakes.calls import call, operator

LIST = "KeyService/ListKeys"
MINE = call(LIST)
TOKENS = PageTokens(secrets.token_bytes(32))


@pytest.mark.parametrize(("asked", "given_size"), [(0, 100), (1, 1), (1000, 1000)])
def test_page_sizes(asked: int, given_size: int) -> None:
    assert page_size(asked) == given_size


@pytest.mark.parametrize("asked", [-1, 1001, 2**31 - 1, -(2**31)])
def test_AZ_04_page_sizes_out_of_bounds_are_refused(asked: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        page_size(asked)
    assert refused.value.reason == "PAGE_SIZE_INVALID"


@given(st.lists(st.one_of(st.text(max_size=40), st.integers(-(2**40), 2**40)), max_size=4).map(tuple))
def test_a_token_opens_to_its_position(position: tuple[str | int, ...]) -> None:
    assert TOKENS.open(MINE, ("q",), TOKENS.token(MINE, ("q",), position)) == position


def test_the_end_of_a_list_has_no_token() -> None:
    assert TOKENS.token(MINE, (), ()) == ""
    assert TOKENS.open(MINE, (), "") == ()


@pytest.mark.parametrize(
    ("other", "query"),
    [
        (call(LIST, operator("bob")), ("payments",)),
        (call(LIST, Principal(kind="pipeline", name="alice")), ("payments",)),
        (call("KeyService/ListKeyVersions"), ("payments",)),
        (MINE, ("payroll",)),
        (MINE, ()),
        (MINE, ("pay", "ments")),
    ],
)
def test_AZ_04_a_token_serves_only_whom_and_what_it_was_made_for(other: Call, query: tuple[str, ...]) -> None:
    token = TOKENS.token(MINE, ("payments",), ("a",))
    with pytest.raises(InvalidRequest) as refused:
        TOKENS.open(other, query, token)
    assert refused.value.reason == "PAGE_TOKEN_INVALID"


def test_AZ_04_a_token_with_any_character_changed_is_refused() -> None:
    token = TOKENS.token(MINE, (), ("payments", 7))
    for place in range(len(token)):
        for change in "A", "_":
            changed = token[:place] + change + token[place + 1 :]
            # The last character may carry bits that decode to nothing; the bytes are then the same ones.
            if changed != token and place < len(token) - 1:
                with pytest.raises(InvalidRequest):
                    TOKENS.open(MINE, (), changed)


@pytest.mark.parametrize("token", ["x", "é", "A" * 100, "A" * 100_000, "====", "a b", "\n", "../..", "0"])
def test_AZ_04_a_made_up_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        TOKENS.open(MINE, (), token)
    assert refused.value.reason == "PAGE_TOKEN_INVALID"
    assert token not in str(refused.value)


@given(st.text(max_size=200))
def test_P13_no_text_opens_or_breaks_the_token_reader(text: str) -> None:
    try:
        assert TOKENS.open(MINE, (), text) == ()
    except InvalidRequest:
        return
    assert text == ""


def test_AZ_04_a_token_hides_the_row_and_the_length_of_its_name() -> None:
    short, long = (TOKENS.token(MINE, (), (name,)) for name in ("a", "a-key-the-caller-may-not-know-of"))
    assert len(short) == len(long)
    assert TOKENS.token(MINE, (), ("a",)) != short


def test_replicas_with_one_key_take_each_others_tokens_and_no_others() -> None:
    key = secrets.token_bytes(32)
    token = PageTokens(key).token(MINE, (), ("a",))
    assert PageTokens(key).open(MINE, (), token) == ("a",)
    with pytest.raises(InvalidRequest):
        PageTokens(secrets.token_bytes(32)).open(MINE, (), token)
    with pytest.raises(ValueError, match="32 bytes"):
        PageTokens(b"short")
    assert key.hex() not in repr(PageTokens(key))
