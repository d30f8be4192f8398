"""What a fixed set of requests is answered on the wire, and what the audit says of each, without what is of the moment.

``python -m pytest tests/wire`` compares with ``recorded.json``; with ``WIRE=record`` it writes that file anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from tests.servers.live import METHODS, Live

OF_THE_MOMENT = (
    (re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\n?", re.DOTALL), r"<\1>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?"), "<time>"),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\b[0-9a-f]{28,}\b"), "<hex>"),
    (re.compile(r"-[0-9a-f]{10}\b"), "-<fresh>"),
    (re.compile(r"\b127\.0\.0\.1:\d+"), "127.0.0.1:<port>"),
    (re.compile(r"\bbrs_[\w-]+"), "<session token>"),
    (re.compile(r"(?<![\w-])[\w-]{40,}={0,2}"), "<token>"),
    (re.compile(r"\b[0-9A-Za-z]{22}\b"), "<id>"),
)
SEVERAL_FORMS = {
    "ListAuditHeads", "GetAuditState", "SignAuditHead",  # how many heads there are is a matter of seconds
    "GetHsm",  # which token it is
}  # fmt: skip
"""Of their answers only the names of the fields are kept."""

BY_ITSELF = {"last_reader", "last_read_time", "last_user", "last_use_time", "token_serial", "waiting"}
"""Fields that the background loop changes, whenever it comes to it."""

OF_THE_STORE = {"ledger", "rows"}
"""Facts that vouch for the rows that were written: they are the store's, and no part of the answer."""

TOLD = ("phase", "principal", "authn", "resource", "decision", "policies", "policy_version", "outcome", "reason")


class Recorder:
    """Sends requests and keeps, by RPC and kind of request, what came of each."""

    def __init__(self, broker: Live) -> None:
        self._broker = broker
        self.found: dict[str, dict[str, Any]] = {}

    def send(self, channel: Any, rpc: str, kind: str, wire: bytes | list[bytes], **options: Any) -> Any:
        """The answer, None if it is a refusal; a list is a stream of these messages."""
        method = METHODS.get(rpc)
        path = f"/{method.containing_service.full_name}/{rpc}" if method else f"/broker_api.v1.KeyService/{rpc}"
        before = len(self._broker.records())
        answer, came = None, dict[str, Any]()
        try:
            if isinstance(wire, list):
                channel.stream_unary(path)(iter(wire), timeout=200, **options)
            else:
                got = channel.unary_unary(path)(wire, timeout=200, **options)
                answer = GetMessageClass(METHODS[rpc].output_type).FromString(got)
                came["answer"] = names(answer) if rpc in SEVERAL_FORMS else plain(answer)
        except grpc.RpcError as error:
            came["refusal"] = as_recorded(error)
        came["audit"] = [entry(one, rpc) for one in self._broker.records()[before:] if not is_own(one)]
        kept = self.found.setdefault(rpc, {})
        number = sum(each.partition(" #")[0] == kind for each in kept)
        kept[f"{kind} #{number + 1}" if number else kind] = came
        return answer


def as_recorded(error: Any) -> dict[str, Any]:
    """The status with everything that its details say."""
    told: dict[str, Any] = {"code": error.code().name, "message": lasting(error.details() or "")}
    status = rpc_status.from_call(error)
    for one in status.details if status else ():
        info = ErrorInfo()
        if one.Unpack(info):
            parts = {name: lasting(text) for name, text in sorted(info.metadata.items())}
            told |= {"reason": info.reason, "domain": info.domain, "metadata": parts}
        else:
            told.setdefault("further", []).append(one.TypeName())
    return told


def entry(record: dict[str, Any], rpc: str) -> dict[str, Any]:
    """A record of the journal without its place in the chain, and without what is as usual."""
    kept = {name: lasting(record[name]) for name in TOLD if record[name]}
    if record["rpc"].rpartition("/")[2] != rpc:
        kept["rpc"] = record["rpc"]
    if record["request"]:
        kept["request"] = lasting(record["request"])
    facts = {name: lasting(value) for name, value in sorted(record["facts"].items()) if name not in OF_THE_STORE}
    return kept | ({"facts": facts} if facts else {})


def is_own(record: dict[str, Any]) -> bool:
    """Whether the broker wrote it of its own work."""
    return record.get("kind") != "entry" or record["rpc"].startswith("-") or record["principal"].startswith("broker/")


def plain(message: Any) -> Any:
    """A message as JSON has it; bytes that are no text are only said to be there."""
    found = MessageToDict(message, preserving_proto_field_name=True)
    for descriptor, value in message.ListFields():
        if descriptor.name in BY_ITSELF:
            del found[descriptor.name]
        elif descriptor.message_type and descriptor.message_type.GetOptions().map_entry:
            found[descriptor.name] = {key: scalar(each) for key, each in sorted(value.items())}
        elif descriptor.message_type and descriptor.message_type.file.package == "broker_api.v1":
            found[descriptor.name] = ordered(map(plain, value)) if descriptor.is_repeated else plain(value)
        elif descriptor.type == descriptor.TYPE_BYTES:
            found[descriptor.name] = [scalar(each) for each in value] if descriptor.is_repeated else scalar(value)
    return lasting(found)


def ordered(items: Iterator[Any]) -> list[Any]:
    """A list by its texts: the order of names that are of the moment is of the moment."""
    return sorted(items, key=lambda one: json.dumps(one, sort_keys=True))


def scalar(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    text = value.decode("ascii", "replace")
    return text if text.isprintable() and text.isascii() else "<bytes>"


def names(message: Any) -> list[str]:
    return sorted(descriptor.name for descriptor, _ in message.ListFields())


def lasting(value: Any) -> Any:
    """The same without what is of the moment."""
    if isinstance(value, str):
        for pattern, instead in OF_THE_MOMENT:
            value = pattern.sub(instead, value)
        return value
    if isinstance(value, dict):
        return {name: lasting(each) for name, each in value.items()}
    return [lasting(each) for each in value] if isinstance(value, list) else value


def lines(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """One line of JSON an answer, by RPC and kind."""
    return {
        f"{rpc}: {kind}": json.dumps(came, sort_keys=True, ensure_ascii=False)
        for rpc, kinds in found.items()
        for kind, came in kinds.items()
    }


def together(told: dict[str, str]) -> str:
    """The recording: each answer once, under all the requests that it was given to."""
    by_answer: dict[str, list[str]] = {}
    for name, answer in told.items():
        by_answer.setdefault(answer, []).append(name)
    blocks = (f"[{json.dumps(requests)},\n {answer}]" for answer, requests in by_answer.items())
    return "[" + ",\n".join(blocks) + "]\n"


def apart(recording: str) -> dict[str, str]:
    """Undo ``together``."""
    return {
        name: json.dumps(answer, sort_keys=True, ensure_ascii=False)
        for requests, answer in json.loads(recording)
        for name in requests
    }
