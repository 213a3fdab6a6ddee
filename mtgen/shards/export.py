"""Exporting data sets to the formats of other programs; a format is a file in `exporters/` that registers itself."""

import io
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from mtgen.config import ConfigSection, check, find_entry
from mtgen.data import image_io
from mtgen.data.boxes import annotation
from mtgen.data.dataset_card import read_card
from mtgen.data.index import Index, open_index
from mtgen.errors import DataError
from mtgen.registry import Registry
from mtgen.schema import COMPONENTS, DatasetCard
from mtgen.utils.shell import shell_command


@dataclass(frozen=True)
class ExportedSample:
    """A sample that is exported; components that are `None` are unknown.

    Attributes:
        image: the encoded image.
        suffix: "jpg", "png" or "webp".
        width, height: size of the image as displayed, pixels.
        label: class number.
        mask: `[H,W]` uint8: mask class; 255 where unknown.
        boxes: rows `[x0,y0,x1,y1,class]` in pixels.
        labels: class numbers of everything in the image.
        sound: a WAV or FLAC file.
    """

    split: str
    key: str
    image: bytes
    suffix: str
    width: int
    height: int
    label: int | None = None
    mask: NDArray[np.uint8] | None = None
    boxes: list[list[float]] | None = None
    labels: list[int] | None = None
    caption: str | None = None
    sound: bytes | None = None

    def upright(self) -> "tuple[bytes, str]":
        """Image and suffix for programs that ignore EXIF orientation: a rotated image becomes an upright PNG."""
        with Image.open(io.BytesIO(self.image)) as picture:
            rotated = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
        if not rotated:
            return self.image, self.suffix
        file = io.BytesIO()
        image_io.decode_upright(self.image).save(file, "PNG")
        return file.getvalue(), "png"


class Exporter(ABC):
    """A format, registered by a file in `exporters/`: `add` writes one sample, `finish` what is common to all.

    Attributes:
        folder: the folder to write to; it is renamed to its final name after `finish`.
        card: the data set's card.
        components: the components that any of its samples has.
        notices: what the format cannot hold -> in how many samples.
    """

    Options: ClassVar[type[ConfigSection]]

    def __init__(self, folder: Path, card: DatasetCard, options: Any, components: set[str]) -> None:
        self.folder = folder
        self.card = card
        self.options = options
        self.components = components
        self.notices: Counter[str] = Counter()

    @abstractmethod
    def add(self, sample: ExportedSample) -> None:
        """Write one sample; `DataError` if the format cannot hold it."""

    @abstractmethod
    def finish(self) -> None:
        """Write what is common to all samples."""

    @abstractmethod
    def remake(self, out: Path) -> list[str]:
        """Recipe and options of `mtgen shards make` that read the export in its final folder `out`."""

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file; `name` is its path in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)


EXPORTERS: Registry[type[Exporter]] = Registry("export format", "mtgen.shards.exporters")


@dataclass(frozen=True)
class ExportSummary:
    """What was exported.

    Attributes:
        samples: split -> number of samples.
        notices: what the format cannot hold -> in how many samples.
        remake: the command that makes a data set of the export.
    """

    folder: Path
    samples: dict[str, int]
    notices: dict[str, int]
    remake: str

    def text(self) -> str:
        """The message after the export."""
        counts = ", ".join(f"{number:,} {split}" for split, number in self.samples.items())
        lost = [f"{number:,} samples: {what}" for what, number in self.notices.items()]
        return "\n".join([f"exported {self.folder}: {counts}", *lost, f"To read it back: {self.remake}"])


def export(
    name: str,
    dataset: str | Path,
    out: str | Path,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> ExportSummary:
    """Export all splits of a data set; `out` is either complete afterwards or does not exist.

    Args:
        name: name of a file in `exporters/`.
        dataset: folder or URL of the data set.
        out: a folder that does not exist or is empty.
        progress: called with (samples done, samples in total).
        **options: options of the format.

    Raises:
        ConfigError: an unknown format, unknown options or invalid values.
        DataError: the data set is damaged, or `out` is not empty or cannot be written.
    """
    kind = find_entry(EXPORTERS, name)
    settings = check(kind.Options, options)
    card = read_card(dataset)
    out = Path(out).resolve()
    indices = {split: open_index(dataset, split) for split in card.splits}
    components = {name for name in COMPONENTS for index in indices.values() if index.present[name].any()}
    done, total = 0, sum(len(index) for index in indices.values())
    with _complete_or_absent(out) as folder:
        exporter = kind(folder, card, settings, components)
        for index in indices.values():
            for i in range(len(index)):
                exporter.add(_sample(index, i))
                done += 1
                if progress is not None:
                    progress(done, total)
        exporter.finish()
    counts = {split: len(index) for split, index in indices.items()}
    recipe, *read_by = exporter.remake(out)
    again = shell_command("mtgen shards make", recipe, "DATASET", *read_by)
    return ExportSummary(out, counts, dict(exporter.notices), again)


@contextmanager
def _complete_or_absent(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that is renamed to it when the `with` block ends without an error.

    Raises:
        DataError: `out` is not an empty folder, or cannot be written.
    """
    part = out.with_name(f".{out.name}.partial")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError(f"{out}: is not an empty folder; choose another one")
        if part.exists():  # of an export that was killed
            shutil.rmtree(part)
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}); free space or choose another"
        ) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _sample(index: Index, i: int) -> ExportedSample:
    """Read and decode sample `i`; `DataError` names it if a component is damaged."""
    present = {name for name in COMPONENTS if index.present[name][i]}
    width, height = int(index.width[i]), int(index.height[i])
    image = index.read(i, "image")
    try:
        form, _, _ = image_io.header(image)
        mask = (
            index.mask_table(i)[image_io.pixels(index.read(i, "mask"))].astype(np.uint8) if "mask" in present else None
        )
        stored = annotation(index.read(i, "tags"), width, height, index.class_table(i)) if "tags" in present else None
        caption = index.read(i, "caption").decode("utf-8-sig").strip() if "caption" in present else None
    except ValueError as error:
        raise DataError(f"{index.name(i)}: {error}; `mtgen shards validate` lists every problem") from None
    return ExportedSample(
        split=index.split,
        key=index.key(i),
        image=image,
        suffix=form.replace("jpeg", "jpg"),
        width=width,
        height=height,
        label=int(index.label[i]) if index.label[i] >= 0 else None,
        mask=mask,
        boxes=stored.boxes.tolist() if stored is not None and "boxes" in present else None,
        labels=None if stored is None else stored.labels,
        caption=caption or None,
        sound=index.read(i, "sound") if "sound" in present else None,
    )
