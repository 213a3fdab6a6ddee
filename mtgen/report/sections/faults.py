"""Faults that the run recovered from."""

from mtgen.report.blocks import SECTIONS, Block, Bullets, Note, ReportSection, Table
from mtgen.report.run_record import STATUS_BY_MLFLOW, RunRecord
from mtgen.tracking.journal import NONFINITE_SUFFIX
from mtgen.tracking.progress_bar import format_duration


@SECTIONS.register("faults")
def gather(record: RunRecord, other: RunRecord | None) -> ReportSection:
    """Hung workers, resumes, damaged samples, skipped steps, and numbers that were not finite."""
    blocks: list[Block] = []
    if lines := [*_hangs(record), *_steps(record), *_damage(record), *_numbers(record)]:
        blocks.append(Bullets(lines))
    if len(record.sessions) > 1:
        rows = [
            [
                str(number + 1),
                f"{session.begin:,}",
                f"{session.end:,}",
                format_duration(session.seconds),
                str(session.workers),
                STATUS_BY_MLFLOW.get(session.status, "unknown"),
            ]
            for number, session in enumerate(record.sessions)
        ]
        rows[-1][-1] = record.status
        resumes = len(rows) - 1
        caption = f"Resumed from a checkpoint {resumes} time{'s' if resumes > 1 else ''}."
        blocks.append(Table(["session", "first image", "last image", "time", "workers", "status"], rows, caption))
    return ReportSection(
        8, "Recovered faults", blocks or [Note("None: one session, no damaged sample, no skipped step.")]
    )


def _hangs(record: RunRecord) -> list[str]:
    """The first line of each file of stacks, which names the worker that hung."""
    files = sorted(record.folder.glob("stacks-*.txt"))
    return [f"{file.name}: {file.read_text(encoding='utf-8').partition(chr(10))[0]}" for file in files]


def _steps(record: RunRecord) -> list[str]:
    names = {network: record.last(f"gradient/{network}_nonfinite_steps") for network in ("discriminator", "generator")}
    return [
        f"{number:,.0f} steps of the {network} were skipped because their gradients were not finite"
        for network, number in names.items()
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
