"""The broker's address as people have it: in a browser's form, of another letter case, wrong and said so."""

import pytest
from broker_cli.profiles import address
from broker_cli.refusal import Exit, Refusal


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("broker.example:7444", "broker.example:7444"),
        ("https://broker.example:7444", "broker.example:7444"),
        ("HTTPS://broker.example:7444/", "broker.example:7444"),
        (" 127.0.0.1:7444\n", "127.0.0.1:7444"),
        ("[::1]:7444", "[::1]:7444"),
    ],
)
def test_K17_an_address_is_taken_as_it_is_copied(given: str, taken: str) -> None:
    assert address(given, "--address") == taken


@pytest.mark.parametrize(
    "given",
    ["broker.example", "http://b.example:7444", "b.example:7444/v1", "::1:7444", "b:99999", "u@b:1", "b:\u0663"],
)
def test_K17_an_address_that_will_not_do_is_named(given: str) -> None:
    with pytest.raises(Refusal) as refused:
        address(given, "--address")
    assert (refused.value.reason, refused.value.code) == ("ADDRESS_INVALID", Exit.USAGE)
    assert ascii(given) in refused.value.message
    assert "--address" in refused.value.message


def test_K17_an_address_that_nobody_gave_is_told_so() -> None:
    with pytest.raises(Refusal, match="is not said"):
        address("", "BROKER_PIPELINES_ADDRESS")
