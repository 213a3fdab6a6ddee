"""The parts of a page: sections of blocks. The template renders a block by its `kind`; the script draws its `data`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mtgen.registry import Registry
from mtgen.report.run_record import RunRecord


@dataclass(frozen=True)
class Fact:
    """A value with its name, and a short note."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Facts side by side."""

    kind: ClassVar[str] = "facts"
    items: list[Fact]


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of lines; `alarm` highlights them."""

    kind: ClassVar[str] = "bullets"
    items: list[str]
    alarm: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names them. `best` holds the (row, column) of the cells to mark."""

    kind: ClassVar[str] = "table"
    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    best: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True)
class FoldedText:
    """The text of a file, collapsed under its title."""

    kind: ClassVar[str] = "source"
    title: str
    text: str


@dataclass(frozen=True)
class Pictures:
    """Grids of one kind over time: `{"tracks": [{"label", "frames"}]}`, see `mtgen.report.image_timeline`."""

    kind: ClassVar[str] = "pictures"
    title: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Curves:
    """Charts in groups, see `mtgen.report.curves`."""

    kind: ClassVar[str] = "curves"
    data: dict[str, Any]


@dataclass(frozen=True)
class HeatMap:
    """Numbers from -1 to 1 over time, one row per pair of tasks: `{"positions": [..], "rows": [[name, [..]], ..]}`."""

    kind: ClassVar[str] = "heat"
    title: str
    data: dict[str, Any]


Block = Facts | Note | Bullets | Table | FoldedText | Pictures | Curves | HeatMap


@dataclass(frozen=True)
class ReportSection:
    """A part of the page under a heading; sections are sorted by `order`."""

    order: int
    title: str
    blocks: list[Block]


SectionBuilder = Callable[[RunRecord, RunRecord | None], ReportSection | None]
"""(the run, another run to compare it with) -> its section; `None` where there is no content."""

SECTIONS: Registry[SectionBuilder] = Registry("section", "mtgen.report.sections")
"""Every section, by its name."""
