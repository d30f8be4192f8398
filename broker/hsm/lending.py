"""Using a cached handle on any session.

A token object's handle is valid in every session of the process, but python-pkcs11 ties an object to the session that
found it. Searching again for each session would cost 15 µs for every object in the token, so the binding's own
operation classes are given the borrowed session and the cached handle instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pkcs11 import _pkcs11
from pkcs11 import KeyType as CkKeyType

if TYPE_CHECKING:
    from pkcs11.types import Session

_BINDING: Final[Any] = _pkcs11  # its type stub does not list the operation classes


class _LentKey(_BINDING.SignMixin, _BINDING.EncryptMixin, _BINDING.DecryptMixin):  # type: ignore[misc]
    """The binding's operations on plain attributes; the token decides which of them the key may do."""

    session = None  # plain attributes instead of the binding's read-only properties
    handle = None
    key_type = None

    def __init__(self, session: Session, handle: int, key_type: CkKeyType) -> None:
        self.session = session
        self.handle = handle
        self.key_type = key_type


def lend(session: Session, handle: int, key_type: CkKeyType) -> Any:
    """The key behind the handle, able to sign, encrypt and decrypt on this session."""
    return _LentKey(session, handle, key_type)
