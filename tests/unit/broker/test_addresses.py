"""Why the broker cannot listen, with the system's own reason and a remedy for that very reason."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from broker.rpc.addresses import refused, try_listening, why_not


def test_what_listens_there_already_is_told_from_an_address_that_is_none_of_this_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = refused(f"127.0.0.1:{other.getsockname()[1]}")
    assert "(Address already in use): end what listens there" in taken
    assert "(Cannot assign requested address): configure an address that this host has." in refused("192.0.2.1:8443")


def test_a_port_that_the_user_may_not_take_is_told_so() -> None:
    denied = OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert "(Permission denied): configure a port from 1024 on" in why_not("127.0.0.1:443", denied)


def test_a_name_that_does_not_resolve_is_told_so() -> None:
    with pytest.raises(socket.gaierror) as found:
        try_listening("no.such.host.invalid:1")
    assert "configure a host whose name resolves here." in why_not("no.such.host.invalid:1", found.value)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:x", ""])
def test_what_is_no_address_is_told_so(address: str) -> None:
    assert refused(address) == f"The broker cannot listen on {address}: that is not HOST:PORT."


def test_an_address_that_has_become_free_is_not_said_to_be_taken() -> None:
    assert "is free now: start it again." in refused("127.0.0.1:0")
