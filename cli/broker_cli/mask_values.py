"""What is secret within a value: all of it, its lines, and the strings inside a structured one.

Keys, common words, punctuation, frames of PEM and addresses without a password in them are nobody's secret.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from broker_cli.mask_targets import BLANKS, SHORTEST, is_words, skeleton

LEAF = 12
"""Bytes from which a string inside a value is secret whatever it is called, unless it is nothing but words."""

_DEEPEST = 4
_MOST = 20_000
"""Strings that are looked at within one value."""
_MOST_DOCUMENTS = 1_000

_COMMON = frozenset(
    b"true false null none yes no on off default done else then begin end exit main json text plain basic".split()
)
_NAMES = (
    rb"(?:pass(?:wor[dt]|wd|phrase|code)?|pwd|pw|pin|psk|secret|credentials?|auth|_?authtoken|token|jwt|dsn|cookie|"
    rb"session[ _.-]?id|(?:api|access|account|private|secret|shared|client|encryption|signing|master|license|auth)"
    rb"[ _.-]?(?:access[ _.-]?)?key(?:[ _.-]?data)?|connection[ _.-]?string)"
)
_SECRET_NAME = re.compile(_NAMES + rb"\W*\Z", re.IGNORECASE)
_NAMED = re.compile(
    rb"(?:"
    + _NAMES
    + rb"""|bearer|basic)["']?
    (?:(?P<sign>[ \t]{0,8}(?:=>?|:)[ \t]{0,8}|>|["']?,?\s{1,80}["']?value["']?[ \t]{0,8}[=:][ \t]{0,8})|[ \t]{1,80})
    (?:"(?P<double>(?:[^"\\\n]|\\.)+)"|'(?P<single>[^'\n]+)'|(?P<bare>[^\s"'<>=:/{\[][^\s<]*))""",
    re.IGNORECASE | re.VERBOSE,
)
"""A name of a secret, and its value, as a configuration file, a header, .netrc or an element of XML has them.

The value may stand in a sibling called ``value``; without a sign between them they may as well be a sentence.
"""
_LOGIN = re.compile(rb"[\w.@+*-]{1,253}:(?:[^\s/:][^\s:]*:)*(?=[^\s/:]{6})\S+")
_PATH = re.compile(rb"https?://[^\s/?#]+(/\S+)")
_IN_PATH = 16
"""Bytes from which a segment of an address's path, if it is no words, is what opens it (a web hook)."""
_FRAME = re.compile(rb"-+\s*(?:BEGIN|END)\b[^-]*-+")
_ASSIGNED = re.compile(
    rb"""(?:-\s+|export\s+)?["']?([A-Za-z_/][\w ./@:-]{0,80}?)["']?(?:\s*=>?\s*|\s*:(?:\s+|\Z))(\S.*)?"""
)
_PAIR = re.compile(rb"([A-Za-z_][\w -]{1,40})=([^;&\s]+)")
# Looked for from the :// on: to try a scheme at each letter of a long word costs the square of its length.
_END = re.compile(rb"""[,;&}"')\]]""")
_SIGNS = re.compile(rb"[/?&=#]")
_WITH_PASSWORD = re.compile(rb"(?<=[\w+.-])://[^\s/@:]*:([^\s/@]+)@")
_ADDRESS = re.compile(rb"[A-Za-z][\w+.-]*://[^\s?#@]*")
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/_-]{4}){4,}(?:[A-Za-z0-9+/_-]{2,3}={0,2})?|[A-Za-z0-9+/_-]{6,}={1,2}")


def secret_texts(value: bytes) -> list[bytes]:
    """What is to be hidden of ``value``; nothing when it is too short."""
    if len(value.strip(BLANKS)) < SHORTEST:
        return []
    found: dict[bytes, None] = {}
    for text in _texts(value, 0):
        if len(text.strip(BLANKS)) >= SHORTEST:
            found[text] = None
        if len(found) >= _MOST:
            break
    return list(found)


def _texts(value: bytes, depth: int) -> Iterator[bytes]:
    inside = list(_inside(value, depth))
    if inside:
        yield from inside
        return
    yield value
    lines = [line.strip(BLANKS) for line in value.splitlines()]
    if len(lines) > 1:
        for line in lines:
            yield from _of_line(line, depth)
        yield from _named(value, depth)
    else:
        yield from _parts(value, depth)
        yield from _of_address(value)
        if assigned := _ASSIGNED.fullmatch(value.strip(BLANKS)):
            yield from _leaf(assigned[1], _unquoted(assigned[2] or b""), depth + 1)


def _inside(value: bytes, depth: int) -> Iterator[bytes]:
    """The secret strings in a document of JSON; none if it is not one, or has none."""
    if value.removeprefix(BOM_UTF8).strip()[:1] not in (b"{", b"[") or depth >= _DEEPEST:
        return
    waiting: list[tuple[str, object]] = [("", one) for one in _documents(value)]
    while waiting:
        name, one = waiting.pop()
        if isinstance(one, dict):
            called = next((one[key] for key in ("name", "key") if isinstance(one.get(key), str)), "value")
            waiting += [(str(called) if key == "value" else key, each) for key, each in one.items()]
        elif isinstance(one, list):
            waiting += [(name, each) for each in one]
        elif isinstance(one, str) or (isinstance(one, int | float) and not isinstance(one, bool)):
            yield from _leaf(
                name.encode("utf-8", "surrogatepass"), str(one).encode("utf-8", "surrogatepass"), depth + 1
            )


def _documents(value: bytes) -> list[object]:
    """The documents of JSON that ``value`` is, one after another; none if it is anything else."""
    found: list[object] = []
    decoder, at = json.JSONDecoder(), 0
    try:
        text = value.decode("utf-8-sig").strip()
        while at < len(text):
            one, at = decoder.raw_decode(text, at)
            found.append(one)
            at = len(text) - len(text[at:].lstrip()) if len(found) < _MOST_DOCUMENTS else len(text)
    except (ValueError, RecursionError):
        return []
    return found


def _leaf(name: bytes, text: bytes, depth: int) -> Iterator[bytes]:
    """``text`` if it is secret under this ``name``, and what is secret in it."""
    named = _SECRET_NAME.search(name) is not None
    if len(text) < SHORTEST or text.lower() in _COMMON:
        return
    if b"\n" in text or text[:1] in b"{[":
        yield from _texts(text, depth)
    elif named or (len(text) >= LEAF and not _is_public(text)):
        yield text
        yield from _parts(text, depth)
    else:
        yield from _parts(text, depth)


def _is_public(text: bytes) -> bool:
    """Whether ``text`` is words alone, the frame of PEM, or an address without a password in it."""
    if b"@" in text and b"://" not in text:  # an address of mail names somebody
        return False
    return is_words(text) or _FRAME.fullmatch(text) is not None or _ADDRESS.fullmatch(text) is not None


def _of_line(line: bytes, depth: int) -> Iterator[bytes]:
    """A line of a longer text: what is assigned in it, or all of it."""
    assigned = _ASSIGNED.fullmatch(line)
    if assigned and assigned[2] and assigned[2].strip(b"="):
        yield from _leaf(assigned[1], _unquoted(assigned[2]), depth + 1)
    elif len(line) >= SHORTEST and not (assigned and line.endswith(b":")) and not _is_common(line):
        yield line
        yield from _parts(line, depth)


def _is_common(line: bytes) -> bool:
    """Whether many texts have such a line: a comment, punctuation, the frame of PEM, a word of a language."""
    return line[:2] == b"# " or not skeleton(line) or line.lower() in _COMMON or _FRAME.fullmatch(line) is not None


def _unquoted(text: bytes) -> bytes:
    text = text.rstrip(b",; \t")
    return text[1:-1] if len(text) > 1 and text[:1] in (b'"', b"'") and text[-1:] == text[:1] else text


def _parts(text: bytes, depth: int) -> Iterator[bytes]:
    """Passwords in addresses, connection strings and logins, what is named a secret, and what base64 hides."""
    for found in _WITH_PASSWORD.finditer(text):
        yield from (found[1], unquote_to_bytes(found[1]))
    if b"=" in text and (b";" in text or b"&" in text):
        for name, assigned in _PAIR.findall(text):
            if _SECRET_NAME.search(name) or name.lower() in (b"sig", b"signature"):
                yield from (assigned, unquote_to_bytes(assigned))
    yield from _named(text, depth)
    bare = _unquoted(text.strip(BLANKS))
    if bare != text:
        yield bare
    if _LOGIN.fullmatch(bare):  # of .pgpass too
        yield from (part for part in (bare.partition(b":")[2], bare.rpartition(b":")[2]) if not _is_plain(part))
    if depth < _DEEPEST and _BASE64.fullmatch(bare):
        yield from _decoded(bare, depth + 1)


def _is_plain(text: bytes) -> bool:
    """Whether it is words, or digits as of a port or a version."""
    return is_words(text) or not text.translate(None, b"0123456789.")


def _named(text: bytes, depth: int) -> Iterator[bytes]:
    """The values that stand behind the name of a secret."""
    for found in _NAMED.finditer(text):
        bare = found["bare"] or b""
        for one in dict.fromkeys((found["double"], found["single"], bare.rstrip(b",;"), _END.split(bare)[0])):
            if one and (found["sign"] or not is_words(one)) and one.lower() not in _COMMON:
                yield one
                if depth < _DEEPEST and _BASE64.fullmatch(one):
                    yield from _decoded(one, depth + 1)


def _of_address(value: bytes) -> Iterator[bytes]:
    """The path of an address that is the secret itself: clients log it without the host."""
    found = _PATH.fullmatch(value.strip(BLANKS))
    opening = [part for part in _SIGNS.split(found[1]) if len(part) >= _IN_PATH and not is_words(part)] if found else []
    if found and opening:
        yield from (found[1], *opening)


def _decoded(text: bytes, depth: int) -> Iterator[bytes]:
    try:
        plain = base64.b64decode(text.translate(bytes.maketrans(b"-_", b"+/")) + b"=" * (-len(text) % 4), validate=True)
        shown = plain.decode()
    except (binascii.Error, UnicodeDecodeError):
        return
    if len(plain) >= SHORTEST and all(one.isprintable() or one in "\r\n\t" for one in shown):
        yield from _texts(plain, depth)
        _, colon, password = plain.partition(b":")  # what a registry or a server is logged in to with
        if colon and len(plain.splitlines()) == 1:
            yield password
