"""Self-contained HTML pages about one run, or about several side by side; each section is one file in `sections/`."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from mtgen.errors import ConfigError, UserError
from mtgen.report.blocks import SECTIONS, ReportSection
from mtgen.report.compare import comparison
from mtgen.report.page import render
from mtgen.report.run_record import RunRecord, read_record

REPORT_FILE = "report.html"

__all__ = ["REPORT_FILE", "refresh_report", "write_comparison", "write_report"]


def write_report(
    run: str | Path, against: str | Path | None = None, out: str | Path | None = None, runs: Path = Path("runs")
) -> Path:
    """Write a run's report; returns its path.

    Args:
        against: another run, to show the differences of the configurations.
        out: default: `report.html` in the run's folder.

    Raises:
        ConfigError: `out` is not the name of an HTML file.
        UserError: the run does not exist, or the page cannot be written.
    """
    record = read_record(run, runs)
    other = read_record(against, runs) if against is not None else None
    return _written(
        render(record.name, record.subtitle, all_sections(record, other)), Path(out or record.folder / REPORT_FILE)
    )


def write_comparison(chosen: Sequence[str | Path], out: str | Path, runs: Path = Path("runs")) -> Path:
    """Write a page that shows several runs side by side; returns its path.

    Raises:
        ConfigError: fewer than two runs are given, or `out` is not the name of an HTML file.
        UserError: a run does not exist, or the page cannot be written.
    """
    if len(chosen) < 2:
        raise ConfigError("compare: needs at least two runs; name another")
    records = [read_record(run, runs) for run in chosen]
    return _written(render(f"{len(records)} runs side by side", "", comparison(records)), Path(out))


def refresh_report(folder: Path) -> None:
    """Write the report of a run that trains again; an error is only a warning, so that it cannot stop the run."""
    try:
        write_report(folder)
    except Exception as error:  # noqa: BLE001 - a full disk, a damaged picture, a bug in a section: training continues
        warnings.warn(f"{folder / REPORT_FILE}: not written ({type(error).__name__}: {error})", stacklevel=2)


def all_sections(record: RunRecord, other: RunRecord | None = None) -> list[ReportSection]:
    """The sections that have content for a run, in the page's order."""
    found = (SECTIONS[name](record, other) for name in SECTIONS)
    return sorted((section for section in found if section is not None), key=lambda section: section.order)


def _written(page: str, path: Path) -> Path:
    """Write a temporary file and rename it, so that a browser never loads half a page."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {path}: the page is an HTML file; give a name that ends in .html")
    beside = path.with_suffix(".new")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written ({error.strerror})") from None
    return path
