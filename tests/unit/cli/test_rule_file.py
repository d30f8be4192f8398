"""A trust rule's file: what is written is what counts, or the line is refused (P20)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from broker_cli import rule_file
from broker_cli.refusal import Exit

from tests.fakes.cost import cost
from tests.servers.refusals import refused_by_the_cli


def read(folder: Path, content: str | bytes, name: str = "rule.yaml") -> dict[str, Any]:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return rule_file.rule(str(file))


def fault_of(folder: Path, content: str | bytes, name: str = "rule.yaml") -> str:
    return refused_by_the_cli(lambda: read(folder, content, name), Exit.USAGE, "TRUST_RULE_FILE").message


AS_WRITTEN = [
    "0123", "123", "00", "on", "off", "yes", "no", "y", "n", "On", "NO", "true", "false", "refs/heads/main", "a:b",
    "v1.2.3a", "1a", "0xyz", "e3", "deploy #1"[:6], "12345678901234567890123456789", "a=b", "2024", "10-20", "abc1e3",
    "-", "--", "nullable", "truely", "1.2.3.4/8", "a b",
]  # fmt: skip


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_P20_a_plain_text_is_what_is_written(text: str, tmp_path: Path) -> None:
    if text in {"-", "--"}:
        text = f"x{text}"
    found = read(tmp_path, f"match:\n  environment: {text}\n  either: [{text}, other]\n  glob: {{glob: {text}}}\n")
    assert found["match"] == [
        {"claim": "environment", "exact": text},
        {"claim": "either", "one_of": {"values": [text, "other"]}},
        {"claim": "glob", "glob": text},
    ]


GUESSED = [
    "~", "null", "Null", "NULL", "", "1e3", "1E3", "1.5", "1.0", ".5", "1.", "-1", "+1", "0x10", "0o17", "0b1", "1_000",
    "12:30:45", "12:30", "190:20:30.15", "2024-01-01", "2024-1-1", "2024-01-01T10:00:00Z", "2024-01-01 10:00:00",
    ".inf",
    "-.inf", ".nan", ".NaN", "True", "TRUE", "False", "=", "<<", "0123.5", "685_230.15e+03", "1.10",
]  # fmt: skip


@pytest.mark.parametrize("text", GUESSED)
def test_P20_what_readers_differ_over_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    for content in (f"match:\n  a: b\n  project_id: {text}\n", f"match:\n  a: b\n  project_id: [x, {text}]\n"):
        if text or "[" not in content:
            assert "line 3: " in fault_of(tmp_path, content)
    assert read(tmp_path, f'match:\n  a: b\n  project_id: "{text}"\n')["match"][1]["exact"] == text
    assert read(tmp_path, f"match: {{a: '{text}'}}")["match"][0]["exact"] == text


LINES: dict[str, tuple[str, int, str]] = {
    "a name twice": ("preset: github\nmatch:\n  a: 1\n  b: 2\n  a: 3\n", 5, "twice"),
    "a field twice": ("preset: github\nissuer: x\npreset: gitlab\n", 3, "twice"),
    "an anchor": ("match:\n  a: &x b\n  c: *x\n", 2, "anchors"),
    "an alias": ("match:\n  a: [&x b]\n", 2, "anchors"),
    "a merge": ("match:\n  <<: {a: b}\n", 2, "not the same"),
    "a tag": ("match:\n  a: !!str 0123\n", 2, "tags"),
    "an own tag": ("match: !own\n  a: b\n", 1, "tags"),
    "an object": ("match:\n  a: !!python/object/apply:os.system [id]\n", 2, "tags"),
    "a second document": ("preset: github\n---\npreset: gitlab\n", 2, "second document"),
    "a tab": ("match:\n\ta: b\n", 2, "no YAML"),
    "a line break within": ("match:\n  a: one\n    two\n", 2, "one line"),
    "a strange line break": ("match:\n  a: one\u2028b\n", 2, "line break"),
    "a control character": ("match:\n  a: b\n  c: d\x01\n", 3, "character"),
    "an unknown field": ("preset: github\nmacth: {a: b}\n", 2, "macth"),
    "a list as a rule": ("- a\n", 1, "mapping"),
    "a text as a rule": ("a\n", 1, "mapping"),
    "a key that is a list": ("match:\n  [a]: b\n", 2, "name is a text"),
    "a regex": ("match:\n  a: b\n  c: {regex: d}\n", 3, "glob"),
    "an empty list": ("match:\n  c: []\n", 2, "glob"),
    "a list in a list": ("match:\n  c: [[a]]\n", 2, "glob"),
    "a seconds text": ("max_session: '60'\n", 1, "whole number"),
    "octal seconds": ("max_session: 0600\n", 1, "whole number"),
    "seconds of base 60": ("max_session: 1:00\n", 1, "not the same"),
    "a truth of other letters": ("single_use: yes\n", 1, "true or false"),
    "a pipeline of digits": ("pipeline: 0123\n", 1, "text"),
    "an unfinished list": ("match: [a", 1, "no YAML"),
    "depth": ("match: {a: {glob: {b: {c: {d: e}}}}}\n", 1, "deep"),
}


@pytest.mark.parametrize(("content", "line", "what"), LINES.values(), ids=LINES.keys())
def test_P20_what_would_not_count_as_it_stands_is_refused_with_its_line(
    content: str, line: int, what: str, tmp_path: Path
) -> None:
    told = fault_of(tmp_path, content)
    assert f"line {line}: " in told, told
    assert what in told


def test_P20_files_as_they_are_found_are_read_the_same(tmp_path: Path) -> None:
    plain = 'preset: github\nmatch:\n  repository_id: 0123  # a comment\n  "ref": refs/heads/main'
    expected = read(tmp_path, plain)
    assert expected["match"][0] == {"claim": "repository_id", "exact": "0123"}
    for content in (
        plain + "\n",
        plain.replace("\n", "\r\n"),
        "\ufeff" + plain,
        "---\n" + plain + "\n...\n",
        "%YAML 1.2\n---\n" + plain,
    ):
        assert read(tmp_path, content) == expected
    assert "UTF-8" in fault_of(tmp_path, plain.encode("utf-16"))
    assert "empty" in fault_of(tmp_path, "")
    assert "empty" in fault_of(tmp_path, "# nothing\n")


def test_P20_a_certificate_is_a_block_of_lines(tmp_path: Path) -> None:
    found = read(tmp_path, "ca_pem: |\n  -----BEGIN CERTIFICATE-----\n  AAAA\n  -----END CERTIFICATE-----\n")
    assert found["ca_pem"] == "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


TOML = [
    ('preset = "github"\n[match]\na = 0x10\n', 3), ("[match]\na = 1_000\n", 2), ("[match]\na = 1.0\n", 2),
    ("[match]\n# 0x10\nb = '0x10'\na = 2024-01-01\n", 4), ("[match]\na = +1\n", 2), ("[match]\na = 1e3\n", 2),
    ("[match]\na = 12:30:45\n", 2), ("[match]\na = [1, 0o17]\n", 2), ("[match]\na = nan\n", 2),
    ("[match]\na = -0\n", 2),
    ("[match]\na = 1\na = 2\n", 3), ("[match]\na = 0123\n", 2), ("max_session = '60'\n", 1), ("other = 1\n", 1),
]  # fmt: skip


@pytest.mark.parametrize(("content", "line"), TOML, ids=str)
def test_P20_toml_is_held_to_the_same(content: str, line: int, tmp_path: Path) -> None:
    assert f"line {line}" in fault_of(tmp_path, content, "rule.toml")


def test_P20_toml_says_what_yaml_says(tmp_path: Path) -> None:
    toml = (
        'preset = "gitlab"\nsingle_use = false\nmax_session = 600\n'
        '[match]\nid = 42\nflag = true\n"a//b" = ["0123", 7]\ng = {contains = "x"}\n'
    )
    yaml = (
        "preset: gitlab\nsingle_use: false\nmax_session: 600\n"
        "match:\n  id: 42\n  flag: true\n  a//b: [0123, 7]\n  g: {contains: x}\n"
    )
    assert read(tmp_path, toml, "rule.toml") == read(tmp_path, yaml)


BROKEN = [
    (b'issuer: "\\UFFFFFFFF"', "rule.yaml"), (b'issuer: "\\U00110000"', "rule.yaml"),
    (b'issuer: "\\ud800"', "rule.yaml"),
    (b"%YAML 1." + b"9" * 5000 + b"\n---\nname: x", "rule.yaml"), (b"max_session = " + b"9" * 5000, "rule.toml"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "name"), BROKEN, ids=range(len(BROKEN)))
def test_P20_numbers_that_no_reader_can_take_are_refused(content: bytes, name: str, tmp_path: Path) -> None:
    assert "it holds" in fault_of(tmp_path, content, name)


def test_the_time_for_a_file_grows_with_its_length_alone(tmp_path: Path) -> None:
    names = "".join(f"k{number}=1\n" for number in range(8_000))
    values = "match.a=[\n" + '"b",\n' * 10_000 + "]\n"

    def look() -> None:
        assert "line 1: k0 is none of" in fault_of(tmp_path, names, "rule.toml")
        assert len(read(tmp_path, values, "rule.toml")["match"]) == 1

    assert cost(look) < 5
