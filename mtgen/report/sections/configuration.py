"""With which settings the run was trained."""

from mtgen.report.blocks import SECTIONS, Block, FoldedText, Note, ReportSection, Table
from mtgen.report.compare import differences
from mtgen.report.run_record import RunRecord


@SECTIONS.register("configuration")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """Version, what differs from another run, and every setting."""
    tags = record.tags
    commit = tags.get("mlflow.source.git.commit", "")
    dirty = " with changes that are not committed" if tags.get("git.dirty") == "true" else ""
    rows = [
        ["mtgen", tags.get("mtgen.version", "-")],
        ["commit", f"{commit[:12]}{dirty}"],
        ["folder", str(record.folder)],
    ]
    blocks: list[Block] = [Table(["", ""], [row for row in rows if row[1]])]
    if other is not None:
        blocks += [Note(f"What differs from {other.name}:"), *differences([record, other], [record.name, other.name])]
    blocks.append(FoldedText("Every setting", str((record.starts[-1].start or {}).get("config", ""))))
    return ReportSection(9, "Configuration", blocks)
