"""Agreement and conflict of the tasks' gradients at shared tensors."""

from mtgen.balancing.conflicts import TABLE_NOTE, GateHistory, gate_histories, table
from mtgen.report.blocks import SECTIONS, Block, HeatMap, Note, ReportSection, Table
from mtgen.report.curves import evenly
from mtgen.report.run_record import RunRecord

MAX_HEATMAP_COLUMNS = 100
"""Maximal columns of a heat map."""


@SECTIONS.register("conflict")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection | None:
    """For each gate, a heat map of cosines over time, and the table of `mtgen conflicts`."""
    found = gate_histories((row.images, row.values) for row in record.rows if row.values)
    if not found:
        return None
    note = "Cosine similarity of the tasks' gradients at shared tensors. Blue: agreement; orange: conflict."
    blocks: list[Block] = [Note(note)]
    for gate, history in found.items():
        if len(history.tasks) > 1:
            blocks.append(HeatMap(f"Gate at {gate}", _heat(history)))
            blocks.append(Table(*table(history), f"{TABLE_NOTE}."))
    return ReportSection(5, "Task conflicts", blocks) if len(blocks) > 1 else None


def _heat(history: GateHistory) -> dict[str, object]:
    chosen = evenly(list(zip(history.images, history.rows, strict=True)), MAX_HEATMAP_COLUMNS)
    pairs = [(a, b) for n, b in enumerate(history.tasks) for a in history.tasks[:n]]
    rows = []
    for a, b in pairs:
        values = [row.get(f"cosine_{a}_{b}", row.get(f"cosine_{b}_{a}")) for _, row in chosen]
        rows.append([f"{a} – {b}", [None if value is None else round(value, 3) for value in values]])
    return {"positions": [images for images, _ in chosen], "rows": rows}
