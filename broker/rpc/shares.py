"""Which connections have to go when there are too many: of one network, of one wider net, or in all.

A connection is *unauthenticated* until a known caller has made a call on it; the settings call such ones *strangers*.
They have limits of their own, so that known callers always have the rest. Those of the network that has most go first,
and of one network those that have carried no call, then the one that was heard of longest ago: a caller who means to
call does so within moments, and a connection that a client has not used for long is made anew without anybody noticing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from broker.rpc.networks import Place, nets


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of a listener. ``heard``: when a call came in last, or it was seen first."""

    descriptor: int
    peer: bytes  # as the system writes it
    place: Place
    since: float  # it was not there at that time
    heard: float
    known: bool = False
    used: bool = False  # it has carried a call, if only one that was refused
    net: bytes = field(init=False)
    wide: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.net, self.wide = nets(self.place[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How many connections a listener keeps; a wider net may have twice what one network may."""

    connections: int
    per_network: int
    strangers: int
    strangers_per_network: int
    silent_seconds: float  # what has carried no call by then is closed


Gone = tuple[Connection, str]
"""A connection that has to go, and the name of the limit that bites."""


def crowded_out(held: Iterable[Connection], shares: Shares, now: float) -> list[Gone]:
    """Those of ``held``, the connections of one listener, that have to go."""
    left, gone = list[Connection](), list[Gone]()
    for one in held:
        silent = not one.used and now - one.heard >= shares.silent_seconds
        gone.append((one, "silent")) if silent else left.append(one)
    rules: tuple[tuple[str, bool, Callable[[Connection], bytes], int], ...] = (
        ("strangers_per_network", False, lambda one: one.net, shares.strangers_per_network),
        ("strangers_per_wider_net", False, lambda one: one.wide, 2 * shares.strangers_per_network),
        ("strangers", False, lambda _one: b"", shares.strangers),
        ("connections_per_network", True, lambda one: one.net, shares.per_network),
        ("connections_per_wider_net", True, lambda one: one.wide, 2 * shares.per_network),
        ("connections", True, lambda _one: b"", shares.connections),
    )
    for limit, with_known, group, most in rules:
        groups = defaultdict[bytes, list[Connection]](list)
        for one in left:
            if with_known or not one.known:
                groups[group(one)].append(one)
        victims = {id(one): one for each in groups.values() if len(each) > most for one in _excess(each, most)}
        if victims:
            left = [one for one in left if id(one) not in victims]
            gone += [(one, limit) for one in victims.values()]
    return gone


def _excess(group: list[Connection], most: int) -> Iterator[Connection]:
    """As many as are too many, in the order in which they have to go."""
    count = defaultdict[bytes, int](int)
    ranked: list[tuple[int, bool, float, int]] = []
    for at in sorted(range(len(group)), key=lambda at: (not group[at].used, -group[at].heard)):
        one = group[at]
        count[one.net] += 1
        ranked.append((-count[one.net], one.used, one.heard, at))
    ranked.sort()
    return (group[at] for *_, at in ranked[: len(group) - most])
