"""The teacher of self-training: the averaged discriminator, which predicts labels where samples have none.

Source: Tarvainen and Valpola 2017 (mean teacher), with the sure predictions as labels (Lee 2013; Sohn et al. 2020).
"""

import torch
from torch import Tensor

from mtgen.config import Config
from mtgen.models.ema import EMA
from mtgen.models.model import Networks, Predictor
from mtgen.tasks.base import PseudoLabels
from mtgen.training.augment import Warp

START = 0.15
"""Fraction of the run after which predictions are good enough to teach."""


class Teacher:
    """Predicts with the averaged weights, without a copy of the network.

    Args:
        config: of the run.
        networks: whose discriminator predicts.
        average: its averaged weights.
    """

    def __init__(self, config: Config, networks: Networks, average: EMA) -> None:
        self.start = START * config.train.images
        self.predictor = Predictor(networks.side.discriminator, networks.tasks)
        prefix = "side."
        self.weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in zip(average.names, average.average, strict=True)
            if name.startswith(f"{prefix}discriminator.")
        }

    @torch.no_grad()
    def __call__(self, image: Tensor, warp: Warp, images: int) -> PseudoLabels | None:
        """Predict the labels of images before augmentation; `None` early in the run.

        Args:
            image: `[B,C,H,W]` in [-1, 1].
            warp: the augmentation of the images as the student sees them; masks are warped alike.
            images: seen so far.
        """
        if images < self.start:
            return None
        prediction = torch.func.functional_call(self.predictor, self.weights, (image,))
        class_logits, mask_logits = prediction.class_logits, prediction.mask_logits
        return PseudoLabels(
            None if class_logits is None else class_logits.softmax(1),
            None if mask_logits is None else warp(mask_logits.softmax(1)),
            prediction.boxes,
        )
