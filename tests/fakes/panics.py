"""What ends a call without being an Exception, or leaves no room to deal with it."""

from __future__ import annotations


class PanicException(BaseException):
    """As pyo3 (cedarpy, cryptography) raises it when its Rust code panics: no Exception, and told with a text."""


SECRET = "canary-in-a-panic"

ENDS: tuple[type[BaseException], ...] = (
    PanicException,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    MemoryError,
    RecursionError,
)
