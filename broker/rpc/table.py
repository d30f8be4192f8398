"""Which function answers which method: worked out from the descriptors, so that nothing can be left out or added."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import broker_api.v1
from broker_api.v1 import traits_pb2 as wire
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from broker.core.call import Call
from broker.core.gate.method import Request
from broker.core.traits import Effect, Traits
from broker.rpc.plan import Plan

EFFECTS = {
    wire.EFFECT_READS: Effect.READS,
    wire.EFFECT_USES: Effect.USES,
    wire.EFFECT_CHANGES: Effect.CHANGES,
}

Answer = Callable[[Call, Any], Message]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC, as the gate asks for it."""

    rpc: str  # "KeyService/Sign"
    traits: Traits
    plan: Plan
    response: type[Message]
    noun: Answer

    def decode(self, message: bytes) -> Request:
        """See ``Plan.decode``."""
        return self.plan.decode(message)

    def respond(self, call: Call, request: Request) -> Message:
        """The noun's answer as a message; TypeError for one of another type, which is a bug."""
        response = self.noun(call, request.message)
        if type(response) is not self.response:
            raise TypeError(f"{self.rpc} answered with {type(response).__name__}")
        return response

    def answer(self, call: Call, request: Request) -> bytes:
        """The noun's answer as bytes."""
        return self.respond(call, request).SerializeToString()


def declared() -> dict[str, ServiceDescriptor]:
    """Every service of package broker_api.v1 by its short name."""
    modules = (
        importlib.import_module(f"{broker_api.v1.__name__}.{found.name}")
        for found in pkgutil.iter_modules(broker_api.v1.__path__)
        if found.name.endswith("_pb2")
    )
    return {name: service for module in modules for name, service in module.DESCRIPTOR.services_by_name.items()}


def methods(services: Mapping[str, object]) -> dict[str, Method]:
    """The methods by path ("/broker_api.v1.KeyService/Sign").

    ``services`` names, for each declared service, the object whose methods carry the RPC names in snake case. TypeError
    when a service or method is missing, when an object has a public method that is no RPC, or when a method does not
    say what it is.
    """
    wanted = declared()
    if wanted.keys() != services.keys():
        raise TypeError(f"services that do not match the descriptors: {sorted(wanted.keys() ^ services.keys())}")
    return {
        f"/{service.full_name}/{each.name}": _method(service, each, services[name])
        for name, service in wanted.items()
        for each in _matched(service, services[name])
    }


def _matched(service: ServiceDescriptor, answers: object) -> list[MethodDescriptor]:
    found = {name for name in dir(answers) if not name.startswith("_")}
    wanted = {function_of(each.name) for each in service.methods}
    if found != wanted:
        raise TypeError(f"methods that do not match {service.full_name}: {sorted(found ^ wanted)}")
    return list(service.methods)


def _method(service: ServiceDescriptor, each: MethodDescriptor, answers: object) -> Method:
    if each.client_streaming or each.server_streaming:
        raise TypeError(f"{each.full_name} streams; the gate carries unary calls only")
    return Method(
        rpc=f"{service.name}/{each.name}",
        traits=traits(each),
        plan=Plan(GetMessageClass(each.input_type)),
        response=GetMessageClass(each.output_type),
        noun=getattr(answers, function_of(each.name)),
    )


def traits(each: MethodDescriptor) -> Traits:
    """What the method's declaration says that it is; TypeError when it says nothing."""
    told = each.GetOptions().Extensions[wire.traits]
    if told.effect not in EFFECTS:
        raise TypeError(f"{each.full_name} does not say what it does; give it the option (traits) with an effect")
    return Traits(
        effect=EFFECTS[told.effect],
        makes_key=told.makes_key,
        waits=told.waits,
        opens_session=told.opens_session,
        ends_session=told.ends_session,
    )


def function_of(method: str) -> str:
    """The name of the function that answers a method: the method's own, in snake case."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower()
