"""What a token is, and what it was found to be good for."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.core.kinds import KeyType, OaepHash


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One thing that was tried on the token at start, and how it ended."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a token tells of where a key comes from and has been (PKCS#11 2.40, 4.9); None: it does not tell."""

    local: bool | None  # made in this token
    sensitive: bool | None
    always_sensitive: bool | None
    extractable: bool | None  # it may leave, wrapped
    never_extractable: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HsmReport:
    """What the token is and what the start-up probe found it can really do."""

    module: str
    library: str
    token_label: str
    token_serial: str
    manufacturer: str
    model: str
    firmware: str
    key_types: tuple[KeyType, ...]
    oaep_hashes: tuple[OaepHash, ...]
    exact_wrap: bool  # True: AES key wrap with padding follows RFC 5649 for every length
    one_call_wrap: bool  # True: mechanism 0x1054 was proven right and is used
    probes: tuple[Probe, ...] = field(default_factory=tuple)
    features: tuple[Probe, ...] = field(default_factory=tuple)  # each part of the broker: is this token good for it

    def lacking(self, feature: str) -> str:
        """The sentence that says what the token lacks for a feature; "" when that is to be had, or is not known."""
        return next((one.detail for one in self.features if one.name == feature and not one.passed), "")
