"""Augmentation in front of the discriminator: one affine map a sample, for image and mask alike, real and generated alike.

Differentiable and the same on any number of workers: its parameters are functions of (seed, position). Because only a share
of the samples is changed, the generator cannot learn to draw the changes (Karras et al. 2020, "Training GANs with limited data").
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mtgen.config import AugmentConfig, Config
from mtgen.schema import Canvas
from mtgen.utils import counter_rng
from mtgen.utils.autocast import autocast

ADAPT_EVERY_STEPS = 8
"""Steps between two changes of an adapted share."""

MAX_ADAPTED_PROBABILITY = 0.8
"""An adapted share stays below it: above, the generator begins to draw the changes (Karras et al. 2020, figure 4)."""


def is_augmented(probability: float, seed: int, purpose: str, position: Tensor) -> Tensor:
    """`[B]` positions -> `[B]` bool: which samples are changed."""
    return counter_rng.uniform(seed, f"augment {purpose}", position, 1)[:, 0] < probability


class AdaptiveAugmentation:
    """The share of samples that is changed: fixed, or adapted to how surely the discriminator tells real from generated.

    The measure is the mean sign of (real logit - generated logit) over pairs of one condition: 0 where it cannot tell them apart, and
    1 where it always can, which means that it knows the training set by heart. Source: Karras et al. 2020, r_t, in its relativistic
    form. Signs are summed as whole numbers, so that any number of workers and any resume comes to the same share.

    Attributes:
        probability: the share now.
        preference: the measure at the last change; 0 before the first.
    """

    def __init__(self, settings: AugmentConfig) -> None:
        self.settings = settings
        self.probability = settings.probability
        self.preference = 0.0
        self._signs: Tensor | None = None
        self._pairs = 0

    def observe_logit_gap(self, ahead: Tensor) -> None:
        """`[B]` real minus generated logits of some pairs; no host sync."""
        if self.settings.target is not None:
            signs = ahead.sign().sum()
            self._signs = signs if self._signs is None else self._signs + signs
            self._pairs += len(ahead)

    def adapt(self, steps: int, images: int, group: Any) -> None:
        """After step number `steps` of `images` images each, on all workers together: change the share when it is time."""
        if self.settings.target is None or steps % ADAPT_EVERY_STEPS:
            return
        signs, pairs = self._sums(group)
        self._signs, self._pairs = None, 0
        self.preference = signs / max(pairs, 1)
        step = ADAPT_EVERY_STEPS * images / self.settings.ramp
        higher = self.probability + (step if self.preference > self.settings.target else -step)
        self.probability = min(max(higher, 0.0), MAX_ADAPTED_PROBABILITY)

    def _sums(self, group: Any) -> list[int]:
        sums = torch.tensor([0 if self._signs is None else int(self._signs.item()), self._pairs])
        dist.all_reduce(sums, group=group)
        return [int(value) for value in sums]

    def state(self, group: Any) -> dict[str, float]:
        """What a checkpoint keeps; collective."""
        signs, pairs = self._sums(group)
        return {"probability": self.probability, "signs": signs, "pairs": pairs}

    def load(self, state: dict[str, float], first: bool) -> None:
        """Take back what `state` gave; the first worker goes on with the sums of all. A fixed share is the configuration's."""
        if self.settings.target is not None:
            self.probability = state["probability"]
            self._signs, self._pairs = (
                (torch.tensor(float(state["signs"])), int(state["pairs"])) if first else (None, 0)
            )


class Warp:
    """The affine maps of one micro-batch.

    Args:
        settings: largest shift, rotation and change of size.
        probability: share of the samples that is changed.
        size: height and width of the images; a rotation turns their pixels, so the map between shares of the sides depends on it.
        position: `[B]` positions, on the CPU.
        purpose: names the draw, so that real and generated samples are changed independently.
        which: the draw that decides which samples are changed.
        device: of the tensors that will be warped.
    """

    def __init__(
        self,
        settings: AugmentConfig,
        probability: float,
        seed: int,
        size: tuple[int, int],
        position: Tensor,
        purpose: str,
        which: str,
        device: torch.device,
    ) -> None:
        self.changed = is_augmented(probability, seed, which, position)
        rows = self.changed.nonzero().flatten()
        draw = 2 * counter_rng.uniform(seed, f"warp {purpose}", position[rows], 4) - 1
        angle, scale, tall = (
            draw[:, 0] * math.radians(settings.rotate),
            1 + draw[:, 1] * settings.scale,
            size[0] / size[1],
        )
        shift = 2 * settings.shift * draw[:, 2:]
        cos, sin = scale * angle.cos(), scale * angle.sin()
        theta = torch.stack(
            [torch.stack([cos, -sin * tall, shift[:, 0]], 1), torch.stack([sin / tall, cos, shift[:, 1]], 1)], 1
        )
        self.rows = rows.to(device)
        self.theta = theta.to(device)

    def __call__(self, x: Tensor, mode: str = "bilinear") -> Tensor:
        """`[B,C,H,W]` -> the same with its changed samples warped; beyond the border the border goes on."""
        if not len(self.rows):
            return x
        part = x[self.rows]
        with autocast(x.device, enabled=False):
            grid = F.affine_grid(self.theta, list(part.shape), align_corners=False)
            warped = F.grid_sample(part.float(), grid, mode=mode, padding_mode="border", align_corners=False)
        return x.index_copy(0, self.rows, warped.to(x.dtype))

    def mask(self, mask: Tensor) -> Tensor:
        """`[B,H,W]` class numbers -> the same, warped to the nearest pixel."""
        return self(mask[:, None].float(), mode="nearest")[:, 0].to(mask.dtype)

    def canvas(self, canvas: Canvas) -> Canvas:
        """Image, mask and box maps warped alike."""
        return canvas.map_generated(lambda x, name: self(x))


def sample_warp(
    config: Config, probability: float, position: Tensor, purpose: str, kind: str, device: torch.device
) -> Warp:
    """The maps of samples of a kind ("real", "fake") in the step of `purpose`; which real ones are changed is the same in both steps.

    Args:
        position: `[B]` positions, on the CPU.
    """
    which = kind if kind == "real" else f"{purpose} {kind}"
    return Warp(config.augment, probability, config.seed, config.size, position, f"{purpose} {kind}", which, device)
