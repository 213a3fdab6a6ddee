"""The settings of the run."""

from mtgen.report.blocks import SECTIONS, Block, FoldedText, Note, ReportSection, Table
from mtgen.report.compare import differences
from mtgen.report.run_record import RunRecord


@SECTIONS.register("configuration")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """Version, differences from another run, and all settings."""
    tags = record.tags
    commit = tags.get("mlflow.source.git.commit", "")
    dirty = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    rows = [
        ["mtgen", tags.get("mtgen.version", "-")],
        ["commit", f"{commit[:12]}{dirty}"],
        ["folder", str(record.folder)],
    ]
    blocks: list[Block] = [Table(["", ""], [row for row in rows if row[1]])]
    if other is not None:
        blocks += [Note(f"Differences from {other.name}:"), *differences([record, other], [record.name, other.name])]
    blocks.append(FoldedText("All settings", str((record.starts[-1].start or {}).get("config", ""))))
    return ReportSection(9, "Configuration", blocks)
