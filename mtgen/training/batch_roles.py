"""Which sample plays which part in a step: pure functions of its position, so that any number of workers agrees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtgen.config import Config
from mtgen.schema import Batch
from mtgen.training.augment import is_augmented


@dataclass
class BatchRoles:
    """One micro-batch, sorted: first the rows whose labels stay hidden ("reading rows"), then those judged together with them.

    Attributes:
        batch: the sorted batch.
        reading: number of reading rows.
        shown, boxed: `[B]` bool: the discriminator sees the mask, and the boxes.
        plain: indices of the reading rows that the augmentation leaves alone, and `plain_position`, their positions, on the CPU.
        partner: `[B]` for each row the row of its partner (see `pair_partners`), or itself where that is not here.
        pairs: `[N]` plain rows whose partner is here and a plain row too, and `pair_position`, their
            positions, on the CPU; none unless the run translates.
        penalized: indices of the rows with a gradient penalty, and `penalized_position`, their positions, on the CPU.
        counts: see `tasks.base.Scene`.
    """

    batch: Batch
    reading: int
    shown: Tensor
    boxed: Tensor
    plain: Tensor
    plain_position: Tensor
    partner: Tensor
    pairs: Tensor
    pair_position: Tensor
    penalized: Tensor
    penalized_position: Tensor
    counts: dict[str, int]


def shows_labels(config: Config, position: Tensor, labeled: Tensor) -> Tensor:
    """Every `joint_every`-th sample is judged with its labels, if it has them; none where nothing is judged."""
    if not config.generates:
        return torch.zeros_like(labeled)
    every = config.tasks["generation"].joint_every
    return (position % every == every - 1) & labeled


def is_penalized(config: Config, position: Tensor) -> Tensor:
    """One sample in `penalty_every`, of those whose turn it is to be shown with their labels and of the others alike."""
    if not config.generates:
        return torch.zeros_like(position, dtype=torch.bool)
    settings = config.tasks["generation"]
    return (position // settings.joint_every - position % settings.joint_every) % settings.penalty_every == 0


def _is_translated(config: Config, position: Tensor) -> Tensor:
    """One pair in `every`, where the run translates; see `pair_partners` for what a pair is."""
    if "translation" not in config.task_settings():
        return torch.zeros_like(position, dtype=torch.bool)
    turn, every = config.tasks["generation"].joint_every, config.tasks["translation"].every
    return (position // (2 * turn) * turn + position % turn) % every == 0  # both of a pair have its number


def pair_partners(config: Config, size: int) -> Tensor:
    """`[G]` for each sample of a global batch the place of its partner, which the same turn to be judged with labels falls to.

    Were neighbors partners, one of the two would be judged with its labels wherever every other sample is. At the batch's end a place
    may be that of no sample.
    """
    place = torch.arange(size)
    if not config.generates:
        return place
    every = config.tasks["generation"].joint_every
    return torch.where(place // every % 2 == 0, place + every, place - every)


def assign_roles(config: Config, batch: Batch, changing: float, boxes: bool = False) -> BatchRoles:
    """Sort a micro-batch and count, over the whole global batch, how many samples each loss is a mean of.

    Args:
        changing: share of the samples that the augmentation changes.
        boxes: whether boxes are on the canvas.
    """
    position = batch.step_position
    shown_all = shows_labels(config, position, batch.step_present["mask"])
    boxed_all = shows_labels(config, position, batch.step_present["boxes"]) if boxes else torch.zeros_like(shown_all)
    reading_all = ~(shown_all | boxed_all)
    plain_all = ~is_augmented(changing, config.seed, "real", position) & reading_all
    partner_all = pair_partners(config, len(position))
    # A translated image is not augmented, so neither is the real one that it is told from: else the changes alone would tell.
    there = (partner_all < len(position)) & plain_all[partner_all.clamp(max=len(position) - 1)]
    pairs_all = plain_all & _is_translated(config, position) & there
    counts = {
        "all": len(position),
        "reading": int(reading_all.sum()),
        "plain": int(plain_all.sum()),
        "pairs": int(pairs_all.sum()),
        "penalized": int(is_penalized(config, position).sum()),
        **{label: int((present & reading_all).sum()) for label, present in batch.step_present.items()},
        **{f"plain {label}": int((present & plain_all).sum()) for label, present in batch.step_present.items()},
    }
    place = batch.position - position[0]  # a global batch is consecutive positions
    order = torch.sort((~reading_all[place]).to(torch.uint8), stable=True).indices
    batch, place = batch.rows(order), place[order]
    plain = plain_all[place].nonzero().flatten()
    penalized = is_penalized(config, batch.position).nonzero().flatten()
    row = torch.full((len(position) + 1,), -1).scatter(0, place, torch.arange(len(place)))
    partner = row[partner_all[place].clamp(max=len(position))]
    here = partner >= 0
    pairs = (pairs_all[place] & here).nonzero().flatten()
    device = batch.image.device
    return BatchRoles(
        batch=batch,
        reading=int(reading_all[place].sum()),
        shown=shown_all[place].to(device),
        boxed=boxed_all[place].to(device),
        plain=plain.to(device),
        plain_position=batch.position[plain],
        partner=torch.where(here, partner, torch.arange(len(place))).to(device),
        pairs=pairs.to(device),
        pair_position=batch.position[pairs],
        penalized=penalized.to(device),
        penalized_position=batch.position[penalized],
        counts=counts,
    )
