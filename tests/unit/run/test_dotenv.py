"""Env files as they are found, and the quotes in which a value is read back."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from broker_cli.dotenv import MAX_FILE, quoted, read
from broker_cli.refusal import Exit, Refusal

from tests.fakes.cost import cost
from tests.servers.refusals import refused_by_the_cli


def written(folder: Path, text: str | bytes) -> Path:
    (folder / "env").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / "env"


def values(folder: Path, text: str | bytes) -> dict[str, str]:
    return {name: line.value for name, line in read(written(folder, text)).items()}


def fault_in(folder: Path, text: str | bytes) -> Refusal:
    return refused_by_the_cli(lambda: read(written(folder, text)), Exit.USAGE)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("A=", ""),
        ("A= # remark", ""),
        ("  export  A = b c  # remark", "b c"),
        ("A=b#c", "b#c"),
        ("A=#c", ""),
        ("A='x # y' # z", "x # y"),
        ("A='x'#z", "x"),
        ('A="x \\"y\\" \\\\ \\n z"', 'x "y" \\ \n z'),
        ("A=broker://a/b#c", "broker://a/b#c"),
        ("A='ä'", "ä"),
        ("A=it's", "it's"),
        ("A=C:\\temp\\new", "C:\\temp\\new"),
        ("A='C:\\temp\\new\\'", "C:\\temp\\new\\"),
        ('A="$HOME ${X} `date`"', "$HOME ${X} `date`"),
        ('A="\\$HOME \\`date\\`"', "$HOME `date`"),
        ("A='two\nlines'", "two\nlines"),
        ("A='two\n#lines\nB=1'", "two\n#lines\nB=1"),
    ],
)
def test_a_line_of_an_env_file(line: str, value: str, tmp_path: Path) -> None:
    assert values(tmp_path, f"# first\n\n{line}\nNEXT=1\n") == {"A": value, "NEXT": "1"}
    assert values(tmp_path, line) == {"A": value}  # the last line need not end


@pytest.mark.parametrize(
    ("line", "value"),
    [('A="C:\\temp"', "C:\\temp"), ('A="line1\\r\\nline2"', "line1\r\nline2"), ('A="\\d+\\.\\s"', "\\d+\\.\\s")],
)
def test_P03_a_backslash_in_double_quotes_is_only_what_it_must_be(line: str, value: str, tmp_path: Path) -> None:
    assert values(tmp_path, line) == {"A": value}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_P25_a_byte_order_mark_and_any_end_of_line_are_taken(mark: str, end: str, tmp_path: Path) -> None:
    lines = ["# remark", "A=1", "", 'B="x y"', "C='two", "lines'", "D = broker://a/b#c # remark", "E="]
    found = {"A": "1", "B": "x y", "C": "two\nlines", "D": "broker://a/b#c", "E": ""}
    assert values(tmp_path, mark + end.join(lines)) == found
    assert values(tmp_path, mark + end.join(lines) + end) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A='canary", "line 1: A begins with a quote that does not end"),
        ('X=y\nA="canary\\"', "line 2: A begins with a quote that does not end"),
        ("X='\n\n'\nA='x'canary", "line 4: A has something behind the quote"),
        ("X=y\r\nA='it\r\nB='canary'", "line 2: A has something behind the quote"),
        ("A=x\0canary", "line 1: A holds a zero byte"),
        ("A=1\n\nA=canary", "line 3: A is in "),
        ("canary", "line 1: write NAME=value"),
        ("=canary", "line 1: write NAME=value"),
        ("1A=canary", "line 1: write NAME=value"),
        ("X=y\nA-B=canary", "line 2: write NAME=value"),
        ("A B=canary", "line 1: write NAME=value"),
        ("A: canary", "line 1: write NAME=value"),
        (b"A=1\nB=canary\xff", "line 2: this is not UTF-8"),
        ("A=canary".encode("utf-16"), "in UTF-16"),
        ("#" * (MAX_FILE + 1), "longer than"),
    ],
)
def test_a_line_that_is_none_is_named_and_not_quoted(text: str | bytes, told: str, tmp_path: Path) -> None:
    message = fault_in(tmp_path, text).message
    assert told in message
    assert "canary" not in message


def test_P03_what_is_written_is_read_back(tmp_path: Path) -> None:
    """Whatever is written at all: 2000 values of the characters that mean something to some reader."""
    chance, some = random.Random(5), "ab '\"\\$`{}#=!;&\t\n\r\u2028é"  # noqa: S311 (the same ones each time)
    made = {f"V{number}": "".join(chance.choices(some, k=chance.randrange(9))) for number in range(2000)}
    lines = {name: found for name, value in made.items() if (found := quoted(value)) is not None}
    assert len(lines) > 500
    text = "".join(f"{name}={line}\n" for name, line in lines.items())
    assert values(tmp_path, text) == {name: made[name] for name in lines}
    assert values(tmp_path, text.rstrip("\n")) == {name: made[name] for name in lines}


def test_what_would_be_read_as_something_else_is_not_written() -> None:
    for value in (
        "a\rb",
        "a\\",
        "a\\\\b",
        "it's `x`",
        "it's $x",
        'it\'s "x"',
        "it's \\",
        "${A}",
        "${A:-b}",
        "broker://a#b",
    ):
        assert quoted(value) is None, value
    assert quoted("it's") == '"it\'s"'
    assert quoted('`x` $y "z" a\\b') == "'`x` $y \"z\" a\\b'"


def test_the_time_for_a_file_grows_with_its_length_alone(tmp_path: Path) -> None:
    file = written(tmp_path, "".join(f"A{number}=\n" for number in range(60_000)))
    assert read(file)["A59999"].place.endswith("line 60000")
    assert cost(lambda: read(file)) < 10
