"""Which connections have to go: NT-05, NT-06."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest

from broker.rpc.networks import nets, place, shown
from broker.rpc.shares import Connection, Shares, crowded_out

SHARES = Shares(connections=100, per_network=40, strangers=30, strangers_per_network=10, silent_seconds=15)


def at(host: str, heard: float = 0, *, known: bool = False, used: bool = False) -> Connection:
    octets = ipaddress.ip_address(host).packed
    return Connection(0, b"", (octets, 1), 0, heard, known=known, used=used or known)


def gone(held: list[Connection], now: float = 0) -> tuple[set[int], Counter[str]]:
    """Places in the list, and how often each limit bit."""
    found = crowded_out(held, SHARES, now)
    ids = {id(one): number for number, one in enumerate(held)}
    assert len({id(one) for one, _ in found}) == len(found)
    return {ids[id(one)] for one, _ in found}, Counter(limit for _, limit in found)


def test_within_the_shares_nobody_has_to_go() -> None:
    held = [at(f"10.{number}.0.1", number) for number in range(30)]
    held += [at(f"10.0.{number}.2", known=True) for number in range(40)]
    assert gone(held) == (set(), Counter())


def test_NT_05_of_one_network_the_unauthenticated_that_were_heard_of_longest_ago() -> None:
    held = [at("10.0.0.1", number) for number in range(25)]
    assert gone(held) == (set(range(15)), Counter(strangers_per_network=15))


def test_NT_05_of_a_wider_net_those_of_the_network_that_has_most() -> None:
    held = [at(f"10.0.0.{number % 4}", number) for number in range(40)] + [at("10.0.0.200", -1)]
    left, limits = gone(held)
    assert limits == Counter(strangers_per_wider_net=21)
    assert 40 not in left  # the only one of its network, though it has waited longest


def test_NT_05_in_all_a_network_with_one_is_spared_while_others_have_more() -> None:
    held = [at(f"10.{number % 20}.0.1", 100 + number) for number in range(80)] + [at("192.0.2.1", 0)]
    left, limits = gone(held)
    assert limits == Counter(strangers=51)
    assert 80 not in left


def test_NT_05_of_one_network_those_that_have_carried_no_call_go_first() -> None:
    held = [at("10.0.0.1", number, used=number < 5) for number in range(15)]
    assert gone(held) == (set(range(5, 10)), Counter(strangers_per_network=5))


def test_NT_05_however_many_unauthenticated_come_known_callers_have_the_rest() -> None:
    held = [at(f"10.0.{number}.1", 50, known=True) for number in range(70)]
    held += [at(f"10.{number % 200 + 1}.{number // 200}.9", 99) for number in range(1000)]
    left, limits = gone(held)
    assert limits == Counter(strangers=970)
    assert left <= set(range(70, 1070))


def test_NT_06_of_a_known_network_those_that_were_used_longest_ago() -> None:
    held = [at("10.0.0.1", number, known=True) for number in range(50)]
    assert gone(held) == (set(range(10)), Counter(connections_per_network=10))


def test_NT_05_who_says_nothing_in_time_goes_however_few_there_are() -> None:
    held = [at("10.0.0.1", 0), at("10.0.0.2", 1), at("10.0.0.3", 0, used=True), at("10.0.0.4", 0, known=True)]
    assert gone(held, now=15) == ({0}, Counter(silent=1))


def test_NT_05_the_addresses_of_an_ipv6_host_are_one_network_and_those_of_a_site_one_wider_net() -> None:
    host = [at(f"2001:db8::{number:x}", number) for number in range(25)]
    assert gone(host) == (set(range(15)), Counter(strangers_per_network=15))
    site = [at(f"2001:db8:0:{number:x}::1", number) for number in range(25)]
    assert gone(site) == (set(range(5)), Counter(strangers_per_wider_net=5))


@pytest.mark.parametrize(
    ("peer", "net"),
    [
        ("ipv4:10.0.0.1:5000", "10.0.0.1/32"),
        ("ipv6:[::ffff:10.0.0.1]:5000", "10.0.0.1/32"),
        ("ipv6:[2001:db8::1]:5000", "2001:db8::/64"),
        ("ipv6:[fe80::1%eth0]:5000", "fe80::/64"),
        ("ipv6:rubbish", "?"),
        ("ipv4:10.0.0.1:", "?"),
        ("unix:", "?"),
        ("", "?"),
    ],
)
def test_a_peer_is_of_one_network(peer: str, net: str) -> None:
    assert shown(nets(place(peer)[0])[0]) == net
