"""What a recipe understood: counts of classes, masks, boxes, captions and sounds, and the files that it left alone."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from mtgen.errors import summarize_lines
from mtgen.schema import IGNORE_INDEX, DatasetCard
from mtgen.shards.write import Sample

MAX_CLASSES_SHOWN = 20
"""Classes that a line of the summary lists; the others are counted."""

MAX_CAPTION_SHOWN = 60


@dataclass
class Tally:
    """Counts over samples.

    Attributes:
        samples: number of samples.
        classes, labels, boxes: class number -> number of samples, of images that contain it, of boxes.
        boxed, masked, captions, sounds: number of samples that have boxes (or none in the image), a mask, ...
        mask_pixels, mask_images: mask value -> number of pixels, and of masks that contain it.
        transparent: number of images with transparent pixels.
        caption: one of the captions.
    """

    samples: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    boxes: Counter[int] = field(default_factory=Counter)
    boxed: int = 0
    masked: int = 0
    mask_pixels: Counter[int] = field(default_factory=Counter)
    mask_images: Counter[int] = field(default_factory=Counter)
    captions: int = 0
    sounds: int = 0
    transparent: int = 0
    caption: str = ""

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        self.samples += 1
        if sample.label is not None:
            self.classes[sample.label] += 1
        boxes = None if sample.boxes is None else [int(box[4]) for box in sample.boxes]
        if boxes is not None:
            self.boxed += 1
            self.boxes.update(boxes)
        self.labels.update({*(sample.labels or []), *(boxes or [])})
        if sample.mask is not None:
            self.masked += 1
            pixels = np.bincount(sample.mask.ravel().astype(np.int64), minlength=256)
            self.mask_pixels.update({int(value): int(pixels[value]) for value in np.flatnonzero(pixels)})
            self.mask_images.update(np.flatnonzero(pixels).tolist())
        if sample.caption is not None:
            self.captions += 1
            self.caption = self.caption or sample.caption
        self.sounds += sample.sound is not None
        self.transparent += isinstance(sample.image, bytes) and has_transparency(sample.image)

    def merge(self, other: "Tally") -> None:
        """Add the counts of other samples."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine or value if isinstance(mine, str) else mine + value)

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Tally":
        """The counts of `to_json`; JSON has turned numbers of classes into text."""
        tally = cls()
        for name, value in values.items():
            counts = isinstance(value, dict)
            setattr(tally, name, Counter({int(key): count for key, count in value.items()}) if counts else value)
        return tally


def has_transparency(image: bytes) -> bool:
    """Whether an encoded image has pixels that are not opaque; only images with an alpha channel are decoded."""
    png = image.startswith(b"\x89PNG") and (image[25] in (4, 6) or b"tRNS" in image[:4096])
    if not png and not (image[8:12] == b"WEBP" and b"VP8L" in image[:64] or image[12:16] == b"VP8X" and image[20] & 16):
        return False
    with Image.open(io.BytesIO(image)) as picture:
        return picture.has_transparency_data and bool((np.asarray(picture.convert("RGBA"))[..., 3] < 255).any())


def classes_without_samples(card: DatasetCard, tallies: Iterable[Tally]) -> list[str]:
    """Names of the classes that no sample has as its class, label or box."""
    seen: set[int] = set()
    for tally in tallies:
        seen |= tally.classes.keys() | tally.labels.keys()
    return [name for number, name in enumerate(card.classes) if number not in seen]


def summary(
    card: DatasetCard, tallies: Mapping[str, Tally], notices: Sequence[str] = (), left_alone: Sequence[str] = ()
) -> str:
    """What was understood, in lines.

    Args:
        card: the data set's names of classes and mask classes.
        tallies: split -> its counts.
        notices: what was decided where the input left a choice.
        left_alone: files that are not used, by reason.
    """
    total = Tally()
    for tally in tallies.values():
        total.merge(tally)
    rows = [("splits", ", ".join(f"{split} {tally.samples:,}" for split, tally in tallies.items()))]
    rows += _class_rows(card, tallies, total)
    if total.masked:
        rows.append(("masks", _of(total.masked, total) + _mask_text(card.mask_classes, total)))
    if total.boxed:
        found = _counts(card.classes, total.boxes)
        rows.append(("boxes", f"{_of(total.boxed, total)}{sum(total.boxes.values()):,}: {found}" if found else "none"))
    elif total.labels:
        rows.append(("labels", _counts(card.classes, total.labels)))
    if total.captions:
        text = total.caption if len(total.caption) <= MAX_CAPTION_SHOWN else total.caption[:MAX_CAPTION_SHOWN] + "..."
        rows.append(("captions", f"{total.captions:,}, such as {text!r}"))
    if total.sounds:
        rows.append(("sounds", f"{total.sounds:,}"))
    if total.transparent:
        text = f"{total.transparent:,} images have transparent pixels; training sees the colors that they hide"
        rows.append(("note", text))
    rows += [("note", notice) for notice in notices]
    rows += [("left alone", line) for line in left_alone]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows)


def _of(count: int, total: Tally) -> str:
    """How many samples have something, if not all do."""
    return "" if count == total.samples else f"{count:,} of {total.samples:,} samples: "


def _class_rows(card: DatasetCard, tallies: Mapping[str, Tally], total: Tally) -> list[tuple[str, str]]:
    rows = []
    if total.classes:
        rows.append(("classes", _of(sum(total.classes.values()), total) + _counts(card.classes, total.classes)))
    elif not total.labels:
        rows.append(("classes", "none: the images have no labels of classes"))
    if total.classes or total.labels:
        if empty := classes_without_samples(card, [total]):
            rows.append(("no sample", f"{len(empty):,} of {len(card.classes):,} classes: {_listed(empty)}"))
        train = tallies.get("train")
        if train is not None and len(tallies) > 1:
            without = set(classes_without_samples(card, [train])) - set(empty)
            if without:
                rows.append(("not in train", _listed([name for name in card.classes if name in without])))
    return rows


def _mask_text(names: Sequence[str], total: Tally) -> str:
    known = sum(count for value, count in total.mask_pixels.items() if value != IGNORE_INDEX)
    parts = []
    for value, pixels in sorted(total.mask_pixels.items(), key=lambda item: -item[1]):
        if value != IGNORE_INDEX:
            parts.append(f"{names[value]} {pixels / known:.1%} of pixels in {total.mask_images[value]:,}")
    if unknown := total.mask_pixels[IGNORE_INDEX]:
        parts.append(f"unknown {unknown / (known + unknown):.1%} of pixels in {total.mask_images[IGNORE_INDEX]:,}")
    empty = [name for value, name in enumerate(names) if value not in total.mask_pixels]
    return _listed(parts) + (f"; in no mask: {_listed(empty)}" if empty else "")


def _counts(names: Sequence[str], counts: Counter[int]) -> str:
    return _listed([f"{names[number]} {count:,}" for number, count in counts.most_common()])


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(summarize_lines(parts, MAX_CLASSES_SHOWN))
