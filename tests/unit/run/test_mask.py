"""The masking of output: every encoding, across every boundary, and nothing else."""

from __future__ import annotations

import base64
import json
import re
from urllib.parse import quote, quote_plus

import pytest
from broker_cli.mask import MASK, Masker
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.cost import cost

SECRET = b'p\xc3\xa4ss/w+rd"<&>\\ 7%'
PEM = b"-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"


def masked(values: list[bytes], *pieces: bytes) -> bytes:
    masker = Masker(values)
    return b"".join(masker.feed(piece) for piece in pieces) + masker.finish()


TEXT = SECRET.decode()
ENCODED = {
    "raw": SECRET,
    "base64": base64.b64encode(SECRET),
    "base64 url": base64.urlsafe_b64encode(SECRET).rstrip(b"="),
    "url": quote(TEXT, safe="").encode(),
    "url path": quote(TEXT).encode(),
    "form": quote_plus(TEXT).encode(),
    "lower url": re.sub("%..", lambda found: found[0].lower(), quote(TEXT, safe="")).encode(),
    "json": json.dumps(TEXT)[1:-1].encode(),
    "json unicode": json.dumps(TEXT, ensure_ascii=False)[1:-1].encode(),
    "json php": json.dumps(TEXT)[1:-1].replace("/", "\\/").encode(),
    "json go": re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(TEXT)[1:-1]).encode(),
    "json in json": json.dumps(json.dumps({"a": TEXT}))[11:-4].encode(),
}  # fmt: skip


@pytest.mark.parametrize("form", ENCODED)
def test_CL_10_a_form_is_masked_and_its_surroundings_stay(form: str) -> None:
    assert masked([SECRET], b"before " + ENCODED[form] + b" after\n") == b"before *** after\n"


@pytest.mark.parametrize("before", [b"", b"u", b"us", b"usr:", b"user:"])
@pytest.mark.parametrize("after", [b"", b"\n", b"ab", b"\xff\xff\xff"])
def test_CL_10_base64_at_every_alignment(before: bytes, after: bytes) -> None:
    """What is left of it tells less than a byte and a half at either end."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(before + SECRET + after)
        shown = masked([SECRET], text)
        assert MASK in shown
        left = len(base64.b64encode(before)) + len(base64.b64encode(after)) + 4
        assert len(shown.replace(MASK, b"")) <= left, (text, shown)


@pytest.mark.parametrize("width", [64, 76])
def test_CL_10_wrapped_base64(width: int) -> None:
    secret = bytes(range(33, 127)) * 3
    text = base64.b64encode(secret)
    wrapped = b"\n".join(text[at : at + width] for at in range(0, len(text), width))
    assert len(masked([secret], wrapped).replace(MASK, b"").replace(b"\n", b"")) <= 3


def test_CL_10_every_line_of_a_value() -> None:
    lines = PEM.splitlines()
    for line in lines[1:-1]:
        assert masked([PEM], b"  " + line + b"\r\n") == b"  ***\r\n"
    for frame in (lines[0], lines[-1]):  # every key has it
        assert masked([PEM], frame + b"\n") == frame + b"\n"
    assert masked([PEM], b"x" + PEM.replace(b"\n", b"\r\n")) == b"x***\r\n***\r\n***\r\n***\r\n"
    assert masked([PEM], json.dumps(PEM.decode()).encode()) == b'"***\\n"'


def test_short_lines_are_masked_together() -> None:
    """Lines stay lines: a log must not lose its breaks."""
    assert masked([b"ab\ncd\nlonger\n"], b"ab\ncd\nlonger\nab\n") == b"***\n***\n***\nab\n"
    assert masked([b"a\nbc\n"], b"a\nbc\nc") == b"***\n***\nc"


@pytest.mark.parametrize("value", [b"", b"1", b"123", b"  12\n"])
def test_what_is_too_short_is_not_masked(value: bytes) -> None:
    assert masked([value], b"0123") == b"0123"


@given(
    st.lists(
        st.binary(min_size=4, max_size=12).filter(lambda value: len(value.strip()) >= 4)
        | st.text("ab", min_size=4, max_size=8).map(str.encode),
        max_size=4,
    ),
    st.lists(st.text("ab\n", max_size=12).map(str.encode), max_size=8),
    st.data(),
)
def test_CL_10_no_boundary_and_no_pause_lets_a_value_through(
    values: list[bytes], noise: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(one + (data.draw(st.sampled_from(values)) if values else b"") for one in noise)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    masker, shown = Masker(values), b""
    for piece in pieces:
        shown += masker.feed(piece)
        assert len(masker._kept) < 256  # noqa: SLF001 - how much it holds back would not show
        if data.draw(st.booleans()):
            shown += masker.relax()
    shown += masker.finish()
    assert not masker.holding
    visible = shown.replace(MASK, b"\x00\x00")
    assert [value for value in values if b"\x00" not in value and b"*" not in value and value in visible] == []
    if not values:
        assert shown == stream


def test_only_a_possible_beginning_is_held_back() -> None:
    masker = Masker([b"hunter2hunter2"])
    assert masker.feed(b"hello hun") == b"hello "
    assert masker.feed(b"gry") == b"hungry"
    assert masker.feed(b"password: ") == b"password: "
    assert not masker.holding


def test_in_a_pause_a_few_bytes_are_shown_and_remembered() -> None:
    masker = Masker([b"hunter2hunter2"])
    assert masker.feed(b"> h") == b"> "
    assert masker.holding
    assert masker.relax() == b"h"
    assert (masker.relax(), masker.holding) == (b"", False)
    assert masker.feed(b"unter2hunter") == b""
    assert masker.relax() == b""
    assert masker.feed(b"2!") == b"***!"


def test_a_short_value_gives_away_nothing_in_a_pause() -> None:
    masker = Masker([b"1234"])
    assert masker.feed(b"12") == b""
    assert masker.relax() == b""
    assert masker.feed(b"3") == b""
    assert masker.feed(b"4") == b"***"


def test_overlapping_values_are_masked_as_one() -> None:
    assert masked([b"abcdef", b"efghij"], b"-abcdefghij-") == b"-***-"
    assert masked([b"aaaa"], b"a" * 10, b"a" * 10) == MASK * 2 or masked([b"aaaa"], b"a" * 20).strip(b"*") == b""


def test_binary_values_are_masked() -> None:
    assert masked([b"\x00\xff\xfe\x01"], b"x\x00\xff\xfe\x01y") == b"x***y"


def test_a_megabyte_of_output_passes_in_moments() -> None:
    values = [f"value-{number}-{'x' * 20}".encode() for number in range(20)]
    masker = Masker(values)
    line = b"2026-01-01T00:00:00Z INFO some ordinary line of a build log with words in it, value of nothing\n" * 700
    assert cost(lambda: [masker.feed(line) for _ in range(16)]) < 5
