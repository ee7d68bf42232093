"""The drawing of the tables is that of the code."""

from __future__ import annotations

import re
from pathlib import Path

from qtasks_pluggy.failures.schema import TABLES, VERSION

PAGE = Path(__file__).parents[2] / "docs/reference/failures-tables.md"


def test_the_drawing_has_each_table_with_its_columns():
    """Every table and column is drawn, in order, with its key and its version."""
    text = PAGE.read_text("utf-8")
    parts = re.findall(r"^    (failures_\w+) \{\n([^}]*)\}", text, re.MULTILINE)
    drawn = {
        name: [line.split()[1:3] for line in body.splitlines() if line.strip()]
        for name, body in parts
    }

    assert {
        name: [(column.name, column.primary_key) for column in table.columns]
        for name, table in TABLES.tables.items()
    } == {name: [(one[0], one[1:] == ["PK"]) for one in lines] for name, lines in drawn.items()}
    assert f"`version` of `failures_meta`; it is {VERSION}." in text
