"""What a job may ask for, and env files with every kind of line."""

from __future__ import annotations

from pathlib import Path

import pytest
from broker_cli.refusal import Exit, Refusal
from broker_cli.run_references import MAX_ENV_FILE, Wanted, only_field, read_env, reference, wanted


def written(folder: Path, text: str | bytes) -> Path:
    (folder / "env").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "env"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A=", ""),
        ("  export  A = b c  # remark", "b c"),
        ("A=b#c", "b#c"),
        ("A=#c", ""),
        ("A='x # y' # z", "x # y"),
        ('A="x \\"y\\" \\\\ \\n z"', 'x "y" \\ \n z'),
        ("A=broker://a/b#c", "broker://a/b#c"),
        ("A='ä'", "ä"),
        ("A=b\r", "b"),
    ],
)
def test_a_line_of_an_env_file(line: str, value: str, tmp_path: Path) -> None:
    assert read_env(written(tmp_path, f"# first\n\n{line}\n")) == {"A": value}


@pytest.mark.parametrize(
    "line",
    [
        "canary", "=canary", "1A=canary", "A-B=canary", "A='canary", 'A="canary\\"', "A='x'canary", "A=x\0canary",
        "A B=canary",
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_named_and_not_quoted(line: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        read_env(written(tmp_path, f"X=y\n{line}\n"))
    assert (refused.value.reason, "line 2" in refused.value.message) == ("ENV_FILE_INVALID", True)
    assert "canary" not in refused.value.message


def test_an_env_file_has_limits(tmp_path: Path) -> None:
    for content, reason in [
        (b"A=\xff", "ENV_FILE_INVALID"),
        (b"A=1\nA=2", "NAME_TWICE"),
        (b"#" * (MAX_ENV_FILE + 1), "INPUT_TOO_LONG"),
    ]:
        with pytest.raises(Refusal) as refused:
            read_env(written(tmp_path, content))
        assert (refused.value.reason, refused.value.code) == (reason, Exit.USAGE)
    with pytest.raises(Refusal) as refused:
        read_env(tmp_path / "none")
    assert refused.value.reason == "FILE_UNREADABLE"


@pytest.mark.parametrize("text", ["broker://a/b#c", "broker://a@3#c", "broker://a-b/c/d#e.f-g_h"])
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
