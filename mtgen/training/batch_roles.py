"""The roles of samples in a step: pure functions of their positions, so that any number of workers agrees.

A global batch is consecutive positions. They are counted in blocks of `tasks.generation.joint_every`, and a sample's
block and slot (`block, slot = divmod(position, joint_every)`) decide its roles:

- A sample in the last slot is *joint* if it has a mask or boxes: the discriminator judges the image together with these
  labels. All other samples are *image-only*: the discriminator sees the image alone and predicts the labels.
- *Penalized* slots move by one from block to block, so that every slot is penalized in one of `penalty_every` blocks.
- A sample's *partner* is in the same slot of the neighboring block, where blocks are counted from the batch's start.
- Two consecutive blocks have one *pair number* per slot; one pair number in `tasks.translation.every` is translated.
  Partners have the same pair number if the batch's first position is a multiple of `2 * joint_every`.

Worked example for the batch of positions 0 to 15 with `joint_every=4` and `penalty_every=2`; J: joint, P: penalized.
With `tasks.translation.every=2` the pairs 0, 2, 4 and 6 are translated:

| block | slot 0 | slot 1 | slot 2 | slot 3 | partner | pair numbers |
|-|-|-|-|-|-|-|
| 0 | 0 P | 1 | 2 P | 3 J | position + 4 | 0 1 2 3 |
| 1 | 4 | 5 P | 6 | 7 J P | position - 4 | 0 1 2 3 |
| 2 | 8 P | 9 | 10 P | 11 J | position + 4 | 4 5 6 7 |
| 3 | 12 | 13 P | 14 | 15 J P | position - 4 | 4 5 6 7 |
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtgen.config import Config
from mtgen.schema import Batch
from mtgen.training.augment import is_augmented


@dataclass(frozen=True)
class BatchRoles:
    """One micro-batch, sorted: the image-only rows come first, then the joint ones.

    Attributes:
        batch: the sorted batch.
        num_image_only: number of image-only rows.
        shown, boxed: `[B]` bool: whether the discriminator sees the mask, and the boxes.
        plain: indices of the image-only rows that the augmentation leaves unchanged.
        plain_position: their positions, on the CPU.
        partner: `[B]` each row's partner row (see `pair_partners`); the row itself if its partner is not in the
            micro-batch.
        pairs: `[N]` the plain rows whose partner is a plain row of the micro-batch too; none unless the run translates.
        pair_position: their positions, on the CPU.
        penalized: indices of the rows with a gradient penalty.
        penalized_position: their positions, on the CPU.
        step_image_only: `[G]` bool, on the CPU: the image-only samples of the global batch.
        counts: see `mtgen.tasks.base.StepContext`.
    """

    batch: Batch
    num_image_only: int
    shown: Tensor
    boxed: Tensor
    plain: Tensor
    plain_position: Tensor
    partner: Tensor
    pairs: Tensor
    pair_position: Tensor
    penalized: Tensor
    penalized_position: Tensor
    step_image_only: Tensor
    counts: dict[str, int]


def _block_and_slot(config: Config, position: Tensor) -> tuple[Tensor, Tensor]:
    """`[n]` positions -> their blocks and slots."""
    size = config.tasks["generation"].joint_every
    return position // size, position % size


def shows_labels(config: Config, position: Tensor, labeled: Tensor) -> Tensor:
    """`[n]` bool: the joint samples, in the last slot of each block, if they are `labeled`; none without generation."""
    if not config.generates:
        return torch.zeros_like(labeled)
    _, slot = _block_and_slot(config, position)
    return (slot == config.tasks["generation"].joint_every - 1) & labeled


def is_penalized(config: Config, position: Tensor) -> Tensor:
    """`[n]` bool: one sample in `penalty_every`, of joint and image-only samples alike; none without generation."""
    if not config.generates:
        return torch.zeros_like(position, dtype=torch.bool)
    block, slot = _block_and_slot(config, position)
    return (block - slot) % config.tasks["generation"].penalty_every == 0


def _is_translated(config: Config, position: Tensor) -> Tensor:
    """`[n]` bool: the samples of one pair number in `tasks.translation.every`; none unless the run translates."""
    if "translation" not in config.task_settings():
        return torch.zeros_like(position, dtype=torch.bool)
    block, slot = _block_and_slot(config, position)
    pair_number = block // 2 * config.tasks["generation"].joint_every + slot
    return pair_number % config.tasks["translation"].every == 0


def pair_partners(config: Config, size: int) -> Tensor:
    """`[G]` index of each sample's partner in a global batch of `size` samples: the same slot of the neighboring block.

    Partners cannot be neighbors: with `joint_every=2` one of the two would always be joint. Beyond the batch's end
    there may be no sample at a partner's index.
    """
    index = torch.arange(size)
    if not config.generates:
        return index
    block, _ = _block_and_slot(config, index)
    distance = config.tasks["generation"].joint_every
    return torch.where(block % 2 == 0, index + distance, index - distance)


@dataclass(frozen=True)
class _GlobalRoles:
    """The roles of all samples of a global batch: `[G]` each, on the CPU."""

    shown: Tensor
    boxed: Tensor
    image_only: Tensor
    plain: Tensor
    partner: Tensor
    pairs: Tensor

    @staticmethod
    def of(config: Config, batch: Batch, augmented: float, boxes: bool) -> "_GlobalRoles":
        position, present = batch.step_position, batch.step_present
        shown = shows_labels(config, position, present["mask"])
        boxed = shows_labels(config, position, present["boxes"]) if boxes else torch.zeros_like(shown)
        image_only = ~(shown | boxed)
        plain = ~is_augmented(augmented, config.seed, "real", position) & image_only
        partner = pair_partners(config, len(position))
        # A translated image is not augmented, so its real counterpart must not be either: augmentation would give it
        # away.
        has_plain_partner = (partner < len(position)) & plain[partner.clamp(max=len(position) - 1)]
        pairs = plain & _is_translated(config, position) & has_plain_partner
        return _GlobalRoles(shown, boxed, image_only, plain, partner, pairs)

    def counts(self, config: Config, batch: Batch) -> dict[str, int]:
        """Number of samples that each loss is a mean over."""
        present = batch.step_present.items()
        return {
            "all": len(self.plain),
            "image_only": int(self.image_only.sum()),
            "joint": int((~self.image_only).sum()),
            "plain": int(self.plain.sum()),
            "pairs": int(self.pairs.sum()),
            "penalized": int(is_penalized(config, batch.step_position).sum()),
            **{label: int((has & self.image_only).sum()) for label, has in present},
            **{f"plain {label}": int((has & self.plain).sum()) for label, has in present},
        }


def assign_roles(config: Config, batch: Batch, augmented: float, boxes: bool = False) -> BatchRoles:
    """Sort a micro-batch by roles, and count the samples that each loss is a mean over in the whole global batch.

    Args:
        batch: of at least one sample, with consecutive `step_position`.
        augmented: fraction of the samples that the augmentation changes.
        boxes: whether boxes are on the canvas.
    """
    first, size, device = batch.step_position[0], len(batch.step_position), batch.image.device
    assert torch.equal(batch.step_position, first + torch.arange(size)), "a global batch is consecutive positions"
    roles = _GlobalRoles.of(config, batch, augmented, boxes)
    index = batch.position - first  # each row's index in the global batch
    order = torch.sort((~roles.image_only[index]).to(torch.uint8), stable=True).indices
    rows, index = batch.rows(order), index[order]
    row_at = torch.full((size + 1,), -1).scatter(0, index, torch.arange(len(index)))  # -1: not in this micro-batch
    partner = row_at[roles.partner[index].clamp(max=size)]
    plain = roles.plain[index].nonzero().flatten()
    pairs = (roles.pairs[index] & (partner >= 0)).nonzero().flatten()
    penalized = is_penalized(config, rows.position).nonzero().flatten()
    return BatchRoles(
        batch=rows,
        num_image_only=int(roles.image_only[index].sum()),
        shown=roles.shown[index].to(device),
        boxed=roles.boxed[index].to(device),
        plain=plain.to(device),
        plain_position=rows.position[plain],
        partner=torch.where(partner >= 0, partner, torch.arange(len(index))).to(device),
        pairs=pairs.to(device),
        pair_position=rows.position[pairs],
        penalized=penalized.to(device),
        penalized_position=rows.position[penalized],
        step_image_only=roles.image_only,
        counts=roles.counts(config, batch),
    )
