"""An object of the token behind its handle, the broker's or another program's.

python-pkcs11 builds its own view of each object that it finds, from what it knows of classes and types; one of another
program can be of neither. Here nothing is read that was not asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from pkcs11 import Attribute, ObjectClass
from pkcs11 import KeyType as CkKeyType
from pkcs11 import exceptions as ck
from pkcs11.attributes import AttributeMapper

from broker.hsm.module import Module

MAPPER: Final = AttributeMapper()
"""From bytes to values, and back."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Reads and changes as python-pkcs11's objects do; raises PKCS11Error. Valid as long as its session."""

    module: Module
    session: Any
    handle: int

    def get_attributes(self, kinds: Iterable[Attribute]) -> dict[Attribute, Any]:
        """Those of these attributes that the token gives."""
        read = self.module.attributes(self.session, self.handle, [int(kind) for kind in kinds])
        unpack = MAPPER.unpack_attributes
        return {Attribute(kind): unpack(Attribute(kind), value) for kind, value in read.items()}

    def __getitem__(self, kind: Attribute) -> Any:
        read = self.get_attributes([kind])
        if kind not in read:
            raise ck.AttributeTypeInvalid
        return read[kind]

    def __setitem__(self, kind: Attribute, value: Any) -> None:
        packed = MAPPER.pack_attribute(kind, value)
        self.module.write(self.session, self.handle, int(kind), packed)

    def destroy(self) -> None:
        """Remove it from the token."""
        self.module.destroy(self.session, self.handle)

    @property
    def object_class(self) -> ObjectClass:
        """Its class; for objects of a class that the standard has."""
        kind: ObjectClass = self[Attribute.CLASS]
        return kind

    @property
    def key_type(self) -> CkKeyType:
        """Its type; for keys of a type that the standard has."""
        kind: CkKeyType = self[Attribute.KEY_TYPE]
        return kind
