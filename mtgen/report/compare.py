"""The sections of a page that shows several runs side by side."""

from collections.abc import Sequence

from mtgen.evaluation.metric import better
from mtgen.report.blocks import Block, Curves, Note, Pictures, ReportSection, Table
from mtgen.report.curves import charts
from mtgen.report.image_timeline import PAGE_IMAGE_BYTES, select_positions, sheets, track
from mtgen.report.run_record import RunRecord, flat
from mtgen.tracking.progress_bar import format_duration

METRIC_GROUPS = ("test", "generated", "evaluation")
"""Groups of the journal's numbers that are metrics."""


def comparison(records: Sequence[RunRecord]) -> list[ReportSection]:
    """Facts, samples, metrics, curves and what differs in the configurations."""
    labels = distinct(records)
    return [
        ReportSection(0, "Runs", [_facts(records, labels)]),
        ReportSection(1, "Pictures at equal images", _pictures(records, labels)),
        ReportSection(2, "Metrics", [metrics(records, labels)]),
        ReportSection(
            3, "Curves", [Curves(charts({label: record.series for label, record in zip(labels, records, strict=True)}))]
        ),
        ReportSection(4, "Configuration", differences(records, labels)),
    ]


def distinct(records: Sequence[RunRecord]) -> list[str]:
    """The runs' names; with their folders where two are the same, and numbered where that is not enough."""
    names = [record.name for record in records]
    names = [
        name if names.count(name) == 1 else f"{name} ({record.folder})"
        for name, record in zip(names, records, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} #{number + 1}" for number, name in enumerate(names)]


def _facts(records: Sequence[RunRecord], labels: list[str]) -> Table:
    rows = {
        "status": [record.status for record in records],
        "images": [f"{record.images:,}" for record in records],
        "time": [format_duration(record.seconds) for record in records],
        "device hours": [f"{sum(s.seconds * s.workers for s in record.stretches) / 3600:.2f}" for record in records],
        "data": [record.tags.get("dataset.name", "") for record in records],
        "version": [record.tags.get("mtgen.version", "") for record in records],
    }
    return Table(["", *labels], [[name, *values] for name, values in rows.items()])


def _pictures(records: Sequence[RunRecord], labels: list[str]) -> list[Block]:
    found = [sheets(record) for record in records]
    names = [name for name in dict.fromkeys(name for run in found for name in run) if not name.startswith("batch-")]
    if not names:
        return [Note("None of the runs has kept pictures in layers.")]
    positions = select_positions(found, names, PAGE_IMAGE_BYTES)
    blocks: list[Block] = []
    for name in names:
        tracks = [track(label, run[name], positions) for label, run in zip(labels, found, strict=True) if name in run]
        tracks = [part for part in tracks if part["frames"]]
        if tracks:
            blocks.append(Pictures(tracks[0]["frames"][0]["title"], {"tracks": tracks}))
    return blocks


def metrics(records: Sequence[RunRecord], labels: list[str]) -> Table:
    """The last value of every metric; the best of a row is marked where the runs differ and its metric says what is better."""
    names = dict.fromkeys(
        name for record in records for name in record.series if name.partition("/")[0] in METRIC_GROUPS
    )
    rows, best = [], set()
    for number, name in enumerate(sorted(names)):
        values = [record.last(name) for record in records]
        there = [value for value in values if value is not None]
        rows.append([name, *("-" if value is None else f"{value:.4g}" for value in values)])
        direction = better(name)
        if direction and len(there) > 1 and min(there) != max(there):
            top = max(there) if direction == "higher" else min(there)
            best |= {(number, column + 1) for column, value in enumerate(values) if value == top}
    return Table(
        ["metric", *labels], rows, "The last value of each; the best is marked, where higher or lower is better.", best
    )


def differences(records: Sequence[RunRecord], labels: list[str]) -> list[Block]:
    """A row for every key whose values are not all the same."""
    flats = [flat(record.config) for record in records]
    keys = [key for key in dict.fromkeys(key for one in flats for key in one) if key not in ("name", "runs")]
    rows = [[key, *(one.get(key, "-") for one in flats)] for key in keys if len({one.get(key) for one in flats}) > 1]
    return [Table(["key", *labels], rows)] if rows else [Note("The configurations are the same.")]
