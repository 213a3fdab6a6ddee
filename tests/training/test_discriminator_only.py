"""Without the generation task a run trains only the discriminator module: supervised learning and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy
from torch import Tensor
from torch.nn import functional as F

from mtgen.config import Config
from mtgen.schema import Canvas
from mtgen.training.step import frozen


def supervised_config(**changes: Any) -> Config:
    return toy.config(tasks={"classification": {"implied": 0}, "segmentation": {}}, augment__probability=0.0, **changes)


def trained(stages: list[int], number: int) -> list[dict[str, Tensor]]:
    """Parameters after `number` discriminator steps of a DeepSpeed engine, in each ZeRO stage."""
    results = []
    for stage in stages:
        deep = toy.Deep(supervised_config(zero_stage=stage))
        for k in range(number):
            with frozen(deep.networks.generator):
                deep.engines["discriminator"].train(toy.batch(16 * k, 16), (deep.networks.generator,))
        results.append(toy.parameters(deep.networks))
    return results


def supervised(number: int) -> dict[str, Tensor]:
    """The same in plain torch: trunk, heads, two cross-entropies, Adam."""
    settings = supervised_config()
    networks, _, _ = toy.steps(settings)
    discriminator = networks.side.discriminator
    optimizer = torch.optim.Adam(
        networks.side.parameters(), settings.discriminator.learning_rate, (0.0, settings.train.beta2), foreach=False
    )
    for k in range(number):
        batch = toy.batch(16 * k, 16)
        features = discriminator.trunk(Canvas(batch.image))
        classes = discriminator.heads["classification"](discriminator.summary(features))
        predicted = {"classification": classes.detach().log_softmax(1).clamp_min(-4) + 2}
        masks = discriminator.heads["segmentation"](discriminator.dense(features), predicted)
        known = batch.present["class"]
        loss = 0.3 * F.cross_entropy(classes[known], batch.label[known])
        pixels = F.cross_entropy(masks, batch.mask, reduction="none", ignore_index=255).mean((1, 2))
        loss = loss + 0.3 * pixels[batch.present["mask"]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return toy.parameters(networks)


def test_a_run_without_generation_is_supervised_training_in_every_zero_stage(tmp_path: Path) -> None:
    wanted, start = supervised(3), toy.parameters(toy.steps(supervised_config())[0])
    (results,) = toy.spawn(1, trained, tmp_path, [0, 1, 2], 3)
    for result in results:
        for name, parameter in result.items():
            assert torch.allclose(parameter, wanted[name], atol=2e-6), name
            if name.startswith("generator."):
                assert torch.equal(parameter, start[name]), name


def test_every_real_image_is_seen_and_none_is_generated() -> None:
    networks, d_step, _ = toy.steps(supervised_config())
    seen: list[int] = []
    networks.side.discriminator.see_image.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    networks.generator.register_forward_hook(lambda *_: pytest.fail("the generator was called"))
    with frozen(networks.generator):
        _, log = d_step(toy.batch(0, 16), (networks.generator,))
    assert seen == [16]
    assert set(log) == {"classification_cross_entropy", "segmentation_cross_entropy"}
