"""Generated images and predictions over time."""

from mtgen.report.blocks import SECTIONS, Block, Note, Pictures, ReportSection
from mtgen.report.image_timeline import grid_files, in_page_order, select_positions, track
from mtgen.report.run_record import RunRecord


@SECTIONS.register("pictures")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """One block per kind of grid."""
    found = grid_files(record)
    names = in_page_order(found)
    if not names:
        return ReportSection(
            2, "Pictures", [Note("No pictures yet: they come with the first snapshot (evaluate.every).")]
        )
    positions = select_positions([found], names)
    available = {position for name in names for position in found[name]}
    blocks: list[Block] = []
    for name in names:
        one = track("", found[name], positions)
        if one["frames"]:
            blocks.append(Pictures(one["frames"][-1]["title"], {"tracks": [one]}))
    if len(positions) < len(available):
        blocks.append(
            Note(f"{len(positions)} of {len(available)} snapshots are shown, evenly spaced; all are in samples/layers.")
        )
    return ReportSection(2, "Pictures", blocks)
