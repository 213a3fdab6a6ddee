"""Shared parts of the benchmarks: options, a description of the machine, the default data set, and the report."""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

from mtgen.shards.make import make
from mtgen.utils.system import code_version

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "nvidia-dali-cuda120", "nvidia-dali-cuda130")
"""Packages whose versions are reported."""

JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="also write the numbers to this file")]
DataOption = Annotated[
    Path | None, typer.Option(help="data set; default: ../shared/data/digits if it exists, else generated digits")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="overrides of the configuration, for all runs")
]


def quick_option(what: str) -> Any:
    """The option `--quick`, which every benchmark has; `what` says what it reduces."""
    return typer.Option("--quick", help=what)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def machine() -> dict[str, Any]:
    """Describe the machine: processor, memory, GPU, load, and the versions that a measurement depends on."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if _installed(name)}
    return {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": versions,
        **code_version(),
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def digits(data: Path | None, folder: Path) -> Path:
    """The given data set; by default the shared digits, or digits generated in `folder`."""
    if data is None and not (data := ROOT.parent / "shared/data/digits").is_dir():
        data = folder / "digits"
        if not data.is_dir():
            make("digits", data, train=4000, test=1000)
    return data.absolute()


def report(title: str, here: dict[str, Any], rows: list[dict[str, Any]], json_file: Path | None) -> None:
    """Print the rows as a table, and write `{"machine": .., "rows": [{"name": ..}, ..]}` to `json_file`.

    Args:
        here: result of `machine` from before the measurement.
        rows: each has a `name`. Lists appear in the JSON only; a value that a row lacks is printed as "-".
    """
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list)))
    table = Table(*(column.replace("_", " ") for column in columns), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)  # a file has no width of its own
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": here, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
