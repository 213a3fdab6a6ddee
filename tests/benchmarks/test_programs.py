"""Every benchmark has --quick and --json, writes the machine and named rows, and is listed in benchmarks/README.md."""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, get_args

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("*.py") if "typer.run(main)" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_benchmark_has_a_quick_form_and_writes_json(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    parameters = inspect.signature(importlib.import_module(program).main).parameters
    # typer takes the first name of an annotated option as `default`
    names = [get_args(parameters[name].annotation)[1].default for name in ("quick", "json_file")]
    assert names == ["--quick", "--json"]


def test_the_readme_lists_every_benchmark() -> None:
    table = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert sorted(line.split("`")[1].removesuffix(".py") for line in table) == PROGRAMS


def test_a_report_has_the_machine_and_named_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    common: Any = importlib.import_module("common")
    common.report("A title", common.machine(), [{"name": "one", "value": 1.5, "each": [1, 2]}], tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["machine"]["cpus"] >= 1 and written["machine"]["versions"]["torch"]
    assert written["rows"] == [{"name": "one", "value": 1.5, "each": [1, 2]}]
