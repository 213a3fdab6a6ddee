"""Writing samples to WebDataset shards: checked, reproducible to the byte, and never left half finished."""

import io
import json
import re
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from mtgen.data import image_io
from mtgen.data.key_hashes import KeyRegistry
from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX, DatasetCard, Split
from mtgen.shards.draft import check_split_name, pattern
from mtgen.shards.open_draft import open_draft
from mtgen.shards.split_writer import ShardSize, SplitWriter, keys_among


@dataclass
class Sample:
    """A sample to be written; components that are `None` are unknown and left out.

    Attributes:
        key: its name, unique in the data set: letters, digits, "_" and "-".
        image: `[H,W]` or `[H,W,3]` uint8; or a JPEG, PNG or WebP file, which is stored unchanged.
        label: class number.
        mask: `[H,W]` integers: mask class; 255 (`IGNORE_INDEX`) where unknown.
        boxes: rows `[x0,y0,x1,y1,class]` in pixels, x1 and y1 exclusive; no rows: the image has no objects.
        labels: class numbers of everything in the image.
        caption: description of the image.
        sound: `[T]` int16, one channel, and its samples per second; or a WAV or FLAC file, stored unchanged.
    """

    key: str
    image: np.ndarray | bytes
    label: int | None = None
    mask: np.ndarray | None = None
    boxes: Sequence[Sequence[float]] | None = None
    labels: Sequence[int] | None = None
    caption: str | None = None
    sound: tuple[np.ndarray, int] | bytes | None = None


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _wav(sound: np.ndarray, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(sound.astype("<i2").tobytes())
    return file.getvalue()


def components(sample: Sample) -> dict[str, bytes]:
    """Suffix -> bytes of each component that the sample has."""
    if isinstance(sample.image, bytes):
        form, width, height = image_io.header(sample.image)
        parts = {form.replace("jpeg", "jpg"): sample.image}
    else:
        height, width = sample.image.shape[:2]
        parts = {"png": _png(sample.image)}
    if sample.label is not None:
        parts["cls"] = str(sample.label).encode()
    if sample.mask is not None:
        parts["mask.png"] = _png(sample.mask.astype(np.uint8))
    if sample.boxes is not None or sample.labels is not None:
        annotation: dict[str, Any] = {"width": width, "height": height}
        if sample.boxes is not None:
            rows = np.asarray(sample.boxes).reshape(-1, 5).tolist()
            annotation["boxes"] = [[*corners, int(label)] for *corners, label in rows]
        if sample.labels is not None:
            annotation["labels"] = [int(label) for label in sample.labels]
        parts["json"] = json.dumps(annotation).encode()
    if sample.caption is not None:
        parts["txt"] = sample.caption.encode()
    if isinstance(sample.sound, bytes):
        parts["flac" if sample.sound.startswith(b"fLaC") else "wav"] = sample.sound
    elif sample.sound is not None:
        parts["wav"] = _wav(*sample.sound)
    return parts


def _problems(sample: Sample, classes: int, mask_classes: int) -> Iterator[str]:
    """Why the sample cannot be stored."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", sample.key):
        yield "its key may only have letters, digits, '_' and '-'"
    try:
        height, width = _image_size(sample.image)
    except ValueError as error:
        yield str(error)
        return
    numbers = [] if sample.label is None else [sample.label]
    numbers += list(sample.labels or [])
    for box in [] if sample.boxes is None else sample.boxes:
        if len(box) != 5 or not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
            yield f"its box {list(box)} is not [x0,y0,x1,y1,class] inside an image of {width}x{height}"
        else:
            numbers.append(int(box[4]))
    if outside := sorted({n for n in numbers if not 0 <= n < classes}):
        possible = f"possible: 0 to {classes - 1}" if classes else "the data set names no classes"
        yield f"it has class {outside[0]}; {possible}"
    mask = sample.mask
    if mask is not None:
        if mask.shape != (height, width) or not np.issubdtype(mask.dtype, np.integer):
            yield f"its mask is {mask.dtype} {list(mask.shape)}; possible: integers {[height, width]}, like its image"
        elif len(invalid := mask[(mask != IGNORE_INDEX) & ((mask < 0) | (mask >= mask_classes))]):
            named = f"0 to {mask_classes - 1} and " if mask_classes else ""
            yield f"its mask has class {invalid[0]}; possible: {named}{IGNORE_INDEX} for unknown"
    if isinstance(sample.sound, bytes):
        if not sample.sound.startswith((b"RIFF", b"fLaC")):
            yield f"its sound is not a WAV or FLAC file (it starts with {sample.sound[:8]!r})"
    elif sample.sound is not None and (sample.sound[0].dtype != np.int16 or sample.sound[0].ndim != 1):
        yield f"its sound is {sample.sound[0].dtype} {list(sample.sound[0].shape)}; possible: int16 [T]"


def _image_size(image: np.ndarray | bytes) -> tuple[int, int]:
    """Height and width of an image to be stored; `ValueError` if it cannot be."""
    if isinstance(image, bytes):
        try:
            _, width, height = image_io.header(image)
            if reason := image_io.truncation_problem(image) or image_io.dali_problem(image):
                raise ValueError(reason)
        except ValueError as error:
            raise ValueError(f"its image: {error}") from None
        return height, width
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or image.size == 0:
        raise ValueError(f"its image is {image.dtype} {list(image.shape)}; possible: uint8 [H,W] or [H,W,3]")
    return image.shape[0], image.shape[1]


def encoded(where: str, sample: Sample, card: DatasetCard) -> dict[str, Any]:
    """Encode a sample for WebDataset's writers.

    Raises:
        DataError: the sample is invalid; the message starts with `where`.
    """
    if problems := list(_problems(sample, len(card.classes), len(card.mask_classes))):
        raise DataError(f"{where}: {'; '.join(problems)}")
    return {"__key__": sample.key, **components(sample)}


class ShardWriter:
    """Writes a data set: `with ShardWriter(...) as writer: writer.write("train", sample)`.

    The shards are written to a hidden folder beside `folder`, which is renamed to `folder` when the `with` block ends
    without an error. So `folder` is either complete or does not exist; the next run removes what a killed one left.
    In a store, every shard is uploaded when it is full, and `dataset.json` and the index at the end.

    Args:
        folder: folder or URL of the data set; it must not exist, or be empty.
        name: name of the data set.
        classes: names of the classes, by number.
        mask_classes: names of the mask classes, by number.
        source: where the images come from.
        licence: license of the images.
        samples_per_shard: number of samples per shard; default: shards of 256 MB, and of 1,000 samples at least.
        overwrite: replace the data set in `folder`; not in a store.
        **extra: additional keys of `dataset.json`.

    Raises:
        DataError: on entering, if `folder` is not empty; on writing, if a sample is invalid or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        name: str,
        classes: Sequence[str] = (),
        mask_classes: Sequence[str] = (),
        *,
        source: str = "",
        licence: str = "",
        samples_per_shard: int | None = None,
        overwrite: bool = False,
        **extra: Any,
    ) -> None:
        self.card = DatasetCard(
            name=name,
            classes=list(classes),
            mask_classes=list(mask_classes),
            source=source,
            licence=licence,
            splits={},
            **extra,
        )
        self._size = ShardSize.of(samples_per_shard)
        self._draft = open_draft(folder, self.card, overwrite)
        self.folder = self._draft.location
        self._splits: dict[str, SplitWriter] = {}
        self._keys = KeyRegistry()

    def __enter__(self) -> Self:
        self._draft.claim()
        return self

    def write(self, split: str, sample: Sample) -> None:
        """Add a sample to a split; `DataError` if it is invalid."""
        content = encoded(f"{self.folder}, sample {sample.key!r} of {split}", sample, self.card)
        self.copy(split, content.pop("__key__"), content)

    def copy(self, split: str, key: str, parts: dict[str, bytes]) -> None:
        """Add a sample whose components (suffix -> bytes) are stored unchanged; `DataError` if its key exists."""
        check_split_name(self.folder, split)
        if not self._keys.add(key):
            raise self._repeated_key(split, key)
        with self._draft.disk():
            if split not in self._splits:
                self._splits[split] = SplitWriter(self._draft, split, self._size)
            self._splits[split].write({"__key__": key, **parts})

    def _repeated_key(self, split: str, key: str) -> DataError:
        return DataError(f"{self.folder}, sample {key!r} of {split}: another sample has the same key; rename one")

    def _finish(self) -> None:
        if not self._splits:
            raise DataError(f"{self.folder}: no sample was written, so there is no data set")
        with self._draft.disk():
            for split, writer in self._splits.items():
                writer.close()
                self.card.splits[split] = Split(samples=writer.total, shards=pattern(split, len(writer.shards)))
        if repeated := self._keys.repeated():
            seen: set[str] = set()
            for split, writer in self._splits.items():
                for key in keys_among(map(self._draft.shard, writer.shards), repeated):
                    if key in seen:
                        raise self._repeated_key(split, key)
                    seen.add(key)
        self._draft.finish(self.card)

    def _abandon(self) -> None:
        for writer in self._splits.values():
            writer.abandon()
        self._draft.abandon()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._abandon()
            raise
        if kind is not None:
            self._abandon()
