"""Pictures of each data set's first samples as the network sees them: cropped, augmented, with their labels."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mtgen.config import Config, value_at
from mtgen.data.mixture import Samples
from mtgen.data.reader import BatchReader, GlobalBatch
from mtgen.data.transform_spec import transform_spec_of
from mtgen.schema import Batch
from mtgen.training.augment import sample_warp
from mtgen.training.dataset import build_order
from mtgen.visualization.grids import caption_texts, class_names, labeled_grid
from mtgen.visualization.layers import GridPanel, LayeredGrid, write_layered_grid

SAMPLES_PER_DATASET = 16
"""Samples in each picture."""

MAX_SEARCHED_POSITIONS = 16_000
"""Positions at the start of a run that are searched: a mixture's fractions are exact in 1,000 places of each lane.

With more lanes 16 samples of the rarest data set are expected in as many positions."""


def write_first_batch(config: Config, samples: Samples) -> list[Path]:
    """Write one picture per data set into the run's `samples/`, and its layers for the report; returns the pictures.

    Raises:
        DataError: a sample cannot be read; training will find that too.
    """
    note = (
        " (boxes only of images that were not augmented)"
        if "boxes" in config.components and _probability(config)
        else ""
    )
    folder, paths = config.folder / "samples", []
    folder.mkdir(parents=True, exist_ok=True)
    for number, batch in _first(config, samples):
        name = samples.domains[number]
        # Only the tokens of the default tokenizer, bytes, can be turned back into text.
        texts = caption_texts(batch) if config.data.tokenizer is None else [""] * len(batch)
        titles = [text or name for text, name in zip(texts, class_names(batch, samples.card), strict=True)]
        masks = batch.mask if batch.present["mask"].any() else None
        sheet = LayeredGrid(
            f"First samples of {name}, as the network sees them",
            [GridPanel("seen", batch.image, masks, batch.boxes)],
            titles,
        )
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or str(number)
        write_layered_grid(config.folder, 0, f"batch-{slug}", sheet, samples.card)
        paths.append(folder / f"batch-0-{slug}.png")
        labeled_grid(batch, titles, samples.card, note).save(paths[-1])
    return paths


def _probability(config: Config) -> float:
    """Of augmentation in the first step."""
    return value_at(config.augment.probability, 0, config.train.images)


def _first(config: Config, samples: Samples) -> Iterator[tuple[int, Batch]]:
    """For each data set, its number and its first samples, as the discriminator's first step sees them.

    Boxes of augmented samples are removed: the discriminator is not trained to predict them.
    """
    order = build_order(config, samples)
    position = np.arange(MAX_SEARCHED_POSITIONS if len(samples.domains) > 1 else SAMPLES_PER_DATASET, dtype=np.int64)
    domain = samples.domain(order.sample(position))
    for number in np.unique(domain).tolist():
        mine = position[domain == number][:SAMPLES_PER_DATASET]
        batch, _ = BatchReader(samples, transform_spec_of(config), len(mine)).read(
            GlobalBatch(mine, order.sample(mine), slice(0, len(mine)))
        )
        warp = sample_warp(config, _probability(config), batch.position, "discriminator", "real")
        boxes = batch.boxes
        if boxes is not None:
            boxes = boxes.clone()
            boxes[warp.changed, :, 4] = -1
        yield number, replace(batch, image=warp(batch.image), mask=warp.mask(batch.mask), boxes=boxes)
