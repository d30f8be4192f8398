"""What a job may ask for, and env files with every kind of line."""

from __future__ import annotations

from pathlib import Path

import pytest
from broker_cli.refusal import Refusal
from broker_cli.run_references import Wanted, only_field, reference, wanted


@pytest.mark.parametrize(
    "text",
    [
        "broker://a/b#c",
        "broker://a@3#c",
        "broker://a-b/c/d#e.f-g_h",
        "broker://shop/my_app@1#x",
        "broker://1st/a.b_c-d#_",
    ],
)
def test_a_reference(text: str) -> None:
    assert reference(text, "X") == text.removeprefix("broker://")


@pytest.mark.parametrize(
    "text",
    [
        "canary", "broker://", "broker://a", "broker://A#b", "broker://a//b#c", "broker://a#", "broker://a@0#b",
        "broker://a@x#b", "broker://a#b#c", "broker://a#b\n", "https://a#b", "broker://a #b", "broker:///a#b",
    ],
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        reference(text, "X")
    assert (refused.value.reason, "canary" in refused.value.message) == ("REFERENCE_INVALID", False)


def test_options_go_before_lines_and_later_files_before_earlier(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("A=broker://x#a\nB=plain\nC=broker://x#c\nD=1\n")
    (tmp_path / "two").write_text("B=other\nD=broker://x#d\n")
    found = wanted([str(tmp_path / "one"), str(tmp_path / "two")], ["A=broker://y#a"], ["C=broker://y#c"])
    assert found == Wanted(variables={"D": "x#d", "A": "y#a"}, files={"C": "y#c"}, plain={"B": "other"})
    assert found.references == ["x#d", "y#a", "y#c"]
    assert "other" not in repr(found)


@pytest.mark.parametrize("line", ["B=BROKER://x#a", "B=broker:/x#a", 'B=" broker://x#a"'])
def test_P50_what_is_almost_a_reference_is_not_handed_on_as_it_stands(tmp_path: Path, line: str) -> None:
    (tmp_path / "env").write_text(f"A=broker://x#a\n{line}\n")
    with pytest.raises(Refusal, match=r"B .*line 2.* is not a reference") as refused:
        wanted([str(tmp_path / "env")], [], [])
    assert refused.value.reason == "REFERENCE_INVALID"


def test_names_are_given_once_and_something_is_asked() -> None:
    for secrets, files, reason in [
        (["A=broker://x#a", "A=broker://x#b"], [], "NAME_TWICE"),
        (["A=broker://x#a"], ["A=broker://x#b"], "NAME_TWICE"),
        (["1=broker://x#a"], [], "NAME_INVALID"),
        ([], [], "NOTHING_ASKED"),
        ([f"A{number}=broker://x#a{number}" for number in range(101)], [], "REFERENCES_TOO_MANY"),
    ]:
        with pytest.raises(Refusal) as refused:
            wanted([], secrets, files)
        assert refused.value.reason == reason
    assert len(wanted([], [f"A{number}=broker://x#a" for number in range(101)], []).references) == 1


def test_an_answer_without_the_field_is_refused() -> None:
    assert only_field({"a": b"1"}, "x#a") == b"1"
    for fields in ({}, {"b": b"1"}, {"a": b"1", "b": b"2"}):
        with pytest.raises(Refusal) as refused:
            only_field(fields, "x#a")
        assert refused.value.reason == "ANSWER_INVALID"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("broker://shop/My_DB#x", 'segment 2 of its path ("My_DB") is not 1 to 63 lower-case letters'),
        ("broker://a/b/c/d/e/f/g/h/i#x", "its path has 9 segments, and a secret's name at most 8"),
        ("broker://shop/my__app#x", 'segment 2 of its path ("my__app")'),
        ("broker://shop//app#x", "segment 2 of its path is not"),
        ("broker://shop/app name#x", "segment 2 of its path is not"),
        ("broker:///shop#x", "segment 1 of its path is not"),
        ("broker://../shop#x", 'segment 1 of its path ("..")'),
        ("broker://shop/app@0#x", "behind @ stands the number of a version"),
        ("broker://shop/app@latest#x", "behind @ stands the number of a version"),
        ("broker://shop/app#pass word", "behind # stands the name of one field"),
        ("broker://shop/app#.x", "behind # stands the name of one field"),
        ("broker://shop/app#", "behind # stands the name of one field"),
        ("broker://shop/app", "it names no field: write broker://shop/app#field"),
    ],
)
def test_P46_the_part_that_is_wrong_is_named_with_its_grammar(text: str, told: str) -> None:
    with pytest.raises(Refusal) as refused:
        reference(text, "PW")
    assert refused.value.reason == "REFERENCE_INVALID"
    assert "The reference for PW is not valid" in refused.value.message
    assert told in refused.value.message
    assert "A secret itself" not in refused.value.message


def test_P50_every_reference_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=broker://x#a\n\nB=broker://X#b\n")
    with pytest.raises(Refusal) as refused:
        wanted([str(tmp_path / "env")], ["C=canary", "D=broker://x#d"], ["E=broker://x"])
    assert refused.value.message == "3 references cannot be used."
    told = refused.value.format_message().splitlines()
    assert [name in line for name, line in zip(("B (", "for C ", "for E "), told[1:], strict=True)] == [True] * 3
    assert "env, line 3" in told[1]
    assert "canary" not in refused.value.format_message()
