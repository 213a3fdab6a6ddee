"""What a page is made of: sections of blocks. The template knows each block by its `kind`; the script draws those that have `data`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mtgen.registry import Registry
from mtgen.report.run_record import RunRecord


@dataclass(frozen=True)
class Fact:
    """A number with its name, and a few words about it."""

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
    """Lines, one under the other; `alarm` makes them stand out."""

    kind: ClassVar[str] = "bullets"
    items: list[str]
    alarm: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first column names them. `best` holds (row, column) of the cells to be marked."""

    kind: ClassVar[str] = "table"
    columns: list[str]
    rows: list[list[str]]
    caption: str = ""
    best: set[tuple[int, int]] = field(default_factory=set)


@dataclass(frozen=True)
class FoldedText:
    """A text as it stands in a file, folded away under its title."""

    kind: ClassVar[str] = "source"
    title: str
    text: str


@dataclass(frozen=True)
class Pictures:
    """Sheets of one kind over time, for the script: `{"tracks": [{"label", "frames"}]}`, see `mtgen.report.image_timeline`."""

    kind: ClassVar[str] = "pictures"
    title: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Curves:
    """Charts in groups, for the script, see `mtgen.report.curves`."""

    kind: ClassVar[str] = "curves"
    data: dict[str, Any]


@dataclass(frozen=True)
class HeatMap:
    """Numbers from -1 to 1 over time, a row a pair: `{"positions": [..], "rows": [[name, [..]], ..]}`."""

    kind: ClassVar[str] = "heat"
    title: str
    data: dict[str, Any]


Block = Facts | Note | Bullets | Table | FoldedText | Pictures | Curves | HeatMap


@dataclass(frozen=True)
class ReportSection:
    """A part of the page under a heading; sections stand in the order of their `order`."""

    order: int
    title: str
    blocks: list[Block]


SectionBuilder = Callable[[RunRecord, RunRecord | None], ReportSection | None]
"""(the run, the run to hold it against) -> its section; `None` where it has nothing to say."""

SECTIONS: Registry[SectionBuilder] = Registry("section", "mtgen.report.sections")
