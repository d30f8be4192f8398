"""What a DBA learns from the ledger, and what the journal says of a change with many rows."""

from __future__ import annotations

import json
import os
from pathlib import Path

from broker.core.model import Key
from broker.store.authentic import WEIGHT_BYTES, Rows
from broker.store.ledger import Ledger, unpack
from broker.store.marks import Changed, behind, history, tell
from tests.contracts.store.samples import ROW_KEY, entry


def test_S_01_the_sums_show_nobody_what_a_row_weighs() -> None:
    """From the weights, older rows could be chosen that weigh together what the newest do."""
    rows = Rows(ROW_KEY)
    ledger, weight = Ledger("0" * 16, rows), rows.weight(Key, b"m" * 16)
    cells = [ledger.row(0, 1, {Key: weight})["sums"] for _ in range(2)]
    assert cells[0] != cells[1]
    assert all(weight.to_bytes(WEIGHT_BYTES, "big") not in cell for cell in cells)
    assert [unpack(cell, rows)[Key] for cell in cells] == [weight, weight]


def test_no_part_of_a_change_that_was_not_committed_counts_as_told(tmp_path: Path) -> None:
    many = [Changed(Key, (f"key-{number}",), 1, 1, None, b"m" * 16) for number in range(50)]
    told = tell([entry()], {}, many, "o:0:1:00")
    assert len(told) > 1
    journal = tmp_path / "broker-20300101T000000000000Z-0123456789abcdef.000001.jsonl"
    journal.write_text("".join(json.dumps({"facts": dict(each.facts)}, separators=(",", ":")) + "\n" for each in told))
    assert history(tmp_path, {}) == {}
    assert len(history(tmp_path, {("o", 0): 1})) == len(many)


def test_a_pipe_among_the_journals_holds_up_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "broker-20300101T000000000000Z-0123456789abcdef.000001.jsonl")
    assert history(tmp_path, {}) == {}
    assert behind(tmp_path, {}, Rows(ROW_KEY)) == {}
