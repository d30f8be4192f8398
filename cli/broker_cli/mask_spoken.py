"""What a CI's runner is told that masks literally, line by line, and decodes nothing: a list that ends."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from urllib.parse import quote, quote_plus

from broker_cli.mask_targets import SHORTEST, base64_cores
from broker_cli.mask_values import secret_texts

MOST = 2_000
"""Strings that are told for all values together: every line of the job's log is searched for each."""

LONGEST = 16 * 1024
"""Characters of an encoding that is told; a value itself may be longer."""

_WRAPPED = (64, 76)
"""Columns at which base64 is broken: by PEM and by base64(1)."""

_HTML_IN_JSON = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027", "+": "\\u002b"})


def spoken(values: Iterable[bytes]) -> list[str]:
    """The literal strings, one line each, that hide ``values``: themselves, what is secret in them, usual encodings.

    Values come before what is made of them, and what is made of short ones first: the limits cut off the least likely.
    """
    values = sorted((value for value in values if len(value.strip()) >= SHORTEST), key=len)
    texts = list(dict.fromkeys(text for value in values for text in (value, *secret_texts(value))))
    plain = (line for text in texts for line in _plain(text))
    encoded = (form for text in texts for form in _encoded(text))
    binary = (form for text in texts for form in _binary(text))
    made = (form for form in chain(encoded, binary) if len(form) <= LONGEST)
    return list(islice(dict.fromkeys(form for form in chain(plain, made) if _can_be_told(form)), MOST))


def _can_be_told(form: str) -> bool:
    return len(form.encode()) >= SHORTEST and not any(end in form for end in "\r\n\0")


def _plain(text: bytes) -> Iterator[str]:
    shown = _shown(text)
    if shown and len(text.splitlines()) == 1:
        yield text.decode()
        yield shown
        yield " ".join(shown.split())


def _shown(text: bytes) -> str:
    try:
        return text.decode().strip()
    except UnicodeDecodeError:
        return ""


def _encoded(text: bytes) -> Iterator[str]:
    import html  # noqa: PLC0415  with a large table

    shown = _shown(text)
    for ascii_only in (True, False):
        form = json.dumps(shown, ensure_ascii=ascii_only)[1:-1]
        for one in (form, form.replace("/", "\\/"), form.translate(_HTML_IN_JSON)):
            yield one
            yield json.dumps(one, ensure_ascii=False)[1:-1]  # JSON within JSON, as logs like to have it
    for one in (quote(shown, safe=""), quote(shown), quote_plus(shown), quote(shown, safe="!'()*~")):
        yield one
        yield _lower_escapes(one)
    yield from (html.escape(shown), html.escape(shown, quote=False), html.escape(shown).replace("&#x27;", "&#39;"))
    yield from (shlex.quote(shown)[1:-1], shown.replace("'", "'\\''"), repr(shown)[1:-1])


def _lower_escapes(form: str) -> str:
    first, *rest = form.split("%")
    return "%".join([first, *(one[:2].lower() + one[2:] for one in rest)])


def _binary(text: bytes) -> Iterator[str]:
    for core in dict.fromkeys((text, text.strip())):
        whole = base64.b64encode(core).decode()
        forms = [whole, *(form.decode() for form in base64_cores(core))]
        forms += [
            whole[at : at + width] for width in _WRAPPED for at in range(0, len(whole), width) if len(whole) > width
        ]
        for form in forms:
            yield form
            yield form.translate(str.maketrans("+/", "-_"))
        yield core.hex()
        yield core.hex().upper()
