"""What benchmarks have in common: what machine they ran on, and how they report."""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from mtgen.shards.make import make
from mtgen.utils.system import code_version

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "nvidia-dali-cuda120", "nvidia-dali-cuda130")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def machine() -> dict[str, Any]:
    """Processor, memory, GPU, load, and the versions of everything that a measurement depends on."""
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


def digits(data: Path | None, place: Path) -> Path:
    """The data set that was asked for, or else the shared digits, or else digits drawn into `place`."""
    if data is None and not (data := ROOT.parent / "shared/data/digits").is_dir():
        data = place / "digits"
        if not data.is_dir():
            make("digits", data, train=4000, test=1000)
    return data.absolute()


def report(title: str, here: dict[str, Any], rows: list[dict[str, Any]], json_file: Path | None) -> None:
    """Print the rows as a table (lists are left to the JSON), and write them with the machine to `json_file`.

    Args:
        here: what `machine` said before the measurement.
        rows: each with a `name`; a number that a row does not have is shown as "-".
    """
    columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, list)))
    table = Table(*(column.replace("_", " ") for column in columns), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(table)  # a file has no width
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": here, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
