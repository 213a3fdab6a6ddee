"""One self-contained page about a run, or about several side by side; each section is one file in `sections/`."""

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
    """Write a run's report; returns where it is.

    Args:
        against: another run, from which the configuration's differences are shown.
        out: default: `report.html` in the run's folder.

    Raises:
        ConfigError: `out` is no HTML file by its name.
        UserError: there is no such run; the page cannot be written.
    """
    record = read_record(run, runs)
    other = read_record(against, runs) if against is not None else None
    return _written(
        render(record.name, record.subtitle, all_sections(record, other)), Path(out or record.folder / REPORT_FILE)
    )


def write_comparison(chosen: Sequence[str | Path], out: str | Path, runs: Path = Path("runs")) -> Path:
    """Write a page that shows several runs side by side; returns where it is.

    Raises:
        ConfigError: fewer than two runs; `out` is no HTML file by its name.
        UserError: there is no such run; the page cannot be written.
    """
    if len(chosen) < 2:
        raise ConfigError("compare: give two runs or more")
    records = [read_record(run, runs) for run in chosen]
    return _written(render(f"{len(records)} runs side by side", "", comparison(records)), Path(out))


def refresh_report(folder: Path) -> None:
    """Write a run's report anew while it trains; whatever goes wrong is a warning, since no page is worth a run."""
    try:
        write_report(folder)
    except Exception as error:  # noqa: BLE001 - a full disk, a damaged picture, a section's mistake: training goes on
        warnings.warn(f"{folder / REPORT_FILE}: not written ({type(error).__name__}: {error})", stacklevel=2)


def all_sections(record: RunRecord, other: RunRecord | None = None) -> list[ReportSection]:
    """Every section that has something to say about a run, in the page's order."""
    found = (SECTIONS[name](record, other) for name in SECTIONS)
    return sorted((section for section in found if section is not None), key=lambda section: section.order)


def _written(page: str, path: Path) -> Path:
    """Write beside and rename, so that a browser never finds half a page."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {path}: the page is an HTML file; give a name that ends with .html")
    beside = path.with_suffix(".new")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written ({error.strerror})") from None
    return path
