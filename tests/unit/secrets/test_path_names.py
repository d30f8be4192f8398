"""The grammar of names: what a path may be, and that a refusal says where and why."""

from __future__ import annotations

import pytest

from broker.core.errors import InvalidRequest
from broker.core.names import check_field, check_name, check_path
from broker.core.policy.guard import Guard, of_secret
from tests.fakes.calls import document, operator
from tests.fakes.cost import cost


@pytest.mark.parametrize(
    "path", ["shop/my_app", "shop/app.v2", "1st/2024-db", "a", "a_b.c-d", "/".join(["x" * 63] * 8)]
)
def test_P46_paths_as_people_have_them(path: str) -> None:
    assert check_path(path, "secret") == path


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("shop/My_DB", "its segment 2: it has an upper-case letter"),
        ("/".join("abcdefghi"), "it has 9 segments"),
        ("shop//db", "its segment 2: it is empty"),
        ("", "its segment 1: it is empty"),
        ("shop/..", "its segment 2: it begins or ends with none"),
        ("shop/.env", "its segment 2: it begins or ends with none"),
        ("shop/a__b", "its segment 2: two marks stand side by side"),
        ("shop/a._b", "its segment 2: two marks stand side by side"),
        ("shop/a b", "its segment 2: its character 2 is none of these"),
        ("shop/a\n", "its segment 2: its character 2 is none of these"),
        ("shop/\u017fecret", "its segment 2: its character 1 is none of these"),
        ("shop/" + "x" * 64, "its segment 2: it has 64 characters"),
    ],
)
def test_P46_a_path_that_is_none_is_told_where_and_why(path: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_path(path, "secret")
    assert refused.value.reason == "NAME_INVALID"
    assert f"({told}" in refused.value.message
    assert (
        "lower-case letters and digits, with single hyphens, underscores and dots between them" in refused.value.message
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [("My-Key", "upper-case"), ("1st", "begins with a digit"), ("a_b", "character 2"), ("a--b", "side by side"),
     ("", "empty"), ("a-", "begins or ends"), ("x" * 64, "64 characters")],
)  # fmt: skip
def test_P46_every_other_name_is_told_why(name: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        check_name(name, "key")


@pytest.mark.parametrize(("field", "told"), [("", "empty"), (".x", "begins"), ("a b", "character 2"), ("x" * 65, "65")])
def test_P46_a_field_is_told_why(field: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        check_field(field)


def test_P46_folders_are_whole_segments_also_with_dots_and_underscores() -> None:
    rules = Guard(document('@id("shop") permit (principal, action, resource in Folder::"shop");'))
    allowed = ["shop/db", "shop/my_app", "shop/a.b/c"]
    assert [rules.permits(operator(), "GetSecret", of_secret(name, None)) for name in allowed] == [True] * 3
    for other in ("shop_x/db", "shop.x/db", "shop-x/db", "shop", "shop2/db"):
        assert not rules.permits(operator(), "GetSecret", of_secret(other, None))


def test_of_a_path_without_end_only_its_beginning_is_looked_at() -> None:
    def look() -> None:
        with pytest.raises(InvalidRequest, match="it has 500001 segments"):
            check_path("a/" * 500_000, "secret")

    assert cost(look) < 0.5
