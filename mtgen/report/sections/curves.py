"""Every number over images seen."""

from mtgen.report.blocks import SECTIONS, Curves, ReportSection
from mtgen.report.curves import charts
from mtgen.report.run_record import RunRecord


@SECTIONS.register("curves")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection | None:
    """One chart per number, in groups."""
    return ReportSection(4, "Curves", [Curves(charts({record.name: record.series}))]) if record.series else None
