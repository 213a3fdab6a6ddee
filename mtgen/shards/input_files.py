"""Files that samples are made from: read as they are, judged, and named where they cannot be used."""

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mtgen.data.image_io import header, pixels
from mtgen.errors import DataError

STORED_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CONVERTED_IMAGE_SUFFIXES = (".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Images that are stored as PNG: shards hold JPEG, PNG and WebP."""


class FileLike(Protocol):
    """What can be read as a file: a `Path`, or bytes that were never on a disk."""

    @property
    def name(self) -> str:
        """Without folders."""

    @property
    def suffix(self) -> str:
        """Of its name, such as ".png"."""

    def read_bytes(self) -> bytes:
        """What is in it."""


def share(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on seed and key alone: what deals samples to splits."""
    return int.from_bytes(hashlib.sha256(os.fsencode(f"{seed}/{key}")).digest()[:8], "big") / 2**64


def key_of(name: str) -> str:
    """A file's path without its suffix as a sample's key; where letters had to go, a digest keeps it unique."""
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    return key if key == name else f"{key}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def resolve_listed(root: Path, name: str, by: str) -> Path:
    """The file that a list names, below `root`; `DataError` begins with `by`, who names it, where it is not there or lies elsewhere."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{by}: {name!r} leads out of {root}; name files in it")
    path = root / name
    if not path.is_file():
        raise DataError(f"{by}: there is no file {path}")
    return path


def state(path: Path) -> list[str | int]:
    """Name, size and time of a file: what shows that it is another one since."""
    now = path.stat()
    return [path.name, now.st_size, now.st_mtime_ns]


def clipped(corners: Sequence[float], width: int, height: int) -> list[float]:
    """A box `x0, y0, x1, y1`, cut at the edges of its image; empty where it has no area.

    Raises:
        ValueError: it is reversed, or lies outside of the image altogether.
    """
    x0, y0, x1, y1 = corners
    if not (x0 <= x1 and y0 <= y1):
        raise ValueError(f"reversed box: from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g})")
    if x0 > width or y0 > height or x1 < 0 or y1 < 0:
        raise ValueError(f"box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) outside its image of {width}x{height}")
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else []


def read(path: FileLike) -> bytes:
    """The bytes of a file; `DataError` names it where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """A caption without the line's end; `DataError` where it is not UTF-8."""
    try:
        return read(path).decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; write captions in UTF-8") from None


def read_names(path: Path) -> list[str]:
    """Names of classes, a line each, from 0; `DataError` where a line is empty or comes twice, or the file cannot be read."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a text file with a class name in each line"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; write the class names in UTF-8") from None
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            what = f"{name!r} is in line {names.index(name) + 1} too" if name else "is empty"
            raise DataError(f"{path}: line {number + 1} {what}; every class has a name of its own")
    if not names:
        raise DataError(f"{path}: is empty; write a class name in each line")
    return names


def read_json(path: FileLike) -> Any:
    """What a JSON file holds; `DataError` where it is none."""
    try:
        return json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({' '.join(str(error).split())})") from None


def read_mask(path: FileLike) -> np.ndarray:
    """`[H,W]` uint8 values of a gray or palette image; `DataError` where it has colors or more than 8 bits."""
    try:
        mask = pixels(read(path))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
        raise DataError(
            f"{path}: {mask.dtype} {list(mask.shape)}; a mask has one channel of 8 bits, with the class number as value"
        )
    return mask.astype(np.uint8)


def read_image(path: Path) -> bytes:
    """An image file as shards hold it: JPEG, PNG and WebP as it is, another kind as PNG; `DataError` where it cannot be read."""
    data = read(path)
    return data if path.suffix.lower() in STORED_IMAGE_SUFFIXES else _as_png(path, data)


def size_of(path: Path, data: bytes) -> tuple[int, int]:
    """Width and height, as displayed, of an encoded image; `DataError` names its file where it is damaged."""
    try:
        _, width, height = header(data)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return width, height


def _as_png(path: Path, data: bytes) -> bytes:
    """An image of a kind that shards do not hold, as PNG: nothing is lost; `DataError` where a PNG cannot hold it."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            file = io.BytesIO()
            if picture.mode.startswith(("I", "F")):
                values = np.asarray(picture)
                if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
                    raise ValueError(
                        "its values are no whole numbers from 0 to 65535; save it with 8 or 16 bits a channel"
                    )
                Image.fromarray(values.astype(np.uint16)).save(file, "PNG")
            else:
                picture.convert("L" if picture.mode in ("1", "L") else "RGB").save(file, "PNG")
            return file.getvalue()
    except Exception as error:  # noqa: BLE001 - Pillow's readers raise whatever damaged bytes lead them to
        raise DataError(f"{path}: damaged image ({' '.join(str(error).split())})") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file beside and rename it, so that it is whole or not there; `DataError` where that cannot be."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
