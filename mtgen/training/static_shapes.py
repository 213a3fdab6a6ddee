"""The same numbers of rows in every step (`train.static_shapes`), for compilers, CUDA graphs and cuDNN's plans.

How many samples have a role differs from step to step: the unaugmented ones, the translated pairs, the penalized ones.
Each role is padded to the most samples that can have it, by repeating one of its samples with a weight of 0. The padded
rows go through the networks and their gradients are 0.
"""

import torch
from torch import Tensor, nn

from mtgen.config import Config


def capacities(config: Config, rows: int) -> dict[str, int]:
    """Role -> the most of `rows` consecutive samples that can have it."""
    if not config.generates:
        return {"plain": rows, "pairs": 0, "penalized": 0}
    block, penalty = config.tasks["generation"].joint_every, config.tasks["generation"].penalty_every
    translation = config.tasks["translation"].every if "translation" in config.task_settings() else 0
    return {
        "plain": rows,
        "pairs": _most(rows, 2 * block, 2 * -(-block // translation)) if translation else 0,
        "penalized": rows // penalty if rows % (block * penalty) == 0 else _most(rows, block, -(-block // penalty)),
    }


def _most(rows: int, period: int, each: int) -> int:
    """The most of `rows` consecutive samples, if at most `each` of every `period` aligned ones have a role."""
    periods = rows // period if rows % period == 0 else rows // period + 2
    return min(rows, periods * each)


def pad_role(index: Tensor, size: int, filler: int | None = None) -> tuple[Tensor, Tensor]:
    """`[n]` rows of a role -> `[size]` rows and `[size]` weights, 1 for rows of the role and 0 for padded ones.

    Args:
        filler: row to pad with where no row has the role; `None`: the role then stays empty.
    """
    if len(index):
        filler = int(index[0])
    size = len(index) if filler is None else max(size, len(index))
    padded = torch.full((size,), 0 if filler is None else filler, dtype=index.dtype)
    padded[: len(index)] = index
    return padded, (torch.arange(size) < len(index)).to(torch.float32)


def pad_decoder(decoder: nn.Module, rows: int) -> None:
    """Let a decoder pad features of fewer than `rows` rows with zeros, and cut its output.

    The image-only rows, which it decodes, are fewer in steps in which more samples are judged with their labels.
    """
    forward = decoder.forward

    def padded(features: list[Tensor]) -> Tensor:
        given = len(features[0])
        if given >= rows:
            return forward(features)
        return forward([_with_zeros(level, rows) for level in features])[:given]

    decoder.forward = padded  # its parameters keep their names in checkpoints


def _with_zeros(x: Tensor, rows: int) -> Tensor:
    zeros = x.new_zeros(rows - len(x), *x.shape[1:])
    return torch.cat([x, zeros]).contiguous(memory_format=torch.channels_last)
