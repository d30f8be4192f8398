"""Addresses of servers as people write them: brought into one spelling, or refused with what is wrong with them.

No URL parser decides what is connected to: what passes here reads the same to every one of them (BY-03). Each function
raises ValueError with a sentence's end, which quotes nothing but hosts and ports that are plain.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address

MAX_ADDRESS = 255
_NAME = r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"
_WHOLE = re.compile(rf"https://({_NAME}|\[[0-9a-f:.]+\])(?::([0-9]{{1,5}}))?(/.*)?", re.ASCII)
_LABELS = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII)


def https(text: str) -> tuple[str, int]:
    """(host, port) of ``https://HOST[:PORT][/]``, the host in lower case; without a port it is 443, as everywhere."""
    host, port, path = parts(text)
    if path not in {"", "/"}:
        raise ValueError("it has a path; give https://HOST:PORT and nothing after it")
    return host, port


def parts(text: str) -> tuple[str, int, str]:
    """As ``https``, with the path as it is ("" when there is none)."""
    scheme, found, rest = text.partition("://")
    if not found:
        raise ValueError("it does not begin with https://")
    if scheme.lower() != "https":
        raise ValueError("it does not begin with https://, and nothing is sent without TLS")
    authority, slash, path = rest.partition("/")
    _check_plain(text, authority)
    whole = _WHOLE.fullmatch(f"https://{authority.lower()}{slash}{path}")
    if whole is None or len(text) > MAX_ADDRESS + len(path):
        raise ValueError("its host is none: give a name or an IP address, IPv6 in brackets, and a port as a number")
    return _host(whole[1]), _port(whole[2]), whole[3] or ""


def _check_plain(text: str, authority: str) -> None:
    wrong = {
        "it has blanks or characters that cannot be seen": not text.isprintable() or bool(re.search(r"\s", text)),
        "it has other characters than ASCII; write such a name as xn--…": not text.isascii(),
        "it has a user or a password before the host; those belong in no address": "@" in authority,
        "it has a query": "?" in text,
        "it has a fragment": "#" in text,
        "it has a backslash": "\\" in text,
        "it has no host": authority.startswith(":") or not authority,
        "its port is empty": authority.endswith(":"),
    }
    for why, is_so in wrong.items():
        if is_so:
            raise ValueError(f"{why}; give https://HOST:PORT")


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return f"[{IPv6Address(text[1:-1]).compressed}]"
        except ValueError:
            raise ValueError("what stands in brackets is no IPv6 address") from None
    if not _LABELS.fullmatch(text):
        raise ValueError("its host is no name and no IP address")
    return text


def _port(text: str | None) -> int:
    if text is None:
        return 443
    if text.startswith("0") or not 0 < int(text) < 65536:
        raise ValueError("its port is no number from 1 to 65535")
    return int(text)
