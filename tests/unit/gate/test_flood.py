"""AU-15: refusals of unauthenticated callers are written down up to a rate, and counted beyond it."""

from __future__ import annotations

from broker.core.gate import flood
from broker.core.gate.flood import Flood
from broker.rpc.networks import network


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def peer(host: str, port: int = 1) -> str:
    return f"ipv4:{host}:{port}"


def test_AU_15_a_burst_then_a_rate_and_nothing_is_lost() -> None:
    clock = Clock()
    limit = Flood(1, 5, clock, network)
    assert [limit.admit(peer("10.0.0.1", port)) for port in range(8)] == [0, 0, 0, 0, 0, None, None, None]
    clock.now = 1.0
    assert limit.admit(peer("10.0.0.1")) == 3
    assert limit.admit(peer("10.0.0.1")) is None
    assert limit.unrecorded() == 1
    assert limit.unrecorded() == 0


def test_AU_15_one_network_does_not_silence_another() -> None:
    limit = Flood(1, 2, Clock(), network)
    for port in range(50):
        limit.admit(peer("10.0.0.1", port))
    assert limit.admit(peer("10.0.0.2")) == 48


def test_AU_15_the_addresses_of_one_ipv6_host_share_a_bucket() -> None:
    limit = Flood(1, 2, Clock(), network)
    admitted = [limit.admit(f"ipv6:%5B2001:db8::{number:x}%5D:5000") for number in range(1, 9)]
    assert [each is not None for each in admitted] == [True, True, *[False] * 6]
    assert limit.admit("ipv6:%5B2001:db8:0:1::1%5D:5000") == 6


def test_AU_15_many_networks_together_have_a_limit_too() -> None:
    limit = Flood(1, 2, Clock(), network)
    admitted = [limit.admit(peer(f"10.0.{number}.1")) is not None for number in range(100)]
    assert sum(admitted) == 20


def test_AU_15_the_memory_of_networks_is_bounded() -> None:
    """Whoever is forgotten has a full bucket again; one for everybody is remembered always."""
    clock = Clock()
    limit = Flood(1, 1, clock, network)
    for number in range(flood.MAX_PEERS):
        limit.admit(peer(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"))
    clock.now += 0.9  # nobody's own bucket has a token by now, and that of everybody has nine
    assert limit.admit(peer("10.0.0.1")) is None
    assert limit.admit(peer("10.0.0.0")) is not None


def test_AU_15_a_peer_that_has_no_address_is_limited_as_well() -> None:
    limit = Flood(1, 1, Clock(), network)
    assert [limit.admit(each) for each in ("unix:", "unix:", "ipv6:rubbish", "ipv6:rubbish")] == [0, None, None, None]


def test_a_clock_that_stands_still_gives_nothing() -> None:
    limit = Flood(1000, 1, Clock(), network)
    assert limit.admit(peer("10.0.0.1")) == 0
    assert limit.admit(peer("10.0.0.1")) is None
