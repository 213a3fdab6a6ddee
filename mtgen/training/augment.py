"""Augmentation in front of the discriminator: one affine map per sample, the same for its image and its labels.

It is differentiable. Its parameters are functions of (seed, position), so any number of workers computes the same. Only
a fraction of the samples is augmented, so the generator cannot learn the augmentation (Karras et al. 2020, "Training
GANs with limited data").
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mtgen.config import AugmentConfig, Config, value_at
from mtgen.schema import Canvas
from mtgen.utils import counter_rng
from mtgen.utils.autocast import autocast

ADAPT_EVERY_STEPS = 8
"""Steps between two changes of an adaptive probability."""

MAX_ADAPTED_PROBABILITY = 0.8
"""Bound of an adaptive probability; above, generators learn the augmentation (Karras et al. 2020, figure 4)."""


def augmentation_threshold(seed: int, purpose: str, position: Tensor) -> Tensor:
    """`[B]` positions -> `[B]` float32 in [0, 1): samples are augmented if the probability is above it."""
    return counter_rng.uniform(seed, f"augment {purpose}", position, 1)[:, 0]


def is_augmented(probability: float, seed: int, purpose: str, position: Tensor) -> Tensor:
    """`[B]` positions -> `[B]` bool: which samples are augmented."""
    return augmentation_threshold(seed, purpose, position) < probability


class AdaptiveAugmentation:
    """The probability of augmentation: fixed, scheduled, or adapted to how surely the discriminator tells real images.

    The measure is the mean sign of (real logit - generated logit) over pairs with the same condition. It is 0 if the
    discriminator cannot tell them apart, and 1 if it always can, a sign that it has memorized the training set. Source:
    Karras et al. 2020, r_t, in its relativistic form. Signs are summed as whole numbers, so any number of workers and
    any resumed run gets the same probability.

    Attributes:
        probability: the current probability.
        preference: the measure at the last change; 0 before the first.
    """

    def __init__(self, settings: AugmentConfig) -> None:
        self.settings = settings
        self.probability = value_at(settings.probability, 0, 1)
        self.preference = 0.0
        self._signs: Tensor | None = None
        self._pairs = 0

    def follow_schedule(self, images: int, total: int) -> None:
        """Set the probability after a number of images out of `total`, unless it is adapted."""
        if self.settings.target is None:
            self.probability = value_at(self.settings.probability, images, total)

    def observe_logit_gap(self, gap: Tensor) -> None:
        """Count `[B]` real minus generated logits; without a host sync."""
        if self.settings.target is not None:
            signs = gap.sign().sum()
            self._signs = signs if self._signs is None else self._signs + signs
            self._pairs += len(gap)

    def adapt(self, steps: int, images: int, group: Any) -> None:
        """Change the probability every `ADAPT_EVERY_STEPS` steps; collective.

        Args:
            steps: number of steps so far.
            images: images per step, over all workers.
            group: process group on the CPU.
        """
        if self.settings.target is None or steps % ADAPT_EVERY_STEPS:
            return
        signs, pairs = self._sums(group)
        self._signs, self._pairs = None, 0
        self.preference = signs / max(pairs, 1)
        change = ADAPT_EVERY_STEPS * images / self.settings.ramp
        probability = self.probability + (change if self.preference > self.settings.target else -change)
        self.probability = min(max(probability, 0.0), MAX_ADAPTED_PROBABILITY)

    def _sums(self, group: Any) -> list[int]:
        sums = torch.tensor([0 if self._signs is None else int(self._signs.item()), self._pairs])
        dist.all_reduce(sums, group=group)
        return [int(value) for value in sums]

    def state(self, group: Any) -> dict[str, float]:
        """Return the state for a checkpoint; collective."""
        signs, pairs = self._sums(group)
        return {"probability": self.probability, "signs": signs, "pairs": pairs}

    def load(self, state: dict[str, float], first: bool) -> None:
        """Restore what `state` returned; a probability that is not adapted is that of the configuration.

        Args:
            first: whether this is the first worker, which takes over the sums of all workers.
        """
        if self.settings.target is not None:
            self.probability = state["probability"]
            self._signs, self._pairs = (
                (torch.tensor(float(state["signs"])), int(state["pairs"])) if first else (None, 0)
            )


@dataclass(frozen=True)
class Warp:
    """The affine maps of one micro-batch.

    Attributes:
        changed: `[B]` bool: the samples that are augmented.
        rows: their indices, on the device of the tensors that will be warped.
        theta: `[n,2,3]` their maps, as `F.affine_grid` takes them, on that device.
        padded: whether `rows` are all rows, and those that are not augmented have the identity as map.
    """

    changed: Tensor
    rows: Tensor
    theta: Tensor
    padded: bool = False

    @staticmethod
    def draw(
        settings: AugmentConfig,
        probability: float,
        seed: int,
        size: tuple[int, int],
        position: Tensor,
        purpose: str,
        which: str,
        padded: bool = False,
    ) -> "Warp":
        """Draw the maps, on the CPU.

        Args:
            settings: largest shift, rotation and change of scale.
            probability: fraction of the samples that is augmented.
            seed: of the run.
            size: height and width of the images. A rotation acts on pixels, so in coordinates relative to the sides the
                map depends on them.
            position: `[B]` positions, on the CPU.
            purpose: seed of the maps, different for real and generated samples and for both steps.
            which: seed of the choice of samples.
            padded: see the attribute.
        """
        changed = is_augmented(probability, seed, which, position)
        rows = torch.arange(len(position)) if padded else changed.nonzero().flatten()
        uniform = 2 * counter_rng.uniform(seed, f"warp {purpose}", position[rows], 4) - 1
        angle = uniform[:, 0] * math.radians(settings.rotate)
        scale = 1 + uniform[:, 1] * settings.scale
        shift = 2 * settings.shift * uniform[:, 2:]
        aspect = size[0] / size[1]
        cos, sin = scale * angle.cos(), scale * angle.sin()
        x = torch.stack([cos, -sin * aspect, shift[:, 0]], 1)
        y = torch.stack([sin / aspect, cos, shift[:, 1]], 1)
        theta = torch.stack([x, y], 1)
        if padded:
            theta = torch.where(changed[:, None, None], theta, torch.eye(2, 3))
        return Warp(changed, rows, theta, padded)

    def __call__(self, x: Tensor, mode: str = "bilinear") -> Tensor:
        """Warp the augmented samples of `[B,C,H,W]`; pixels beyond the border repeat it."""
        if not len(self.rows):
            return x
        part = x if self.padded else x[self.rows]
        with autocast(x.device, enabled=False):
            grid = F.affine_grid(self.theta, list(part.shape), align_corners=False)
            warped = F.grid_sample(part.float(), grid, mode=mode, padding_mode="border", align_corners=False)
        if self.padded:
            return torch.where(self.changed[:, None, None, None], warped.to(x.dtype), x)
        return x.index_copy(0, self.rows, warped.to(x.dtype))

    def mask(self, mask: Tensor) -> Tensor:
        """Warp `[B,H,W]` class numbers, to the nearest pixel."""
        return self(mask[:, None].float(), mode="nearest")[:, 0].to(mask.dtype)

    def canvas(self, canvas: Canvas) -> Canvas:
        """Warp image, mask and box maps alike."""
        return canvas.map_generated(lambda x, name: self(x))


def which_warp(purpose: str, kind: str) -> str:
    """Seed of the choice of augmented samples: both steps augment the same real samples, and other generated ones."""
    return kind if kind == "real" else f"{purpose} {kind}"


def sample_warp(config: Config, probability: float, position: Tensor, purpose: str, kind: str) -> Warp:
    """Return the maps of real or generated samples in a step, on the CPU.

    Args:
        position: `[B]` positions, on the CPU.
        purpose: name of the step.
        kind: "real" or "fake".
    """
    purpose, which = f"{purpose} {kind}", which_warp(purpose, kind)
    padded = config.train.static_shapes
    return Warp.draw(config.augment, probability, config.seed, config.size, position, purpose, which, padded)
