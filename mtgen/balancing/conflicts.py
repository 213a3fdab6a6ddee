"""Who hurts whom: what the gates recorded in a run's journal, as a table and a heat map over time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtgen.errors import UserError
from mtgen.tracking.journal import find_journal, read_journal

GATE_PREFIX = "balancing_"
TASK_STATISTICS = ("norm", "weight")
PAIRS = ("cosine", "conflict")

TABLE_NOTE = "by n: what task n's gradient adds to (+) or takes from (-) the task's own progress; in brackets, how often the two conflict; both in %"
"""How to read the table."""


@dataclass
class GateHistory:
    """What one gate recorded over a stretch of training.

    Attributes:
        tasks: in the order in which they first appeared.
        images: `[R]` positions of the rows.
        rows: `[R]` what each row says, by name.
    """

    tasks: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)

    def mean(self, name: str, last: int) -> float | None:
        """Mean of a number over the last rows that have it; `None` where none has."""
        values = [row[name] for row in self.rows[-last:] if name in row]
        return sum(values) / len(values) if values else None

    def pair(self, kind: str, a: str, b: str, last: int) -> float | None:
        """Mean of a pair's number, whichever task comes first in its name."""
        found = self.mean(f"{kind}_{a}_{b}", last)
        return self.mean(f"{kind}_{b}_{a}", last) if found is None else found

    def effect(self, by: str, on: str, last: int) -> float | None:
        """What the weighted gradient of task `by` does to the loss of task `on`, relative to what `on`'s own does: -0.3 takes away 30 %."""
        if by == on:
            return 1.0
        cosine = self.pair("cosine", by, on, last)
        norms = [self.mean(f"norm_{task}", last) for task in (by, on)]
        weights = [self.mean(f"weight_{task}", last) for task in (by, on)]
        if cosine is None or None in norms or None in weights:
            return None
        mine = norms[1] * abs(weights[1])  # type: ignore[operator, arg-type]
        return cosine * norms[0] * abs(weights[0]) / mine if mine else None  # type: ignore[operator, arg-type]

    def gradient_fractions(self, last: int) -> dict[str, float]:
        """Each task's share of the weighted gradients' lengths."""
        sizes = {
            task: abs(self.mean(f"weight_{task}", last) or 0.0) * (self.mean(f"norm_{task}", last) or 0.0)
            for task in self.tasks
        }
        whole = sum(sizes.values())
        return {task: size / whole if whole else 0.0 for task, size in sizes.items()}


def gate_histories(rows: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, GateHistory]:
    """Rows of numbers at positions -> what each gate recorded, by the gate's name."""
    found: dict[str, GateHistory] = {}
    for images, values in rows:
        here: dict[str, dict[str, float]] = {}
        for key, value in values.items():
            gate, _, name = key.partition("/")
            if gate.startswith(GATE_PREFIX):
                here.setdefault(gate.removeprefix(GATE_PREFIX), {})[name] = value
        for gate, numbers in here.items():
            meeting = found.setdefault(gate, GateHistory())
            meeting.images.append(images)
            meeting.rows.append(numbers)
            known = [
                name.removeprefix("norm_")
                for name in numbers
                if name.startswith("norm_") and not name.endswith("/nonfinite")
            ]
            meeting.tasks += [task for task in known if task not in meeting.tasks]
    return found


def load_gate_histories(run: str | Path, runs: Path = Path("runs")) -> dict[str, GateHistory]:
    """What the gates of a run recorded; the run is given as its folder or its name under `runs`.

    Raises:
        UserError: there is no such run, or its gates recorded nothing.
    """
    found = gate_histories((row.images, row.values) for row in read_journal(find_journal(run, runs)))
    if not found:
        raise UserError(
            f"{run}: nothing was recorded of its tasks' gradients: fewer than two tasks met, or balancing.weighting and balancing.canvas are none"
        )
    return found


def table(meeting: GateHistory, last: int = 10) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of "who hurts whom": a row a task, means over the last rows that were logged; `TABLE_NOTE` says how to read it.

    Tasks are numbered, so that seven of them fit into a terminal.
    """
    columns = ["task", "norm", "weight", "share", *(f"by {number}" for number in range(1, len(meeting.tasks) + 1))]
    shares, rows = meeting.gradient_fractions(last), []
    for number, task in enumerate(meeting.tasks, 1):
        numbers = [meeting.mean(f"{kind}_{task}", last) for kind in TASK_STATISTICS]
        shown = ["-" if value is None else f"{value:.2g}" for value in numbers]
        effects = ["" if other == task else _format_effect(meeting, task, other, last) for other in meeting.tasks]
        rows.append([f"{number} {task}", *shown, f"{100 * shares[task]:.1f} %", *effects])
    return columns, rows


def _format_effect(meeting: GateHistory, task: str, other: str, last: int) -> str:
    """What another task does to a task, and how often they conflict, in percent: `-30 (80)`."""
    effect, conflict = meeting.effect(other, task, last), meeting.pair("conflict", task, other, last)
    if effect is None:
        return "-"
    return f"{100 * effect:+.0f}" + ("" if conflict is None else f" ({100 * conflict:.0f})")


def markdown(found: Mapping[str, GateHistory], last: int = 10) -> str:
    """All gates' tables as Markdown."""
    parts = []
    for gate, meeting in found.items():
        columns, rows = table(meeting, last)
        body = [columns, ["-"] * len(columns), *rows]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in body)
        parts.append(f"## Gate at {gate}, {meeting.images[-1]:,} images\n\n{lines}\n")
    return "\n".join(["# Who hurts whom\n", *parts, f"{TABLE_NOTE}.\n"])


def write_artifacts(folder: Path) -> list[Path]:
    """The table and a heat map a gate, from the run's journal, in its folder `balancing/`; the files that were written."""
    from mtgen.visualization.grids import cosine_map

    found = gate_histories((row.images, row.values) for row in read_journal(folder))
    if not found:
        return []
    to = folder / "balancing"
    to.mkdir(exist_ok=True)
    (to / "who-hurts-whom.md").write_text(markdown(found), encoding="utf-8")
    paths = [to / "who-hurts-whom.md"]
    for gate, meeting in found.items():
        pairs = [(a, b) for n, b in enumerate(meeting.tasks) for a in meeting.tasks[:n]]
        lines = {
            f"{a} - {b}": [row.get(f"cosine_{a}_{b}", row.get(f"cosine_{b}_{a}")) for row in meeting.rows]
            for a, b in pairs
        }
        if lines:
            cosine_map(lines, meeting.images, f"cosines of gradients at {gate}").save(to / f"cosines-{gate}.png")
            paths.append(to / f"cosines-{gate}.png")
    return paths
