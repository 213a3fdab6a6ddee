"""Imports point one way, every file has its folder, and each large dependency has one home."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mtgen"

ROOT_MODULES = {"__init__", "__main__", "version", "errors", "registry", "schema"}
LAYERS = [  # a folder imports from the layers above its line and from itself, never from its own line or below
    {"version", "errors", "registry", "schema"},
    {"utils", "networks", "visualization"},
    {"storage"},
    {"checkpointing"},
    {"config"},
    {"data", "conditions", "tracking"},
    {"shards", "tasks", "balancing"},
    {"models", "alarms"},
    {"training", "evaluation", "export"},
    {"inference", "report"},
    {"launchers", "serving", "explore"},
    {"preflight"},
    {"cli"},
]
LAYER = {unit: number for number, layer in enumerate(LAYERS) for unit in layer}
RUN_TIME = {  # packages that registries import when a name is first looked up; others are not allowed
    "config": {"tasks", "conditions", "balancing", "evaluation"},
}
HOMES = {
    "mlflow": {
        "tracking",
        "preflight",
        "serving",
    },  # what sends to it, what asks it whether all arrived, and what it runs
    "ray": {"launchers"},
    "deepspeed": {"training"},
    "nvidia": {"data"},
    "torchjd": {"balancing"},
    "typer": {"cli"},
    "starlette": {"explore"},
    "uvicorn": {"explore"},
}


def unit(file: Path) -> str:
    """The folder, or the module of the root, that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its full name; `from mtgen import x` is `mtgen.x`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            yield from (f"mtgen.{alias.name}" for alias in node.names) if node.module == "mtgen" else (node.module,)


def looked_up(file: Path) -> Iterator[str]:
    """Packages that the registries of a file import at run time: `Registry("task", "mtgen.tasks")`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Registry":
            package = node.args[1]
            assert isinstance(package, ast.Constant), f"{file}: a registry's package is written out"
            yield package.value


def folders(modules: Iterator[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("mtgen.")}


FILES = sorted(PACKAGE.rglob("*.py"))
UNITS = sorted({unit(file) for file in FILES} - {"__init__", "__main__"})
EDGES = {
    name: set[str]().union(*(folders(imported(file)) for file in FILES if unit(file) == name)) - {name}
    for name in UNITS
}
LOOKED_UP = {
    name: set[str]().union(*(folders(looked_up(file)) for file in FILES if unit(file) == name)) - {name}
    for name in UNITS
}


def reached(name: str) -> set[str]:
    """Everything that importing `name` may import of the package, over any number of steps."""
    seen, open_ends = set(), {name}
    while open_ends:
        seen |= open_ends
        open_ends = {target for end in open_ends for target in EDGES.get(end, set())} - seen
    return seen


def test_no_module_lies_loose_at_the_root() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")} - ROOT_MODULES
    assert not loose, f"{sorted(loose)}: every concern has its folder, see CONTRIBUTING.md"


def test_every_layer_is_there() -> None:
    assert set(LAYER) == set(UNITS)


@pytest.mark.parametrize("name", UNITS)
def test_imports_point_to_the_layers_below(name: str) -> None:
    wrong = {target for target in EDGES[name] if LAYER[target] >= LAYER[name]}
    assert not wrong, f"{name} imports {sorted(wrong)}"


@pytest.mark.parametrize("name", UNITS)
def test_registries_import_upwards_only_where_it_is_declared(name: str) -> None:
    upwards = {target for target in LOOKED_UP[name] if LAYER[target] >= LAYER[name]}
    assert upwards == RUN_TIME.get(name, set())


@pytest.mark.parametrize("name", UNITS)
def test_no_folder_imports_the_package_itself(name: str) -> None:
    users = [file for file in FILES if unit(file) == name and "mtgen" in imported(file)]
    assert not users, "the package's own __init__ is for users; take `mtgen.version` or what it loads from"


@pytest.mark.parametrize("name", ["evaluation", "inference", "export", "models", "shards", "explore"])
def test_using_a_model_needs_no_code_of_training(name: str) -> None:
    assert not reached(name) & {"training", "launchers"}


def test_training_needs_no_code_of_evaluation_or_inference() -> None:
    assert not reached("training") & {"evaluation", "inference", "launchers"}


@pytest.mark.parametrize("library", HOMES)
def test_a_large_dependency_is_imported_in_its_home_alone(library: str) -> None:
    users = {unit(file) for file in FILES if any(name.split(".")[0] == library for name in imported(file))}
    assert users <= HOMES[library]
    assert users, f"nothing imports {library} any more"


def private_parts_of_ray(source: ast.Module) -> Iterator[str]:
    """Private attributes of Ray that a file imports, reaches from `ray`, names in a string or passes as an argument."""

    def is_private(name: str) -> bool:
        return name.partition(".")[0] == "ray" and any(part.startswith("_") for part in name.split("."))

    for node in ast.walk(source):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            names = [node.value]  # modules and loggers by their names
        elif isinstance(node, ast.Call):
            names = [
                f"ray.{word.arg}" for word in node.keywords if word.arg and "ray" in ast.unparse(node.func).split(".")
            ]
        yield from filter(is_private, names)


def test_private_parts_of_ray_are_touched_in_one_file() -> None:
    touched = {file.relative_to(PACKAGE).as_posix(): [*private_parts_of_ray(tree(file))] for file in FILES}
    assert touched.pop("launchers/ray_internals.py"), "nothing is found any more"
    assert not {name: found for name, found in touched.items() if found}


@pytest.mark.parametrize(
    "line",
    [
        "import ray._private",
        "from ray._private import ray_constants",
        "from ray.train.torch.config import _TorchBackend",
        "ray._raylet.GcsClient()",
        "ray.remote(work)._options(num_cpus=1)",
        "ray.init(_node_ip_address='127.0.0.1')",
        "logging.getLogger('ray._private.worker')",
    ],
)
def test_each_way_to_touch_a_private_part_of_ray_is_found(line: str) -> None:
    assert [*private_parts_of_ray(ast.parse(line))]


def test_nothing_is_mocked_in_production() -> None:
    assert not [file for file in FILES if any(name.startswith("unittest") for name in imported(file))]


def test_a_public_class_name_stands_in_one_module() -> None:
    homes: dict[str, list[str]] = {}
    for file in FILES:
        for node in tree(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(file.relative_to(PACKAGE)))
    assert not {name: files for name, files in homes.items() if len(files) > 1}


def test_the_command_line_loads_what_is_heavy_only_when_a_command_needs_it() -> None:
    code = "import sys, mtgen.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.split()
    assert "mtgen" in loaded
    assert not {"torch", "numpy", "mlflow", "ray", "deepspeed", "nvidia", "pydantic", "scipy"} & set(loaded)
