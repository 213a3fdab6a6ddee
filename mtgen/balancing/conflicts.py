"""Task conflicts: what the gates logged to a run's journal, as a table and as a heat map over time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mtgen.errors import UserError
from mtgen.tracking.journal import find_journal, read_journal

GATE_PREFIX = "balancing_"
TASK_STATISTICS = ("norm", "weight")

TABLE_NOTE = (
    "by n: how much task n's gradient speeds up (+) or slows down (-) the row's task, relative to that task's own "
    "gradient; in brackets, how often the two conflict; both in %"
)
"""How to read the table."""


@dataclass
class GateHistory:
    """What one gate logged over a stretch of training.

    Attributes:
        tasks: in the order of first appearance.
        images: `[R]` images seen at each logged row.
        rows: `[R]` the numbers of each row, by name.
    """

    tasks: list[str] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)

    def mean(self, name: str, last: int) -> float | None:
        """Return the mean of a number over the last `last` rows, of those that have it; `None` if none has."""
        values = [row[name] for row in self.rows[-last:] if name in row]
        return sum(values) / len(values) if values else None

    def pair(self, kind: str, a: str, b: str, last: int) -> float | None:
        """Return the mean of a pair's number ("cosine" or "conflict"), whichever task comes first in its name."""
        found = self.mean(f"{kind}_{a}_{b}", last)
        return self.mean(f"{kind}_{b}_{a}", last) if found is None else found

    def effect(self, by: str, on: str, last: int) -> float | None:
        """Return the effect of `by`'s weighted gradient on the loss of `on`, relative to that of `on`'s own gradient.

        -0.3 means that it slows the descent by 30 %; `None` if a number is missing.
        """
        if by == on:
            return 1.0
        cosine = self.pair("cosine", by, on, last)
        norms = [self.mean(f"norm_{task}", last) for task in (by, on)]
        weights = [self.mean(f"weight_{task}", last) for task in (by, on)]
        if cosine is None or None in norms or None in weights:
            return None
        own = norms[1] * abs(weights[1])  # type: ignore[operator, arg-type]
        return cosine * norms[0] * abs(weights[0]) / own if own else None  # type: ignore[operator, arg-type]

    def gradient_fractions(self, last: int) -> dict[str, float]:
        """Return each task's fraction of the sum of the weighted gradients' norms."""
        sizes = {
            task: abs(self.mean(f"weight_{task}", last) or 0.0) * (self.mean(f"norm_{task}", last) or 0.0)
            for task in self.tasks
        }
        total = sum(sizes.values())
        return {task: size / total if total else 0.0 for task, size in sizes.items()}


def gate_histories(rows: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, GateHistory]:
    """Collect what each gate logged, by the gate's name.

    Args:
        rows: images seen and the numbers logged then.
    """
    found: dict[str, GateHistory] = {}
    for images, values in rows:
        by_gate: dict[str, dict[str, float]] = {}
        for key, value in values.items():
            gate, _, name = key.partition("/")
            if gate.startswith(GATE_PREFIX):
                by_gate.setdefault(gate.removeprefix(GATE_PREFIX), {})[name] = value
        for gate, numbers in by_gate.items():
            history = found.setdefault(gate, GateHistory())
            history.images.append(images)
            history.rows.append(numbers)
            tasks = [
                name.removeprefix("norm_")
                for name in numbers
                if name.startswith("norm_") and not name.endswith("/nonfinite")
            ]
            history.tasks += [task for task in tasks if task not in history.tasks]
    return found


def load_gate_histories(run: str | Path, runs: Path = Path("runs")) -> dict[str, GateHistory]:
    """Read what the gates of a run logged.

    Args:
        run: the run's folder, or its name under `runs`.

    Raises:
        UserError: the run does not exist, or its gates logged nothing.
    """
    found = gate_histories((row.images, row.values) for row in read_journal(find_journal(run, runs)))
    if not found:
        raise UserError(
            f"{run}: no gradient statistics were logged; they need two tasks at one gate, "
            "and balancing.weighting or balancing.canvas other than none"
        )
    return found


def table(history: GateHistory, last: int = 10) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the conflict table (`TABLE_NOTE`): one row per task, means over the last logged rows.

    Columns name the tasks by number, so that seven of them fit into a terminal.
    """
    numbered = list(enumerate(history.tasks, 1))
    columns = ["task", "norm", "weight", "fraction", *(f"by {number}" for number, _ in numbered)]
    fractions, rows = history.gradient_fractions(last), []
    for number, task in numbered:
        numbers = [history.mean(f"{kind}_{task}", last) for kind in TASK_STATISTICS]
        shown = ["-" if value is None else f"{value:.2g}" for value in numbers]
        effects = ["" if other == task else _format_effect(history, task, other, last) for other in history.tasks]
        rows.append([f"{number} {task}", *shown, f"{100 * fractions[task]:.1f} %", *effects])
    return columns, rows


def _format_effect(history: GateHistory, task: str, other: str, last: int) -> str:
    """Format the effect of another task on a task, and how often they conflict, in percent: `-30 (80)`."""
    effect, conflict = history.effect(other, task, last), history.pair("conflict", task, other, last)
    if effect is None:
        return "-"
    return f"{100 * effect:+.0f}" + ("" if conflict is None else f" ({100 * conflict:.0f})")


def markdown(found: Mapping[str, GateHistory], last: int = 10) -> str:
    """Return all gates' tables as Markdown."""
    parts = []
    for gate, history in found.items():
        columns, rows = table(history, last)
        body = [columns, ["-"] * len(columns), *rows]
        lines = "\n".join(f"| {' | '.join(row)} |" for row in body)
        parts.append(f"## Gate at {gate}, {history.images[-1]:,} images\n\n{lines}\n")
    return "\n".join(["# Task conflicts\n", *parts, f"{TABLE_NOTE}.\n"])


def write_artifacts(folder: Path) -> list[Path]:
    """Write the table and one heat map per gate into the run's folder `balancing/`; return the files written."""
    from mtgen.visualization.grids import cosine_map

    found = gate_histories((row.images, row.values) for row in read_journal(folder))
    if not found:
        return []
    to = folder / "balancing"
    to.mkdir(exist_ok=True)
    paths = [to / "who-hurts-whom.md"]
    paths[0].write_text(markdown(found), encoding="utf-8")
    for gate, history in found.items():
        pairs = [(a, b) for n, b in enumerate(history.tasks) for a in history.tasks[:n]]
        lines = {
            f"{a} - {b}": [row.get(f"cosine_{a}_{b}", row.get(f"cosine_{b}_{a}")) for row in history.rows]
            for a, b in pairs
        }
        if lines:
            paths.append(to / f"cosines-{gate}.png")
            cosine_map(lines, history.images, f"cosines of gradients at {gate}").save(paths[-1])
    return paths
