"""The one grammar of names: what passes here is stored, compared and authorised as the same bytes (AZ-01)."""

from __future__ import annotations

import re

from broker.core.errors import InvalidRequest
from broker.core.reasons import Reason

NAME = re.compile(r"[a-z](?:-?[a-z0-9]){0,62}", re.ASCII)
LABEL_VALUE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
APPROVAL_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)
OWNER = re.compile(r"[a-z]{1,16}/[a-z](?:-?[a-z0-9]){0,62}", re.ASCII)
MAX_LABELS = 16


def check_name(text: str, what: str) -> str:
    """Return ``text`` if it is a name: 1 to 63 of ``a-z 0-9 -``, a letter first, no hyphen at the end or doubled.

    ``what`` says what is being named ("key", "target"). The refusal never quotes the text.
    """
    if len(text) > 63 or not NAME.fullmatch(text):
        raise InvalidRequest(
            Reason.NAME_INVALID,
            f"The {what} name is not valid ({_offence(text, '-', 63)}): use 1 to 63 lower-case letters, digits and "
            "single hyphens, a letter first.",
        )
    return text


def _offence(text: str, marks: str, most: int) -> str:
    """What is wrong with a name that is not one, in words that hold nothing of it. ``marks`` may stand within it."""
    if not text:
        return "it is empty"
    if len(text) > most:
        return f"it has {len(text)} characters"
    if text != text.lower() and text.isascii():
        return "it has an upper-case letter"
    other = next(
        (at for at, one in enumerate(text, 1) if not (one.isascii() and one.isalnum()) and one not in marks), 0
    )
    if other:
        return f"its character {other} is none of these"
    if not text[0].isalnum() or not text[-1].isalnum():
        return "it begins or ends with none of these letters and digits"
    return "two marks stand side by side" if re.search(f"[{re.escape(marks)}]{{2}}", text) else "it begins with a digit"


def check_approval_id(text: str) -> str:
    """Return ``text`` if an approval could be called so."""
    if not APPROVAL_ID.fullmatch(text):
        raise InvalidRequest(
            Reason.APPROVAL_ID_INVALID,
            "That is no id of an approval: it has 12 hexadecimal digits; `broker approval list` shows those there are.",
        )
    return text


REMOTE_NAME = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_-])?", re.ASCII)


def check_remote_name(text: str) -> str:
    """Return ``text`` if some kind of target could call a key so; each has a narrower grammar of its own."""
    if len(text) > 255 or not REMOTE_NAME.fullmatch(text):
        raise InvalidRequest(
            Reason.NAME_INVALID,
            "The remote key name is not valid: no target takes other characters than letters, digits, hyphens, "
            "underscores and dots, or a dot at either end.",
        )
    return text


def check_labels(labels: dict[str, str]) -> dict[str, str]:
    """Return ``labels`` if there are at most 16, keyed by names, with values of 1 to 63 of ``A-Za-z0-9._-``."""
    if len(labels) > MAX_LABELS:
        raise InvalidRequest(Reason.LABELS_INVALID, f"There are too many labels: at most {MAX_LABELS} are kept.")
    for name, value in labels.items():
        if len(name) > 63 or not NAME.fullmatch(name) or len(value) > 63 or not LABEL_VALUE.fullmatch(value):
            raise InvalidRequest(
                Reason.LABELS_INVALID,
                "A label is not valid: its name follows the grammar of key names, its value is 1 to 63 letters, "
                "digits, dots, underscores and hyphens, a letter or digit at both ends.",
            )
    return dict(labels)


def check_request_id(text: str) -> str:
    """Return ``text`` in lower case if it is empty or a UUID of version 4 (AIP-155; RFC 9562 4 takes either case)."""
    low = text.lower() if len(text) == 36 else text
    if low and not UUID4.fullmatch(low):
        raise InvalidRequest(Reason.REQUEST_ID_INVALID, "The request id is not a UUID of version 4; send a fresh one.")
    return low


FIELD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
SEGMENT = re.compile(r"[a-z0-9](?:[._-]?[a-z0-9]){0,62}", re.ASCII)
MAX_SEGMENTS = 8


def check_path(text: str, what: str) -> str:
    """Return ``text`` if it is 1 to 8 segments joined by slashes; the refusal never quotes it.

    Lower case only: two names that differ in their case would be taken for one another, in policies too.
    """
    segments = text.split("/")
    first = enumerate(segments[:MAX_SEGMENTS], 1)
    wrong = [(at, one) for at, one in first if len(one) > 63 or not SEGMENT.fullmatch(one)]
    if len(segments) > MAX_SEGMENTS or wrong:
        place, segment = wrong[0] if wrong else (0, "")
        offence = (
            f"its segment {place}: {_offence(segment, '._-', 63)}" if wrong else f"it has {len(segments)} segments"
        )
        raise InvalidRequest(
            Reason.NAME_INVALID,
            f"The {what} name is not valid ({offence}): use 1 to {MAX_SEGMENTS} segments joined by slashes, each of 1 "
            "to 63 lower-case letters and digits, with single hyphens, underscores and dots between them.",
        )
    return text


def check_field(text: str) -> str:
    """Return ``text`` if it is a field's name: 1 to 64 letters, digits, underscores, hyphens and dots."""
    if len(text) > 64 or not FIELD.fullmatch(text):
        raise InvalidRequest(
            Reason.FIELD_INVALID,
            f"A field's name is not valid ({_field_offence(text)}): use 1 to 64 letters, digits, underscores, hyphens "
            "and dots, a letter, digit or underscore first.",
        )
    return text


def _field_offence(text: str) -> str:
    if text and len(text) <= 64 and text[0] in ".-":
        return "it begins with a hyphen or a dot"
    return _offence(text.lower(), "._-", 64)


def check_owner(text: str) -> str:
    """Return ``text`` if it names a principal, "operator/alice"; InvalidRequest ``OWNER_INVALID``."""
    if len(text) > 80 or not OWNER.fullmatch(text):
        raise InvalidRequest(
            Reason.OWNER_INVALID, "The owner is not valid: name a principal, for example operator/alice."
        )
    return text
