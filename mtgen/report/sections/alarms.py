"""The alarms of a run, and what usually helps."""

from mtgen.alarms import read_alarms
from mtgen.report.blocks import SECTIONS, Bullets, ReportSection
from mtgen.report.run_record import RunRecord


@SECTIONS.register("alarms")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection | None:
    """One line per alarm; `None` where there is none."""
    alarms = read_alarms(record.folder)
    return ReportSection(1, "Alarms", [Bullets([str(alarm) for alarm in alarms], alarm=True)]) if alarms else None
