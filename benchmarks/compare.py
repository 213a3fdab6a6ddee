"""Compare a benchmark between two checkouts: what a change made faster or slower.

The other checkout is `--base`, any commit, branch or tag, in a temporary git worktree. Each round runs both, in
alternating order, so that other work on the machine affects both alike. Rows are matched by name and order, numbers by
name; a ratio is this checkout's median over the base's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from common import ROOT, JsonOption, machine, quick_option, report

Values = dict[tuple[str, int, str], list[float]]
"""(name of the row, its index among rows of that name, name of the number) -> one value per round."""


def run_benchmark(checkout: Path, benchmark: str, options: list[str], file: Path) -> list[dict[str, Any]]:
    """Run a benchmark of a checkout; returns its rows."""
    program = checkout / "benchmarks" / f"{benchmark}.py"
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, str(program), *options, "--json", str(file)]
    ended = subprocess.run(command, cwd=checkout, env=environment, stdout=sys.stderr)
    if ended.returncode:
        raise typer.BadParameter(
            f"{benchmark} in {checkout.name} exited with status {ended.returncode}; see its output above",
            param_hint="BENCHMARK",
        )
    return list(json.loads(file.read_text(encoding="utf-8"))["rows"])


def collect(values: Values, rows: list[dict[str, Any]]) -> None:
    """Add every number of these rows to the values."""
    last_index: dict[str, int] = {}
    for row in rows:
        index = last_index[row["name"]] = last_index.get(row["name"], -1) + 1
        for key, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault((row["name"], index, key), []).append(float(value))


def compared(base: Values, here: Values) -> list[dict[str, Any]]:
    """Compare every number that both checkouts have; one row per number."""
    rows: list[dict[str, Any]] = []
    for key in [key for key in here if key in base]:
        name, index, number = key
        before, after = statistics.median(base[key]), statistics.median(here[key])
        both = (base[key], here[key])
        rows.append(
            {
                "name": f"{name} ({index + 1})" if index else name,
                "number": number,
                "base": before,
                "here": after,
                "ratio": after / before if before else None,
                "spread": max((max(values) - min(values)) / abs(statistics.median(values) or 1) for values in both),
                "each_base": base[key],
                "each_here": here[key],
            }
        )
    return rows


@contextmanager
def worktree(base: str) -> Iterator[Path]:
    """A checkout of `base` in a temporary git worktree."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="mtgen-compare-") as temporary:
        folder = Path(temporary) / "base"
        added = subprocess.run([*git, "add", "--detach", str(folder), base], capture_output=True, text=True)
        if added.returncode:
            reason = added.stderr.strip().splitlines()[-1]
            raise typer.BadParameter(f"{base} cannot be checked out: {reason}", param_hint="--base")
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main(
    benchmark: Annotated[str, typer.Argument(help="a program in benchmarks/, such as train_speed")],
    options: Annotated[
        list[str] | None, typer.Argument(help="options of that program, after --; default: --quick")
    ] = None,
    quick: Annotated[bool, quick_option("one round")] = False,
    base: Annotated[str, typer.Option(help="the other checkout: a commit, branch or tag")] = "HEAD~1",
    rounds: Annotated[int | None, typer.Option(min=1, help="number of rounds; default: 3, quick: 1")] = None,
    json_file: JsonOption = None,
) -> None:
    """Run a benchmark in this checkout and another one.

    Example: compare.py train_speed --base v0.1 -- --quick --data shards
    """
    here, rounds = machine(), rounds or (1 if quick else 3)
    with worktree(base) as other, tempfile.TemporaryDirectory(prefix="mtgen-compare-") as temporary:
        missing = [str(c) for c in (other, ROOT) if not (c / "benchmarks" / f"{benchmark}.py").is_file()]
        if missing:
            raise typer.BadParameter(
                f"benchmarks/{benchmark}.py does not exist in {', '.join(missing)}", param_hint="BENCHMARK"
            )
        values: dict[Path, Values] = {other: {}, ROOT: {}}
        for number in range(rounds):
            for checkout in (other, ROOT) if number % 2 == 0 else (ROOT, other):
                rows = run_benchmark(checkout, benchmark, options or ["--quick"], Path(temporary) / "rows.json")
                collect(values[checkout], rows)
    title = f"{benchmark}: this checkout compared with {base}, medians of {rounds} rounds"
    report(title, here, compared(values[other], values[ROOT]), json_file)


if __name__ == "__main__":
    typer.run(main)
