"""The run at a glance."""

from mtgen.report.blocks import SECTIONS, Fact, Facts, ReportSection
from mtgen.report.run_record import RunRecord
from mtgen.report.titles import title_of
from mtgen.tracking.progress_bar import format_duration

HEADLINES = ("class_accuracy", "mask_miou", "box_ap50", "cas", "diversity", "class_reached", "reconstruction_psnr")
"""Metrics that are shown at the top, the most informative first."""
HEADLINE_GROUPS = ("evaluation", "val", "test", "generated")
"""Groups that they are looked up in. Of two values at one position, the first group wins: it has more samples."""
MAX_HEADLINES = 4


@SECTIONS.register("summary")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """Images, time, and the most informative metrics."""
    facts = [
        Fact("images", f"{record.images:,}", f"of {max(record.planned_images, record.images):,}"),
        Fact("time", format_duration(record.seconds), record.status),
    ]
    found = [fact for name in HEADLINES if (fact := _headline(record, name))]
    return ReportSection(0, "Summary", [Facts([*facts, *found[:MAX_HEADLINES]])])


def _headline(record: RunRecord, name: str) -> Fact | None:
    """The newest value of a metric, with its position if the run has continued since."""
    found = [
        (group, record.series[f"{group}/{name}"][-1]) for group in HEADLINE_GROUPS if f"{group}/{name}" in record.series
    ]
    if not found:
        return None
    group, (images, value) = max(found, key=lambda one: one[1][0])  # the first of equal positions
    since = f", at {images:,} images" if images < record.images else ""
    return Fact(title_of(name), f"{value:.3f}" if value < 10 else f"{value:.1f}", f"{group}{since}")
