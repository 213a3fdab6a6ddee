"""What went wrong on the way, and was survived."""

from mtgen.report.blocks import SECTIONS, Block, Bullets, Note, ReportSection, Table
from mtgen.report.run_record import STATUS_BY_MLFLOW, RunRecord
from mtgen.tracking.journal import NONFINITE_SUFFIX
from mtgen.tracking.progress_bar import format_duration


@SECTIONS.register("faults")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """Resumes, damaged samples, skipped steps and numbers that were not finite."""
    blocks: list[Block] = []
    if lines := [*_steps(record), *_damage(record), *_numbers(record)]:
        blocks.append(Bullets(lines))
    if len(record.stretches) > 1:
        rows = [
            [
                str(number + 1),
                f"{part.begin:,}",
                f"{part.end:,}",
                format_duration(part.seconds),
                str(part.workers),
                STATUS_BY_MLFLOW.get(part.status, "no word"),
            ]
            for number, part in enumerate(record.stretches)
        ]
        rows[-1][-1] = record.status
        resumes = len(rows) - 1
        caption = f"Went on {resumes} time{'s' if resumes > 1 else ''} from a checkpoint."
        blocks.append(Table(["stretch", "from images", "to images", "time", "workers", "ended"], rows, caption))
    return ReportSection(
        8, "Faults survived", blocks or [Note("None: one stretch of training, every sample whole, every step taken.")]
    )


def _steps(record: RunRecord) -> list[str]:
    names = {side: record.last(f"gradient/{side}_nonfinite_steps") for side in ("discriminator", "generator")}
    return [
        f"{number:,.0f} steps of the {side} were skipped: their gradient was not finite"
        for side, number in names.items()
        if number
    ]


def _damage(record: RunRecord) -> list[str]:
    names = [name for name in record.series if name.startswith("data/damaged_")]
    return [
        f"{record.last(name):,.0f} samples with a damaged {name.removeprefix('data/damaged_')} were replaced"
        for name in names
    ]


def _numbers(record: RunRecord) -> list[str]:
    names = [name for name in record.series if name.endswith(NONFINITE_SUFFIX)]
    return [f"{name.removesuffix(NONFINITE_SUFFIX)} was not finite {record.last(name):,.0f} times" for name in names]
