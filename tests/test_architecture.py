"""Imports point one way, and each large dependency has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mtgen"

LAYERS = [  # a module imports from the layers above its line and from its own folder, never from its own line or below
    {"errors", "commands", "registry", "retention", "counter", "schema", "machine", "gpus", "logbook", "lean", "malloc"},
    {"loopback", "yaml_text", "journal", "checkpoint", "pictures", "sampling", "centres"},
    {"config", "sender", "progress", "ema", "sheets"},
    {"networks", "data", "balancing", "tracking"},
    {"alarms"},
    {"conditions", "evaluation", "shards", "ui", "mirror", "companions", "places"},
    {"tasks", "report"},
    {"model"},
    {"training", "runs"},
    {"inference", "snapshot", "cost", "export"},
    {"orchestrate", "serving", "rehearsal", "forecast", "explore"},
    {"smoke", "doctor"},
    {"cli"},
]
LAYER = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}
HOMES = {
    "mlflow": {"sender", "smoke", "serving"},  # what sends to it, what asks it whether all has arrived, and what it runs
    "ray": {"orchestrate"},
    "deepspeed": {"training"},
    "nvidia": {"data"},
    "torchjd": {"balancing"},
    "typer": {"cli"},
    "starlette": {"explore"},
    "uvicorn": {"explore"},
}


def unit(file: Path) -> str:
    """The folder or module of the package that a file belongs to; "" for the package's own `__init__`."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py").removeprefix("__init__")


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its full name; `from mtgen import x` is `mtgen.x`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            yield from (f"mtgen.{alias.name}" for alias in node.names) if node.module == "mtgen" else (node.module,)


FILES = sorted(PACKAGE.rglob("*.py"))
UNITS = sorted({unit(file) for file in FILES} - {""})
EDGES = {
    name: {target.split(".")[1] for file in FILES if unit(file) == name for target in imported(file) if target.startswith("mtgen.")}
    - {name}
    for name in UNITS
}


def reached(name: str) -> set[str]:
    """Everything that importing `name` may import of the package, over any number of steps."""
    seen, open_ends = set(), {name}
    while open_ends:
        seen |= open_ends
        open_ends = {target for end in open_ends for target in EDGES.get(end, set())} - seen
    return seen


@pytest.mark.parametrize("name", UNITS)
def test_imports_point_to_the_layers_below(name: str) -> None:
    assert name in LAYER, f"{name} has no place among the layers yet"
    wrong = {target for target in EDGES[name] if LAYER[target] >= LAYER[name]}
    assert not wrong, f"{name} imports {sorted(wrong)}"


@pytest.mark.parametrize("name", ["evaluation", "inference", "export", "snapshot", "runs", "model", "ui", "shards", "explore"])
def test_using_a_model_needs_no_code_of_training(name: str) -> None:
    assert not reached(name) & {"training", "orchestrate"}


def test_training_needs_no_code_of_evaluation_or_inference() -> None:
    assert not reached("training") & {"evaluation", "inference", "snapshot", "runs", "orchestrate"}


@pytest.mark.parametrize("library", HOMES)
def test_a_large_dependency_is_imported_in_its_home_alone(library: str) -> None:
    users = {unit(file) for file in FILES if any(name.split(".")[0] == library for name in imported(file))}
    assert users <= HOMES[library]
    assert users, f"nothing imports {library} any more"


def test_the_command_line_loads_what_is_heavy_only_when_a_command_needs_it() -> None:
    code = "import sys, mtgen.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.split()
    assert "mtgen" in loaded
    assert not {"torch", "numpy", "mlflow", "ray", "deepspeed", "nvidia", "pydantic", "scipy"} & set(loaded)
