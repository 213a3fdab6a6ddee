"""Every number over images."""

from mtgen.report.blocks import SECTIONS, Curves, Section
from mtgen.report.record import Record
from mtgen.report.series import charts


@SECTIONS.register("curves")
def gather(record: Record, other: Record | None) -> Section | None:
    """A chart a number, in groups."""
    return Section(4, "Curves", [Curves(charts({record.name: record.series}))]) if record.series else None
