"""Which sample plays which part in a step: pure functions of its position, so that any number of workers agrees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtgen.config import Config
from mtgen.schema import Batch
from mtgen.training.augment import changed


@dataclass
class Layout:
    """One micro-batch, sorted: first the rows whose mask stays hidden ("reading rows"), then those judged with it.

    Attributes:
        batch: the sorted batch.
        reading: number of reading rows.
        shown: `[B]` bool.
        plain: indices of the reading rows that the augmentation leaves alone, and `plain_position`, their positions, on the CPU.
        penalised: indices of the rows with a gradient penalty, and `penalised_position`, their positions, on the CPU.
        counts: see `tasks.base.Scene`.
    """

    batch: Batch
    reading: int
    shown: Tensor
    plain: Tensor
    plain_position: Tensor
    penalised: Tensor
    penalised_position: Tensor
    counts: dict[str, int]


def is_shown(config: Config, position: Tensor, has_mask: Tensor) -> Tensor:
    """Every `mask_every`-th sample is judged with its mask, if it has one."""
    every = config.tasks["generation"].mask_every
    return (position % every == every - 1) & has_mask


def is_penalised(config: Config, position: Tensor) -> Tensor:
    """One sample in `penalty_every`, of those whose turn it is to be shown with their mask and of the others alike."""
    settings = config.tasks["generation"]
    return (position // settings.mask_every - position % settings.mask_every) % settings.penalty_every == 0


def lay_out(config: Config, batch: Batch, changing: float) -> Layout:
    """Sort a micro-batch and count, over the whole global batch, how many samples each loss is a mean of.

    Args:
        changing: share of the samples that the augmentation changes.
    """
    which = "real"
    has_mask = batch.step_present["mask"]
    shown_all = is_shown(config, batch.step_position, has_mask)
    plain_all = ~changed(changing, config.seed, which, batch.step_position) & ~shown_all
    counts = {
        "all": len(batch.step_position),
        "reading": int((~shown_all).sum()),
        "plain": int(plain_all.sum()),
        "penalised": int(is_penalised(config, batch.step_position).sum()),
        **{label: int((present & ~shown_all).sum()) for label, present in batch.step_present.items()},
    }
    place = batch.position - batch.step_position[0]  # a global batch is consecutive positions
    shown = shown_all[place]
    order = torch.sort(shown.to(torch.uint8), stable=True).indices
    batch, shown = batch.rows(order), shown[order]
    plain = plain_all[place][order].nonzero().flatten()
    penalised = is_penalised(config, batch.position).nonzero().flatten()
    device = batch.image.device
    return Layout(
        batch=batch,
        reading=int((~shown).sum()),
        shown=shown.to(device),
        plain=plain.to(device),
        plain_position=batch.position[plain],
        penalised=penalised.to(device),
        penalised_position=batch.position[penalised],
        counts=counts,
    )
