"""Reading the files that samples are made from; errors name the file and the remedy."""

import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mtgen.data.image_io import header, pixels
from mtgen.errors import DataError

STORED_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".jpe", ".jfif", ".jif", ".pjpeg", ".apng")
CONVERTED_IMAGE_SUFFIXES = (".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2")
"""Image formats that are converted to PNG; shards only contain JPEG, PNG and WebP."""

IMAGE_SUFFIXES = STORED_IMAGE_SUFFIXES + CONVERTED_IMAGE_SUFFIXES

MIN_HASHED_SAMPLES = 1000
"""From this number of samples on, a sample stays in its split when others are added; below, the fraction is exact."""


class FileLike(Protocol):
    """Anything that can be read like a file: a `Path`, or bytes in memory."""

    @property
    def name(self) -> str:
        """The file's name without folders."""

    @property
    def suffix(self) -> str:
        """The name's suffix, such as ".png"."""

    def read_bytes(self) -> bytes:
        """The content."""


def unit_hash(seed: int, key: str) -> float:
    """Hash seed and key to a number in [0, 1); it decides the split of a sample."""
    return int.from_bytes(hashlib.sha256(os.fsencode(f"{seed}/{key}")).digest()[:8], "big") / 2**64


def key_of(name: str) -> str:
    """A sample's key from a file path without suffix; if characters have to be replaced, a hash keeps it unique."""
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    return key if key == name else f"{key}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def held_out(seed: int, names: Collection[str], fraction: float) -> set[str]:
    """The names of the samples for the test split: those with the lowest hashes, about `fraction` of all.

    Of fewer than `MIN_HASHED_SAMPLES` names it is that fraction, rounded, but at least one of two or more. Of more, the
    choice depends on each name alone.
    """
    hashes = {name: unit_hash(seed, name) for name in names}
    if len(hashes) >= MIN_HASHED_SAMPLES:
        return {name for name, position in hashes.items() if position < fraction}
    number = min(max(round(fraction * len(hashes)), fraction > 0), len(hashes) - 1)
    return set(sorted(hashes, key=lambda name: hashes[name])[: max(number, 0)])


def file_state(path: Path) -> list[str | int]:
    """Name, size and modification time of a file, which tell whether it has changed since."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def clipped(corners: Sequence[float], width: int, height: int) -> list[float]:
    """Clip a box `x0, y0, x1, y1` to its image; an empty list if it has no area.

    Raises:
        ValueError: it is reversed, or entirely outside the image.
    """
    x0, y0, x1, y1 = corners
    if not (x0 <= x1 and y0 <= y1):
        raise ValueError(f"a reversed box, from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g})")
    if x0 > width or y0 > height or x1 < 0 or y1 < 0:
        raise ValueError(f"a box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), outside its image of {width}x{height}")
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else []


def read(path: FileLike) -> bytes:
    """Read the bytes of a file; `DataError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """Read a text file without byte order mark and surrounding white space; `DataError` if it is not UTF-8."""
    try:
        return read(path).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save it in UTF-8") from None


def read_names(path: Path) -> list[str]:
    """Read class names, one per line; `DataError` if a line is empty or repeated, or the file cannot be read."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a text file with one class name per line"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; write the class names in UTF-8") from None
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            problem = f"repeats {name!r} of line {names.index(name) + 1}" if name else "is empty"
            raise DataError(f"{path}: line {number + 1} {problem}; every class needs its own name")
    if not names:
        raise DataError(f"{path}: is empty; write one class name per line")
    return names


def read_json(path: FileLike) -> Any:
    """Parse a JSON file; `DataError` if it is not valid."""
    try:
        return json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({' '.join(str(error).split())})") from None


def read_mask(path: FileLike) -> np.ndarray:
    """Read a mask, a gray or palette image -> `[H,W]` uint8; `DataError` if it has colors or values above 255.

    Gray stored as RGB without transparency is gray; of a palette image, values are the indices.
    """
    data = read(path)
    try:
        mask = _indices(data) if path.suffix.lower() in CONVERTED_IMAGE_SUFFIXES else pixels(data)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    gray = mask if mask.ndim == 2 else mask[..., 0]
    if mask.ndim == 3:
        colors, opaque = (mask[..., :-1], (mask[..., -1] == 255).all()) if mask.shape[2] in (2, 4) else (mask, True)
        if not opaque or (colors != gray[..., None]).any():
            raise DataError(
                f"{path}: {mask.dtype} {list(mask.shape)} with {'colors' if opaque else 'transparency'}; "
                "save masks as 8-bit gray PNG with the class number as value"
            )
    if gray.dtype.kind not in "biu" or gray.max(initial=0) > 255 or gray.min(initial=0) < 0:
        raise DataError(
            f"{path}: {mask.dtype} {list(mask.shape)} with values from {gray.min()} to {gray.max()}; "
            "save masks as 8-bit gray PNG with the class number as value"
        )
    return gray.astype(np.uint8)


def _indices(data: bytes) -> np.ndarray:
    """Decode a mask in a format that shards do not store; `ValueError` if it is damaged."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture)
    except Exception as error:  # noqa: BLE001 - Pillow raises all kinds of exceptions on damaged bytes
        raise ValueError(f"damaged image ({' '.join(str(error).split())})") from None


def read_image(path: Path) -> bytes:
    """Read an image as shards store it: JPEG, PNG and WebP unchanged, others as PNG; `DataError` if unreadable."""
    data = read(path)
    return data if path.suffix.lower() in STORED_IMAGE_SUFFIXES else as_png(path, data)


def size_of(path: Path, data: bytes) -> tuple[int, int]:
    """Width and height of an encoded image as displayed; `DataError` if it is damaged."""
    try:
        _, width, height = header(data)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    return width, height


def as_stored(path: Path | str, data: bytes) -> bytes:
    """An image in memory as shards store it: JPEG, PNG and WebP unchanged, others as PNG; `path` is for messages."""
    return data if data.startswith((b"\xff\xd8", b"\x89PNG", b"RIFF")) else as_png(path, data)


def as_png(path: Path | str, data: bytes) -> bytes:
    """Convert an image to PNG without loss; `DataError` if a PNG cannot represent it, or it has several frames."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if (frames := getattr(picture, "n_frames", 1)) > 1:
                raise DataError(f"{path}: {frames} frames or pages in one {picture.format}; save each as an image")
            file = io.BytesIO()
            if picture.mode.startswith(("I", "F")):
                values = np.asarray(picture)
                if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
                    raise ValueError(
                        "its values are not integers from 0 to 65535; save it with 8 or 16 bits per channel"
                    )
                Image.fromarray(values.astype(np.uint16)).save(file, "PNG")
            else:
                picture.convert("L" if picture.mode in ("1", "L") else "RGB").save(file, "PNG")
            return file.getvalue()
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - Pillow raises all kinds of exceptions on damaged bytes
        raise DataError(f"{path}: damaged image ({' '.join(str(error).split())})") from None


def write_atomic(path: Path, text: str) -> None:
    """Write a temporary file and rename it, so that `path` is never half written; `DataError` if that fails."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose a writable folder") from None
