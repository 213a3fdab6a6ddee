"""The predictions in docs/scale.md are those that the model gives."""

import importlib.util
from typing import Any

from helpers.documents import ROOT

PAGE = (ROOT / "docs/scale.md").read_text(encoding="utf-8")


def test_the_table_and_the_numbers_of_the_page_are_what_the_model_predicts() -> None:
    spec = importlib.util.spec_from_file_location("scale_table", ROOT / "docs/scale_table.py")
    assert spec is not None and spec.loader is not None
    program: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    found = program.counted()
    rows = [line for line in PAGE.splitlines() if line.startswith(("| 16 |", "| 64 |", "| 2 |"))]
    assert rows == program.rows(found)
    missing = [fact for fact in program.facts(found) if fact not in PAGE]
    assert missing == []
