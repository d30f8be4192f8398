"""What a method is stands in its declaration, once; and what the declaration says is so."""

from __future__ import annotations

import ast
import re

import pytest
from broker_api.v1 import traits_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool

from broker.core.traits import Effect, Traits
from broker.rpc import table
from tests.house.sources import ROOT, modules, nodes, place

METHODS = {each.name: each for service in table.declared().values() for each in service.methods}
TRAITS = {name: table.traits(each) for name, each in METHODS.items()}
WITHOUT_A_REQUEST_ID = {
    "CheckDrift",
    "EndSession",
    "IssueCertificate",
    "ProveImport",
    "RenewCertificate",
    "RenewSession",
    "SignAuditHead",
}
"""They change something, and may be sent again as they are: a second time does no harm."""

NAMES_OF_METHODS = re.compile(rf"(?:{'|'.join(table.declared())})/\w+")
WRITTEN_OUT = {
    "broker/core/rotations/lifecycle.py",  # under whose name a replacement and a schedule ask whether they may rotate
    "broker/auth/oidc/authenticator.py",  # a sentence of the audit, held to the declarations below
    "broker/core/rotations/copies.py",  # under whose name a rotation asks whether it may bring a copy
    "broker/core/sessions/lifecycle.py",  # the name under which a fetch that opens a session records the login
    "broker/store/restored.py",  # that name, looked for in the journal
}


def test_every_method_says_what_it_does() -> None:
    assert {name for name, one in TRAITS.items() if one.effect is Effect.READS} >= {"GetKey", "ListKeys", "WhoAmI"}
    takes_an_id = {name for name, each in METHODS.items() if "request_id" in each.input_type.fields_by_name}
    changes = {name for name, one in TRAITS.items() if one.effect is Effect.CHANGES}
    assert changes == takes_an_id | WITHOUT_A_REQUEST_ID


def test_a_method_that_does_not_say_what_it_is_stops_the_start() -> None:
    method = MethodDescriptorProto(name="Do", input_type=".silent.Nothing", output_type=".silent.Nothing")
    pool = DescriptorPool()
    pool.Add(
        FileDescriptorProto(
            name="silent.proto",
            package="silent",
            message_type=[DescriptorProto(name="Nothing")],
            service=[ServiceDescriptorProto(name="Service", method=[method])],
        )
    )
    with pytest.raises(TypeError, match=r"silent\.Service\.Do does not say what it does"):
        table.traits(pool.FindServiceByName("silent.Service").methods[0])


def test_no_list_of_methods_stands_beside_the_declarations() -> None:
    found = {
        place(file)
        for file in modules("broker", "cli")
        for node in nodes(file)
        if isinstance(node, ast.Constant) and NAMES_OF_METHODS.fullmatch(str(node.value).partition(" or ")[0])
    }
    assert found <= WRITTEN_OUT


def test_the_audit_names_the_methods_that_open_a_session() -> None:
    opening = sorted(
        f"{each.containing_service.name}/{name}" for name, each in METHODS.items() if TRAITS[name].opens_session
    )
    text = (ROOT / "broker/auth/oidc/authenticator.py").read_text(encoding="utf-8")
    assert f'OPENING = "{" or ".join(opening)}"' in text
    assert all(TRAITS[name.partition("/")[2]].waits for name in opening), "their issuer's keys are waited for"


def test_a_method_that_takes_a_place_among_those_that_wait_for_targets_says_so() -> None:
    """A place is taken by ``Slots.hold``, in the registers of the nouns that have slots."""
    waiting = {name for name, one in TRAITS.items() if one.waits and not one.opens_session} - {
        "TestTrustRule",
        "WaitOperation",
    }
    holders = {
        str(file.relative_to(ROOT / "broker/core"))
        for file in (ROOT / "broker/core").rglob("*.py")
        if "_slots.hold(" in file.read_text(encoding="utf-8")
    }
    assert holders == {"drift/lifecycle.py", "imports/ledger.py", "targets/register.py"}
    assert waiting == {
        "CreateTarget", "CheckTarget", "RepinTarget", "ImportKey", "ProveImport", "ExportKey", "ConfirmImport",
        "CheckDrift",
    }  # fmt: skip


def test_the_traits_of_the_core_are_those_of_the_wire() -> None:
    wire = {field.name for field in traits_pb2.MethodTraits.DESCRIPTOR.fields}
    assert wire == set(Traits.__dataclass_fields__)
    assert {name.removeprefix("EFFECT_") for name in traits_pb2.Effect.keys()[1:]} == set(Effect.__members__)
