"""A batch of random samples in memory, for counting and timing steps without a data set."""

import torch
from torch import Tensor

from mtgen.config import Config
from mtgen.schema import Batch, DatasetCard


def synthetic_batch(config: Config, card: DatasetCard, size: int, device: torch.device | str) -> Batch:
    """A micro-batch, which is also the global batch, of samples with all labels.

    On the meta device it has shapes and no values.
    """
    position, (height, width) = torch.arange(size), config.size
    sound = config.data.sound
    channels = 1 if config.data.channels == "gray" else 3

    def numbers(most: int, *sides: int) -> Tensor:
        return torch.randint(0, max(most, 1), (size, *sides), device=device)

    corner = torch.rand(size, config.data.max_boxes, 2, device=device) * 0.7
    kind = numbers(len(card.classes), config.data.max_boxes, 1).float()
    return Batch(
        position=position,
        image=torch.rand(size, channels, height, width, device=device) * 2 - 1,
        label=numbers(len(card.classes)),
        mask=numbers(len(card.mask_classes), height, width),
        present={name: torch.ones(size, dtype=torch.bool, device=device) for name in config.components},
        step_position=position,
        step_present={name: torch.ones(size, dtype=torch.bool) for name in config.components},
        boxes=torch.cat([corner, corner + 0.25, kind], dim=2),
        labels=numbers(2, len(card.classes)).bool(),
        caption=numbers(100, config.caption_tokens),
        sound=torch.rand(size, sound.mels, sound.frames, device=device),
        domain=numbers(max(len(card.domains), 1)),
    )
