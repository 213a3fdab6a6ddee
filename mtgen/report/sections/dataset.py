"""The data set of the run."""

from mtgen.report.blocks import SECTIONS, ReportSection, Table
from mtgen.report.run_record import RunRecord

MAX_CLASS_NAMES = 24
"""Maximal class names that are listed."""


@SECTIONS.register("dataset")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """The data set's card at the run's last start."""
    start, data = record.starts[-1].start or {}, record.config.get("data", {})
    card = start.get("card") or {}  # missing in runs of earlier versions
    rows = [
        ["name", record.tags.get("dataset.name", "-")],
        ["fingerprint", record.tags.get("dataset.fingerprint", "-")],
        ["path", str(data.get("path") or ", ".join(str(part.get("path")) for part in data.get("mixture", [])))],
        ["source", card.get("source", "")],
        ["license", card.get("licence", "")],
        [
            "splits",
            ", ".join(f"{name}: {split['samples']:,} samples" for name, split in card.get("splits", {}).items()),
        ],
        ["classes", _names(card.get("classes", []))],
        ["mask classes", _names(card.get("mask_classes", []))],
        ["domains", _names(card.get("domains", []))],
    ]
    return ReportSection(6, "Data", [Table(["", ""], [row for row in rows if row[1]])])


def _names(names: list[str]) -> str:
    more = f", and {len(names) - MAX_CLASS_NAMES} more" if len(names) > MAX_CLASS_NAMES else ""
    return f"{len(names)}: {', '.join(names[:MAX_CLASS_NAMES])}{more}" if names else ""
