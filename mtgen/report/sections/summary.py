"""How it stands, at a glance."""

from mtgen.progress import duration
from mtgen.report.blocks import SECTIONS, Fact, Facts, Section
from mtgen.report.record import Record

HEADLINES = ("class_accuracy", "mask_miou", "box_ap50", "cas", "diversity", "class_reached", "reconstruction_psnr")
"""Metrics that are shown at the top, the most telling first."""
MOST = 4


@SECTIONS.register("summary")
def gather(record: Record, other: Record | None) -> Section:
    """Images, time, and the most telling metrics."""
    facts = [
        Fact("images", f"{record.images:,}", f"of {max(record.planned, record.images):,}"),
        Fact("time", duration(record.seconds), record.status),
    ]
    found = [fact for name in HEADLINES if (fact := _headline(record, name))]
    return Section(0, "Summary", [Facts([*facts, *found[:MOST]])])


def _headline(record: Record, name: str) -> Fact | None:
    for group in ("evaluation", "test", "generated"):
        value = record.last(f"{group}/{name}")
        if value is not None:
            return Fact(name.replace("_", " "), f"{value:.3f}" if value < 10 else f"{value:.1f}", group)
    return None
