"""Which tasks pull against each other where they share a tensor."""

from mtgen.balancing.conflicts import TABLE_NOTE, GateHistory, gate_histories, table
from mtgen.report.blocks import SECTIONS, Block, HeatMap, Note, ReportSection, Table
from mtgen.report.curves import evenly
from mtgen.report.run_record import RunRecord

MAX_HEATMAP_COLUMNS = 100
"""Moments of a heat map at most."""


@SECTIONS.register("conflict")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection | None:
    """For each gate a heat map of cosines over time, and the table of `mtgen tasks`."""
    found = gate_histories((row.images, row.values) for row in record.rows if row.values)
    if not found:
        return None
    note = "Cosines of the tasks' gradients where they meet: blue pulls the same way, orange against each other."
    blocks: list[Block] = [Note(note)]
    for gate, meeting in found.items():
        if len(meeting.tasks) > 1:
            blocks.append(HeatMap(f"Gate at {gate}", _heat(meeting)))
            blocks.append(Table(*table(meeting), f"{TABLE_NOTE}."))
    return ReportSection(5, "Task conflict", blocks) if len(blocks) > 1 else None


def _heat(meeting: GateHistory) -> dict[str, object]:
    chosen = evenly(list(zip(meeting.images, meeting.rows, strict=True)), MAX_HEATMAP_COLUMNS)
    pairs = [(a, b) for n, b in enumerate(meeting.tasks) for a in meeting.tasks[:n]]
    rows = []
    for a, b in pairs:
        values = [row.get(f"cosine_{a}_{b}", row.get(f"cosine_{b}_{a}")) for _, row in chosen]
        rows.append([f"{a} – {b}", [None if value is None else round(value, 3) for value in values]])
    return {"positions": [images for images, _ in chosen], "rows": rows}
