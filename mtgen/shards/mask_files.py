"""Files of masks: which image a mask belongs to by its name, and which class its values stand for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtgen.errors import DataError
from mtgen.schema import IGNORE_INDEX
from mtgen.shards.input_files import IMAGE_SUFFIXES, read_mask

LOSSLESS_SUFFIXES = tuple(sorted({*IMAGE_SUFFIXES} - {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".avif"}))
"""Suffixes of mask files: the other formats change values."""

_WORDS = "masks?|segm?|segmentations?|labels?|labelids?|gt|ground[ _-]?truth|annotations?|annots?|anno|matte|parsing"
_SUFFIXED = re.compile(rf"(.+?)[ ._-]+\(?(?:{_WORDS})\)?", re.IGNORECASE | re.DOTALL)
_PREFIXED = re.compile(rf"(?:{_WORDS})[ ._-]+(.+)", re.IGNORECASE | re.DOTALL)
_IMAGE_ENDINGS = ("", "_image", "_img", "_rgb", "_sat", "_input")
"""Endings that images may have where their masks have a word for masks."""

MAX_UNNAMED_VALUES = 64
"""Masks with more different values than this need names: photographs and resized masks have about 250."""

MAX_LISTED_VALUES = 12
"""Values that an error lists."""

MASKS_SAMPLED = 200
"""Number of masks that are read ahead if the classes have names."""


def image_stems(stem: str) -> list[str]:
    """Stems of the images that a mask may belong to, by its own: "x_mask", "x-seg", "mask_x"; none for other names."""
    return [match[1] for pattern in (_SUFFIXED, _PREFIXED) if (match := pattern.fullmatch(stem))]


def pair_by_names(pictures: Sequence[Path], suffix: str | None = None) -> dict[Path, Path]:
    """Find the masks among pictures in the same folders: image -> its mask.

    Args:
        suffix: what names of masks add to those of their images; default: any usual word, before or after.

    Raises:
        DataError: an image has two masks, or a picture with the name of a mask is a JPEG, which masks cannot be.
    """
    by_stem = {(path.parent, path.stem.casefold()): path for path in reversed(pictures)}
    pairs: dict[Path, Path] = {}
    masks: set[Path] = set()
    for path in pictures:
        if suffix is None:
            stems = [stem + ending for stem in image_stems(path.stem) for ending in _IMAGE_ENDINGS]
        else:
            stems = [path.stem.removesuffix(suffix)] if path.stem.endswith(suffix) else []
        images = [by_stem.get((path.parent, stem.casefold())) for stem in stems]
        image = next((image for image in images if image is not None and image != path), None)
        if image is None or image in masks:
            continue
        if image in pairs:
            raise DataError(f"{image}: has two masks by their names, {pairs[image].name} and {path.name}; remove one")
        pairs[image] = path
        masks.add(path)
    return pairs


def lossless(mask: Path, image: Path) -> Path:
    """The mask; `DataError` if its format changes values."""
    if mask.suffix.lower() not in LOSSLESS_SUFFIXES:
        raise DataError(
            f"{mask}: has the name of a mask of {image.name}, but a mask has to be a PNG (or another format without "
            "loss); convert it, or give mask_suffix=none if it is an image like others"
        )
    return mask


@dataclass(frozen=True)
class MaskClasses:
    """Which mask class each value stands for.

    Attributes:
        names: names of the mask classes; empty if they have to be numbered.
        count: number of mask classes.
        table: `[256]` uint8: value -> class; `None` if values are class numbers.
        notice: what was decided, for the summary; empty if values are taken as they are.
    """

    names: list[str]
    count: int
    table: NDArray[np.uint8] | None = None
    notice: str = ""

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Read a mask -> `[H,W]` classes; `DataError` if it has a value that stands for none."""
        mask = read_mask(path)
        if self.table is None:
            return mask
        classes: NDArray[np.uint8] = self.table[mask]
        if (other := (classes == IGNORE_INDEX) & (mask != IGNORE_INDEX)).any():
            known = ", ".join(str(value) for value in np.flatnonzero(self.table != IGNORE_INDEX))
            raise DataError(
                f"{path}: has the value {mask[other][0]}, while masks of this set hold {known}; correct it, or list "
                "the values of all classes in mask_values="
            )
        return classes


def mask_classes(masks: Sequence[Path], names: list[str], values: list[int]) -> MaskClasses:
    """Decide which class each value in the masks stands for.

    Values are class numbers, and 255 is unknown. Masks that hold nothing but 0 and 255 would then have a single class,
    so their 255 is the foreground. If there are neither names nor `values`, and the values do not look like class
    numbers, nothing is guessed.

    Args:
        masks: all masks.
        names: names of the classes as given.
        values: the values of the classes in order as given: other values are errors, 255 excepted.

    Raises:
        DataError: a mask cannot be read; the values do not tell the classes.
    """
    if values:
        if len(set(values)) < len(values) or not all(0 <= value <= 255 for value in values):
            raise DataError(f"mask_values={values}: not different numbers from 0 to 255")
        if names and len(names) != len(values):
            raise DataError(f"mask_values={values}: {len(values)} classes, but mask_classes has {len(names)} names")
        return MaskClasses(
            names, len(values), _table(values), f"mask values {_listed(values)} are the classes in order"
        )
    if not masks:
        return MaskClasses(names, len(names))
    found = _values(masks[:MASKS_SAMPLED] if names else masks)
    known = sorted(found - {IGNORE_INDEX})
    if found <= {0, IGNORE_INDEX} and IGNORE_INDEX in found and len(names) <= 2:
        named = {0: ["background", "foreground"], 1: ["background", *names]}.get(len(names), names)
        notice = f"masks hold 0 and 255 alone, so 255 is taken for the class {named[1]!r}, not for unknown"
        return MaskClasses(named, 2, _table([0, 255]), notice)
    if names:
        if found == {0, IGNORE_INDEX} or found == {IGNORE_INDEX}:
            raise DataError(
                f"{masks[0]}: masks hold 0 and 255 (unknown) alone, but there are {len(names)} mask_classes; "
                "write class numbers into the masks, or list the values of the classes in mask_values="
            )
        return MaskClasses(names, len(names))
    if known == [0]:
        raise DataError(
            f"{masks[0]}: this and all other masks are 0 everywhere, which teaches nothing; write class numbers into "
            "them, give mask_classes=FILE, or remove them"
        )
    if len(known) > MAX_UNNAMED_VALUES or known[-1] + 1 > 2 * len(known):
        raise DataError(_not_numbers(masks[0], found))
    return MaskClasses([], known[-1] + 1)


def _not_numbers(mask: Path, found: set[int]) -> str:
    values = sorted(found)
    if len(values) > MAX_LISTED_VALUES:
        remedy = (
            "masks that were resized smoothly or saved as JPEG have such values: make them again from the originals; "
            "or name all classes in mask_classes=FILE"
        )
    else:
        remedy = (
            f"to make them classes in this order, give mask_values={_listed(values)} (leave out those that are "
            "unknown); if they are class numbers, name all classes in mask_classes=FILE"
        )
    return f"{mask}: masks of this set hold {_summarized(values)}, which do not look like class numbers; {remedy}"


def _summarized(values: list[int]) -> str:
    if len(values) > MAX_LISTED_VALUES:
        return f"{len(values)} values from {values[0]} to {values[-1]}"
    return f"the value{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def _listed(values: Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"


def _table(values: Sequence[int]) -> NDArray[np.uint8]:
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[list(values)] = np.arange(len(values))
    return table


def _values(masks: Iterable[Path]) -> set[int]:
    seen = np.zeros(256, np.bool_)
    for path in masks:
        seen |= np.bincount(read_mask(path).ravel(), minlength=256) > 0
    return set(np.flatnonzero(seen).tolist())
