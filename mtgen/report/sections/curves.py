"""Every number over images."""

from mtgen.report.blocks import SECTIONS, Curves, Section
from mtgen.report.curves import charts
from mtgen.report.run_record import Record


@SECTIONS.register("curves")
def gather(record: Record, other: Record | None) -> Section | None:
    """A chart a number, in groups."""
    return Section(4, "Curves", [Curves(charts({record.name: record.series}))]) if record.series else None
