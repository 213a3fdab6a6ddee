"""How it stands, at a glance."""

from mtgen.report.blocks import SECTIONS, Fact, Facts, Section
from mtgen.report.run_record import Record
from mtgen.tracking.progress_bar import duration

HEADLINES = ("class_accuracy", "mask_miou", "box_ap50", "cas", "diversity", "class_reached", "reconstruction_psnr")
"""Metrics that are shown at the top, the most telling first."""
GROUPS = ("evaluation", "test", "generated")
"""Where they are looked for; of two values at one position, the first group's counts: it was measured on more samples."""
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
    """The metric's newest value, with its position where the run has gone on since."""
    found = [(group, record.series[f"{group}/{name}"][-1]) for group in GROUPS if f"{group}/{name}" in record.series]
    if not found:
        return None
    group, (images, value) = max(found, key=lambda one: one[1][0])  # of equals the first
    since = f" at {images:,} images" if images < record.images else ""
    return Fact(name.replace("_", " "), f"{value:.3f}" if value < 10 else f"{value:.1f}", f"{group}{since}")
