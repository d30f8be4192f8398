"""What may reach a terminal: text from elsewhere never carries an escape, a control or a direction mark (CL-13)."""

from __future__ import annotations

import sys
from contextlib import suppress


def plain(text: str) -> str:
    """``text`` with everything that does not print as itself written as an escape; newlines too."""
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def plain_lines(text: str) -> str:
    """As ``plain``, but newlines and tabs stay: for documents shown as a whole."""
    return "".join(one if one in "\n\t" or one.isprintable() else _escape(one) for one in text)


def chat(text: str) -> None:
    """A remark for the person at the screen; never data, so a screen that takes none stops nothing."""
    with suppress(OSError):
        sys.stderr.write(plain_lines(text) + "\n")
        sys.stderr.flush()


def _escape(one: str) -> str:
    code = ord(one)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
