"""One HTML page to look at samples of a data set."""

import base64
import hashlib
import io
import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
from mtgen.shards.stats import StatsProgress, opened
from mtgen.visualization.grids import mask_colors

MAX_VIEW_SIDE_PIXELS = 384
"""Images with a longer side are made smaller, pixels."""

MAX_LOSSLESS_SIDE_PIXELS = 128
"""Images up to so many pixels a side are stored without loss: their pixels are seen one by one."""

MAX_SOUND_BYTES = 2_000_000
"""Bytes of a sound that is put into the page."""

UNKNOWN_CLASS_COLOR = "#888888"
"""Color of a class that has none of its own, and of pixels whose class is not known."""


@dataclass(frozen=True)
class CssBox:
    """A box in shares of its image, per cent, for CSS."""

    left: float
    top: float
    width: float
    height: float
    name: str
    color: str


@dataclass
class Cell:
    """One sample on the page; images and sound are data URIs, empty where there is none.

    Attributes:
        classes: numbers of every class that it has, as its class, a label or a box.
        labels: names of its labels and of its boxes' classes, where they say more than its class does.
        unknown: whether there are pixels in its mask whose class is not known.
        masks: numbers of the mask classes in it.
        faults: what could not be shown, and why.
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
    faults: list[str] = field(default_factory=list)

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
    """Write a page with `n` samples of a split, chosen by `seed`, that needs no other file and no network; returns where it is.

    Args:
        split: default: the first that `dataset.json` names.
        out: the file, `.html`; default: name and split of the data set, in this folder.

    Raises:
        ConfigError: `out` is no HTML file by its name.
        DataError: an unknown split, or none of its samples can be used; the page cannot be written.
    """
    split = split or next(iter(read_card(folder).splits))
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: the page is an HTML file; give a name that ends with .html")
    index = opened(folder, split, show)
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
        raise DataError(f"{path}: the page cannot be written ({error.strerror})") from None
    return path


class _Colors:
    """A color for every class; a mask class and a class of one name have the same."""

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
    cell = Cell(key, index.shard(i), int(index.width[i]), int(index.height[i]))
    names = index.card.classes
    if index.label[i] >= 0:
        cell.name = names[index.label[i]]
        cell.classes.add(int(index.label[i]))

    def image(data: bytes) -> None:
        picture = decode_upright(data)
        if cell.exact:
            cell.image = _encoded(picture, "PNG")
        else:
            picture.thumbnail((MAX_VIEW_SIDE_PIXELS, MAX_VIEW_SIDE_PIXELS), Image.Resampling.LANCZOS)
            cell.image = _encoded(picture, "JPEG", quality=85)

    def mask(data: bytes) -> None:
        values = index.mask_table(i)[pixels(data)]
        values[values < 0] = IGNORE_INDEX  # a value without a name: `validate` says so
        *cell.masks, last = np.unique(values).tolist()
        cell.unknown = last == IGNORE_INDEX
        cell.masks += [] if cell.unknown else [last]
        drawn = Image.fromarray(values.astype(np.uint8))
        drawn.putpalette(colors.palette.tobytes(), "RGBA")
        drawn.thumbnail((MAX_VIEW_SIDE_PIXELS, MAX_VIEW_SIDE_PIXELS), Image.Resampling.NEAREST)
        cell.mask = _encoded(drawn, "PNG")

    def boxes(data: bytes) -> None:
        stored = annotation(data, cell.width, cell.height, index.class_table(i))
        numbers = stored.boxes[:, 4].astype(int).tolist()
        cell.boxes = []
        for (x0, y0, x1, y1), number in zip(stored.boxes[:, :4].tolist(), numbers, strict=True):
            left, top, width, height = (
                x0 / cell.width,
                y0 / cell.height,
                (x1 - x0) / cell.width,
                (y1 - y0) / cell.height,
            )
            place = [round(100 * share, 2) for share in (left, top, width, height)]
            cell.boxes.append(CssBox(place[0], place[1], place[2], place[3], names[number], colors.classes[number]))
        cell.classes.update(numbers, stored.labels)
        count = Counter([*numbers, *(set(stored.labels) - set(numbers))])
        shown = [
            names[number] + (f" \N{MULTIPLICATION SIGN}{times}" if times > 1 else "")
            for number, times in count.most_common()
        ]
        cell.labels = [] if shown == [cell.name] else shown

    def caption(data: bytes) -> None:
        cell.caption = data.decode("utf-8").strip()

    def sound(data: bytes) -> None:
        if len(data) > MAX_SOUND_BYTES:
            raise ValueError(f"{len(data) / 1e6:.1f} MB are too much for this page")
        cell.sound = _uri("audio/flac" if data.startswith(b"fLaC") else "audio/wav", data)

    for component, add in (("image", image), ("mask", mask), ("boxes", boxes), ("caption", caption), ("sound", sound)):
        if component == "image" or index.present[component][i]:
            try:
                add(index.read(i, component))
            except (ValueError, OSError) as error:
                cell.faults.append(f"{component}: {error}")
    return cell


def _encoded(picture: Image.Image, form: str, **options: int) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return _uri(f"image/{form.lower()}", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _page(index: Index, cells: list[Cell], colors: _Colors) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = (files("mtgen.shards") / "contact_sheet.html").read_text(encoding="utf-8")
    script = text.partition("<script>")[2].partition("</script>")[0]
    classes = Counter(number for cell in cells for number in cell.classes)
    masks = sorted({number for cell in cells for number in cell.masks})
    legend = [(index.card.mask_classes[n], _css(colors.mask[n])) for n in masks if colors.mask[n][0] >= 0]
    legend += [("unknown", UNKNOWN_CLASS_COLOR)] if any(cell.unknown for cell in cells) else []
    return environment.from_string(text).render(
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
