"""What a run warned of, and what usually helps."""

from mtgen.alarms import read_alarms
from mtgen.report.blocks import SECTIONS, Bullets, Section
from mtgen.report.run_record import Record


@SECTIONS.register("alarms")
def gather(record: Record, other: Record | None) -> Section | None:
    """A line an alarm; none where the run raised none."""
    alarms = read_alarms(record.folder)
    return Section(1, "Alarms", [Bullets([str(alarm) for alarm in alarms], alarm=True)]) if alarms else None
