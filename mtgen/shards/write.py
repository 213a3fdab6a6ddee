"""Write samples as WebDataset shards: checked on the way in, the same bytes every time, nothing half-made left behind."""

import contextlib
import fcntl
import io
import json
import os
import re
import shutil
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from mtgen.data import image_io
from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX, DatasetCard, Split


@dataclass
class Sample:
    """One sample on its way to disk; what is `None` is not known, and is left out.

    Attributes:
        key: its name, unique in the data set: letters, digits, "_" and "-".
        image: `[H,W]` or `[H,W,3]` uint8, or a JPEG, PNG or WebP file, which is stored as it is.
        label: class number.
        mask: `[H,W]` integers: mask class; 255 (`IGNORE_INDEX`) where unknown.
        boxes: rows of `[x0,y0,x1,y1,class]` in pixels, x1 and y1 exclusive; no rows: it is known that there is nothing.
        labels: the class numbers of all that is in the image.
        caption: what the image shows, in words.
        sound: `[T]` int16, one channel, and its samples a second; or a WAV or FLAC file, which is stored as it is.
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
    """Extension -> bytes of each component that the sample has."""
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
        about: dict[str, Any] = {"width": width, "height": height}
        if sample.boxes is not None:
            about["boxes"] = [
                [*corners, int(label)] for *corners, label in np.asarray(sample.boxes).reshape(-1, 5).tolist()
            ]
        if sample.labels is not None:
            about["labels"] = [int(label) for label in sample.labels]
        parts["json"] = json.dumps(about).encode()
    if sample.caption is not None:
        parts["txt"] = sample.caption.encode()
    if isinstance(sample.sound, bytes):
        parts["flac" if sample.sound.startswith(b"fLaC") else "wav"] = sample.sound
    elif sample.sound is not None:
        parts["wav"] = _wav(*sample.sound)
    return parts


def _faults(sample: Sample, classes: int, mask_classes: int) -> Iterator[str]:
    """What the sample cannot be stored with."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", sample.key):
        yield "its key may hold letters, digits, '_' and '-' only"
    image = sample.image
    if isinstance(image, bytes):
        try:
            _, *sides = image_io.header(image)
            if reason := image_io.truncation_problem(image) or image_io.dali_problem(image):
                raise ValueError(reason)
        except ValueError as error:
            yield f"its image: {error}"
            return
        size = (sides[1], sides[0])
    elif image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)) or image.size == 0:
        yield f"its image is {image.dtype} {list(image.shape)}; possible: uint8 [H,W] or [H,W,3]"
        return
    else:
        size = image.shape[:2]
    named = [] if sample.label is None else [sample.label]
    named += list(sample.labels or [])
    if sample.boxes is not None:
        for box in sample.boxes:
            if len(box) != 5 or not (0 <= box[0] < box[2] <= size[1] and 0 <= box[1] < box[3] <= size[0]):
                yield f"its box {list(box)} is not [x0,y0,x1,y1,class] inside an image {size[1]} wide and {size[0]} high"
            else:
                named.append(int(box[4]))
    if outside := sorted({n for n in named if not 0 <= n < classes}):
        yield f"it names class {outside[0]}, and the data set has {classes} classes (0 to {classes - 1})"
    mask = sample.mask
    if mask is not None:
        if mask.shape != size or not np.issubdtype(mask.dtype, np.integer):
            yield f"its mask is {mask.dtype} {list(mask.shape)}; its image asks for integers {list(size)}"
        elif len(wrong := mask[(mask != IGNORE_INDEX) & ((mask < 0) | (mask >= mask_classes))]):
            yield f"its mask holds {wrong[0]}, and the data set has {mask_classes} mask classes (and {IGNORE_INDEX} for unknown)"
    if isinstance(sample.sound, bytes):
        if not sample.sound.startswith((b"RIFF", b"fLaC")):
            yield f"its sound is no WAV or FLAC file (it begins with {sample.sound[:8]!r})"
    elif sample.sound is not None and (sample.sound[0].dtype != np.int16 or sample.sound[0].ndim != 1):
        yield f"its sound is {sample.sound[0].dtype} {list(sample.sound[0].shape)}; possible: int16 [T]"


def _of_data_set(path: Path) -> bool:
    """Whether a data set's folder holds this of itself: what is written anew when it is made again."""
    return path.name in ("dataset.json", "index.parquet") or (path.suffix == ".tar" and path.is_file())


class Draft:
    """A data set that is being written: a hidden folder beside `folder`, which becomes `folder` when `finish` is called.

    So `folder` is either complete or not there. One process at a time may hold a draft; the kernel lets go of it when that is killed.

    Args:
        folder: where the data set shall be; not there yet, or empty.
        overwrite: replace the data set that is in `folder`.
        recipe: what the shards are made from, as JSON. Shards that a killed run finished from the very same are kept; all else is
            removed, and without a recipe everything is.
    """

    def __init__(self, folder: str | Path, overwrite: bool = False, recipe: str = "") -> None:
        self.folder = Path(folder).resolve()
        if not self.folder.name:
            raise DataError(f"{self.folder}: is the root of all folders; choose a folder in it")
        self.path = self.folder.with_name(f".{self.folder.name}.partial")
        self.overwrite = overwrite
        self.recipe = recipe
        self._replaced = self.folder.with_name(f".{self.folder.name}.replaced")

    @contextlib.contextmanager
    def disk(self) -> Iterator[None]:
        """What the disk refuses in the `with` block becomes a `DataError`."""
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written ({error.strerror or error})") from error

    def claim(self) -> None:
        """Take the folder, and clear away what a killed writer left; `DataError` where it is taken."""
        with self.disk():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise DataError(
                    f"{self.folder}: another process is writing it; wait for it, or choose another folder"
                ) from None
            try:
                self._clear()
            except BaseException:
                self.abandon()
                raise

    def _clear(self) -> None:
        note = self.path / "recipe.json"
        same = bool(self.recipe) and note.is_file() and note.read_bytes() == self.recipe.encode()
        for left in self.path.iterdir():
            if not (same and (left == note or left.suffix == ".tar")):
                left.unlink()
        if self.recipe and not same:
            note.write_text(self.recipe, encoding="utf-8")
        if self._replaced.exists():
            if self.folder.exists():
                shutil.rmtree(self._replaced)
            else:
                self._replaced.rename(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"{self.folder}: is a file; choose another name for the folder of the shards")
        if self.folder.exists() and any(self.folder.iterdir()):
            if not self.overwrite:
                raise DataError(
                    f"{self.folder}: is not empty; choose another folder, or ask to overwrite the data set in it"
                )
            if not (self.folder / "dataset.json").is_file():
                raise DataError(
                    f"{self.folder}: holds no dataset.json, so it is no data set to overwrite; choose another folder"
                )
            if other := [path.name for path in sorted(self.folder.iterdir()) if not _of_data_set(path)]:
                raise DataError(
                    f"{self.folder}: {other[0]} in it is no part of a data set and would be lost; move it away, then overwrite"
                )

    def finish(self, card: DatasetCard) -> None:
        """Write the card and put the data set in its place."""
        with self.disk():
            (self.path / "recipe.json").unlink(missing_ok=True)
            (self.path / "dataset.json").write_text(card_text(card), encoding="utf-8")
            if self.folder.exists():
                self.folder.rename(self._replaced)
            self.path.rename(self.folder)
            shutil.rmtree(self._replaced, ignore_errors=True)
        os.close(self._lock)

    def pause(self) -> None:
        """Leave the finished shards for the next run of the same recipe."""
        os.close(self._lock)

    def abandon(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def card_text(card: DatasetCard) -> str:
    """A card as `dataset.json` holds it."""
    return json.dumps(card.model_dump(mode="json", exclude={"domains"}), indent=1, ensure_ascii=False) + "\n"


def pattern(split: str, shards: int) -> str:
    """The names of a split's shards, as `dataset.json` gives them."""
    return f"{split}-{{000000..{shards - 1:06d}}}.tar"


def encoded(where: str, sample: Sample, card: DatasetCard) -> dict[str, Any]:
    """A sample as WebDataset's writers take it; `DataError` says what is wrong with it and begins with `where`."""
    if faults := list(_faults(sample, len(card.classes), len(card.mask_classes))):
        raise DataError(f"{where}: {'; '.join(faults)}")
    return {"__key__": sample.key, **components(sample)}


TAR_OPTIONS: dict[str, Any] = {"encoder": False, "mtime": 0, "user": "mtgen", "group": "mtgen"}
"""How WebDataset writes tars here: bytes as given, and nothing in the headers that differs from run to run."""


class ShardWriter:
    """Write a data set: `with ShardWriter(...) as writer: writer.write("train", sample)`.

    The shards grow in a hidden folder beside `folder`, which becomes `folder` when the `with` block ends without an error. So
    `folder` is either complete or not there; what a killed run leaves behind is removed by the next one.

    Args:
        folder: where the data set shall be; not there yet, or empty.
        name: what it is called in `dataset.json`.
        classes: names of the classes, by number.
        mask_classes: names of the mask's classes, by number.
        source: where the images come from.
        licence: under which licence.
        samples_per_shard: at most so many samples a tar.
        overwrite: replace the data set that is in `folder`.
        **extra: further keys of `dataset.json`.

    Raises:
        DataError: on entering, where `folder` is taken; on writing, for a sample that contradicts itself or the data set,
            and where the disk refuses.
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
        samples_per_shard: int = 1000,
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
        self.samples_per_shard = samples_per_shard
        self._draft = Draft(folder, overwrite)
        self.folder = self._draft.folder
        self._shards: dict[str, Any] = {}  # webdataset's writers
        self._keys: set[str] = set()

    def __enter__(self) -> Self:
        self._draft.claim()
        return self

    def write(self, split: str, sample: Sample) -> None:
        """Add a sample to a split; `DataError` names the sample and what is wrong with it."""
        content = encoded(f"{self.folder}, sample {sample.key!r} of {split}", sample, self.card)
        self.copy(split, content.pop("__key__"), content)

    def copy(self, split: str, key: str, parts: dict[str, bytes]) -> None:
        """Add a sample whose components (suffix -> bytes) are stored as they are; `DataError` where its key is taken."""
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise DataError(f"{self.folder}: split {split!r} cannot begin a shard's name; use letters, digits and '_'")
        if key in self._keys:
            raise DataError(f"{self.folder}, sample {key!r} of {split}: another sample has the same key")
        self._keys.add(key)
        import webdataset  # here, so that a model is used without it

        with self._draft.disk():
            if split not in self._shards:
                names = str(self._draft.path / split).replace("%", "%%") + "-%06d.tar"
                self._shards[split] = webdataset.ShardWriter(
                    names, maxcount=self.samples_per_shard, verbose=0, **TAR_OPTIONS
                )
            self._shards[split].write({"__key__": key, **parts})

    def _finish(self) -> None:
        if not self._shards:
            raise DataError(f"{self.folder}: no sample was written, so there is no data set to keep")
        with self._draft.disk():
            for split, shards in self._shards.items():
                self.card.splits[split] = Split(samples=shards.total, shards=pattern(split, shards.shard))
                shards.close()
        self._draft.finish(self.card)

    def _abandon(self) -> None:
        for shards in self._shards.values():
            with contextlib.suppress(
                OSError, AttributeError
            ):  # closing flushes, in vain: on a full disk, or closed already
                shards.close()
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
