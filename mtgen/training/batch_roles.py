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

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtgen.config import CONDITIONS, Config
from mtgen.schema import Batch
from mtgen.training.augment import AdaptiveAugmentation, augmentation_threshold, which_warp
from mtgen.training.static_shapes import capacities, pad_role
from mtgen.utils import counter_rng
from mtgen.utils.packed_copy import copy_packed

GENERATOR_STEP = "generator"
"""Name of the generator's step in the seeds of its random numbers."""


@dataclass(frozen=True)
class BatchRoles:
    """One micro-batch, sorted: the image-only rows come first, then the joint ones.

    Attributes:
        batch: the sorted batch.
        position: `[B]` its positions. All tensors are on the batch's device.
        num_image_only: number of image-only rows.
        shown, boxed: `[B]` bool: whether the discriminator sees the mask, and the boxes.
        plain: indices of the image-only rows that the augmentation leaves unchanged.
        plain_position: their positions.
        partner: `[B]` each row's partner row (see `pair_partners`); the row itself if its partner is not in the
            micro-batch.
        pairs: `[N]` the plain rows whose partner is a plain row of the micro-batch too; none unless the run translates.
        pair_position: their positions.
        penalized: indices of the rows with a gradient penalty.
        penalized_position: their positions.
        counts: see `mtgen.tasks.base.StepContext` and `GeneratorContext`.
        weights: role ("plain", "pairs", "penalized") -> weights of its rows, 0 for padded ones; empty unless
            `train.static_shapes`.
        more: what else the step has decided on the host.
    """

    batch: Batch
    position: Tensor
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
    counts: dict[str, int]
    weights: dict[str, Tensor]
    more: dict[str, Tensor]


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


def is_given(config: Config, step: str, name: str, position: Tensor) -> Tensor:
    """`[n]` bool: whether a step is conditioned on a modality where the sample has it."""
    uniform = counter_rng.uniform(config.seed, f"{step} ask {name}", position, 1)[:, 0]
    return uniform < config.condition_settings()[name].probability


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
class _AugmentedRoles:
    """What depends on the probability of augmentation: `[G]` bool, on the CPU, and the counts of `BatchRoles`."""

    augmented: float
    plain: Tensor
    pairs: Tensor
    counts: dict[str, int]


class StepRoles:
    """The roles of all samples of a global batch, the same on every worker: `[G]` each, on the CPU.

    Loaders make them in their own threads (`prepare_roles`), once per step, so that the thread that launches kernels
    handles the rows of its micro-batch alone.

    Args:
        batch: any part of the global batch, with consecutive `step_position`.
        augmented: fraction of the samples that the augmentation is going to change; another one costs some time.
        boxes: whether boxes are on the canvas.
    """

    def __init__(self, config: Config, batch: Batch, augmented: float, boxes: bool) -> None:
        position, present = batch.step_position, batch.step_present
        self.first = int(position[0])
        consecutive = torch.equal(position, self.first + torch.arange(len(position)))
        assert consecutive, "a global batch is consecutive positions"
        self.boxes = boxes
        self.shown = shows_labels(config, position, present["mask"])
        self.boxed = shows_labels(config, position, present["boxes"]) if boxes else torch.zeros_like(self.shown)
        self.image_only = ~(self.shown | self.boxed)
        self.penalized = is_penalized(config, position)
        self.partner = pair_partners(config, len(position))
        self._translated = _is_translated(config, position)
        self._threshold = augmentation_threshold(config.seed, "real", position)
        self._fake_threshold = augmentation_threshold(config.seed, which_warp(GENERATOR_STEP, "fake"), position)
        components = {name: CONDITIONS[name].component for name in config.condition_settings()}
        self._given = {
            name: is_given(config, GENERATOR_STEP, name, position) & present[component]
            for name, component in components.items()
            if component in present
        }
        self._present = present
        self._latest = self._at(augmented)

    def at(self, augmented: float) -> _AugmentedRoles:
        """The roles if this fraction of the samples is augmented: computed again only if it has changed."""
        if self._latest.augmented != augmented:
            self._latest = self._at(augmented)
        return self._latest

    def _at(self, augmented: float) -> _AugmentedRoles:
        plain = (self._threshold >= augmented) & self.image_only
        size = len(plain)
        has_plain_partner = (self.partner < size) & plain[self.partner.clamp(max=size - 1)]
        # A translated image is not augmented, so its real counterpart must not be either: augmentation would give it
        # away.
        pairs = plain & self._translated & has_plain_partner
        unaugmented = (self._fake_threshold >= augmented) & self.image_only  # generated samples
        counts = {
            "all": size,
            "image_only": int(self.image_only.sum()),
            "joint": int((~self.image_only).sum()),
            "plain": int(plain.sum()),
            "pairs": int(pairs.sum()),
            "penalized": int(self.penalized.sum()),
            **{label: int((has & self.image_only).sum()) for label, has in self._present.items()},
            **{f"plain {label}": int((has & plain).sum()) for label, has in self._present.items()},
            "unaugmented": int(unaugmented.sum()),
            **{f"given {name}": int((given & unaugmented).sum()) for name, given in self._given.items()},
        }
        return _AugmentedRoles(augmented, plain, pairs, counts)


def prepare_roles(config: Config, augmentation: AdaptiveAugmentation, boxes: bool) -> Callable[[Batch], Batch]:
    """What a loader does to each batch in its thread: `assign_roles` then finds the roles of the global batch ready."""

    def prepare(batch: Batch) -> Batch:
        return replace(batch, step_roles=StepRoles(config, batch, augmentation.probability, boxes))

    return prepare


def assign_roles(
    config: Config,
    batch: Batch,
    augmented: float,
    boxes: bool = False,
    more: Callable[[Tensor], dict[str, Tensor]] = lambda position: {},
) -> BatchRoles:
    """Sort a micro-batch by roles, and count the samples that each loss is a mean over in the whole global batch.

    Args:
        batch: of at least one sample, with consecutive `step_position`.
        augmented: fraction of the samples that the augmentation changes.
        boxes: whether boxes are on the canvas.
        more: the sorted `[B]` positions, on the CPU -> other tensors that the step needs on the device. All go there in
            one copy with the roles.
    """
    size, device = len(batch.step_position), batch.image.device
    whole: StepRoles = batch.step_roles or StepRoles(config, batch, augmented, boxes)
    assert whole.boxes == boxes, "the loader has prepared roles for another canvas"
    now = whole.at(augmented)
    index = batch.position - whole.first  # each row's index in the global batch
    order = torch.sort((~whole.image_only[index]).to(torch.uint8), stable=True).indices
    position, index = batch.position[order], index[order]
    row_at = torch.full((size + 1,), -1).scatter(0, index, torch.arange(len(index)))  # -1: not in this micro-batch
    partner = row_at[whole.partner[index].clamp(max=size)]
    host = {
        "order": order,
        "position": position,
        "shown": whole.shown[index],
        "boxed": whole.boxed[index],
        "plain": now.plain[index].nonzero().flatten(),
        "partner": torch.where(partner >= 0, partner, torch.arange(len(index))),
        "pairs": (now.pairs[index] & (partner >= 0)).nonzero().flatten(),
        "penalized": whole.penalized[index].nonzero().flatten(),
    }
    num_image_only = int(whole.image_only[index].sum())
    weights = _pad(config, host, num_image_only) if config.train.static_shapes else {}
    there = copy_packed(host | {f"{role} weight": w for role, w in weights.items()} | more(position), device)
    return BatchRoles(
        batch=batch.rows(order, there["order"]),
        position=there["position"],
        num_image_only=num_image_only,
        shown=there["shown"],
        boxed=there["boxed"],
        plain=there["plain"],
        plain_position=there["position"][there["plain"]],
        partner=there["partner"],
        pairs=there["pairs"],
        pair_position=there["position"][there["pairs"]],
        penalized=there["penalized"],
        penalized_position=there["position"][there["penalized"]],
        counts=now.counts,
        weights={role: there[f"{role} weight"] for role in weights},
        more={name: tensor for name, tensor in there.items() if name not in host},
    )


def _pad(config: Config, host: dict[str, Tensor], num_image_only: int) -> dict[str, Tensor]:
    """Pad the roles' rows in `host` to fixed numbers; return their weights."""
    # a plain row has to be image-only; a pair's partner too, so no other row can stand for a pair
    fillers = {"plain": 0 if num_image_only else None, "pairs": None, "penalized": 0}
    weights = {}
    for role, size in capacities(config, len(host["order"])).items():
        host[role], weights[role] = pad_role(host[role], size, fillers[role] if size else None)
    return weights
