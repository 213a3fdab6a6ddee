"""The last value of every metric."""

from mtgen.report.blocks import SECTIONS, ReportSection, Table
from mtgen.report.run_record import RunRecord
from mtgen.report.titles import title_of


@SECTIONS.register("metrics")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection | None:
    """One row per metric: its value at the last snapshot, and at the last `mtgen evaluate`."""
    names: dict[str, dict[str, str]] = {}
    for name, points in record.series.items():
        group, _, short = name.partition("/")
        column = "evaluate" if group == "evaluation" else "snapshot" if group in ("val", "test", "generated") else ""
        if column:
            names.setdefault(short, {})[column] = f"{points[-1][1]:.4g} at {points[-1][0]:,}"
    if not names:
        return None
    rows = [
        [title_of(short), values.get("snapshot", "-"), values.get("evaluate", "-")]
        for short, values in sorted(names.items())
    ]
    caption = (
        "Value, and images seen. Snapshots compute quick metrics on fewer samples, mtgen evaluate computes all metrics."
    )
    return ReportSection(3, "Metrics", [Table(["metric", "last snapshot", "mtgen evaluate"], rows, caption)])
