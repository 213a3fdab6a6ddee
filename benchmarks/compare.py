"""The same benchmark in two checkouts, by turns: what a change made faster or slower.

The other checkout is `--base`, any commit, branch or tag, in a git worktree of its own that is removed afterwards. Each round runs both,
the next one in the other order, so that what else the machine does falls on both alike. Rows are matched by their name and turn,
numbers by theirs; a ratio is this checkout's median over the base's.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from common import machine, report

ROOT = Path(__file__).resolve().parents[1]
Found = dict[tuple[str, int, str], list[float]]
"""(row's name, which of that name, number's name) -> one value a round."""


def measured(checkout: Path, benchmark: str, options: list[str], file: Path) -> list[dict[str, Any]]:
    """Run a benchmark of a checkout; its rows."""
    program = checkout / "benchmarks" / f"{benchmark}.py"
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    ended = subprocess.run(
        [sys.executable, str(program), *options, "--json", str(file)], cwd=checkout, env=environment, stdout=sys.stderr
    )
    if ended.returncode:
        raise typer.BadParameter(
            f"{benchmark} in {checkout.name} ended with {ended.returncode}; what it said is above",
            param_hint="BENCHMARK",
        )
    return list(json.loads(file.read_text(encoding="utf-8"))["rows"])


def collect(found: Found, rows: list[dict[str, Any]]) -> None:
    """Add every number of these rows."""
    turns: dict[str, int] = {}
    for row in rows:
        turn = turns[row["name"]] = turns.get(row["name"], -1) + 1
        for key, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault((row["name"], turn, key), []).append(float(value))


def compared(base: Found, here: Found) -> list[dict[str, Any]]:
    """A row for every number that both checkouts have."""
    rows = []
    for at in [at for at in here if at in base]:
        name, turn, number = at
        before, after = statistics.median(base[at]), statistics.median(here[at])
        spread = max(
            (max(values) - min(values)) / abs(statistics.median(values) or 1) for values in (base[at], here[at])
        )
        row: dict[str, Any] = {
            "name": f"{name} ({turn + 1})" if turn else name,
            "number": number,
            "base": before,
            "here": after,
        }
        row |= {
            "ratio": after / before if before else None,
            "spread": spread,
            "each_base": base[at],
            "each_here": here[at],
        }
        rows.append(row)
    return rows


def main(
    benchmark: Annotated[str, typer.Argument(help="a program in benchmarks/, such as train_speed")],
    options: Annotated[list[str] | None, typer.Argument(help="of that program, behind --; default: --quick")] = None,
    base: Annotated[str, typer.Option(help="the other checkout: a commit, branch or tag")] = "HEAD~1",
    rounds: Annotated[int, typer.Option(min=1, help="of both")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the numbers to this file")] = None,
) -> None:
    """Measure this checkout and another by turns. Example: compare.py train_speed --base v0.1 -- --quick --data shards"""
    here = machine()
    with tempfile.TemporaryDirectory(prefix="mtgen-compare-") as temporary:
        other = Path(temporary) / "base"
        added = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(other), base], capture_output=True, text=True
        )
        if added.returncode:
            raise typer.BadParameter(
                f"{base} cannot be checked out: {added.stderr.strip().splitlines()[-1]}", param_hint="--base"
            )
        try:
            if missing := [str(c) for c in (other, ROOT) if not (c / "benchmarks" / f"{benchmark}.py").is_file()]:
                raise typer.BadParameter(
                    f"there is no benchmarks/{benchmark}.py in {', '.join(missing)}", param_hint="BENCHMARK"
                )
            found: dict[Path, Found] = {other: {}, ROOT: {}}
            for number in range(rounds):
                for checkout in (other, ROOT) if number % 2 == 0 else (ROOT, other):
                    collect(
                        found[checkout],
                        measured(checkout, benchmark, options or ["--quick"], Path(temporary) / "rows.json"),
                    )
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(other)], check=True)
    report(
        f"{benchmark}: this checkout against {base}, medians of {rounds}",
        here,
        compared(found[other], found[ROOT]),
        json_file,
    )


if __name__ == "__main__":
    typer.run(main)
