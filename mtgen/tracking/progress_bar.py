"""Progress of a training run: a bar on a terminal, otherwise a line at intervals."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from mtgen.tracking.journal import JournalReader, JournalRow

PROGRESS_POLL_SECONDS = 0.5
"""Seconds between two reads of the journal."""
PLAIN_LINE_SECONDS = 10.0
"""Shortest interval between two lines without a terminal."""


class _TwoLines(Bar):
    """The bar and, below it, the latest losses."""

    below = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.below:
            yield Text(self.below, style="dim", no_wrap=True, overflow="ellipsis")


class TrainingProgress:
    """Shows images seen, speed, time left and latest losses of a run, from its journal.

    Args:
        total_images: length of the run.
        name: name of the run.
        console: where to print; default: standard error.
        every: shortest interval between two lines if the console is not a terminal, in seconds.
    """

    def __init__(
        self, total_images: int, name: str, console: Console | None = None, every: float = PLAIN_LINE_SECONDS
    ) -> None:
        self.total = total_images
        self.name = name
        self.every = every
        self._console = console or Console(stderr=True)
        self._bar: _TwoLines | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} images"),
                TextColumn("{task.fields[pace]}"),
            )
            self._bar = _TwoLines(*columns, console=self._console, expand=True)
            self._task = self._bar.add_task(name, total=total_images, pace="")
        self._printed = float("-inf")
        self._latest: JournalRow | None = None  # not printed yet
        self._before: JournalRow | None = None
        self._text = ""

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Print the latest row if it has not been shown, and restore the terminal; further calls do nothing."""
        if self._bar:
            self._bar.stop()
        elif self._latest:
            self._print()

    def status(self, text: str) -> None:
        """Show what happens while no images are seen, such as "starting workers"; "" when training continues."""
        if text == self._text:
            return
        self._text = text
        if self._bar:
            self._bar.update(self._task, description=f"{self.name}: {text}" if text else self.name)
        elif text:
            self._console.print(f"{self.name}: {text}", highlight=False, markup=False, soft_wrap=True)

    def update(self, row: JournalRow) -> None:
        """Show a row of the journal."""
        if row.phase is not None:
            self.status(row.phase)
        if not any(key.startswith("loss/") for key in row.values):
            return
        self.status("")
        self._pace = format_pace(row, self._before, self.total)
        self._before = self._latest = row
        if self._bar:
            self._bar.update(self._task, completed=row.images, pace=self._pace)
            self._bar.below = format_losses(row)
        elif time.monotonic() - self._printed >= self.every:
            self._print()

    def follow(
        self, folder: str | Path, start: int, alive: Callable[[], bool], poll: float = PROGRESS_POLL_SECONDS
    ) -> None:
        """Show the rows that a training writes to the journal of `folder` from now on, until it ends.

        Args:
            folder: folder of the run.
            start: images seen at the start, or where the run resumes.
            alive: whether the training still runs; called every `poll` seconds. An exception ends this method.
            poll: seconds between two reads of the journal.
        """
        if self._bar:
            self._bar.update(self._task, completed=start)
        reader = JournalReader(folder)
        running = True
        while running:
            running = alive()  # before the last read, so that no row is missed
            for row in reader.new():
                self.update(row)
            if running:
                time.sleep(poll)

    def _print(self) -> None:
        row, self._latest, self._printed = self._latest, None, time.monotonic()
        if row:
            parts = [f"{row.images:,}/{self.total:,} images", self._pace, format_losses(row)]
            self._console.print("  ".join(filter(None, parts)), highlight=False, markup=False, soft_wrap=True)


def format_pace(row: JournalRow, before: JournalRow | None, total: int) -> str:
    """`142 img/s  22m left`, from the speed in `row` or the time since the row `before`; "" if neither is known."""
    speed = row.values.get("speed/images_per_second", 0.0)
    if not speed and before and row.time > before.time:
        speed = (row.images - before.images) / (row.time - before.time)
    if speed <= 0:
        return ""
    return f"{speed:,.0f} img/s  {format_duration(max(total - row.images, 0) / speed)} left"


def format_duration(seconds: float) -> str:
    """`45s`, `22m`, `3h05m`, `2d04h`."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{round(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    return (
        f"{minutes // 60}h{minutes % 60:02d}m"
        if minutes < 24 * 60
        else f"{minutes // 1440}d{minutes % 1440 // 60:02d}h"
    )


def format_losses(row: JournalRow) -> str:
    """`D 0.71  G 0.80  class 0.12`: the row's `loss/NAME` values."""
    short = {
        key.removeprefix("loss/"): value
        for key, value in row.values.items()
        if key.startswith("loss/") and key.count("/") == 1
    }
    return "  ".join(f"{name.upper() if len(name) == 1 else name} {value:.3g}" for name, value in short.items())


@contextmanager
def bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for a command; yields a function of (done, total). Nothing is shown without a terminal."""
    with stages(console) as show:
        yield lambda done, total: show("samples", done, total)


@contextmanager
def stages(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar per stage of a command; yields a function of (stage, done, total or `None`)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total)
            shown.update(tasks[stage], completed=done, total=total)

        yield show
