"""Rows of a step -> a batch: what is stored of each sample is read and decoded, and a damaged one replaced."""

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
"""Positions whose sample was damaged, and what was wrong with it."""

MAX_REPLACEMENT_ATTEMPTS = 100
"""Replacements that are tried for one position before its data set counts as damaged through and through."""


@dataclass(frozen=True)
class GlobalBatch:
    """One global batch: positions and sample numbers of all its rows, and which rows are this worker's."""

    position: NDArray[np.int64]
    sample: NDArray[np.int64]
    mine: slice


class _Parts(NamedTuple):
    """A sample as it is stored, text already read; `None` where it has no such component or nobody asked for it."""

    image: bytes
    mask: bytes | None
    boxes: Annotation | None
    caption: NDArray[np.int64] | None
    sound: bytes | None


class BatchReader:
    """Reads and decodes one worker's rows of a step, `batch` at most."""

    def __init__(self, index: Samples, view: TransformSpec, batch: int) -> None:
        self.index = index
        self.view = view
        self.components = view.components
        masks = "mask" in view.components and bool(index.present["mask"].any())
        height, width = (view.resolution,) * 2 if isinstance(view.resolution, int) else view.resolution
        whole = view.crop == 1.0 and bool(
            (index.width.astype(np.int64) * height == index.height.astype(np.int64) * width).all()
        )
        self.decoder = ImageDecoder(view.resolution, view.channels, view.threads, view.device, batch, masks, whole)
        self._stored_here = {c for c in view.components if c != "class" and index.present[c].any()}
        self.sounds = SoundDecoder(view.sound, view.threads, batch) if "sound" in view.components else None
        self._suspects: set[int] = set()  # samples that were damaged in some window: from then on looked at alone first

    @property
    def rebuilds(self) -> int:
        """How often the decoders' pipelines failed on damaged samples and were built again."""
        return self.decoder.rebuilds + (self.sounds.reader.rebuilds if self.sounds else 0)

    @cached_property
    def _kind(self) -> NDArray[np.int64]:
        """`[N]`: the same number for samples of the same data set with the same components."""
        components = np.packbits(np.stack([self.index.present[c] for c in COMPONENTS], 1), axis=1)[:, 0]
        return self.index.domain(np.arange(len(self.index))) * 256 + components

    def read(self, step: GlobalBatch) -> tuple[Batch, Damage]:
        """This worker's part of the step, decoded, and the samples that had to be replaced.

        Raises:
            DamagedSample: the first one, with `on_damage="stop"`.
            DataError: a shard cannot be read, or there is nothing to replace a damaged sample by.
        """
        index, position, sample = self.index, step.position[step.mine], step.sample[step.mine].copy()
        replaced: Damage = []
        files: list[_Parts] = []
        for row, i in enumerate(sample.tolist()):
            found = self._files(i) if not self._suspects else self._looked_at(i, position[row])
            files.append(
                self._replacement(sample, row, position, found, replaced) if isinstance(found, DamagedSample) else found
            )
        while True:
            wrong, image, mask, sound = self._decode(files, sample, position)
            if not wrong:
                break
            for row, damage in wrong.items():
                self._suspects.add(int(sample[row]))
                files[row] = self._replacement(sample, row, position, damage, replaced)
        batch = Batch(
            position=torch.from_numpy(position.copy()),
            image=color_jitter(image, self.view.colour, self.view.seed, position) if self.view.colour else image,
            label=torch.from_numpy(np.maximum(index.label[sample], 0)).to(image.device),
            mask=mask,
            present={c: torch.from_numpy(index.present[c][sample]).to(image.device) for c in self.components},
            step_position=torch.from_numpy(step.position),
            step_present={c: torch.from_numpy(index.present[c][step.sample]) for c in self.components},
            sound=None if sound is None else sound.to(image.device),
            domain=torch.from_numpy(index.domain(sample)).to(image.device),
        )
        if {"boxes", "caption"} & set(self.components):
            self._add_text(batch, files, self._window(sample, position))
        return batch, sorted(replaced, key=itemgetter(0))

    def _window(self, sample: NDArray[np.int64], position: NDArray[np.int64]) -> Window:
        width, height = self.index.width[sample], self.index.height[sample]
        aspect = self.decoder.size[1] / self.decoder.size[0]
        return window(width, height, self.view.crop, self.view.flip, self.view.seed, position, aspect)

    def _files(self, i: int) -> _Parts | DamagedSample:
        """What is stored of a sample, or what is wrong with it."""
        try:
            return _Parts(
                self.index.read(i, "image"), self._stored(i, "mask"), *self._text(i), self._stored(i, "sound")
            )
        except DamagedSample as damage:
            return damage

    def _stored(self, i: int, component: str) -> bytes | None:
        return (
            self.index.read(i, component)
            if component in self._stored_here and self.index.present[component][i]
            else None
        )

    def _text(self, i: int) -> tuple[Annotation | None, NDArray[np.int64] | None]:
        """Boxes and caption of a sample."""
        index, kind = self.index, "boxes"
        if not self._stored_here & {"boxes", "caption"}:
            return None, None
        try:
            data = self._stored(i, "boxes")
            found = (
                None
                if data is None
                else annotation(data, int(index.width[i]), int(index.height[i]), index.class_table(i))
            )
            kind, data = "caption", self._stored(i, "caption")
            return found, None if data is None else self.view.tokenizer.encode(data, self.view.tokens)
        except ValueError as reason:
            raise DamagedSample(kind, index.name(i), f"{kind}: {reason}; {VALIDATE_HINT}") from None

    def _add_text(self, batch: Batch, files: list[_Parts], cut: Window) -> None:
        """Boxes, labels and captions into the batch, where they are asked for."""
        device = batch.image.device
        if "boxes" in self.components:
            stored = [np.zeros((0, 5)) if parts.boxes is None else parts.boxes.boxes for parts in files]
            batch.boxes = torch.from_numpy(crop_boxes(stored, cut, self.view.boxes)).to(device)
            labels = np.zeros((len(files), len(self.index.card.classes)), np.bool_)
            for row, parts in enumerate(files):
                if parts.boxes is not None:
                    labels[row, parts.boxes.labels] = True
            batch.labels = torch.from_numpy(labels).to(device)
        if "caption" in self.components:
            nothing = np.zeros(self.view.tokens, np.int64)
            captions = [nothing if parts.caption is None else parts.caption for parts in files]
            batch.caption = torch.from_numpy(np.stack(captions)).to(device)

    def _looked_at(self, i: int, position: int) -> _Parts | DamagedSample:
        """The same; a sample that was damaged before is decoded alone first, so that it fails no batch again."""
        files = self._files(i)
        if i not in self._suspects or isinstance(files, DamagedSample):
            return files
        one, at = np.array([i]), np.array([position])
        if damage := self.decoder.check_one(files.image, files.mask, self._window(one, at).row(0), self.index.name(i)):
            return damage
        if (
            self.sounds
            and files.sound is not None
            and (damage := self.sounds.reader.check_one(files.sound, self.index.name(i)))
        ):
            return damage
        wrong, *_ = self._decode([files], one, at)
        return wrong.get(0, files)

    def _decode(
        self, files: list[_Parts], sample: NDArray[np.int64], position: NDArray[np.int64]
    ) -> tuple[dict[int, DamagedSample], torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Rows that are damaged and why; where there is none, image, mask and sound of all."""

        def name(row: int) -> str:
            return self.index.name(sample[row])

        images, masks = [parts.image for parts in files], [parts.mask for parts in files]
        try:
            sound = self.sounds.decode([parts.sound for parts in files], name) if self.sounds else None
            image, mask = self.decoder.decode(images, masks, self._window(sample, position), name)
        except DamagedBatch as damaged:
            return damaged.found, torch.empty(0), torch.empty(0), None
        wrong, mask = self._classes(mask, sample)
        return wrong, image, mask, sound

    def _replacement(
        self, sample: NDArray[np.int64], row: int, position: NDArray[np.int64], damage: DamagedSample, replaced: Damage
    ) -> _Parts:
        """Another sample of the same data set with the same components, for a damaged one: a function of seed, position and attempt alone.

        That every worker computes what the whole step holds from the index stays true, and so do the pixels after a resume.
        """
        if self.view.on_damage == "stop":
            raise damage
        at = int(position[row])
        tried = sum(p == at for p, _ in replaced)
        alike = np.flatnonzero(self._kind == self._kind[sample[row]])
        for attempt in range(tried, MAX_REPLACEMENT_ATTEMPTS):
            replaced.append((at, damage))
            random = int(counter_rng.bits(self.view.seed, f"replacement {attempt}", torch.tensor([at]), 1)) & (
                (1 << 62) - 1
            )
            sample[row] = alike[random % len(alike)]
            found = self._looked_at(sample[row], at)
            if not isinstance(found, DamagedSample):
                return found
            damage = found
        raise DataError(
            f"{damage}; {MAX_REPLACEMENT_ATTEMPTS} samples with the same components, drawn in its place, are damaged too: "
            f"mend the data set, `{shell_command('mtgen shards validate', self.index.folder)}` lists what is wrong"
        )

    def _classes(self, mask: torch.Tensor, sample: NDArray[np.int64]) -> tuple[dict[int, DamagedSample], torch.Tensor]:
        """`[B,H,W]` stored mask values -> rows with values that the card does not name, and mask classes of the card."""
        if not self.decoder.masks:
            return {}, mask
        tables = [self.index.mask_table(i) for i in sample]
        found: Any
        if mask.device.type == "cpu":  # in NumPy: torch would start threads of its own here
            values = mask.numpy()
            found = np.empty_like(values)
            for row, table in enumerate(tables):
                np.take(table, values[row], out=found[row], mode="clip")
            lowest = found.min((1, 2))
        else:
            rows = torch.arange(len(sample), device=mask.device)[:, None, None]
            found = torch.from_numpy(np.stack(tables)).to(mask.device)[rows, mask]
            lowest = found.amin((1, 2)).cpu().numpy()
        known = f"{CARD_FILE} names {len(self.index.card.mask_classes)} classes from 0"
        wrong = {
            int(row): DamagedSample(
                "mask",
                self.index.name(sample[row]),
                f"mask class {int(mask[row][torch.as_tensor(found[row]) < 0][0])}, {known}; {VALIDATE_HINT}",
            )
            for row in np.flatnonzero(lowest < 0)
        }
        return wrong, torch.as_tensor(found)
