"""Reading and decoding one worker's rows of a global batch; damaged samples are replaced."""

from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mtgen.data.audio import SoundDecoder
from mtgen.data.boxes import Annotation, annotation, crop_boxes
from mtgen.data.color_jitter import color_jitter
from mtgen.data.columns import chunks
from mtgen.data.dataset_card import CARD_FILE
from mtgen.data.decode import ImageDecoder
from mtgen.data.geometry import Window, window
from mtgen.data.mixture import Samples
from mtgen.data.pipeline import VALIDATE_HINT, DamagedBatch
from mtgen.data.transform_spec import TransformSpec
from mtgen.errors import DamagedSample, DataError
from mtgen.schema import COMPONENTS, Batch
from mtgen.utils import counter_rng
from mtgen.utils.shell import shell_command

Damage = list[tuple[int, DamagedSample]]
"""Positions whose sample was replaced, and what was wrong with it."""

MAX_REPLACEMENT_ATTEMPTS = 100
"""Replacements that are tried for one position before the whole data set counts as damaged."""


@dataclass(frozen=True)
class GlobalBatch:
    """One global batch: positions and sample numbers of all rows, and the slice of rows that this worker reads."""

    position: NDArray[np.int64]
    sample: NDArray[np.int64]
    mine: slice


class _Parts(NamedTuple):
    """A sample as stored, with parsed JSON and tokenized caption; `None` for components that are missing or unused."""

    image: bytes
    mask: bytes | None
    boxes: Annotation | None
    caption: NDArray[np.int64] | None
    sound: bytes | None


def _all_have_aspect(index: Samples, width: int, height: int) -> bool:
    """Whether all images have the aspect ratio `width` / `height`."""
    sizes = zip(chunks(index.width), chunks(index.height), strict=True)
    return not any((w.astype(np.int64) * height != h.astype(np.int64) * width).any() for w, h in sizes)


class BatchReader:
    """Reads and decodes one worker's rows of a global batch.

    Args:
        index: the samples to read from.
        spec: components to read of each sample, and how to transform them.
        batch: largest number of rows at once.
    """

    def __init__(self, index: Samples, spec: TransformSpec, batch: int) -> None:
        self.index = index
        self.spec = spec
        self.components = spec.components
        masks = "mask" in spec.components and bool(index.present["mask"].any())
        height, width = (spec.resolution,) * 2 if isinstance(spec.resolution, int) else spec.resolution
        whole = spec.crop == 1.0 and _all_have_aspect(index, width, height)
        self.decoder = ImageDecoder(spec.resolution, spec.channels, spec.threads, spec.device, batch, masks, whole)
        self.sounds = SoundDecoder(spec.sound, spec.threads, batch) if "sound" in spec.components else None
        self._stored_components = {c for c in spec.components if c != "class" and index.present[c].any()}
        self._suspects: set[int] = set()  # samples that were damaged in some window: checked alone from then on

    @property
    def rebuilds(self) -> int:
        """How many times the decoders' pipelines failed on damaged samples and were rebuilt."""
        return self.decoder.rebuilds + (self.sounds.reader.rebuilds if self.sounds else 0)

    def _kind(self, rows: slice) -> NDArray[np.int64]:
        """Of some rows of the index: equal for samples of the same data set with the same components."""
        components = np.packbits(np.stack([self.index.present[c][rows] for c in COMPONENTS], 1), axis=1)[:, 0]
        return self.index.domain(np.arange(rows.start, rows.stop)) * 256 + components

    @cached_property
    def _shard_begin(self) -> NDArray[np.int64]:
        return np.cumsum(self.index.sizes) - self.index.sizes

    def _candidates(self, sample: int) -> NDArray[np.int64]:
        """Samples that may replace a damaged one: alike, and in its shard, which is here, if that has another one."""
        number = int(np.searchsorted(self._shard_begin, sample, side="right")) - 1
        begin = int(self._shard_begin[number])
        shard = slice(begin, begin + int(self.index.sizes[number]))
        for rows in (shard, slice(0, len(self.index))):
            kind = self._kind(rows)
            candidates = np.flatnonzero(kind == kind[sample - rows.start]) + rows.start
            if len(candidates) > 1:
                break
        return candidates

    def read(self, step: GlobalBatch) -> tuple[Batch, Damage]:
        """Read and decode this worker's rows; returns the batch and the samples that were replaced.

        Raises:
            DamagedSample: the first damaged sample, with `on_damage="stop"`.
            DataError: a shard cannot be read, or all replacements of a damaged sample are damaged too.
        """
        index = self.index
        position = step.position[step.mine]
        sample = step.sample[step.mine].copy()
        replaced: Damage = []
        parts: list[_Parts] = []
        for row, i in enumerate(sample.tolist()):
            stored = self._read_parts(i) if not self._suspects else self._read_checked(i, position[row])
            if isinstance(stored, DamagedSample):
                stored = self._replace(sample, row, position, stored, replaced)
            parts.append(stored)
        while True:
            damaged, image, mask, sound = self._decode(parts, sample, position)
            if not damaged:
                break
            for row, damage in damaged.items():
                self._suspects.add(int(sample[row]))
                parts[row] = self._replace(sample, row, position, damage, replaced)
        if self.spec.color_jitter:
            image = color_jitter(image, self.spec.color_jitter, self.spec.seed, position)
        batch = Batch(
            position=torch.from_numpy(position.copy()),
            image=image,
            label=torch.from_numpy(np.maximum(index.label[sample], 0)).to(image.device),
            mask=mask,
            present={c: torch.from_numpy(index.present[c][sample]).to(image.device) for c in self.components},
            step_position=torch.from_numpy(step.position),
            step_present={c: torch.from_numpy(index.present[c][step.sample]) for c in self.components},
            sound=None if sound is None else sound.to(image.device),
            domain=torch.from_numpy(index.domain(sample)).to(image.device),
        )
        if {"boxes", "tags", "caption"} & set(self.components):
            self._add_text(batch, parts, self._window(sample, position))
        return batch, sorted(replaced, key=itemgetter(0))

    def _window(self, sample: NDArray[np.int64], position: NDArray[np.int64]) -> Window:
        width, height = self.index.width[sample], self.index.height[sample]
        aspect = self.decoder.size[1] / self.decoder.size[0]
        return window(width, height, self.spec.crop, self.spec.flip, self.spec.seed, position, aspect)

    def _read_parts(self, i: int) -> _Parts | DamagedSample:
        """Read the stored components of a sample, or return what is wrong with them."""
        try:
            return _Parts(self.index.read(i, "image"), self._read(i, "mask"), *self._text(i), self._read(i, "sound"))
        except DamagedSample as damage:
            return damage

    def _read(self, i: int, component: str) -> bytes | None:
        if component in self._stored_components and self.index.present[component][i]:
            return self.index.read(i, component)
        return None

    def _text(self, i: int) -> tuple[Annotation | None, NDArray[np.int64] | None]:
        """Boxes with tags, and caption of a sample; boxes or tags that are unknown or not read are left empty."""
        index, component = self.index, "boxes"
        boxes = caption = None
        try:
            known = [c for c in ("boxes", "tags") if c in self._stored_components and index.present[c][i]]
            if known:  # one JSON holds both
                component = known[0]
                data = index.read(i, component)
                boxes = annotation(data, int(index.width[i]), int(index.height[i]), index.class_table(i)).only(known)
            component = "caption"
            if (stored := self._read(i, component)) is not None:
                caption = self.spec.tokenizer.encode(stored, self.spec.max_tokens)
        except ValueError as reason:
            raise DamagedSample(component, index.name(i), f"{component}: {reason}; {VALIDATE_HINT}") from None
        return boxes, caption

    def _add_text(self, batch: Batch, parts: list[_Parts], window: Window) -> None:
        """Add boxes, labels and captions to the batch, as far as they are among the components to read."""
        device = batch.image.device
        if "boxes" in self.components:
            stored = [np.zeros((0, 5)) if p.boxes is None else p.boxes.boxes for p in parts]
            batch.boxes = torch.from_numpy(crop_boxes(stored, window, self.spec.max_boxes)).to(device)
        if "tags" in self.components:
            labels = np.zeros((len(parts), len(self.index.card.classes)), np.bool_)
            for row, part in enumerate(parts):
                if part.boxes is not None:
                    labels[row, part.boxes.labels] = True
            batch.labels = torch.from_numpy(labels).to(device)
        if "caption" in self.components:
            empty = np.zeros(self.spec.max_tokens, np.int64)
            captions = [empty if p.caption is None else p.caption for p in parts]
            batch.caption = torch.from_numpy(np.stack(captions)).to(device)

    def _read_checked(self, i: int, position: int) -> _Parts | DamagedSample:
        """Like `_read_parts`; a sample that was damaged before is decoded alone first, so that no batch fails on it."""
        parts = self._read_parts(i)
        if i not in self._suspects or isinstance(parts, DamagedSample):
            return parts
        name = self.index.name(i)
        samples, positions = np.array([i]), np.array([position])
        window = self._window(samples, positions).row(0)
        if damage := self.decoder.check_one(parts.image, parts.mask, window, name):
            return damage
        if self.sounds and parts.sound is not None and (damage := self.sounds.reader.check_one(parts.sound, name)):
            return damage
        damaged, *_ = self._decode([parts], samples, positions)
        return damaged.get(0, parts)

    def _decode(
        self, parts: list[_Parts], sample: NDArray[np.int64], position: NDArray[np.int64]
    ) -> tuple[dict[int, DamagedSample], torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The damaged rows with their problems and, if there are none, image, mask and sound of all rows."""

        def name(row: int) -> str:
            return self.index.name(sample[row])

        images, masks = [p.image for p in parts], [p.mask for p in parts]
        try:
            sound = self.sounds.decode([p.sound for p in parts], name) if self.sounds else None
            image, mask = self.decoder.decode(images, masks, self._window(sample, position), name)
        except DamagedBatch as error:
            return error.found, torch.empty(0), torch.empty(0), None
        damaged, mask = self._mask_classes(mask, sample)
        return damaged, image, mask, sound

    def _replace(
        self, sample: NDArray[np.int64], row: int, position: NDArray[np.int64], damage: DamagedSample, replaced: Damage
    ) -> _Parts:
        """Replace a damaged sample by another one of its data set with the same components, of its shard if possible.

        The choice is a function of seed, position and attempt alone, so that a resumed run sees the same pixels. Since
        the components are the same, every worker still knows from the index what the global batch contains.

        Args:
            sample: the sample numbers; row `row` is changed.
            replaced: each damaged sample is appended.
        """
        if self.spec.on_damage == "stop":
            raise damage
        at = int(position[row])
        attempts = sum(p == at for p, _ in replaced)
        candidates = self._candidates(int(sample[row]))
        for attempt in range(attempts, MAX_REPLACEMENT_ATTEMPTS):
            replaced.append((at, damage))
            random = int(counter_rng.bits(self.spec.seed, f"replacement {attempt}", torch.tensor([at]), 1))
            sample[row] = candidates[(random & ((1 << 62) - 1)) % len(candidates)]
            parts = self._read_checked(sample[row], at)
            if not isinstance(parts, DamagedSample):
                return parts
            damage = parts
        raise DataError(
            f"{damage}; {MAX_REPLACEMENT_ATTEMPTS} replacements with the same components are damaged too: "
            f"fix the data set, `{shell_command('mtgen shards validate', self.index.folder)}` lists what is wrong"
        )

    def _mask_classes(
        self, mask: torch.Tensor, sample: NDArray[np.int64]
    ) -> tuple[dict[int, DamagedSample], torch.Tensor]:
        """Stored mask values `[B,H,W]` -> rows with values that the card does not name, and the card's mask classes."""
        if not self.decoder.masks:
            return {}, mask
        tables = [self.index.mask_table(i) for i in sample]
        classes: Any
        if mask.device.type == "cpu":  # in NumPy: torch would start its own threads here
            values = mask.numpy()
            classes = np.empty_like(values)
            for row, table in enumerate(tables):
                np.take(table, values[row], out=classes[row], mode="clip")
            lowest = classes.min((1, 2))
        else:
            rows = torch.arange(len(sample), device=mask.device)[:, None, None]
            classes = torch.from_numpy(np.stack(tables)).to(mask.device)[rows, mask]
            lowest = classes.amin((1, 2)).cpu().numpy()
        damaged: dict[int, DamagedSample] = {}
        for row in np.flatnonzero(lowest < 0).tolist():
            value = int(mask[row][torch.as_tensor(classes[row]) < 0][0])
            problem = f"mask class {value}, {CARD_FILE} names {len(self.index.card.mask_classes)} classes from 0"
            damaged[row] = DamagedSample("mask", self.index.name(sample[row]), f"{problem}; {VALIDATE_HINT}")
        return damaged, torch.as_tensor(classes)
