"""A single HTML page for viewing samples of a data set."""

import base64
import hashlib
import io
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image, ImageColor

from mtgen.data.boxes import annotation
from mtgen.data.dataset_card import read_card
from mtgen.data.image_io import decode_upright, pixels
from mtgen.data.index import Index
from mtgen.errors import ConfigError, DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.stats import StatsProgress, open_for_inspection
from mtgen.visualization.grids import mask_colors

MAX_VIEW_SIDE_PIXELS = 384
"""Images with a longer side are reduced to this, pixels."""

MAX_LOSSLESS_SIDE_PIXELS = 128
"""Images up to this side are stored without loss, because their single pixels are visible, pixels."""

MAX_SOUND_BYTES = 2_000_000
"""Largest sound that is embedded in the page, bytes."""

UNKNOWN_CLASS_COLOR = "#888888"
"""Color of classes without a color and of pixels of unknown class."""


@dataclass(frozen=True)
class CssBox:
    """A box in percent of its image, for CSS."""

    left: float
    top: float
    width: float
    height: float
    name: str
    color: str


@dataclass
class Cell:
    """One sample on the page; images and sound are data URIs, empty if there is none.

    Attributes:
        classes: numbers of all its classes: of the sample, its labels and its boxes.
        name: name of its class.
        labels: names of the classes of its labels and boxes, unless they only repeat `name`.
        masks: numbers of the classes in its mask.
        unknown: whether its mask has pixels of unknown class.
        problems: what cannot be shown, and why.
    """

    key: str
    shard: str
    width: int
    height: int
    image: str = ""
    mask: str = ""
    boxes: list[CssBox] | None = None
    classes: set[int] = field(default_factory=set)
    name: str = ""
    labels: list[str] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    unknown: bool = False
    caption: str = ""
    sound: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether the image is so small that its pixels are shown as squares."""
        return max(self.width, self.height) <= MAX_LOSSLESS_SIDE_PIXELS


def view(
    folder: str | Path,
    split: str | None = None,
    n: int = 100,
    seed: int = 0,
    out: str | Path | None = None,
    show: StatsProgress | None = None,
) -> Path:
    """Write a self-contained HTML page with samples of a split; returns its path.

    Args:
        split: the split; default: the first one in `dataset.json`.
        n: number of samples.
        seed: seed of the random choice of samples.
        out: the HTML file; default: NAME-SPLIT.html in the current folder.
        show: called with the progress.

    Raises:
        ConfigError: the name of `out` does not end with .html.
        DataError: the split does not exist or has no usable samples, or the page cannot be written.
    """
    split = split or next(iter(read_card(folder).splits))
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: the page is an HTML file; choose a name that ends with .html")
    index = open_for_inspection(folder, split, show)
    chosen = sorted(random.Random(seed).sample(range(len(index)), min(n, len(index))))
    keys = [index.key(i) for i in chosen]
    colors = _Colors(index.card.classes, index.card.mask_classes)
    cells: list[Cell] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for cell in pool.map(lambda i, key: _cell(index, i, key, colors), chosen, keys):
            cells.append(cell)
            if show is not None:
                show("samples", len(cells), len(chosen))
    path = Path(out) if out is not None else Path(re.sub(r"[^\w.-]+", "_", f"{index.card.name}-{split}") + ".html")
    try:
        path.write_text(_page(index, cells, colors), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another file with --out") from None
    return path


class _Colors:
    """A color for every class; a class and a mask class with the same name share their color."""

    def __init__(self, classes: Sequence[str], mask_classes: Sequence[str]) -> None:
        self.mask = mask_colors(mask_classes)
        known = dict(zip(mask_classes, map(_css, self.mask), strict=True))
        self.classes = [
            known.get(name, own) for name, own in zip(classes, map(_css, mask_colors(classes)), strict=True)
        ]
        self.palette = np.full((256, 4), (*ImageColor.getrgb(UNKNOWN_CLASS_COLOR), 255), np.uint8)
        named = len(mask_classes[:256])
        self.palette[:named, :3] = self.mask[:named].clip(0)
        self.palette[:named, 3] = np.where(self.mask[:named, 0] < 0, 0, 255)


def _css(color: NDArray[np.integer]) -> str:
    return UNKNOWN_CLASS_COLOR if color[0] < 0 else "#" + "".join(f"{channel:02x}" for channel in color.tolist())


def _cell(index: Index, i: int, key: str, colors: _Colors) -> Cell:
    """Read sample `i`; components that cannot be shown are named in the cell."""
    cell = Cell(key, index.shard(i), int(index.width[i]), int(index.height[i]))
    if index.label[i] >= 0:
        cell.name = index.card.classes[index.label[i]]
        cell.classes.add(int(index.label[i]))
    readers: dict[str, Callable[[bytes], None]] = {
        "image": partial(_add_image, cell),
        "mask": partial(_add_mask, cell, index.mask_table(i), colors),
        "boxes": partial(_add_boxes, cell, index.class_table(i), index.card.classes, colors),
        "caption": partial(_add_caption, cell),
        "sound": partial(_add_sound, cell),
    }
    for component, add in readers.items():
        if component == "image" or index.present[component][i]:
            try:
                add(index.read(i, component))
            except (ValueError, OSError) as error:
                cell.problems.append(f"{component}: {error}")
    return cell


def _add_image(cell: Cell, data: bytes) -> None:
    picture = decode_upright(data)
    if cell.exact:
        cell.image = _encoded(picture, "PNG")
    else:
        picture.thumbnail((MAX_VIEW_SIDE_PIXELS, MAX_VIEW_SIDE_PIXELS), Image.Resampling.LANCZOS)
        cell.image = _encoded(picture, "JPEG", quality=85)


def _add_mask(cell: Cell, table: NDArray[np.int64], colors: _Colors, data: bytes) -> None:
    values = table[pixels(data)]
    values[values < 0] = IGNORE_INDEX  # values without a name; `validate` reports them
    *cell.masks, last = np.unique(values).tolist()
    cell.unknown = last == IGNORE_INDEX
    cell.masks += [] if cell.unknown else [last]
    picture = Image.fromarray(values.astype(np.uint8))
    picture.putpalette(colors.palette.tobytes(), "RGBA")
    picture.thumbnail((MAX_VIEW_SIDE_PIXELS, MAX_VIEW_SIDE_PIXELS), Image.Resampling.NEAREST)
    cell.mask = _encoded(picture, "PNG")


def _add_boxes(cell: Cell, table: NDArray[np.int64], names: Sequence[str], colors: _Colors, data: bytes) -> None:
    stored = annotation(data, cell.width, cell.height, table)
    numbers = stored.boxes[:, 4].astype(int).tolist()
    cell.boxes = []
    for (x0, y0, x1, y1), number in zip(stored.boxes[:, :4].tolist(), numbers, strict=True):
        cell.boxes.append(
            CssBox(
                left=_percent(x0, cell.width),
                top=_percent(y0, cell.height),
                width=_percent(x1 - x0, cell.width),
                height=_percent(y1 - y0, cell.height),
                name=names[number],
                color=colors.classes[number],
            )
        )
    cell.classes.update(numbers, stored.labels)
    counts = Counter([*numbers, *(set(stored.labels) - set(numbers))])
    labels = [
        names[number] + (f" \N{MULTIPLICATION SIGN}{count}" if count > 1 else "")
        for number, count in counts.most_common()
    ]
    cell.labels = [] if labels == [cell.name] else labels


def _percent(part: float, whole: float) -> float:
    return round(100 * (part / whole), 2)


def _add_caption(cell: Cell, data: bytes) -> None:
    cell.caption = data.decode("utf-8-sig").strip()


def _add_sound(cell: Cell, data: bytes) -> None:
    if len(data) > MAX_SOUND_BYTES:
        raise ValueError(f"{len(data) / 1e6:.1f} MB, too large for this page")
    cell.sound = _uri("audio/flac" if data.startswith(b"fLaC") else "audio/wav", data)


def _encoded(picture: Image.Image, image_format: str, **options: int) -> str:
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return _uri(f"image/{image_format.lower()}", file.getvalue())


def _uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _page(index: Index, cells: list[Cell], colors: _Colors) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (files("mtgen.shards") / "contact_sheet.html").read_text(encoding="utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    classes = Counter(number for cell in cells for number in cell.classes)
    masks = sorted({number for cell in cells for number in cell.masks})
    legend = [(index.card.mask_classes[n], _css(colors.mask[n])) for n in masks if colors.mask[n][0] >= 0]
    legend += [("unknown", UNKNOWN_CLASS_COLOR)] if any(cell.unknown for cell in cells) else []
    return environment.from_string(template).render(
        card=index.card,
        split=index.split,
        total=len(index),
        problems=len(index.problems),
        cells=cells,
        classes=[(number, index.card.classes[number], count) for number, count in sorted(classes.items())],
        legend=legend,
        small=all(cell.exact for cell in cells),
        script=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
