"""What has fields of its own, in a table and in CSV: text that people read; JSON is what --format json gives."""

from __future__ import annotations

import csv
import importlib
import io
import json
import pkgutil
from collections.abc import Iterator
from typing import Any

import broker_api.v1
import pytest
from broker_cli import inventory
from broker_cli.output import Output
from broker_cli.words import record

COPY = {
    "key": "pay",
    "version": 2,
    "state": "proven",
    "failure": "",
    "drifts": ["deleted", "disabled"],
    "never_sent": False,
}
NOTE = 'on "two"; lines=x'


def written(capsys: pytest.CaptureFixture[str], asked: str, *entries: dict[str, Any]) -> str:
    if len(entries) == 1:
        Output(asked).one("key", entries[0])
    else:
        Output(asked).many("key", entries, ("name", "copies"))
    return capsys.readouterr().out


def test_a_table_has_a_row_for_each_of_several_things(capsys: pytest.CaptureFixture[str]) -> None:
    told = written(capsys, "table", {"name": "pay", "copies": [COPY, {**COPY, "version": 3}]})
    rows = [line.split(maxsplit=2) for line in told.splitlines()[2:]]
    copy = 'key=pay version={} state=proven drifts="deleted, disabled" never_sent=no'
    assert rows == [["copies", "1", copy.format(2)], ["copies", "2", copy.format(3)]]


def test_a_cell_of_a_list_has_them_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    told = written(capsys, "table", {"name": "a", "copies": []}, {"name": "b", "copies": [{"at": "x"}, {"at": "y"}]})
    assert [line.split(maxsplit=1) for line in told.splitlines()[1:]] == [["a", "-"], ["b", "at=x; at=y"]]


def test_csv_can_be_read_by_people_and_taken_apart_by_programs(capsys: pytest.CaptureFixture[str]) -> None:
    told = written(capsys, "csv", {"name": "a", "copies": [{**COPY, "failure": NOTE}, {"at": "=1+1"}]})
    [row] = csv.DictReader(io.StringIO(told))
    first, _, second = row["copies"].partition("; at=")
    assert (second, f"failure={json.dumps(NOTE)}" in first) == ('"=1+1"', True)


def test_json_and_shell_variables_have_it_whole(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"name": "a", "copies": [COPY]}
    assert json.loads(written(capsys, "json", entry)) == entry
    assert '"version": 2' in written(capsys, "env", entry)


def test_the_copies_of_a_key_are_told_in_words() -> None:
    copy = COPY | {"target": "prod", "remote_name": "p", "standing": "current", "prove_time": "2027-01-01T00:00:00Z"}
    [said] = inventory.told(Output("table"), [copy])
    assert said == "version 2 at prod as p: current (proven 2027-01-01T00:00:00Z, deleted, disabled)"
    assert inventory.told(Output("json"), [copy]) == [copy]


def nesting() -> Iterator[Any]:
    """Every message of the wire, with one of whatever it has several of that have fields of their own."""
    for module in pkgutil.iter_modules(broker_api.v1.__path__, "broker_api.v1."):
        kinds = importlib.import_module(module.name) if module.name.endswith("_pb2") else None
        for name, kind in kinds.DESCRIPTOR.message_types_by_name.items() if kinds else ():
            message = getattr(kinds, name)()
            several = [
                one for one in kind.fields
                if one.is_repeated and one.message_type and not one.message_type.GetOptions().map_entry
            ]  # fmt: skip
            for one in several:
                getattr(message, one.name).add()
            if several:
                yield message


@pytest.mark.parametrize("asked", ["table", "csv"])
def test_no_answer_of_the_broker_shows_json_in_a_cell(capsys: pytest.CaptureFixture[str], asked: str) -> None:
    messages = list(nesting())
    assert len(messages) > 20
    for message in messages:
        told = written(capsys, asked, record(message))
        assert "{" not in told, (message.DESCRIPTOR.name, told)
