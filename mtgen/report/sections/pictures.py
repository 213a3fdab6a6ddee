"""What the run drew and read, over time."""

from mtgen.report.blocks import SECTIONS, Block, Note, Pictures, ReportSection
from mtgen.report.image_timeline import select_positions, sheets, track
from mtgen.report.run_record import RunRecord

GRID_ORDER = ("grid", "reading", "asked-", "reconstruction", "translation", "batch-")
"""Kinds of sheets, by how their names begin."""


@SECTIONS.register("pictures")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """A block for every kind of sheet."""
    found = sheets(record)
    names = sorted(
        found,
        key=lambda name: next((i for i, begin in enumerate(GRID_ORDER) if name.startswith(begin)), len(GRID_ORDER)),
    )
    if not names:
        return ReportSection(
            2, "Pictures", [Note("There are no pictures yet: they come with the first snapshot (evaluate.every).")]
        )
    positions = select_positions([found], names)
    everywhere = {position for name in names for position in found[name]}
    blocks: list[Block] = []
    for name in names:
        one = track("", found[name], positions)
        if one["frames"]:
            blocks.append(Pictures(one["frames"][-1]["title"], {"tracks": [one]}))
    if len(positions) < len(everywhere):
        blocks.append(
            Note(
                f"{len(positions)} of {len(everywhere)} moments are shown, evenly spaced; the others are in samples/layers."
            )
        )
    return ReportSection(2, "Pictures", blocks)
